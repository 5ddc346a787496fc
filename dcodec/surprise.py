"""Where does the picture hold more than its samples foresee? Tile by tile, from the symbols of rows measured before.

Samples tell well in which directions energy is left, and badly how much of it: from tile to tile they are off by octaves. What
past refreshes found against what they foresaw mends the next one's variances:

    factor_t = (TRUST + sum_u w_tu found_u) / (TRUST + usual * sum_u w_tu foreseen_u)

the posterior mean of a scale under an inverse Gamma prior around 1. w is 1 on the tile itself, BESIDE on the eight around it,
ABOVE on the tile of the next coarser band over it; a refresh counts half as much as the one after it. usual: what a band's rows
have turned out to be in all, as those chosen for their variance have less of it. How much energy a region holds is left to
the gains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcodec.quantize import Symbols, squared
from dcodec.rows import Directions, neighbours
from dcodec.transform import Layout

Array = NDArray[np.float64]

TRUST = 1.0  # squared steps of rows that a tile is taken to have had as foreseen
BESIDE, ABOVE, FORGET = 0.0625, 0.25, 0.5
COMMON = 20.0  # the same of a band, in `usual`
LIMIT = 9.0  # of a factor, either way


@dataclass(frozen=True)
class Account:
    """What the new rows of a band's T tiles turned out to be, in squared steps.

    found (T,): squares of their projections, as far as symbols tell; foreseen (T,): the variances that samples and gains gave.
    """

    found: Array
    foreseen: Array

    @classmethod
    def nothing(cls, tiles: int) -> "Account":
        """No rows yet."""
        return cls(np.zeros(tiles), np.zeros(tiles))


def factors(accounts: Sequence[Account], layout: Layout) -> list[Array]:
    """What to multiply the samples' variances by, tile against tile: (T,) a band."""
    out = []
    for index, account in enumerate(accounts):
        above = accounts[index - 1] if index > 1 else None  # bands 0 and 1 have the same grid, but the low one is no detail
        found = _gathered(account.found, above.found if above else None, layout, index)
        foreseen = _gathered(account.foreseen, above.foreseen if above else None, layout, index)
        usual = (COMMON + _total(found)) / (COMMON + _total(foreseen))
        out.append(np.clip((TRUST + found) / (TRUST + usual * foreseen), 1.0 / LIMIT, LIMIT))
    return out


def _total(values: Array) -> float:
    """Their sum, one after the other: numpy's own takes an order that machines may choose."""
    return float(np.cumsum(values)[-1])


def _gathered(own: Array, above: Array | None, layout: Layout, index: int) -> Array:
    """sum_u w_tu own_u: (T,)."""
    grid = layout.grid(index)
    places, around = neighbours(own, grid, "constant"), np.zeros(grid)
    for beside in places[:4] + places[5:]:
        around = around + beside
    total = own + BESIDE * around.reshape(-1)
    if above is None:
        return total
    coarse = layout.grid(index - 1)
    y, x = (np.minimum(np.arange(n) // 2, m - 1) for n, m in zip(grid, coarse, strict=True))
    return total + ABOVE * above.reshape(coarse)[y][:, x].reshape(-1)


def after(accounts: Sequence[Account], directions: Directions, symbols: Symbols) -> tuple[Account, ...]:
    """The accounts with a refresh more: `symbols` of any first part of its directions."""
    n, out = len(symbols), []
    new = directions.width[:n] == 0.0
    for index, account in enumerate(accounts):
        found, foreseen = account.found * FORGET, account.foreseen * FORGET
        if index < len(directions.bands):
            mine = np.flatnonzero(new & (directions.band[:n] == index))
            candidates, at = directions.bands[index], directions.tile[mine]
            tiles = candidates.tiles[at]
            variance = directions.variance[mine] / (directions.step * directions.step) / candidates.factor[at]
            found = found + np.bincount(tiles, squared(symbols[mine], variance), len(found))
            foreseen = foreseen + np.bincount(tiles, variance, len(found))
        out.append(Account(found, foreseen))
    return tuple(out)
