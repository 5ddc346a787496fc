"""How do weights learn? Convolutions by orthogonalized momentum, all else by Adam.

Muon (Jordan et al. 2024) on the matrices (out, in * k * k), its steps as large as Adam's usual ones (Liu et al. 2025,
arXiv 2502.16982, equation 4), so that one rate does for both once the network is grown; a new one takes larger steps.
torch's own Muon orthogonalizes in bfloat16 alone, which takes most processors longer than all else. Measured in bench/NOTES.md.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dcodec.train.model import State

BETAS = (0.9, 0.99)  # of Adam
MOMENTUM = 0.95  # of Muon
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of x <- a x + b (x x') x + c (x x')^2 x (Jordan et al. 2024)
ITERATIONS = 5
LIKE_ADAM = 0.2  # root mean square of Adam's steps, in rates
LARGEST = 1.0  # norm of a gradient
YOUNG, GROWN = 12.0, 24000  # times the rate for a new network's convolutions, falling to 1 by about GROWN steps


class Learner:
    """Weights on a device that descend a loss, and the moments of their gradients."""

    def __init__(self, net: State, first: State, second: State, steps: int, device: str) -> None:
        """net: weights. first, second: moments that go on, none of Muon's second; empty: they begin anew. steps: taken."""
        self._steps = steps
        self._shapes = {k: v.shape for k, v in net.items()}
        matrices = [k for k, v in net.items() if v.ndim == 4 and k.endswith(".weight")]
        self._leaves = {k: (v.flatten(1) if k in matrices else v).detach().to(device, copy=True) for k, v in net.items()}
        for leaf in self._leaves.values():
            leaf.requires_grad_()
        self._matrices, self._momentum = matrices, dict[str, Tensor]()
        self._adam = torch.optim.Adam([v for k, v in self._leaves.items() if k not in matrices], betas=BETAS, fused=True)
        for k, leaf in self._leaves.items() if first else ():
            moment = first[k].view_as(leaf).to(device, copy=True)
            if k in matrices:
                self._momentum[k] = moment
            else:
                square = second[k].to(device, copy=True)
                self._adam.state[leaf] = {"step": torch.tensor(float(steps)), "exp_avg": moment, "exp_avg_sq": square}

    def net(self) -> State:
        """The weights in the network's shapes: views that gradients go through."""
        return {k: leaf.view(self._shapes[k]) for k, leaf in self._leaves.items()}

    def moments(self) -> tuple[State, State]:
        """The first and second ones, as a new Learner takes them."""
        first = {k: momentum.view(self._shapes[k]) for k, momentum in self._momentum.items()}
        second = {}
        for k, leaf in self._leaves.items():
            if found := self._adam.state.get(leaf):
                first[k], second[k] = found["exp_avg"], found["exp_avg_sq"]
        return first, second

    def step(self, error: Tensor, rate: float) -> None:
        """One step down the loss `error` of `net()`."""
        youth = max(1.0, GROWN / (self._steps + GROWN / YOUNG))
        for leaf in self._leaves.values():
            leaf.grad = None
        for group in self._adam.param_groups:
            group["lr"] = rate
        with _denormals_flushed():
            error.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(list(self._leaves.values()), LARGEST)
            self._adam.step()
            self._muon(rate * youth)
        self._steps += 1

    @torch.no_grad()
    def _muon(self, rate: float) -> None:
        for k in self._matrices:
            gradient = self._leaves[k].grad
            assert gradient is not None  # of a loss that all weights count for
            if k not in self._momentum:
                self._momentum[k] = torch.zeros_like(gradient)
            ahead = gradient.lerp(self._momentum[k].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)  # Nesterov's
            size = rate * LIKE_ADAM * math.sqrt(max(ahead.shape))
            self._leaves[k].add_(orthogonalized(ahead), alpha=-size)


def orthogonalized(x: Tensor) -> Tensor:
    """`x` (m, n) with its singular values brought near 1, to 0.7 .. 1.2, by Newton and Schulz's iteration.

    In terms of x x', as that is small: x = q x0, q a polynomial of it. Values below a thousandth of the norm stay small.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonalized(x.T).T
    a, b, c = NEWTON_SCHULZ
    x = x / x.norm().clamp(min=1e-7)
    square, q = x @ x.T, torch.eye(len(x), device=x.device)  # (m, m)
    for _ in range(ITERATIONS):
        p = torch.addmm(square, square, square, beta=b, alpha=c)
        p.diagonal().add_(a)
        q, square = p @ q, p @ (square @ p)  # all of them commute
    return q @ x


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Numbers below 2^-126 are zero: moments of weights that no longer learn fade into them, and slow a step by a tenth."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
