"""How does any float network give the same bits on every machine?

`Exact` sees each operation that a network runs, below Python (a TorchDispatchMode), and lets through only those that IEEE
754 defines to the last bit: single roundings an element, and whatever only moves numbers. Others it computes by a rule:

    products, sums   operands on grids of integers in float64, so coarse that every partial sum is exact: any order will do
    functions        +, -, *, /, and rounding alone

An operation that it does not know is refused by name, so that no network is ever "nearly" exact. Grids are set a row (of a
matrix), a picture (of a convolution) at a time: batches change nothing.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dcodec.exact import functions
from dcodec.exact.elementwise import at_once, by_numpy, exp, gelu, inverse_root, sigmoid, silu, tanh

aten = torch.ops.aten

WEIGHT_BITS = 20  # of parameters; operands that a network computes share what 53 bits leave
FLOAT_BITS = 24  # float32 has no more to offer
_STRIP = 1 << 24  # numbers of a product's operands at once: bounds memory, never the result
_GROUP = 1 << 20  # numbers that pictures of one product have together


class InexactError(ValueError):
    """The network runs an operation whose result is not the same on every machine."""


class Exact(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within `with Exact(parameters):` and inference mode, float32 networks give the same bits everywhere.

    parameters: the network's weights, to put them on their grids once. Raises InexactError for operations without a rule.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = {id(p): p for p in parameters}
        self._grids: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            return _PRODUCTS[packet](self, *args, **kwargs)
        rule = _RULES.get(packet)
        if rule is not None and _floats(args):
            return rule(*args, **kwargs)
        name = packet.__name__
        if name.endswith("_") and not name.startswith("_") and (plain := getattr(aten, name[:-1], None)) in _RULES:
            return args[0].copy_(_RULES[plain](*args, **kwargs))
        if packet in _SAFE and not (packet is aten.arange and _fractional(args)):
            return func(*args, **kwargs)
        if not _floats(args) and torch.Tag.nondeterministic_seeded not in func.tags:
            result = func(*args, **kwargs)
            if not _floats((result,)):  # integers have but one answer
                return result
            if rule is not None:
                return rule(*(a.float() if isinstance(a, Tensor) else a for a in args), **kwargs)
            raise InexactError(f"operation {func} of integers has no exact form: use --arithmetic native")
        with self:  # an operation made of others
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise InexactError(f"operation {func} has no exact form: use --arithmetic native")
        return result

    def grid(self, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """`to_grid`, remembered for parameters."""
        if id(x) not in self._parameters:
            return to_grid(x.flatten(1), bits)
        if id(x) not in self._grids:
            self._grids[id(x)] = to_grid(x.flatten(1), bits)
        return self._grids[id(x)]


def _floats(args: Any) -> bool:
    """Whether a float tensor is among the arguments."""
    return any(
        (isinstance(a, Tensor) and a.is_floating_point()) or (isinstance(a, (list, tuple)) and _floats(a)) for a in args
    )


def _fractional(args: Any) -> bool:
    """Whether a number among the arguments is none of the integers."""
    return any(isinstance(a, float) and not a.is_integer() for a in args)


# Products. ------------------------------------------------------------------------------------------------------------


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent as float64, from the bits of the number: -1022 <= exponent <= 1023."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def to_grid(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Rows of `x` (..., K) as integers of at most `bits` bits, float64 (..., K), and their units (..., 1), powers of two."""
    exponent = torch.frexp(x.abs().amax(-1, keepdim=True))[1].clamp_(-100, 128) - bits
    return x.to(torch.float64, copy=True).mul_(power_of_two(-exponent)).round_(), power_of_two(exponent)


def _bits(k: int) -> int:
    """Bits of the other operand when one has WEIGHT_BITS and k products are added: every sum stays below 2^53."""
    return min(FLOAT_BITS, 53 - WEIGHT_BITS - max(k - 1, 1).bit_length())


def _linear(mode: Exact, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K), weight (O, K) -> (..., O)."""
    w, w_unit = mode.grid(weight, WEIGHT_BITS)
    a, unit = to_grid(x.float(), _bits(weight.shape[1]))
    y = (a @ w.T).mul_(unit).mul_(w_unit.T).float()
    return y if bias is None else y + bias


def _matmul(mode: Exact, a: Tensor, b: Tensor) -> Tensor:
    """(..., M, K) @ (..., K, N), with torch.matmul's rules for vectors."""
    if a.ndim == 1:
        return _matmul(mode, a[None], b).squeeze(-2)
    if b.ndim == 1:
        return _matmul(mode, a, b[:, None]).squeeze(-1)
    return product(a, b)


def product(a: Tensor, b: Tensor) -> Tensor:
    """(..., M, K) @ (..., K, N) of float32, computed exactly on grids of equal fineness: -> float32."""
    k = a.shape[-1]
    bits = min(FLOAT_BITS, (53 - max(k - 1, 1).bit_length()) // 2)
    left, left_unit = to_grid(a.float(), bits)
    right, right_unit = to_grid(b.float().mT, bits)
    return (left @ right.mT).mul_(left_unit).mul_(right_unit.mT).float()


def _addmm(mode: Exact, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    y = product(a, b)
    y = y if alpha == 1 else y * alpha
    return y if beta == 0 else y + (bias if beta == 1 else bias * beta)


def _conv2d(
    mode: Exact, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """x (B, C, h, w), weight (O, C / groups, k, k) -> (B, O, h', w'): one product a picture and strip of rows."""
    if isinstance(padding, str):
        raise InexactError(f"a convolution with padding {padding!r} has no exact form: use --arithmetic native")
    stride, padding, dilation = (tuple(v) * (2 // len(v)) for v in (stride, padding, dilation))
    kernel = weight.shape[2:]
    w, w_unit = mode.grid(weight, WEIGHT_BITS)  # (O, K), (O, 1)
    b, c, h, width = x.shape
    bits = _bits(w.shape[1])
    out_h, out_w = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip((h, width), padding, dilation, kernel, stride, strict=True)
    )
    y = x.new_empty(b, len(w), out_h, out_w, dtype=torch.float32)
    cost = c * math.prod(kernel) * out_w  # numbers behind a row of the result
    together, rows = max(1, _GROUP // (cost * out_h)), max(1, _STRIP // cost)
    for pictures, out in zip(x.split(together), y.split(together), strict=True):  # type: ignore[no-untyped-call]
        n = len(pictures)
        grid, unit = to_grid(pictures.reshape(n, -1), bits)
        grid = F.pad(grid.view(n, c, h, width), (padding[1], padding[1], padding[0], padding[0]))
        unit = unit[..., None] * w_unit  # (n, O, 1)
        for top in range(0, out_h, rows):
            count = min(rows, out_h - top)
            first = top * stride[0]
            strip = grid[:, :, first : first + (count - 1) * stride[0] + dilation[0] * (kernel[0] - 1) + 1]
            columns = F.unfold(strip, kernel, dilation=dilation, stride=stride).view(n, groups, -1, count * out_w)
            part = w.view(groups, -1, w.shape[1]) @ columns  # (n, groups, O / groups, count * out_w)
            out[:, :, top : top + count] = part.view(n, len(w), -1).mul_(unit).view(n, len(w), count, out_w)
    return y if bias is None else y.add_(bias.view(-1, 1, 1))


def _attention(
    mode: Exact, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(q k' scale + mask) v: q (..., N, D), k (..., M, D), v (..., M, E) -> (..., N, E), some queries at a time."""
    if enable_gqa or dropout_p:
        raise InexactError("grouped-query attention and dropout have no exact form: use --arithmetic native")
    factor = float(np.float32(1.0 / math.sqrt(q.shape[-1]) if scale is None else scale))
    n, m = q.shape[-2], k.shape[-2]
    if is_causal:
        attn_mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril()
    out = []
    step = max(1, _STRIP // max(m * math.prod(q.shape[:-2]), 1))
    for first in range(0, n, step):
        scores = product(q[..., first : first + step, :], k.mT) * factor
        if attn_mask is not None:
            mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., first : first + step, :]
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        out.append(product(softmax(scores), v))
    return torch.cat(out, -2)


def _distances(mode: Exact, a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Euclidean distances of rows a (..., M, D) from rows b (..., N, D): (..., M, N), as codebooks ask for."""
    if p != 2.0:
        raise InexactError(f"distances of order {p} have no exact form: use --arithmetic native")
    squares = row_sums(a * a).float() + row_sums(b * b).float().mT
    return by_numpy(np.sqrt)((squares - product(a, b.mT) * 2.0).clamp_min(0.0))


_PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    aten.linear: _linear,
    aten.matmul: _matmul,
    aten.mm: _matmul,
    aten.bmm: _matmul,
    aten.addmm: _addmm,
    aten.baddbmm: _addmm,
    aten.conv2d: _conv2d,
    aten.scaled_dot_product_attention: _attention,
    aten.cdist: _distances,
}

# Sums. ----------------------------------------------------------------------------------------------------------------


def row_sums(x: Tensor) -> Tensor:
    """Sums of rows (..., n), float64 (..., 1): every number is rounded to a grid that leaves the sum room below 2^53."""
    grid, unit = to_grid(x, min(40, 53 - x.shape[-1].bit_length()))
    return grid.sum(-1, keepdim=True).mul_(unit)


def _over(x: Tensor, dim: int | Sequence[int] | None, keepdim: bool, divide: bool) -> Tensor:
    """Sum or mean over some dimensions of a float tensor."""
    dims = tuple(range(x.ndim)) if dim is None or (not isinstance(dim, int) and not dim) else dim
    dims = (dims,) if isinstance(dims, int) else dims
    dims = tuple(sorted(d % x.ndim for d in dims))
    rest = [d for d in range(x.ndim) if d not in dims]
    moved = x.permute(*rest, *dims).reshape(*(x.shape[d] for d in rest), -1)
    total = row_sums(moved)
    total = (_ratio(total, moved.shape[-1]) if divide else total).squeeze(-1).to(x.dtype)
    for d in dims if keepdim else ():
        total = total.unsqueeze(d)
    return total


def _ratio(x: Tensor, y: float) -> Tensor:
    """x / y, rounded once: a GPU would multiply by the reciprocal of a plain number."""
    return x / torch.full((), y, dtype=x.dtype, device=x.device)


def _sum(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return _over(x if dtype is None else x.to(dtype), dim, keepdim, divide=False)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return _over(x if dtype is None else x.to(dtype), dim, keepdim, divide=True)


def _normalized(x: Tensor, eps: float) -> Tensor:
    """Rows (N, n) of float32 with mean 0 and variance 1: float32."""
    n = x.shape[-1]
    bits = min(20, (52 - n.bit_length()) // 2)
    y = torch.empty_like(x)
    for rows, out in zip(*(a.split(at_once(x) // n + 1) for a in (x, y)), strict=True):  # type: ignore[no-untyped-call]
        grid, unit = to_grid(rows, FLOAT_BITS)
        grid -= _ratio(grid.sum(-1, keepdim=True), n)
        coarse = (grid * 2.0 ** (bits - FLOAT_BITS - 1)).round_()  # so that squares have room
        variance = _ratio(coarse[:, None] @ coarse[..., None], n)[:, 0] * (unit * 2.0 ** (FLOAT_BITS + 1 - bits)).square_()
        out.copy_(grid.mul_(inverse_root(variance + eps) * unit))
    return y


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    """Wu and He 2018: x (B, C, ...), each group of channels normalized together."""
    y = _normalized(x.reshape(len(x) * groups, -1), eps).view(x.shape)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    y = y if weight is None else y.mul_(weight.view(shape))
    return y if bias is None else y.add_(bias.view(shape))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    y = _normalized(x.reshape(-1, math.prod(shape)), eps).view(x.shape)
    y = y if weight is None else y.mul_(weight)
    return y if bias is None else y.add_(bias)


def _avg_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    if list(stride or kernel) != list(kernel) or any(padding) or ceil_mode or divisor_override:
        raise InexactError("a pooling with overlap or padding has no exact form: use --arithmetic native")
    ky, kx = tuple(kernel) * (2 // len(kernel))
    h, w = x.shape[-2] // ky, x.shape[-1] // kx
    cells = x[..., : h * ky, : w * kx].reshape(*x.shape[:-2], h, ky, w, kx)
    return _mean(cells, (-3, -1))


# Functions. -----------------------------------------------------------------------------------------------------------


def softmax(x: Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
    """Shares e^x / sum e^x along a dimension, float32. A row of -inf alone gives NaN, as everywhere."""
    x = x.transpose(dim, -1)
    e = exp(x - x.amax(-1, keepdim=True))
    return e.div_(row_sums(e).float()).transpose(dim, -1)


def _pow(x: Any, exponent: Any) -> Tensor:
    if isinstance(exponent, Tensor):
        raise InexactError("a power with a tensor as its exponent has no exact form: use --arithmetic native")
    if exponent == 2:
        return x * x
    if exponent == 3:
        return x * x * x
    if exponent == -0.5:
        return inverse_root(x)
    if exponent == 0.5:
        return by_numpy(np.sqrt)(x)
    raise InexactError(f"the power {exponent} has no exact form: use --arithmetic native")


def _add(x: Any, y: Any, *, alpha: float = 1) -> Any:
    return x + (y if alpha == 1 else y * alpha)


def _subtract(x: Any, y: Any, *, alpha: float = 1) -> Any:
    return x - (y if alpha == 1 else y * alpha)


def _divide(x: Tensor, y: Any, *, rounding_mode: str | None = None) -> Tensor:
    if not isinstance(y, Tensor) or (y.ndim == 0 and y.device != x.device):
        y = torch.full((), float(y), dtype=x.dtype if x.is_floating_point() else torch.float32, device=x.device)
    return torch.div(x, y, rounding_mode=rounding_mode)


_RULES: dict[Any, Callable[..., Any]] = {
    aten.add: _add,
    aten.sub: _subtract,
    aten.div: _divide,
    aten.sum: _sum,
    aten.mean: _mean,
    aten.group_norm: _group_norm,
    aten.layer_norm: _layer_norm,
    aten.avg_pool2d: _avg_pool2d,
    aten.softmax: softmax,
    aten.sigmoid: sigmoid,
    aten.silu: silu,
    aten.tanh: tanh,
    aten.gelu: gelu,
    aten.pow: _pow,
    aten.rsqrt: inverse_root,
    aten.sqrt: by_numpy(np.sqrt),
    aten.exp: by_numpy(functions.exp),
    aten.log: by_numpy(functions.log),
    aten.sin: by_numpy(functions.sin),
    aten.cos: by_numpy(functions.cos),
}

# What rounds once an element, or only moves, compares or makes numbers.
_SAFE = {
    getattr(aten, name)
    for name in """
    mul mul_ neg abs relu relu_ leaky_relu clamp clamp_ clamp_min clamp_max maximum minimum where masked_fill masked_fill_
    round floor ceil sign eq ne lt le gt ge isnan isfinite logical_not logical_and logical_or any all
    amax amin max min argmax argmin
    cat stack view _unsafe_view reshape expand expand_as permute transpose t numpy_T unsqueeze squeeze slice select index
    index_select gather split split_with_sizes chunk unbind narrow clone contiguous copy_ detach detach_ lift_fresh alias
    to _to_copy type_as empty empty_like new_empty zeros zeros_like new_zeros ones ones_like new_ones full full_like
    new_full arange eye scalar_tensor constant_pad_nd reflection_pad2d replication_pad2d roll flip repeat tile
    repeat_interleave unfold as_strided flatten unflatten embedding tril triu pixel_shuffle pixel_unshuffle
    upsample_nearest2d max_pool2d fill_ zero_ item _local_scalar_dense is_nonzero resolve_conj resolve_neg
    """.split()
}
