"""How are samples of P(x | y = Hx + n) drawn with few evaluations of a denoiser?

A second-order multistep solver of the probability-flow ODE on log sigma (DPM-Solver++ 2M: Lu et al. 2022, arXiv 2211.01095,
algorithm 2) whose estimate x0 = D(x, sigma) is first made consistent with the measurements, row by row as rows are
orthonormal:

    x0 <- x0 + H' (E[t | t in cell] - H x0),    t ~ N(H x0, doubt r^2),    r^2 = s^2 v / (s^2 + v)

v: variance of the row's projection when it was measured; s: sigma; the cell is what its symbols tell (cells.py); doubt: of the
prior.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcodec.cells import within
from dcodec.exact import noise
from dcodec.exact.linear import to_fixed
from dcodec.exact.pca import BITS as ROW_BITS
from dcodec.parts import parts
from dcodec.positions import denoise
from dcodec.prior import SIGMAS, Prior
from dcodec.transform import Layout, analyze, synthesize

Array = NDArray[np.float64]
Draw = Callable[[int, int], NDArray[np.float32]]  # (i, n) -> n normals for sample i

VALUE_BITS = 12  # coefficients meet rows in units of 2**-12


@dataclass(frozen=True)
class Measured:
    """What is known of one band: k orthonormal rows on each of A of its tiles, and y = Hx + n on them.

    tiles: (A,) int64, rising. rows: (A, k, p) float32, integers in units of 2**-ROW_BITS.
    y: (A, k) middles of the cells that h x is known to be in; width: (A, k) of the cells, 0 where a slot is empty;
    variance: (A, k) of h x expected before measuring.
    """

    tiles: NDArray[np.int64]
    rows: NDArray[np.float32]
    y: Array
    width: Array
    variance: Array

    @classmethod
    def nothing(cls, dim: int) -> "Measured":
        """No tiles, no rows."""
        empty = np.zeros((0, 0))
        return cls(np.zeros(0, np.int64), np.zeros((0, 0, dim), np.float32), empty, empty, empty)

    def left(self) -> Array:
        """Variance (A, k) that quantization leaves unknown on the rows, v q / (v + q) with q of the cell; 0 in empty slots."""
        q = self.width * self.width / 12.0
        return self.variance * q / np.where(q > 0.0, self.variance + q, 1.0)


def level(sigma: float) -> int:
    """Index into SIGMAS of the least noise level that is not below `sigma`."""
    return int(np.searchsorted(SIGMAS, sigma))


def schedule(first: float, last: float, n: int) -> list[int]:
    """`n` (or fewer distinct) indices into SIGMAS, falling evenly on log sigma from about `first` to about `last`.

    One alone is `first`.
    """
    high, low = level(first), level(last)
    high = min(max(high, low + 1), len(SIGMAS) - 1)
    return list(dict.fromkeys(high - ((high - low) * i + (n - 1) // 2) // max(n - 1, 1) for i in range(n)))


def consistent(
    x0: Tensor, measured: Sequence[Measured], layout: Layout, scale: int, sigma: float, doubt: float
) -> Tensor:
    """The denoiser's estimate (S, C, h, w) at noise `sigma`, moved towards the measurements (module's equation)."""
    if not any(len(m.tiles) for m in measured):
        return x0
    bands = analyze(x0, layout, scale)  # (S, T, p) each
    s = sigma * (1 << scale)  # in units of orthonormal coefficients
    s2 = s * s
    for band, m in zip(bands, measured, strict=False):
        if not len(m.tiles):
            continue
        r2 = doubt * s2 * m.variance / (s2 + m.variance)
        for part in parts(len(m.tiles), 2 * m.rows[0].size):
            tiles, rows, y = (torch.from_numpy(a[part]).to(x0.device) for a in (m.tiles, m.rows, m.y))
            rows = rows.double()
            c = to_fixed(band[:, tiles], VALUE_BITS).transpose(0, 1)  # (A, S, p)
            projection = c @ rows.mT * 2.0**-ROW_BITS  # (A, S, k), exact: |c| < 2**24, rows are unit vectors
            offset = projection - to_fixed(y, VALUE_BITS)[:, None]
            pull = torch.round(within(offset, r2[part] * 4.0**VALUE_BITS, m.width[part] * 2.0**VALUE_BITS) - offset)
            band[:, tiles] += (pull @ rows * 2.0 ** -(ROW_BITS + VALUE_BITS)).float().transpose(0, 1)
    return synthesize(bands, layout)


def sample(
    prior: Prior,
    measured: Sequence[Measured],
    layout: Layout,
    scale: int,
    levels: Sequence[int],
    start: Tensor,
    draw: Draw,
    *,
    turn: int,
    chunk: int,
    device: str,
) -> Tensor:
    """Samples of P(x|y) at `scale`: (S, C, h, w) float32 on the CPU.

    levels: falling indices into SIGMAS. start: (S, C, h, w), what to add noise to, e.g. the last refresh's samples.
    draw: the noise. turn: counts evaluations, see positions.py.
    What becomes of a sample never depends on its neighbours, nor on `chunk`.
    """
    out = torch.empty_like(start)
    for first in range(0, len(start), chunk):
        part = slice(first, min(first + chunk, len(start)))
        z = np.stack([draw(i, start[0].numel()) for i in range(part.start, part.stop)])
        x = torch.from_numpy(z).reshape(-1, *start.shape[1:]) * SIGMAS[levels[0]] + start[part]
        out[part] = _solve(prior, x.to(device), measured, layout, scale, levels, first, turn).cpu()
    return out


def _solve(
    prior: Prior, x: Tensor, measured: Sequence[Measured], layout: Layout, scale: int, levels: Sequence[int],
    first: int, turn: int,
) -> Tensor:  # fmt: skip
    """x of samples `first`, `first` + 1, .. at SIGMAS[levels[0]] -> the solver's x0 at the last level."""
    last: Tensor | None = None
    for i, level in enumerate(levels):  # 0, ..., N-1
        sigma = SIGMAS[level]
        x0 = consistent(denoise(prior, x, sigma, first, turn + i), measured, layout, scale, sigma, prior.doubt)
        if i + 1 == len(levels):
            return x0
        h = level - levels[i + 1]  # log-sigma steps, in eighths of an octave
        d = x0
        if last is not None:  # second order: extrapolate x0 to the middle of the step
            d = x0 + (x0 - last) * _float32(h / (2 * (levels[i - 1] - level)))
        shrink = _float32(SIGMAS[levels[i + 1]] / sigma)
        x = x * shrink + d * _float32(1.0 - shrink)
        last = x0
    return x


def _float32(value: float) -> float:
    """A scalar that float32 holds exactly, so that no device rounds it on its own."""
    return float(np.float32(value))


def antithetic(seed: int, step: int) -> Draw:
    """The shared noise of an estimate: samples 2i and 2i+1 see z and -z, so a linear sampler's mean is exact."""

    def draw(i: int, n: int) -> NDArray[np.float32]:
        z = noise.normal((seed, step, i // 2), n)
        return -z if i % 2 else z

    return draw


def centred(seed: int, step: int, count: int) -> Draw:
    """The shared noise of a refresh: independent normals less their mean over `count` samples (two or more), to unit variance.

    As a linear sampler's mean is exact, rows are expected where they are; pairs of z and -z would halve the rank of what
    PCA sees, this takes one from it.
    """
    scale = np.float32(math.sqrt(count / (count - 1)))

    @lru_cache(maxsize=1)
    def mean(n: int) -> NDArray[np.float32]:
        total = np.zeros(n)
        for i in range(count):  # multiples of 2**-12: the sum is exact
            total += noise.normal((seed, step, i), n)
        return (total / count).astype(np.float32)

    def draw(i: int, n: int) -> NDArray[np.float32]:
        return (noise.normal((seed, step, i), n) - mean(n)) * scale

    return draw
