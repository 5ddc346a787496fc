"""Which functions of single float32 numbers give the same bits on every machine, fast enough for whole networks?

+, -, *, / and rounding alone, each a single IEEE operation an element; `torch.exp`, `torch.sqrt` and their like differ between
machines. `functions` has slower ones in float64 for small tensors.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 15  # numbers worked on at once on a CPU: what its cache holds

# 2^r on [-1/2, 1/2], Taylor coefficients from the sixth power down: error below 2^-23
_EXP2 = (1.5403530393381609e-4, 1.3333558146428443e-3, 9.618129107628477e-3, 5.5504108664821576e-2,
         2.402265069591007e-1, 6.931471805599453e-1, 1.0)  # fmt: skip


def at_once(x: Tensor, block: int = _BLOCK) -> int:
    """Numbers to work on at once: `block`, what a cache holds, or all of them on a GPU."""
    return block if x.device.type == "cpu" else x.numel()


def _elementwise(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`function` of float32 numbers, a cacheful at a time."""

    @functools.wraps(function)
    def rule(x: Tensor) -> Tensor:
        x = x.float().contiguous()
        out = torch.empty_like(x)
        for part, to in zip(*(a.view(-1).split(at_once(x)) for a in (x, out)), strict=True):  # type: ignore[no-untyped-call]
            to.copy_(function(part))
        return out

    return rule


def _exp(x: Tensor) -> Tensor:
    """e^x for results between 2^-126 and 2^127; below, 0."""
    t = x * 1.4426950408889634
    k = t.clamp(-150.0, 127.0).round_()
    r = t.sub_(k).clamp_(-1.0, 1.0)
    series = r * _EXP2[0] + _EXP2[1]
    for c in _EXP2[2:]:
        series.mul_(r).add_(c)
    whole = (k.clamp_min(-126.0).to(torch.int32).add_(127) << 23).view(torch.float32)
    return series.mul_(whole).masked_fill_(k < -126.0, 0.0)


def _sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), from e^-|x|, which never overflows."""
    e = _exp(x.abs().neg_())
    return torch.where(x < 0, e, 1.0).div_(e.add_(1.0))


def _gelu(x: Tensor) -> Tensor:
    """x Phi(x) by Abramowitz and Stegun 7.1.26 (error of Phi below 1e-7)."""
    z = x.abs().mul_(0.7071067811865476)
    t = torch.ones_like(z).div_((z * 0.3275911).add_(1.0))
    series = t * 1.061405429 + -1.453152027
    for c in (1.421413741, -0.284496736, 0.254829592):
        series.mul_(t).add_(c)
    tail = series.mul_(t).mul_(_exp((z * z).neg_())).mul_(0.5)  # of the standard normal, beyond |x|
    return torch.where(x < 0, tail, 1.0 - tail).mul_(x)


def _gelu_tanh(x: Tensor) -> Tensor:
    """Hendrycks and Gimpel 2016, with tanh: x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))."""
    return _sigmoid((x * x * x * 0.044715 + x).mul_(1.5957691216057308)).mul_(x)


exp = _elementwise(_exp)
sigmoid = _elementwise(_sigmoid)
silu = _elementwise(lambda x: _sigmoid(x).mul_(x))
tanh = _elementwise(lambda x: _sigmoid(x * 2.0).mul_(2.0).sub_(1.0))
_gelus = {"none": _elementwise(_gelu), "tanh": _elementwise(_gelu_tanh)}


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x times the normal distribution function of x, float32, or the usual approximation by tanh."""
    return _gelus[approximate](x)


def by_numpy(function: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
    """A rule that computes in float64 on the CPU: for small tensors, like embeddings of time and statistics."""

    def rule(x: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(function(x.double().cpu().numpy()))).to(x.device, x.dtype)

    return rule


def inverse_root(x: Tensor) -> Tensor:
    """1 / sqrt(x) in the precision of x: numpy's root is the IEEE one, torch's is not (MKL)."""
    root = torch.from_numpy(np.sqrt(x.cpu().numpy())).to(x.device)
    return torch.ones_like(root) / root
