"""Which network predicts what the Wiener filter leaves, and how does it give the same bits on every machine?

A U-Net of pre-activation residual blocks, x + b(relu(a(relu(x)))), on pictures folded 4x4 into channels; or, in their place,
of neural ODEs of second order (`dcodec.train.model`). With the noise level only the biases of the `a` layers change. Its
convolutions are integer (`dcodec.exact.conv`); between them runs a stream of float32 in which every update is one IEEE
operation per element:

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
PATCH = 4  # pictures are folded PATCH x PATCH
MULTIPLE = 16  # of heights and widths: PATCH and two halvings
FINE_BITS = 7  # the first layer's weights are integers plus `fine` * 2^-FINE_BITS


@dataclass(frozen=True, eq=False)
class Resample:
    """A layer between two resolutions, or for a velocity. Its input has a sign: read in units of 2^exponent, 128 above zero."""

    conv: Conv  # the bias takes the 128 off again
    exponent: int

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, I, h, w) float32 -> (B, O, h', w') float32."""
        return self.conv.raw(to_u8(x + math.ldexp(128.0, self.exponent), self.exponent))

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
class Body:
    """The integer network; `Body.load` makes one from the tensors that `dcodec.train.quantize` writes."""

    high: Conv  # the first layer, on the high bytes of the input ...
    fine: Conv  # ... on the high bytes again, what the 8-bit weights have left: most of the error is made here
    low: Conv  # ... and on the low bytes
    input_exponent: int
    down: tuple[tuple[Block, ...], ...]  # finest resolution first
    narrow: tuple[Resample, ...]  # to the next coarser resolution
    widen: tuple[Resample, ...]  # back: 2x2 pixels of the finer one as channels (c, dy, dx)
    up: tuple[tuple[Block, ...], ...]
    out: Conv
    out_exponent: int
    gain: Tensor  # (1, C PATCH^2, 1, 1) float32: the real value of one unit of `out`

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

        def blocks(name: str) -> tuple[Block, ...]:
            return tuple(block(f"{name}.{i}") for i in range(_count(tensors, name)))

        def block(name: str) -> Block:
            velocity = resample(f"{name}.v", 1) if f"{name}.v.weight" in tensors else None
            return Block(conv(f"{name}.a", 1, 1), conv(f"{name}.b", 1, 1), exponent(name), velocity)

        low = conv("inp")
        high = _uncentred(replace(low, bias=torch.zeros_like(low.bias), shift=low.shift - 8))
        fine = replace(high, weight=tensors["inp.fine"], bias=torch.zeros_like(low.bias))
        halvings = range(_count(tensors, "narrow"))
        return cls(
            high=high,
            fine=_uncentred(replace(fine, shift=high.shift + FINE_BITS)),
            low=low,
            input_exponent=exponent("inp"),
            down=tuple(blocks(f"down.{i}") for i in range(len(halvings) + 1)),
            narrow=tuple(resample(f"narrow.{i}", 2) for i in halvings),
            widen=tuple(resample(f"widen.{i}", 1) for i in halvings),
            up=tuple(blocks(f"up.{i}") for i in halvings),
            out=conv("out", 1, 1),
            out_exponent=exponent("out"),
            gain=tensors["out.gain"].to(torch.float32).view(1, -1, 1, 1),
        )

    def to(self, device: torch.device | str) -> "Body":
        """The same network on `device`."""
        where = torch.device(device)
        return replace(
            self,
            high=self.high.to(where),
            fine=self.fine.to(where),
            low=self.low.to(where),
            down=tuple(tuple(block.to(where) for block in blocks) for blocks in self.down),
            narrow=tuple(layer.to(where) for layer in self.narrow),
            widen=tuple(layer.to(where) for layer in self.widen),
            up=tuple(tuple(block.to(where) for block in blocks) for blocks in self.up),
            out=self.out.to(where),
            gain=self.gain.to(where),
        )

    @property
    def channels(self) -> int:
        """Of the pictures, C: 3, or 1 for a network of gray ones."""
        return self.gain.shape[1] // PATCH**2

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
        high, low = _fold(inp, self.input_exponent)
        x = self.high.raw(high).add_(self.fine.raw(high)).add_(self.low.raw(low))  # (B, C0, h/4, w/4)
        skips = []
        for blocks, narrow in zip(self.down, self.narrow, strict=False):  # the last blocks have no narrow layer
            for block in blocks:
                block.add_to(x, level)
            skips.append(x)
            x = narrow(x)
        for block in self.down[-1]:
            block.add_to(x, level)
        for blocks, widen in zip(reversed(self.up), reversed(self.widen), strict=True):
            x = skips.pop().add_(F.pixel_shuffle(widen(x), 2))
            for block in blocks:
                block.add_to(x, level)
        y = self.out.raw(to_u8(x, self.out_exponent)).mul_(self.gain)  # (B, C PATCH^2, h/4, w/4)
        return F.pixel_shuffle(y, PATCH)


def _fold(inp: Tensor, exponent: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, c, h, w) as 16-bit integers in units of 2^exponent, inside a border of zeros, folded PATCH x PATCH.

    Returns uint8 `high` and `low` (B, c PATCH^2, h/4 + 2, w/4 + 2): the integer is 256 (high - 128) + low.
    """
    x = F.pad(inp, (PATCH,) * 4).mul_(math.ldexp(1.0, -exponent)).round_().clamp_(-(2**15), 2**15 - 1)
    # Four neighbours in a row travel as one 64-bit word, which makes the transposition five times faster.
    words = x.to(torch.int16).contiguous().view(torch.int64)  # (B, c, h + 8, w/4 + 2)
    b, c, h, w = words.shape
    words = words.view(b, c, h // PATCH, PATCH, w).permute(0, 2, 4, 1, 3).reshape(b, h // PATCH, w, c * PATCH)
    folded = words.view(torch.int16).permute(0, 3, 1, 2)  # (B, c PATCH^2, h/4 + 2, w/4 + 2)
    return (folded >> 8).add_(128).to(torch.uint8), (folded & 255).to(torch.uint8)


def _uncentred(conv: Conv) -> Conv:
    """The layer for an input that is stored 128 too high."""
    return replace(conv, bias=conv.bias - 128 * conv.weight.sum((1, 2, 3), dtype=torch.int32))


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    """How many numbered parts has `name`?"""
    return len({key[len(name) + 1 :].split(".")[0] for key in tensors if key.startswith(f"{name}.")})
