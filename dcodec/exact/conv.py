"""How is a convolution computed so that the result is the same integer on every machine?

A layer is defined by integers, not by an implementation (x unsigned 8 bit, w signed with |w| <= 64):

    acc   = sum(x * w) + bias                              |acc| < 2^24, and so is every partial sum
    relu  = clamp(round_half_even(acc * 2^-shift), 0, 255)  uint8: ReLU and requantization in one
    raw   = acc * 2^-shift                                  float32, exact: nothing is rounded

Integers below 2^24 are exact in float32, whatever the order of the sum, and a power of two rounds nothing. So int8
kernels, float32 convolutions and matrix products give the same bits, and speed alone decides between them, except
that some kernels are wrong: int8 ones without VNNI saturate for larger weights, and Winograd and FFT convolutions
round. Hence a kernel is used only after it has passed a self-test on this device, in this process.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_WEIGHT = 64  # 255 * 64 * 2 < 2^15: the pairwise 16-bit sums of int8 kernels without VNNI cannot saturate
EXACT = 2**24  # integers below this are exact in float32
KERNEL_VARIABLE = "DCODEC_KERNEL"
BLOCK = 2**16  # numbers read into 8 bits at once on a CPU: what its cache holds
ONES = 1.5 * 2.0**23  # float32 numbers from here on are one apart, and their last byte counts them
PACKED_SIZES = 16  # of inputs that a layer keeps its weights packed for: more than a walk has scales
WINDOW_NUMBERS = 2**25  # what `_unfold` holds at once, a row of results at least: 128 MiB


@dataclass(frozen=True, eq=False)
class Conv:
    """One integer convolution.

    weight: (O, I, k, k) int8, -64, ..., 64.
    bias:   (L, O) integer; row `level` is used, or row 0 if there is only one.
    shift:  (O,) integer, -64, ..., 64.
    Raises ValueError if a weight is too large or if 255 * sum|w| + |bias| can reach 2^24.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    stride: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        out, _, rows, columns = self.weight.shape
        if self.weight.dtype != torch.int8 or rows != columns:
            raise ValueError(f"weight must be int8 (O, I, k, k), not {self.weight.dtype} {tuple(self.weight.shape)}")
        if self.bias.ndim != 2 or self.bias.shape[1] != out or self.shift.shape != (out,):
            found = tuple(self.bias.shape), tuple(self.shift.shape)
            raise ValueError(f"bias must be (L, {out}) and shift ({out},), not {found[0]} and {found[1]}")
        if self.bias.is_floating_point() or self.shift.is_floating_point():
            raise ValueError("bias and shift must be integers")
        magnitude = self.weight.long().abs()  # long: abs(int8 -128) would wrap
        if int(magnitude.max()) > MAX_WEIGHT:
            raise ValueError(f"weights must be -{MAX_WEIGHT}, ..., {MAX_WEIGHT}; found {int(magnitude.max())}")
        if int(self.shift.abs().max()) > 64:
            raise ValueError("shifts must be -64, ..., 64")
        bound = int((255 * magnitude.sum((1, 2, 3)) + self.bias.long().abs()).max())
        if bound >= EXACT:
            raise ValueError(f"the sum can reach {bound}, but must stay below 2^24 to be exact in float32")

    def relu(self, x: Tensor, level: int = 0) -> Tensor:
        """x (B, I, h, w) uint8 -> clamp(round_half_even(acc * 2^-shift), 0, 255), (B, O, h', w') uint8."""
        return self._kernel(x.device)(self, x, self._offset(level), torch.uint8)

    def raw(self, x: Tensor, level: int = 0) -> Tensor:
        """x (B, I, h, w) uint8 -> acc * 2^-shift, (B, O, h', w') float32, exact."""
        return self._kernel(x.device)(self, x, self._offset(level), torch.float32)

    def to(self, device: torch.device) -> "Conv":
        """The same layer with its tensors on `device`."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device), shift=self.shift.to(device))

    @staticmethod
    def _kernel(device: torch.device) -> "Kernel":
        return KERNELS[choose(device, os.environ.get(KERNEL_VARIABLE))]

    def _offset(self, level: int) -> Tensor:
        return self._offsets[level if len(self._offsets) > 1 else 0]  # (O,)

    @functools.cached_property
    def _scale(self) -> Tensor:
        # not exp2: its last bit is the library's choice
        powers = [math.ldexp(1.0, -s) for s in self.shift.tolist()]
        return torch.tensor(powers, dtype=torch.float32, device=self.weight.device)  # (O,)

    @functools.cached_property
    def _offsets(self) -> Tensor:
        return self.bias.to(torch.float32) * self._scale  # (L, O), exact

    @functools.cached_property
    def _packed(self) -> Callable[[int, int], Tensor]:
        return functools.lru_cache(maxsize=PACKED_SIZES)(self._pack)

    def _pack(self, height: int, width: int) -> Tensor:
        # In the layout of the kernel that oneDNN takes for inputs of that size. From any other layout it would pack them anew
        # at every call, which took small ones on processors with VNNI a hundred times as long as the sums.
        shape = [1, self.weight.shape[1], height, width]
        packed: Tensor = torch.ops.onednn.qconv_prepack(self.weight, self._scale, 1.0, 0, *self._geometry, 1, shape)
        return packed

    @functools.cached_property
    def _geometry(self) -> tuple[list[int], list[int], list[int]]:
        return [self.stride] * 2, [self.padding] * 2, [1, 1]

    @functools.cached_property
    def _scaled(self) -> Tensor:
        # The shift is folded into the weights: still integers times one power of two per output channel.
        weight = self.weight.to(torch.float32) * self._scale.view(-1, 1, 1, 1)
        return weight.contiguous(memory_format=torch.channels_last)  # (O, I, k, k)

    @functools.cached_property
    def _matrix(self) -> Tensor:
        return self._scaled.permute(2, 3, 1, 0).reshape(-1, len(self.weight)).contiguous()  # (k k I, O)


Kernel = Callable[[Conv, Tensor, Tensor, torch.dtype], Tensor]


def to_u8(x: Tensor, exponent: int, above: float = 0.0) -> Tensor:
    """clamp(round_half_even((x + above) * 2^-exponent), 0, 255) as uint8, in the memory layout of `x` (float32, finite).

    The sum is one of float32, which rounds.
    """
    scale = math.ldexp(1.0, -exponent)
    ones = _ones(str(x.device))

    def read(part: Tensor) -> Tensor:
        part = torch.add(ones, part + above if above else part, alpha=scale)  # one rounding, as the product is exact
        return part.clamp_(ONES, ONES + 255.0).view(torch.int32)

    out = torch.empty_like(x, dtype=torch.uint8)
    if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return out.copy_(read(x))
    parts = (torch.split(a.permute(0, 2, 3, 1).view(-1), BLOCK) for a in (x, out))
    for part, to in zip(*parts, strict=True):
        to.copy_(read(part))
    return out


@functools.cache
def _ones(device: str) -> Tensor:
    return torch.tensor(ONES, device=device)


def _onednn(conv: Conv, x: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """Fused int8 convolution: a private operator of PyTorch, so only the self-test says whether it is there."""
    if x.shape[-1] + 2 * conv.padding < conv.weight.shape[-1] + conv.stride:
        # One column of results: with strides, oneDNN's AMX kernels of some widths get all rows but the first wrong.
        return _unfold(conv, x, offset, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    zeros = torch.zeros(len(conv.weight), dtype=torch.int32)
    activation = "relu" if dtype == torch.uint8 else "none"
    y: Tensor = torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, 0, conv._packed(*x.shape[2:]), conv._scale, zeros, offset, *conv._geometry, 1, 1.0, 0, dtype, activation, [], ""
    )
    return y


def _float32(conv: Conv, x: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """Library convolution in float32."""
    with _plain_float32(x.device):
        acc = F.conv2d(x.to(torch.float32), conv._scaled, offset, conv.stride, conv.padding)
    return to_u8(acc, 0) if dtype == torch.uint8 else acc


def _unfold(conv: Conv, x: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """Windows times weights, a float32 matrix product: nothing that a library could replace by Winograd or FFT."""
    size, step, pad = conv.weight.shape[-1], conv.stride, conv.padding
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))  # (B, h, w, I)
    height, width = ((n - size) // step + 1 for n in x.shape[1:3])
    y = torch.empty((len(x), height, width, len(conv.weight)), dtype=dtype, device=x.device)
    numbers = width * len(conv._matrix)  # behind a row of results
    images, rows = max(1, WINDOW_NUMBERS // (height * numbers)), max(1, WINDOW_NUMBERS // numbers)
    with _plain_float32(x.device):
        for part, results in zip(torch.split(x, images), torch.split(y, images), strict=True):
            for top, result in zip(range(0, height, rows), torch.split(results, rows, 1), strict=True):
                down, right = step * (result.shape[1] - 1) + 1, step * (width - 1) + 1
                windows = [
                    part[:, at : at + down : step, dx : dx + right : step]
                    for at in range(step * top, step * top + size)
                    for dx in range(size)
                ]
                columns = torch.cat(windows, -1).flatten(0, 2).to(torch.float32)  # (b h'' w', k k I)
                acc = torch.addmm(offset, columns, conv._matrix).view(result.shape)  # (b, h'', w', O)
                result.copy_(to_u8(acc, 0) if dtype == torch.uint8 else acc)
    return y.permute(0, 3, 1, 2)


@contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """Float32 sums, whatever the caller has set: no autocast, no Winograd from NNPACK, no TF32 on CUDA.

    (Operands of less precision would do: 255 and 64 fit even bfloat16. It is the sums that need 24 bits.)
    """
    matmul = torch.backends.cuda.matmul
    # Since PyTorch 2.9 the older name raises an error for users of the newer one.
    name, plain = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    previous = getattr(matmul, name)
    setattr(matmul, name, plain)
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        setattr(matmul, name, previous)


KERNELS: dict[str, Kernel] = {"onednn": _onednn, "float32": _float32, "unfold": _unfold}  # fastest first


@functools.cache
def choose(device: torch.device, override: str | None = None) -> str:
    """The name of the fastest kernel that is exact on `device`; `override` (for tests) is taken as it is.

    Raises ValueError for an unknown override, RuntimeError if no kernel is exact.
    """
    if override:
        if override not in KERNELS:
            raise ValueError(f"{KERNEL_VARIABLE} must be one of {', '.join(KERNELS)}, not {override!r}")
        return override
    # Off the CPU a library convolution may pick Winograd or FFT for some shapes that no self-test happens to try.
    names = list(KERNELS) if device.type == "cpu" else ["unfold"]
    for name in names:
        if _is_exact(KERNELS[name], device):
            return name
    raise RuntimeError(f"no convolution kernel is exact on {device}: this device cannot be used")


def _is_exact(kernel: Kernel, device: torch.device) -> bool:
    """Does the kernel give the defined integers, at the extremes of sums, weights and rounding?"""
    try:
        for conv, x in _trials():
            acc = _reference(conv, x)  # (B, O, h', w') float64, in units of the shift
            onto, moved = conv.to(device), x.to(device)
            for dtype, expected in ((torch.float32, acc), (torch.uint8, acc.round().clamp(0, 255))):
                y = kernel(onto, moved, onto._offset(0), dtype)
                if y.dtype != dtype or not torch.equal(y.cpu().double(), expected):
                    return False
    except Exception:  # a private operator is missing or has changed, in whatever way
        return False
    return True


def _trials() -> Iterator[tuple[Conv, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for size, stride, padding in ((3, 1, 1), (3, 1, 0), (2, 2, 0), (1, 1, 0)):
        for inputs, outputs in ((96, 96), (8, 48)):
            shape = (outputs, inputs, size, size)
            noise = torch.randint(0, 256, (3, inputs, 10, 14), generator=generator).to(torch.uint8)
            tall = torch.randint(0, 256, (1, inputs, 24, size), generator=generator).to(torch.uint8)
            full = torch.full((1, inputs, 16, 16), 255, dtype=torch.uint8)
            signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
            small = torch.randint(-1, 2, shape, generator=generator)
            bias = torch.randint(-2000, 2000, (1, outputs), generator=generator)
            for weight, shift, x in (
                (MAX_WEIGHT * torch.ones_like(signs), 16, full),
                (-MAX_WEIGHT * torch.ones_like(signs), 16, full),
                (MAX_WEIGHT * signs, 12, noise),
                (MAX_WEIGHT * signs, 12, tall),
                (small, 2, noise),  # every fourth sum lies halfway between two integers
            ):
                shifts = torch.full((outputs,), shift, dtype=torch.int8)
                yield Conv(weight.to(torch.int8), bias, shifts, stride, padding), x


def _reference(conv: Conv, x: Tensor) -> Tensor:
    columns = F.unfold(x.double(), conv.weight.shape[-1], padding=conv.padding, stride=conv.stride)
    acc = conv.weight.double().flatten(1) @ columns + conv.bias[0].double().view(-1, 1)  # (B, O, h' w')
    height = (x.shape[2] + 2 * conv.padding - conv.weight.shape[-1]) // conv.stride + 1
    return (acc * conv._scale.double().view(-1, 1)).view(*acc.shape[:2], height, -1)  # (B, O, h', w')
