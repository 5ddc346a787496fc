"""Which rows of H next? PCA of posterior samples, tile by tile.

The covariance of a tile's coefficients, given what was measured, is estimated from its own samples and, as those are few,
shrunk to the pool of its band scaled to the tile's energy:

    C_t = own * A_t A_t' / dof  +  (1 - own) * e_t * pool,    A_t: deviations from the samples' mean, off the known rows

Its leading eigenvectors are new rows; rows already measured, but too coarsely for the present step, are measured again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcodec.exact.pca import BITS as ROW_BITS
from dcodec.exact.pca import principal_directions
from dcodec.parts import each, parts
from dcodec.posterior import VALUE_BITS, Array, Measured
from dcodec.profiles import Profile
from dcodec.quantize import Symbols, dequantize, level_of, quantize
from dcodec.transform import Layout

DEVIATION_BITS = 13  # deviations of a band are integers of at most so many bits, so that sums of products stay exact
_PEAK = (1 << DEVIATION_BITS) - 1
_OWN_PEAK = 0.6  # share of a tile's own energy that its first direction may hold, for telling tiles worth a PCA


@dataclass(frozen=True)
class Candidates:
    """Directions of one band worth measuring now.

    tiles (A,): where; factor (A,): on the samples' variances there; rows (A, r, p): unit vectors in units of 2**-ROW_BITS;
    loc, variance (A, r): of their projections; the first columns are the rows that some tile has already; middle, width (A, r):
    the cells that those are known to be in, width 0 for others; wanted (A, r): measure it.
    """

    tiles: NDArray[np.int64]
    factor: Array
    rows: NDArray[np.float32]
    loc: Array
    variance: Array
    middle: Array
    width: Array
    wanted: NDArray[np.bool_]


@dataclass(frozen=True)
class Directions:
    """The next rows of H, R of them, in coding order, and what is expected of them.

    The order: splits, then widest spread first; with a limit (preset psc) all by variance.

    bands: candidates a band. band, tile, column (R,): where each row stands in them; loc, variance (R,): of h x given y;
    middle, width (R,): of its cell; levels (R,): of the symbols' models, falling; step: quantization step of all of them.
    energies: squared deviation from the samples' mean that samples expect off the rows measured before, (r,) a band, a region.
    """

    bands: tuple[Candidates, ...]
    band: NDArray[np.int64]
    tile: NDArray[np.int64]
    column: NDArray[np.int64]
    loc: Array
    variance: Array
    middle: Array
    width: Array
    levels: NDArray[np.int64]
    step: float
    energies: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.loc)

    def quantize(self, bands: Sequence[Tensor]) -> Symbols:
        """Symbols (R,) of H x for a picture given by its bands (1, T, p) each."""
        return quantize(self.project(bands), self.loc, self.middle, self.width, self.step)

    def dequantize(self, symbols: Symbols) -> tuple[Array, Array]:
        """Cells that the first n symbols tell: middles y and widths, (n,) each."""
        n = len(symbols)
        return dequantize(symbols, self.loc[:n], self.middle[:n], self.width[:n], self.step)

    def project(self, bands: Sequence[Tensor]) -> Array:
        """H x -> (R,) float64, in coding order."""
        out = np.empty(len(self))
        for index, (candidates, band) in enumerate(zip(self.bands, bands, strict=True)):
            mine = self.band == index
            x = band[0].double().numpy()[candidates.tiles]  # (A, p)
            projection = _project(candidates.rows, x) * 2.0**-ROW_BITS
            out[mine] = projection[self.tile[mine], self.column[mine]]
        return out


@dataclass(frozen=True)
class View:
    """What the samples show of one band.

    mean (T, p): in units of 2**-VALUE_BITS. deviations (T, p, n): of n samples from their mean, off
    the rows already measured, integers in units of `unit`; dof: n less one a round. energy (T,): mean square of a tile's
    deviation, in squared units.
    spread (A, k): the samples' variance along the rows already measured, in squared units. region (T,): that a tile lies in;
    factor (T,): on what deviations show, by what past rows turned out to be (surprise.py); leaves a region the energy it has.
    """

    mean: Array
    deviations: NDArray[np.int16]
    dof: int
    unit: float
    energy: Array
    spread: Array
    measured: Measured
    region: NDArray[np.int64]
    factor: Array

    def expected_energy(self) -> Array:
        """Squared deviation from the mean that the samples predict, off the rows already measured: (r,), a region."""
        return np.bincount(self.region, self.energy).astype(np.float64) * (self.unit * self.unit)

    def actual_energy(self, x: Tensor) -> Array:
        """The same of the picture itself, given by its band (T, p). For the encoder alone."""
        d = x.double().numpy() - self.mean * 2.0**-VALUE_BITS
        total = (d * d).sum(axis=1)  # (T,)
        if len(self.measured.tiles):
            inside = _project(self.measured.rows, d[self.measured.tiles]) * 2.0**-ROW_BITS
            total[self.measured.tiles] -= (inside * inside).sum(axis=1)
        return np.maximum(np.bincount(self.region, total), 0.0)


def view(rounds: Sequence[Tensor], centre: Tensor, measured: Measured, region: Tensor, factor: Array) -> View:
    """Summarize the samples of a band, (S, T, p) a round; region, factor (T,): of its tiles, see View.

    The mean is that of `centre` (M, T, p). Deviations are from the mean of their own round.
    """
    (count, tiles, p), n = rounds[0].shape, len(rounds)
    mean = np.empty((tiles, p))

    def deviations_of(part: slice) -> Array:
        """(n, S, t, p) in units of 2**-VALUE_BITS."""
        fixed = _fixed([band[:, part] for band in rounds])
        fixed -= (fixed.sum(axis=1) / float(count))[:, None]  # the sum is exact
        return fixed

    def widest(part: slice) -> float:
        mean[part] = _fixed([centre[:, part]])[0].sum(axis=0) / float(len(centre))
        return float(np.abs(deviations_of(part)).max())

    exponent = int(np.frexp(max(each(widest, tiles, n * count * p)))[1]) - DEVIATION_BITS
    deviations, energy = np.empty((tiles, p, n * count), np.int16), np.empty(tiles)
    known, dof = _Known(measured), n * (count - 1)
    spread = np.zeros((tiles, measured.rows.shape[1]))

    def look(part: slice) -> None:
        d = deviations_of(part).reshape(n * count, -1, p)
        d = _shift(np.ascontiguousarray(np.moveaxis(d, 0, -1)), exponent)  # (t, p, n * S)
        rows = known.of(np.arange(part.start, part.stop))
        if rows.shape[1]:
            inside = _shift(np.matmul(rows, d), ROW_BITS - 8)  # (t, k, n * S)
            along = np.rint(inside * 2.0**-9)
            spread[part] = np.einsum("tks,tks->tk", along, along) * (4.0 / dof)  # the sum is exact
            d -= _shift(np.matmul(rows.transpose(0, 2, 1), inside), ROW_BITS + 8)
            np.clip(d, -_PEAK, _PEAK, out=d)
        deviations[part] = d
        energy[part] = np.einsum("tps,tps->ts", d, d).cumsum(axis=1)[:, -1] / float(dof)  # a sample's is exact, then in order

    each(look, tiles, n * count * p)
    unit, regions = float(np.ldexp(2.0**-VALUE_BITS, exponent)), region.numpy()
    all_of, given = np.bincount(regions, energy), np.bincount(regions, energy * factor)
    factor = factor * np.divide(all_of, given, out=np.ones(len(given)), where=given > 0.0)[regions]
    return View(mean, deviations, dof, unit, energy, spread[measured.tiles], measured, regions, factor)


def _fixed(bands: Sequence[Tensor]) -> Array:
    """Integers in units of 2**-VALUE_BITS. As `to_fixed`, by numpy: on several threads, torch's own wait for each other."""
    return _shift(np.stack([band.numpy() for band in bands], dtype=np.float64), -VALUE_BITS)


def _shift(x: Array, bits: int) -> Array:
    """Drop `bits` bits of `x`, rounding half to even (in place)."""
    x *= 2.0**-bits
    return np.rint(x, out=x)


def next_rows(
    views: Sequence[View], gains: Sequence[Array], layout: Layout, profile: Profile, step: float
) -> Directions:
    """Directions to measure with `step`; gains: a factor on the variances that the samples show, (r,) a band."""
    found = [
        _candidates(view, gain, layout, index, profile, step)
        for index, (view, gain) in enumerate(zip(views, gains, strict=True))
    ]
    at = [np.nonzero(c.wanted) for c in found]
    band = np.concatenate([np.full(len(t), i) for i, (t, _) in enumerate(at)])
    tile = np.concatenate([t for t, _ in at])
    column = np.concatenate([r for _, r in at])
    loc = np.concatenate([c.loc[a] for c, a in zip(found, at, strict=True)])
    variance = np.concatenate([c.variance[a] for c, a in zip(found, at, strict=True)])
    middle = np.concatenate([c.middle[a] for c, a in zip(found, at, strict=True)])
    width = np.concatenate([c.width[a] for c, a in zip(found, at, strict=True)])
    levels = level_of(loc, variance, middle, width, step)
    order = np.argsort(-variance, kind="stable") if profile.limit else np.argsort(-levels, kind="stable")
    order = order[: profile.limit or None]
    return Directions(
        tuple(found), band[order], tile[order], column[order], loc[order], variance[order], middle[order],
        width[order], levels[order], step, tuple(view.expected_energy() for view in views),
    )  # fmt: skip


def _candidates(
    view: View, gain: Array, layout: Layout, index: int, profile: Profile, step: float
) -> Candidates:
    floor, measured = profile.threshold * step * step, view.measured
    scale = gain[view.region] * view.factor * (view.unit * view.unit)  # (T,)
    new_tiles, new_rows, new_variance = _new_rows(view, layout, index, profile, floor / scale)
    tiles = np.union1d(measured.tiles, new_tiles)
    known = measured.rows.shape[1]
    r = known + new_rows.shape[1]
    rows = np.zeros((len(tiles), r, layout.dim(index)), np.float32)
    variance = np.zeros((len(tiles), r))
    old_at, new_at = np.searchsorted(tiles, measured.tiles), np.searchsorted(tiles, new_tiles)
    rows[old_at, :known], rows[new_at, known:] = measured.rows, new_rows
    variance[old_at, :known] = measured.left()
    variance[new_at, known:] = new_variance * scale[new_tiles, None]
    loc = _project(rows, np.rint(view.mean[tiles])) * 2.0 ** -(ROW_BITS + VALUE_BITS)
    middle, width = np.zeros(variance.shape), np.zeros(variance.shape)
    middle[old_at, :known] = measured.y
    width[old_at, :known] = measured.width
    ripe = np.zeros(variance.shape, bool)
    ripe[old_at, :known] = view.spread >= profile.ripe * step * step / (view.unit * view.unit)
    wanted = np.where(width > 0.0, ripe & (width >= profile.split * step), variance > floor)
    return Candidates(tiles, view.factor[tiles], rows, loc, variance, middle, width, wanted)


def _new_rows(
    view: View, layout: Layout, index: int, profile: Profile, floor: Array
) -> tuple[NDArray[np.int64], NDArray[np.float32], Array]:
    """Tiles (A,) in which a direction may have a variance above `floor` (T,) (in squared units), their leading directions
    (A, r, p) and the variances (A, r)."""
    count, p, samples = view.deviations.shape
    known = _Known(view.measured)
    nothing = np.zeros(0, np.int64), np.zeros((0, 0, p), np.float32), np.zeros((0, 0))
    if not view.energy.any():
        return nothing
    if profile.own == 1.0:
        tiles = np.flatnonzero(view.energy > floor)
        if not len(tiles):
            return nothing
        a = view.deviations[tiles].astype(np.float64)
        leading, variance = principal_directions(a, profile.rank, own=1.0 / view.dof, off=known.of(tiles), iterations=4)
        return tiles, leading.astype(np.float32), variance
    pool = np.zeros((p, p))
    for part in parts(count, samples * p):
        a = view.deviations[part].astype(np.float64)
        flat = np.moveaxis(a, 1, 0).reshape(p, -1)  # (p, t * S)
        pool += flat @ flat.T  # exact
    trace = float(np.trace(pool))
    pooled = (1.0 - profile.own) * _smooth(view.energy, layout.grid(index))
    start, peak = principal_directions(
        np.zeros((1, p, 1)), profile.rank + 4, pool=pool, pool_weight=1.0 / trace, iterations=6
    )
    tiles = np.flatnonzero(pooled * peak[0, 0] + profile.own * _OWN_PEAK * view.energy > floor)
    if not len(tiles):
        return nothing
    support = layout.support(index).numpy()
    rows = np.empty((len(tiles), min(profile.rank, p), p), np.float32)
    variances = np.empty(rows.shape[:2])

    def find(part: slice) -> None:
        some = tiles[part]
        rows[part], variances[part] = principal_directions(
            view.deviations[some].astype(np.float64), profile.rank, own=profile.own / view.dof, pool=pool,
            pool_weight=pooled[some] / trace, off=known.of(some), support=support[some], start=start[0],
        )  # fmt: skip

    each(find, len(tiles), p * (profile.rank + 4) * 8)
    return tiles, rows, variances


def _project(rows: NDArray[np.float32], x: Array) -> Array:
    """(A, r, p) rows on (A, p) vectors: (A, r)."""
    out = np.empty(rows.shape[:2])
    for part in parts(len(rows), rows.shape[1] * rows.shape[2]):
        out[part] = np.matmul(rows[part].astype(np.float64), x[part, :, None])[:, :, 0]
    return out


class _Known:
    """Looks up the rows already measured on some tiles."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured

    def of(self, tiles: NDArray[np.int64]) -> NDArray[np.float64]:
        """(A, k, p) in units of 2**-ROW_BITS, zeros where a tile has none."""
        rows = np.zeros((len(tiles), *self._measured.rows.shape[1:]))
        _, here, there = np.intersect1d(tiles, self._measured.tiles, assume_unique=True, return_indices=True)
        rows[here] = self._measured.rows[there]
        return rows


def _smooth(energy: Array, grid: tuple[int, int]) -> Array:
    """Half a tile's own energy, half the mean over its 3 x 3 neighbours."""
    total = np.zeros(grid)
    for e in neighbours(energy, grid, "edge"):
        total = total + e
    smooth: Array = 0.5 * energy + total.reshape(-1) / 18.0
    return smooth


def neighbours(values: Array, grid: tuple[int, int], beyond: Literal["edge", "constant"]) -> list[Array]:
    """Of tiles' values (T,) those at each place of their 3 x 3 neighbourhoods, row by row, their own fifth: nine of `grid`.

    beyond: what stands outside the grid, the nearest tile's value or zero.
    """
    padded, (h, w) = np.pad(values.reshape(grid), 1, mode=beyond), grid
    return [padded[dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)]


def absorb(measured: Measured, candidates: Candidates, chosen: NDArray[np.bool_], y: Array, width: Array) -> Measured:
    """Measurements of a band after some of its candidates were measured.

    chosen (A, r): which; y, width (A, r): their cells now, in place of what was known. A tile's rows fill its first slots.
    """
    known = measured.rows.shape[1]
    shape = candidates.variance.shape
    at = np.searchsorted(candidates.tiles, measured.tiles)
    old_y, old_width, variance = np.zeros(shape), np.zeros(shape), candidates.variance.copy()
    old_y[at, :known], old_width[at, :known], variance[at, :known] = measured.y, measured.width, measured.variance
    y, width = np.where(chosen, y, old_y), np.where(chosen, width, old_width)
    live = width > 0.0
    tiles = live.any(axis=1)
    order = np.argsort(~live[tiles], axis=1, kind="stable")[:, : int(live.sum(axis=1).max(initial=0))]  # (A, k)
    y, width, variance = (np.take_along_axis(a[tiles], order, 1) for a in (y, width, variance))
    rows = np.take_along_axis(candidates.rows[tiles], order[:, :, None], 1) * (width > 0.0)[:, :, None]
    return Measured(candidates.tiles[tiles], rows, y, width, variance)
