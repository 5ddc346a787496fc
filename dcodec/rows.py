"""Which rows of H next? PCA of posterior samples, tile by tile.

The covariance of a tile's coefficients, given what was measured, is estimated from its own S samples and, as those are few,
shrunk to the pool of its band scaled to the tile's energy:

    C_t = own * A_t A_t' / (S - 1)  +  (1 - own) * e_t * pool,    A_t: deviations from the samples' mean, off the known rows

Its leading eigenvectors are new rows; rows already measured, but too coarsely for the present step, are measured again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcodec.exact.linear import to_fixed
from dcodec.exact.pca import BITS as ROW_BITS
from dcodec.exact.pca import principal_directions
from dcodec.posterior import VALUE_BITS, Array, Measured
from dcodec.profiles import Profile
from dcodec.quantize import spread_index
from dcodec.transform import Layout

DEVIATION_BITS = 13  # deviations of a band are integers of at most so many bits, so that sums of products stay exact
_OWN_PEAK = 0.6  # share of a tile's own energy that its first direction may hold, for telling tiles worth a PCA


@dataclass(frozen=True)
class Candidates:
    """Directions of one band worth measuring now.

    tiles (A,): where; rows (A, r, p): unit vectors in units of 2**-ROW_BITS; loc, variance (A, r): of their projections;
    the first columns are the rows that some tile has already; wanted (A, r): measure it.
    """

    tiles: NDArray[np.int64]
    rows: NDArray[np.float64]
    loc: Array
    variance: Array
    wanted: NDArray[np.bool_]


@dataclass(frozen=True)
class Directions:
    """The next rows of H in coding order (widest spread first), R of them, and what is expected of their projections.

    bands: candidates a band. band, tile, column (R,): where each row stands in them; loc, variance (R,): of h x given y;
    levels (R,): indices into quantize.SPREADS, falling; step: quantization step of all of them.
    """

    bands: tuple[Candidates, ...]
    band: NDArray[np.int64]
    tile: NDArray[np.int64]
    column: NDArray[np.int64]
    loc: Array
    variance: Array
    levels: NDArray[np.int64]
    step: float

    def __len__(self) -> int:
        return len(self.loc)

    def project(self, bands: Sequence[Tensor]) -> Array:
        """H x for a picture given by its bands (1, T, p) each -> (R,) float64, in coding order."""
        out = np.empty(len(self))
        for index, (candidates, band) in enumerate(zip(self.bands, bands, strict=True)):
            mine = self.band == index
            x = band[0].double().numpy()[candidates.tiles]  # (A, p)
            projection = np.matmul(candidates.rows, x[:, :, None])[:, :, 0] * 2.0**-ROW_BITS
            out[mine] = projection[self.tile[mine], self.column[mine]]
        return out


def next_rows(
    bands: Sequence[Tensor],
    measured: Sequence[Measured],
    fit: Sequence[float],
    layout: Layout,
    profile: Profile,
    step: float,
) -> Directions:
    """Directions to measure with `step`, from posterior samples given by their bands (S, T, p).

    fit: a factor on predicted variances, a band.
    """
    found = [
        _candidates(band, m, ratio, layout, index, profile, step)
        for index, (band, m, ratio) in enumerate(zip(bands, measured, fit, strict=True))
    ]
    at = [np.nonzero(c.wanted) for c in found]
    band = np.concatenate([np.full(len(t), i) for i, (t, _) in enumerate(at)])
    tile = np.concatenate([t for t, _ in at])
    column = np.concatenate([r for _, r in at])
    loc = np.concatenate([c.loc[a] for c, a in zip(found, at, strict=True)])
    variance = np.concatenate([c.variance[a] for c, a in zip(found, at, strict=True)])
    levels = spread_index(variance, step)
    order = np.argsort(-variance, kind="stable") if profile.limit else np.argsort(-levels, kind="stable")
    order = order[: profile.limit or None]
    return Directions(
        tuple(found), band[order], tile[order], column[order], loc[order], variance[order], levels[order], step
    )


def _candidates(
    band: Tensor, measured: Measured, fit: float, layout: Layout, index: int, profile: Profile, step: float
) -> Candidates:
    floor = profile.threshold * step * step
    fixed = to_fixed(band, VALUE_BITS)
    mean = (fixed.sum(0) / torch.tensor(float(len(fixed)), dtype=torch.float64)).numpy()  # (T, p), sum is exact
    deviations, unit = _deviations(fixed, mean)  # (T, p, S), in units of `unit`
    new = _new_rows(deviations, measured, layout, index, profile, floor / (fit * unit * unit))
    tiles = np.union1d(measured.tiles, new.tiles)
    known = measured.rows.shape[1]
    if known == layout.dim(index) or not len(new.tiles):
        new = _NewRows(tiles[:0], np.zeros((0, 0, layout.dim(index))), np.zeros((0, 0)))
    r = known + new.rows.shape[1]
    rows = np.zeros((len(tiles), r, layout.dim(index)))
    variance = np.zeros((len(tiles), r))
    old_at, new_at = np.searchsorted(tiles, measured.tiles), np.searchsorted(tiles, new.tiles)
    rows[old_at, :known], rows[new_at, known:] = measured.rows, new.rows
    live = ~np.isinf(measured.noise)
    noise = np.where(live, measured.noise, 0.0)
    total = measured.variance + noise
    variance[old_at, :known] = np.where(live, measured.variance * noise / np.where(live, total, 1.0), 0.0)
    variance[new_at, known:] = new.variance * (fit * unit * unit)
    loc = np.matmul(rows, np.rint(mean[tiles])[:, :, None])[:, :, 0] * 2.0 ** -(ROW_BITS + VALUE_BITS)
    return Candidates(tiles, rows, loc, variance, variance > floor)


@dataclass(frozen=True)
class _NewRows:
    tiles: NDArray[np.int64]
    rows: NDArray[np.float64]  # (A, r, p)
    variance: Array  # (A, r), in squared units of the deviations


def _deviations(fixed: Tensor, mean: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Samples (S, T, p) minus their mean as integers (T, p, S) of DEVIATION_BITS, and the unit they are in."""
    d = np.ascontiguousarray(np.moveaxis(fixed.numpy() - mean, 0, -1))
    exponent = int(np.frexp(np.abs(d).max())[1]) - DEVIATION_BITS
    return np.rint(np.ldexp(d, -exponent)), float(np.ldexp(2.0**-VALUE_BITS, exponent))


def _new_rows(
    a: NDArray[np.float64], measured: Measured, layout: Layout, index: int, profile: Profile, floor: float
) -> _NewRows:
    """Leading directions of the tiles in which one may have a variance above `floor` (in squared units of `a`)."""
    if len(measured.tiles):  # only what is off the known rows
        rows = measured.rows.astype(np.float64)
        inside = np.rint(np.matmul(rows, a[measured.tiles]) * 2.0 ** -(ROW_BITS - 8))  # (A, k, S)
        a[measured.tiles] -= np.rint(np.matmul(rows.transpose(0, 2, 1), inside) * 2.0 ** -(ROW_BITS + 8))
    dof = float(a.shape[2] - 1)
    energy = (a * a).sum(axis=(1, 2)) / dof  # (T,), the sum is exact
    if profile.own == 1.0:
        tiles = np.flatnonzero(energy > floor)
        if not len(tiles):
            return _NewRows(tiles, np.zeros((0, 0, a.shape[1])), energy[:0, None])
        rows, variance = principal_directions(
            a[tiles], profile.rank, own=1.0 / dof, off=_known(measured, tiles), iterations=4
        )
        return _NewRows(tiles, rows, variance)
    flat = np.ascontiguousarray(np.moveaxis(a, 1, 0)).reshape(a.shape[1], -1)  # (p, T * S)
    pool = flat @ flat.T
    trace = float(np.trace(pool))
    if trace == 0.0:
        return _NewRows(np.zeros(0, np.int64), np.zeros((0, 0, a.shape[1])), energy[:0, None])
    smooth = _smooth(energy, layout.grid(index))
    start, peak = principal_directions(np.zeros((1, a.shape[1], 1)), profile.rank + 6, pool=pool, pool_weight=1.0 / trace,
                                       iterations=6)  # fmt: skip
    pooled = (1.0 - profile.own) * smooth
    tiles = np.flatnonzero(pooled * peak[0, 0] + profile.own * _OWN_PEAK * energy > floor)
    if not len(tiles):
        return _NewRows(tiles, np.zeros((0, 0, a.shape[1])), energy[:0, None])
    rows, variance = principal_directions(
        a[tiles], profile.rank, own=profile.own / dof, pool=pool, pool_weight=pooled[tiles] / trace,
        start=start[0].T, off=_known(measured, tiles),
    )  # fmt: skip
    return _NewRows(tiles, rows, variance)


def _known(measured: Measured, tiles: NDArray[np.int64]) -> NDArray[np.float64]:
    """The rows (A, k, p) already measured on `tiles` (A,); zeros where there are none."""
    known = np.zeros((len(tiles), *measured.rows.shape[1:]))
    _, here, there = np.intersect1d(tiles, measured.tiles, assume_unique=True, return_indices=True)
    known[here] = measured.rows[there]
    return known


def _smooth(energy: Array, grid: tuple[int, int]) -> Array:
    """Half a tile's own energy, half the mean over its 3 x 3 neighbours."""
    e = np.pad(energy.reshape(grid), 1, mode="edge")
    h, w = grid
    total = np.zeros(grid)
    for dy in range(3):
        for dx in range(3):
            total = total + e[dy : dy + h, dx : dx + w]
    smooth: Array = 0.5 * energy + total.reshape(-1) / 18.0
    return smooth


def absorb(measured: Measured, candidates: Candidates, chosen: NDArray[np.bool_], y: Array, noise: Array) -> Measured:
    """Measurements of a band after some of its candidates were measured.

    chosen (A, r): which; y, noise (A, r): what came of them. A row measured before keeps both measurements, weighted by
    their precision. Slots that hold no measurement on any tile are dropped.
    """
    known = measured.rows.shape[1]
    shape = candidates.variance.shape
    old = np.zeros(shape, bool)
    at = np.searchsorted(candidates.tiles, measured.tiles)
    old[at, :known] = ~np.isinf(measured.noise)
    old_y, old_precision, variance = np.zeros(shape), np.zeros(shape), candidates.variance.copy()
    old_y[at, :known] = measured.y
    old_precision[at, :known] = 1.0 / measured.noise
    variance[at, :known] = measured.variance
    precision = old_precision + np.where(chosen, 1.0 / np.where(chosen, noise, 1.0), 0.0)
    live = precision > 0.0
    total = old_y * old_precision + np.where(chosen, y / np.where(chosen, noise, 1.0), 0.0)
    y = np.where(live, total / np.where(live, precision, 1.0), 0.0)
    noise = np.where(live, 1.0 / np.where(live, precision, 1.0), np.inf)
    tiles, slots = live.any(axis=1), live.any(axis=0)
    pick = np.ix_(tiles, slots)
    rows = (candidates.rows[pick] * live[pick][:, :, None]).astype(np.float32)
    return Measured(candidates.tiles[tiles], rows, y[pick], noise[pick], variance[pick])
