"""How do weights learn? Convolutions by orthogonalized momentum, all else by Adam.

Muon (Jordan et al. 2024) on the matrices (out, in * k * k), its steps as large as Adam's usual ones (Liu et al. 2025,
arXiv 2502.16982, equation 4), so that one rate does for both once the network is grown; a new one takes larger steps.
Measured in bench/NOTES.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dcodec.train.model import State

BETAS = (0.9, 0.99)  # of Adam
MOMENTUM = 0.95  # of Muon
LARGEST = 1.0  # norm of a gradient
YOUNG, GROWN = 12.0, 24000  # times the rate for a new network's convolutions, falling to 1 by about GROWN steps


class Learner:
    """Weights on a device that descend a loss, and the moments of their gradients."""

    def __init__(self, net: State, first: State, second: State, steps: int, device: str) -> None:
        """net: weights. first, second: moments that go on, none of Muon's second; empty: they begin anew. steps: taken."""
        self._steps = steps
        self._shapes = {k: v.shape for k, v in net.items()}
        matrices = {k for k, v in net.items() if v.ndim == 4 and k.endswith(".weight")}
        self._leaves = {k: (v.flatten(1) if k in matrices else v).detach().to(device, copy=True) for k, v in net.items()}
        for leaf in self._leaves.values():
            leaf.requires_grad_()
        rest = [v for k, v in self._leaves.items() if k not in matrices]
        self._adam = torch.optim.Adam(rest, betas=BETAS, fused=True)
        self._muon = torch.optim.Muon(
            [self._leaves[k] for k in self._leaves if k in matrices],
            weight_decay=0.0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        for k, leaf in self._leaves.items() if first else ():
            moment = first[k].view_as(leaf).to(device, copy=True)
            if k in matrices:
                self._muon.state[leaf] = {"momentum_buffer": moment}
            else:
                square = second[k].to(device, copy=True)
                self._adam.state[leaf] = {"step": torch.tensor(float(steps)), "exp_avg": moment, "exp_avg_sq": square}

    def net(self) -> State:
        """The weights in the network's shapes: views that gradients go through."""
        return {k: leaf.view(self._shapes[k]) for k, leaf in self._leaves.items()}

    def moments(self) -> tuple[State, State]:
        """The first and second ones, as a new Learner takes them."""
        first, second = {}, {}
        for k, leaf in self._leaves.items():
            if found := self._muon.state.get(leaf):
                first[k] = found["momentum_buffer"].view(self._shapes[k])
            elif found := self._adam.state.get(leaf):
                first[k], second[k] = found["exp_avg"], found["exp_avg_sq"]
        return first, second

    def step(self, error: Tensor, rate: float) -> None:
        """One step down the loss `error` of `net()`."""
        youth = max(1.0, GROWN / (self._steps + GROWN / YOUNG))
        optimizers: dict[torch.optim.Optimizer, float] = {self._adam: rate, self._muon: rate * youth}
        for optimizer, lr in optimizers.items():
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = lr
        with _denormals_flushed():
            error.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(list(self._leaves.values()), LARGEST)
            for optimizer in optimizers:
                optimizer.step()
        self._steps += 1


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Numbers below 2^-126 are zero: moments of weights that no longer learn fade into them, and slow a step by a tenth."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
