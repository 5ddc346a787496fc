"""Which network predicts what the Wiener filter leaves, and how does it give the same bits on every machine?

A U-Net of pre-activation residual blocks, x + b(relu(a(relu(x)))), on pictures folded into channels, 2x2 or 4x4 at the finest
stage; or, in their place, of neural ODEs of second order (`dcodec.train.model`). Coarser stages may read the picture too, and
write to it. With the noise level only the biases of the `a` layers change. Its convolutions are integer (`dcodec.exact.conv`);
between them runs a stream of float32 in which every update is one IEEE operation per element:

    picture -> 16-bit integers, as two bytes -> stream -> blocks -> down ... up -> + skip -> blocks -> picture

Batch size, threads, instruction set and device therefore change nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dcodec.exact.conv import Conv, to_u8
from dcodec.prior import SIGMAS

LEVELS = len(SIGMAS)
MULTIPLE = 16  # of heights and widths: the coarsest stage's grid
FINE_BITS = 7  # weights that read the picture are integers plus `fine` * 2^-FINE_BITS ...
WRITTEN_BITS = 5  # ... and those that write to it, as some layers have so many that sums of 7 bits reach 2^24


@dataclass(frozen=True, eq=False)
class Resample:
    """A layer between two resolutions, or for a velocity. Its input has a sign: read in units of 2^exponent, 128 above zero."""

    conv: Conv  # the bias takes the 128 off again
    exponent: int

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, I, h, w) float32 -> (B, O, h', w') float32."""
        return self.conv.raw(to_u8(x, self.exponent, math.ldexp(128.0, self.exponent)))

    def to(self, device: torch.device) -> "Resample":
        """The same layer on `device`."""
        return Resample(self.conv.to(device), self.exponent)


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block: one step from rest; or the steps of an ODE that begins with a velocity.

    Its input is read in units of 2^exponent.
    """

    a: Conv  # biases (steps LEVELS, C): the network's only knowledge of the noise level
    b: Conv  # biases (steps, C)
    exponent: int
    velocity: Resample | None = None

    def add_to(self, x: Tensor, level: int) -> Tensor:
        """v <- v + b(relu(a(relu(x)))), x <- x + v at each step, in place: x (B, C, h, w) float32."""
        v = self.velocity(x) if self.velocity else None
        for step in range(len(self.b.bias)):
            push = self.b.raw(self.a.relu(to_u8(x, self.exponent), step * LEVELS + level), step)
            v = push if v is None else v.add_(push)
            x.add_(v)
        return x

    def to(self, device: torch.device) -> "Block":
        """The same block on `device`."""
        velocity = self.velocity.to(device) if self.velocity else None
        return Block(self.a.to(device), self.b.to(device), self.exponent, velocity)


@dataclass(frozen=True, eq=False)
class Read:
    """How a stage reads the picture: a convolution of what is folded into channels, 16-bit integers in units of 2^exponent."""

    high: Conv  # on the high bytes ...
    fine: Conv  # ... on the high bytes again, what the 8-bit weights have left: most of the error is made here
    low: Conv  # ... and on the low bytes
    exponent: int

    def __call__(self, inp: Tensor, patch: int) -> Tensor:
        """inp (B, 2 C, h, w) float32 -> (B, O, h/patch, w/patch) float32."""
        high, low = _fold(inp, self.exponent, patch)
        return self.high.raw(high).add_(self.fine.raw(high)).add_(self.low.raw(low))

    def to(self, device: torch.device) -> "Read":
        """The same layer on `device`."""
        return Read(self.high.to(device), self.fine.to(device), self.low.to(device), self.exponent)


@dataclass(frozen=True, eq=False)
class Write:
    """How a stage writes to the picture: its input is read in units of 2^exponent."""

    conv: Conv
    fine: Conv | None  # on the same input, what the 8-bit weights have left, as in Read; files before 2026-11-30 have none
    exponent: int
    gain: Tensor  # (1, C patch^2, 1, 1) float32: the real value of one unit of the sum

    def __call__(self, x: Tensor, patch: int) -> Tensor:
        """x (B, I, h, w) float32 -> (B, C, patch h, patch w) float32."""
        u = to_u8(x, self.exponent)
        y = self.conv.raw(u)
        y = y.add_(self.fine.raw(u)) if self.fine else y
        return F.pixel_shuffle(y.mul_(self.gain), patch)

    def to(self, device: torch.device) -> "Write":
        """The same layer on `device`."""
        return Write(self.conv.to(device), self.fine and self.fine.to(device), self.exponent, self.gain.to(device))


@dataclass(frozen=True, eq=False)
class Stage:
    """What happens at one resolution, on the way down and on the way up; the coarsest has no second part."""

    read: Read | None
    down: tuple[Block, ...]
    narrow: Resample | None = None  # to the next coarser resolution
    widen: Resample | None = None  # back: 2x2 pixels of this one as channels (dy, dx, c)
    up: tuple[Block, ...] = ()
    write: Write | None = None

    def to(self, device: torch.device) -> "Stage":
        """The same layers on `device`."""
        return Stage(
            self.read and self.read.to(device),
            tuple(block.to(device) for block in self.down),
            self.narrow and self.narrow.to(device),
            self.widen and self.widen.to(device),
            tuple(block.to(device) for block in self.up),
            self.write and self.write.to(device),
        )


@dataclass(frozen=True, eq=False)
class Body:
    """The integer network; `Body.load` makes one from the tensors that `dcodec.train.quantize` writes."""

    stages: tuple[Stage, ...]  # finest resolution first

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> "Body":
        """Build from named tensors. Raises KeyError if one is missing, ValueError if they do not make a network."""
        try:
            body = cls._build(tensors)
            body(torch.zeros(1, 2 * body.channels, MULTIPLE, MULTIPLE), LEVELS - 1)
        except (IndexError, RuntimeError) as error:
            raise ValueError(f"the layers do not fit together: {error}") from error
        return body.to(device)

    @classmethod
    def _build(cls, tensors: Mapping[str, Tensor]) -> "Body":
        def exponent(name: str) -> int:
            return int(tensors[f"{name}.exponent"].item())

        def conv(name: str, stride: int = 1, padding: int = 0) -> Conv:
            weight, bias, shift = (tensors[f"{name}.{part}"] for part in ("weight", "bias", "shift"))
            return Conv(weight, bias, shift, stride, padding)

        def resample(name: str, stride: int) -> Resample:
            return Resample(_uncentred(conv(name, stride)), exponent(name))

        def widen(name: str) -> Resample:
            layer = resample(name, 1)
            return replace(layer, conv=_pixels_first(layer.conv))

        def blocks(name: str) -> tuple[Block, ...]:
            return tuple(block(f"{name}.{i}") for i in range(_count(tensors, name)))

        def block(name: str) -> Block:
            velocity = resample(f"{name}.v", 1) if f"{name}.v.weight" in tensors else None
            return Block(conv(f"{name}.a", 1, 1), conv(f"{name}.b", 1, 1), exponent(name), velocity)

        def read(name: str) -> Read:
            low = conv(name)
            high = _uncentred(replace(low, bias=torch.zeros_like(low.bias), shift=low.shift - 8))
            return Read(high, _uncentred(finer(name, high, FINE_BITS)), low, exponent(name))

        def write(name: str) -> Write:
            gain, layer = tensors[f"{name}.gain"].to(torch.float32).view(1, -1, 1, 1), conv(name, 1, 1)
            fine = finer(name, layer, WRITTEN_BITS) if f"{name}.fine" in tensors else None
            return Write(layer, fine, exponent(name), gain)

        def finer(name: str, layer: Conv, bits: int) -> Conv:
            bias = torch.zeros_like(layer.bias)
            return replace(layer, weight=tensors[f"{name}.fine"], bias=bias, shift=layer.shift + bits)

        def stage(i: int) -> Stage:
            both = i == 0 or f"{ending('inp', i)}.weight" in tensors
            first, last = (read(ending("inp", i)), write(ending("out", i))) if both else (None, None)
            if i == halvings:
                return Stage(first, blocks(f"down.{i}"), write=last)
            narrow, wide = resample(f"narrow.{i}", 2), widen(f"widen.{i}")
            return Stage(first, blocks(f"down.{i}"), narrow, wide, blocks(f"up.{i}"), last)

        halvings = _count(tensors, "narrow")
        if halvings not in (2, 3):
            raise ValueError(f"the network has {halvings + 1} resolutions, not 3 or 4")
        return cls(tuple(stage(i) for i in range(halvings + 1)))

    def to(self, device: torch.device | str) -> "Body":
        """The same network on `device`."""
        return Body(tuple(stage.to(torch.device(device)) for stage in self.stages))

    @property
    def patch(self) -> int:
        """Pictures are folded patch x patch at the finest stage, so that the coarsest has a grid of MULTIPLE."""
        return MULTIPLE >> (len(self.stages) - 1)

    @property
    def channels(self) -> int:
        """Of the pictures, C: 3, or 1 for a network of gray ones."""
        first = self.stages[0].write
        assert first is not None
        return first.gain.shape[1] // self.patch**2

    @torch.no_grad()
    def __call__(self, inp: Tensor, level: int) -> Tensor:
        """What the Wiener filter leaves, in units of its error, at sigma = SIGMAS[level].

        inp: (B, 2 C, h, w) float32, finite, the noisy residual and the Wiener estimate, h and w multiples of 16
        -> (B, C, h, w) float32. Memory grows with the batch: the caller splits it as suits. Raises ValueError for other
        shapes, dtypes or levels.
        """
        if inp.dtype != torch.float32 or inp.ndim != 4 or inp.shape[1] != 2 * self.channels:
            raise ValueError(f"expected float32 (B, {2 * self.channels}, h, w), not {inp.dtype} {tuple(inp.shape)}")
        if inp.shape[2] % MULTIPLE or inp.shape[3] % MULTIPLE:
            raise ValueError(f"height and width must be multiples of {MULTIPLE}, not {tuple(inp.shape[2:])}")
        if not 0 <= level < LEVELS:
            raise ValueError(f"level must be 0, ..., {LEVELS - 1}, not {level}")
        x, skips = torch.zeros(()), []
        for i, stage in enumerate(self.stages):
            if stage.read:
                seen = stage.read(inp, self.patch << i)  # (B, C_i, h / patch / 2^i, w / patch / 2^i)
                x = x.add_(seen) if i else seen
            for block in stage.down:
                block.add_to(x, level)
            skips.append(x)
            x = stage.narrow(x) if stage.narrow else x
        y = None
        for i, stage in reversed(tuple(enumerate(self.stages))):
            if stage.widen:
                x = _add_pixels(skips[i], stage.widen(x))
            for block in stage.up:
                block.add_to(x, level)
            if stage.write:
                written = stage.write(x, self.patch << i)  # (B, C, h, w)
                y = written if y is None else y.add_(written)
        assert y is not None
        return y


def ending(name: str, stage: int) -> str:
    """What the layer `name`, inp or out, is called at a stage: the finest needs no number."""
    return f"{name}.{stage}" if stage else name


def _fold(inp: Tensor, exponent: int, patch: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, c, h, w) as 16-bit integers in units of 2^exponent, inside a border of zeros, folded patch x patch.

    Returns uint8 `high` and `low` (B, c patch^2, h/patch + 2, w/patch + 2): the integer is 256 (high - 128) + low.
    """
    x = F.pad(inp, (patch,) * 4).mul_(math.ldexp(1.0, -exponent)).round_().clamp_(-(2**15), 2**15 - 1)
    # Neighbours in a row travel as one word, which makes the transposition five times faster.
    word = torch.int32 if patch == 2 else torch.int64
    pieces = patch * 2 // word.itemsize  # words in a row of a patch
    words = x.to(torch.int16).contiguous().view(word)  # (B, c, h + 2 patch, pieces (w/patch + 2))
    b, c, h, w = words.shape
    words = words.view(b, c, h // patch, patch, w // pieces, pieces).permute(0, 2, 4, 1, 3, 5)
    words = words.reshape(b, h // patch, w // pieces, c * patch * pieces)
    folded = words.view(torch.int16).permute(0, 3, 1, 2)  # (B, c patch^2, h/patch + 2, w/patch + 2)
    return (folded >> 8).add_(128).to(torch.uint8), (folded & 255).to(torch.uint8)


def _add_pixels(x: Tensor, folded: Tensor) -> Tensor:
    """x (B, C, 2h, 2w) plus the 2x2 pixels that `folded` (B, 4C, h, w) has as channels (dy, dx, c); in place, if it can."""
    x, folded = (a.permute(0, 2, 3, 1).contiguous() for a in (x, folded))
    b, h, w, c = folded.shape
    x.view(b, h, 2, w, c // 2).add_(folded.view(b, h, w, 2, c // 2).transpose(2, 3))  # runs of 2C numbers
    return x.permute(0, 3, 1, 2)


def _pixels_first(conv: Conv) -> Conv:
    """The layer whose file has its output channels as (c, dy, dx), with them as (dy, dx, c)."""
    order = torch.arange(len(conv.weight)).view(-1, 4).T.flatten()
    return replace(conv, weight=conv.weight[order], bias=conv.bias[:, order], shift=conv.shift[order])


def _uncentred(conv: Conv) -> Conv:
    """The layer for an input that is stored 128 too high."""
    return replace(conv, bias=conv.bias - 128 * conv.weight.sum((1, 2, 3), dtype=torch.int32))


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    """How many numbered parts has `name`?"""
    return len({key[len(name) + 1 :].split(".")[0] for key in tensors if key.startswith(f"{name}.")})
