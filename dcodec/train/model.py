"""Which float network is trained? The one that `dcodec.prior.network` computes in integers, a function of named weights.

Two architectures, told apart by the names of their weights. `unet` has two residual blocks of their own at each place.
`cunet` is the continuous U-Net (Calvo-Ordonez et al. 2024, arXiv 2310.20092): there stands one neural ODE of second order

    x'' = f(x, t),   x'(0) = v(x),        f = g * b(relu(a(relu(x)) + e + t))

solved in STEPS equal steps with the same weights: v <- v + f(x), x <- x + v (semi-implicit Euler; v counts what happens in a
step, so the step's length is part of the weights). A residual block is the same with one step, from rest.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dcodec.prior import SIGMAS
from dcodec.prior.network import PATCH

State = dict[str, Tensor]

ARCHITECTURES = ("unet", "cunet")
WIDTHS, EMBEDDING = (96, 160, 224), 96  # channels of each resolution, numbers for the noise level
BLOCKS = 2  # residual blocks at each resolution, of a unet
STEPS = 2  # of a cunet's solver


def fresh(channels: int = 3, widths: Sequence[int] | None = None, arch: str = "unet", seed: int = 0) -> State:
    """Weights to start from: whatever moves x and the output begin at zero, so the network begins as the filter.

    channels: of the pictures; widths: channels at each resolution, finest first (WIDTHS); arch: one of ARCHITECTURES.
    """
    widths = widths or WIDTHS
    rng = torch.Generator().manual_seed(seed)
    state: State = {}

    def layer(name: str, out: int, fan: tuple[int, ...], gain: float = 1.0) -> None:
        state[f"{name}.weight"] = torch.randn(out, *fan, generator=rng) * gain * math.sqrt(2 / math.prod(fan))
        state[f"{name}.bias"] = torch.zeros(out)

    def blocks(group: str, c: int) -> None:
        for j in range(1 if arch == "cunet" else BLOCKS):
            layer(f"{group}.{j}.a", c, (c, 3, 3))
            layer(f"{group}.{j}.b", c, (c, 3, 3))
            layer(f"{group}.{j}.e", c, (EMBEDDING,), 0.0)
            state[f"{group}.{j}.g"] = torch.zeros(1, c, 1, 1)
            if arch == "cunet":
                layer(f"{group}.{j}.v", c, (c, 1, 1), 0.0)
                state[f"{group}.{j}.t"] = torch.zeros(STEPS, c)

    layer("emb.0", EMBEDDING, (16,))
    layer("emb.2", EMBEDDING, (EMBEDDING,))
    layer("inp", widths[0], (2 * channels * PATCH * PATCH, 3, 3))
    for i, c in enumerate(widths):
        blocks(f"down.{i}", c)
        if i + 1 < len(widths):
            layer(f"ds.{i}", widths[i + 1], (c, 2, 2))
            layer(f"us.{i}", widths[i + 1], (c, 2, 2))
            state[f"us.{i}.bias"] = torch.zeros(c)  # a transposed convolution: weights (in, out, 2, 2)
            blocks(f"up.{i}", c)
    layer("out", channels * PATCH * PATCH, (widths[0], 3, 3), 0.0)
    return state


def architecture(state: State) -> str:
    """Which of ARCHITECTURES has these weights."""
    return "cunet" if any(key.endswith(".t") for key in state) else "unet"


def embed_levels(state: State) -> Tensor:
    """The embedding of every noise level, (LEVELS, E)."""
    device = state["emb.0.weight"].device
    noise = torch.tensor([math.log(sigma) / 4 for sigma in SIGMAS], dtype=torch.float64, device=device)
    angles = noise[:, None] * torch.exp(torch.linspace(-1, 3, 8, dtype=torch.float64, device=device))
    e = torch.cat([angles.sin(), angles.cos()], 1)
    for layer in ("emb.0", "emb.2"):
        e = F.silu(F.linear(e, state[f"{layer}.weight"].double(), state[f"{layer}.bias"].double()))
    return e.float()


def body(state: State, inp: Tensor, levels: Tensor) -> Tensor:
    """The network: inp (B, 2 C, h, w), levels (B,) -> (B, C, h, w)."""
    e = embed_levels(state)[levels]  # (B, E)
    x = affine(state, "inp", F.pixel_unshuffle(inp, PATCH), padding=1)
    skips = []
    for i in range(halvings(state) + 1):
        for name in blocks(state, f"down.{i}"):
            x = _block(state, name, x, e)
        if i < halvings(state):
            skips.append(x)
            x = affine(state, f"ds.{i}", x, stride=2)
    for i in reversed(range(halvings(state))):
        x = F.conv_transpose2d(x, state[f"us.{i}.weight"], state[f"us.{i}.bias"], 2) + skips.pop()
        for name in blocks(state, f"up.{i}"):
            x = _block(state, name, x, e)
    return F.pixel_shuffle(affine(state, "out", x.relu(), padding=1), PATCH)


def _block(state: State, name: str, x: Tensor, e: Tensor) -> Tensor:
    v = affine(state, f"{name}.v", x) if flows(state, name) else None
    for step in range(steps(state, name)):
        f = push(state, name, hidden(state, name, x, e, step))
        v = f if v is None else v + f
        x = x + v
    return x


def hidden(state: State, name: str, x: Tensor, e: Tensor, step: int) -> Tensor:
    """relu(a(relu(x)) + e + t): x (N, C, h, w), e (N, E) -> (N, C, h, w)."""
    return (affine(state, f"{name}.a", x.relu(), padding=1) + times(state, name, e, step)[:, :, None, None]).relu()


def times(state: State, name: str, e: Tensor, step: int) -> Tensor:
    """What embeddings e (N, E) of the noise level and the solver's step add to the hidden layer: (N, C)."""
    added = F.linear(e, state[f"{name}.e.weight"], state[f"{name}.e.bias"])
    return added + state[f"{name}.t"][step] if flows(state, name) else added


def push(state: State, name: str, hidden: Tensor) -> Tensor:
    """g * b(hidden): (N, C, h, w) -> (N, C, h, w)."""
    return affine(state, f"{name}.b", hidden, padding=1) * state[f"{name}.g"]


def affine(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """The convolution `name` with its bias: (N, I, h, w) -> (N, O, h', w')."""
    return conv(x, state[f"{name}.weight"], stride, padding) + state[f"{name}.bias"].view(1, -1, 1, 1)


def conv(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """x (N, I, h, w), weight (O, I, k, k) -> (N, O, h', w')."""
    return F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), None, stride, padding)


def halvings(state: State) -> int:
    """How many resolutions lie below the finest."""
    return sum(key.startswith("ds.") and key.endswith(".weight") for key in state)


def blocks(state: State, group: str) -> Iterator[str]:
    """Names of the blocks of `group`, in order."""
    return (key.removesuffix(".g") for key in state if key.startswith(f"{group}.") and key.endswith(".g"))


def flows(state: State, name: str) -> bool:
    """Whether block `name` is an ODE."""
    return f"{name}.v.weight" in state


def steps(state: State, name: str) -> int:
    """How many steps block `name` takes with the same weights."""
    return len(state[f"{name}.t"]) if flows(state, name) else 1
