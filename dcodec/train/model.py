"""Which float network is trained? The one that `dcodec.prior.network` computes in integers, a function of named weights.

Two architectures, told apart by the names of their weights. `unet` has two residual blocks of their own at each place.
`cunet` is the continuous U-Net (Calvo-Ordonez et al. 2024, arXiv 2310.20092): there stands one neural ODE of second order

    x'' = f(x, t),   x'(0) = v(x),        f = g * b(relu(a(relu(x)) + e + t))

solved in STEPS equal steps with the same weights: v <- v + f(x), x <- x + v (semi-implicit Euler; v counts what happens in a
step, so the step's length is part of the weights). A residual block is the same with one step, from rest.

Three widths make three resolutions, on grids of 4, 8, 16 pixels. A fourth stands before them on a grid of 2, with fewer blocks;
then the first two both read the picture and write to it, so that `finer` can put the one around a network trained without it.
`wider` gives a trained network more channels.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dcodec.prior import SIGMAS
from dcodec.prior.network import MULTIPLE, ending

State = dict[str, Tensor]

ARCHITECTURES = ("unet", "cunet")
WIDTHS, EMBEDDING = (96, 160, 224), 96  # channels of each resolution, numbers for the noise level
BLOCKS = 2  # residual blocks at each resolution, of a unet
FINEST = 2  # pixels of the finest grid there is ...
FINEST_BLOCKS = 1  # ... and residual blocks there: one costs as much as two on the next
STEPS = 2  # of a cunet's solver


def fresh(channels: int = 3, widths: Sequence[int] | None = None, arch: str = "unet", seed: int = 0) -> State:
    """Weights to start from: whatever moves x and the output begin at zero, so the network begins as the filter.

    channels: of the pictures; widths: channels at each resolution, finest first (WIDTHS); arch: one of ARCHITECTURES.
    """
    channels_of, rng = tuple(widths or WIDTHS), torch.Generator().manual_seed(seed)
    state: State = {}
    _layer(state, rng, "emb.0", EMBEDDING, (16,))
    _layer(state, rng, "emb.2", EMBEDDING, (EMBEDDING,))
    for i in range(len(channels_of)):
        _stage(state, rng, i, channels_of, channels, arch)
    return state


def finer(state: State, width: int, seed: int = 0) -> State:
    """The same function, with a stage of `width` channels on a grid half as wide around it, which adds nothing yet."""
    coarser = widths(state)
    if MULTIPLE >> len(coarser) != FINEST:
        raise ValueError(f"the network's finest grid is not {2 * FINEST} pixels wide")
    grown: State = {}
    for key, value in state.items():
        group, _, rest = key.partition(".")
        if group in ("inp", "out"):
            grown[f"{group}.1.{rest}"] = value
        elif group != "emb":
            i, _, rest = rest.partition(".")
            grown[f"{group}.{int(i) + 1}.{rest}"] = value
        else:
            grown[key] = value
    _stage(grown, torch.Generator().manual_seed(seed), 0, (width, *coarser), colours(state), architecture(state))
    grown["ds.0.weight"].zero_()
    return grown


def wider(state: State, widths: Sequence[int], seed: int = 0) -> State:
    """The same function with `widths` channels, none of them fewer: new ones read at random, nothing reads them yet.

    So all of them learn from the first steps on. Net2Net (Chen et al. 2016, arXiv 1511.05641) copies channels instead.
    """
    grown = fresh(colours(state), widths, architecture(state), seed)
    for key, old in state.items():
        new, (layer, _, part) = grown[key], key.rpartition(".")
        if part == "g":
            new.fill_(old.abs().mean())
        elif part == "weight" and (layer.startswith(("inp", "ds", "us")) or layer.endswith(".a")):
            new *= old.square().mean().sqrt() / new.square().mean().sqrt()
            if layer.startswith("us"):  # (in, out, 2, 2)
                new[len(old) :, : old.shape[1]] = 0.0
            else:
                new[: len(old), old.shape[1] :] = 0.0
        else:
            new.zero_()
        new[tuple(slice(n) for n in old.shape)] = old
    return grown


def _stage(state: State, rng: torch.Generator, i: int, widths: Sequence[int], channels: int, arch: str) -> None:
    """Add the weights of resolution i."""
    c, patch = widths[i], MULTIPLE >> (len(widths) - 1 - i)
    if patch <= 2 * FINEST:
        _layer(state, rng, ending("inp", i), c, (2 * channels * patch * patch, 3, 3))
        _layer(state, rng, ending("out", i), channels * patch * patch, (c, 3, 3), 0.0)
    count = 1 if arch == "cunet" else FINEST_BLOCKS if patch == FINEST else BLOCKS
    for way in ("down", "up") if i + 1 < len(widths) else ("down",):
        for j in range(count):
            _layer(state, rng, f"{way}.{i}.{j}.a", c, (c, 3, 3))
            _layer(state, rng, f"{way}.{i}.{j}.b", c, (c, 3, 3))
            _layer(state, rng, f"{way}.{i}.{j}.e", c, (EMBEDDING,), 0.0)
            state[f"{way}.{i}.{j}.g"] = torch.zeros(1, c, 1, 1)
            if arch == "cunet":
                _layer(state, rng, f"{way}.{i}.{j}.v", c, (c, 1, 1), 0.0)
                state[f"{way}.{i}.{j}.t"] = torch.zeros(STEPS, c)
    if i + 1 < len(widths):
        _layer(state, rng, f"ds.{i}", widths[i + 1], (c, 2, 2))
        _layer(state, rng, f"us.{i}", widths[i + 1], (c, 2, 2))
        state[f"us.{i}.bias"] = torch.zeros(c)  # a transposed convolution: weights (in, out, 2, 2)


def _layer(state: State, rng: torch.Generator, name: str, out: int, fan: tuple[int, ...], gain: float = 1.0) -> None:
    state[f"{name}.weight"] = torch.randn(out, *fan, generator=rng) * gain * math.sqrt(2 / math.prod(fan))
    state[f"{name}.bias"] = torch.zeros(out)


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


def body(state: State, inp: Tensor, levels: Tensor, watch: Callable[[int, Tensor], None] = lambda stage, x: None) -> Tensor:
    """The network: inp (B, 2 C, h, w), levels (B,) -> (B, C, h, w). watch: sees what blocks read of a stage's stream."""
    e = embed_levels(state)[levels]  # (B, E)
    coarsest = halvings(state)
    finest = MULTIPLE >> coarsest
    x, skips = torch.zeros(()), []
    for i in range(coarsest + 1):
        if reads(state, i):
            seen = affine(state, ending("inp", i), F.pixel_unshuffle(inp, finest << i), padding=1)
            x = x + seen if i else seen
        for name in blocks(state, f"down.{i}"):
            watch(i, x)
            x = _block(state, name, x, e)
        if i < coarsest:
            skips.append(x)
            x = affine(state, f"ds.{i}", x, stride=2)
    y = torch.zeros(())
    for i in reversed(range(coarsest + 1)):
        if i < coarsest:
            x = F.conv_transpose2d(x, state[f"us.{i}.weight"], state[f"us.{i}.bias"], 2) + skips.pop()
        for name in blocks(state, f"up.{i}"):
            watch(i, x)
            x = _block(state, name, x, e)
        if reads(state, i):
            y = y + F.pixel_shuffle(affine(state, ending("out", i), x.relu(), padding=1), finest << i)
    return y


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
    return added + state[f"{name}.t"][step].to(added.dtype) if flows(state, name) else added


def push(state: State, name: str, hidden: Tensor) -> Tensor:
    """g * b(hidden): (N, C, h, w) -> (N, C, h, w)."""
    gain = state[f"{name}.g"].view(-1, 1, 1, 1)
    return conv(hidden, state[f"{name}.b.weight"] * gain, state[f"{name}.b.bias"] * gain.flatten(), padding=1)


def affine(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """The convolution `name` with its bias: (N, I, h, w) -> (N, O, h', w')."""
    return conv(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """x (N, I, h, w), weight (O, I, k, k), bias (O,) -> (N, O, h', w')."""
    return F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), bias, stride, padding)


def widths(state: State) -> list[int]:
    """Channels at each resolution, finest first."""
    return [state[f"down.{i}.0.g"].numel() for i in range(halvings(state) + 1)]


def colours(state: State) -> int:
    """Channels of the pictures that it denoises."""
    return len(state["out.bias"]) // (MULTIPLE >> halvings(state)) ** 2


def reads(state: State, stage: int) -> bool:
    """Whether the picture is read and written at this resolution, 0 the finest."""
    return f"{ending('inp', stage)}.weight" in state


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
