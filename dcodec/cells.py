"""What does a cell say of a value that was expected elsewhere?

A measurement tells that h x lies in a cell [y - w/2, y + w/2]; the denoiser expects h x ~ N(m, r^2). Both together: the mean of
that normal variable cut off at the cell's ends. Unlike with Gaussian noise of the cell's variance, an expectation well inside
is left alone, and one outside never stays there.

Means are looked up in a table, interpolated, in half widths: of u = 2 (m - y) / w for ratios 2 r / w on a grid.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcodec.exact import functions

Array = NDArray[np.float64]

RATIOS = np.ldexp(np.tile([1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429], 9), np.repeat(range(-4, 5), 4))
_MIDDLES = RATIOS[:-1] * RATIOS[1:]  # squares halfway between neighbours on the log axis
_PER_UNIT, _ENTRIES = 16, 257  # of the table's rows: 16 a half width, more where r is larger, up to 16 of them
_POINTS = 512  # of the sum that stands for the integral
_REACH = np.maximum(RATIOS * RATIOS, 1.0)  # half widths that u changes on: far out, the mean depends on u / ratio^2


@lru_cache(maxsize=4)
def _table(device: str) -> tuple[Tensor, Tensor]:
    """Means of N(u, ratio^2) on [-1, 1], and how far to the next entry, in units of 2**-20: (len(RATIOS) * _ENTRIES,) each."""
    u = np.arange(_ENTRIES) / _PER_UNIT * _REACH[:, None]  # (ratios, entries)
    nearest = np.minimum(u, 1.0) - u
    above, below = np.zeros(u.shape), np.zeros(u.shape)
    for z in (2.0 * np.arange(_POINTS) + 1.0) / _POINTS - 1.0:  # one by one: a sum's order must be the same everywhere
        weight = functions.exp((nearest * nearest - (z - u) * (z - u)) * (0.5 / (RATIOS * RATIOS))[:, None])
        above, below = above + weight * z, below + weight
    mean = np.rint(above / below * 2.0**20)
    slope = np.diff(mean, append=mean[:, -1:])
    return torch.from_numpy(mean.reshape(-1)).to(device), torch.from_numpy(slope.reshape(-1)).to(device)


def within(offset: Tensor, variance: Array, width: Array) -> Tensor:
    """Means, from the middles of their cells, of values expected at `offset` (A, S, k) from them: float64, same shape.

    offset: any unit, a dyadic number; variance (A, k): r^2; width (A, k): of the cells, 0 for none, which leaves no offset.
    """
    means, slopes = _table(str(offset.device))
    there, half = width > 0.0, 0.5 * width
    row = np.searchsorted(_MIDDLES, variance / np.where(there, half * half, 1.0))  # (A, k)
    reach = np.where(there, _PER_UNIT / np.where(there, half * _REACH[row], 1.0), 0.0)
    first, per, unit = (
        torch.from_numpy(a).to(offset.device)[:, None] for a in (row * _ENTRIES, reach, half * 2.0**-20)
    )
    at = (offset.abs() * per).clamp_(max=_ENTRIES - 1.0)
    whole = at.floor()
    index = whole.long() + first
    return torch.copysign((means[index] + slopes[index] * (at - whole)) * unit, offset)
