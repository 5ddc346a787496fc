"""How does a projection become a symbol, and a symbol a measurement?

The first time a row is measured, z = h x - loc falls into one of many cells around its expectation:

    symbol = sign(z) floor(|z| / step + ROUNDING),    y = middle of the cell

Each later time its cell is cut in two, and the symbol tells the half: no bit of an earlier answer is paid twice.

The zero cell is wider than the others: at the rates of interest most symbols are zeros, and a value near the edge costs more
bits than it saves error.
"""

import numpy as np
from numpy.typing import NDArray

from dcodec.exact.functions import exp

Array = NDArray[np.float64]
Symbols = NDArray[np.int32]

ROUNDING = 0.3  # |z| / step + ROUNDING is cut to an integer; 0.5 would be plain rounding
SYMBOL_MAX = 255
_ZERO = 0.1  # squared steps that values in a zero cell have on average, or a little less

# standard deviations in units of the step that an entropy model exists for: 2**-3 .. 2**7.5
SPREADS = np.array([2.0**-3 * 2.0 ** (i // 6) * (1.0, 1.122462048309373, 1.2599210498948732, 1.4142135623730951,
                    1.5874010519681994, 1.7817974362806785)[i % 6] for i in range(64)])  # fmt: skip
_MIDDLES = SPREADS[:-1] * SPREADS[1:]  # variances halfway between neighbours on the log axis
SPLITS = 32  # models of the halves of a cell, by where in the cell the projection is expected
_MAX_OFFSET = 0.4  # from the middle, in widths
_CERTAINTY = 10.0  # log-odds of the half that is expected, a width off the middle (bench/NOTES.md)


def level_of(loc: Array, variance: Array, middle: Array, width: Array, step: float) -> NDArray[np.int64]:
    """Which model codes the symbol of a row, (n,) each -> (n,): an index into SPREADS, or from len(SPREADS) on a split.

    loc, variance: of the projection; middle, width: of the cell it is known to be in, width 0 when there is none.
    """
    first = np.searchsorted(_MIDDLES, variance / (step * step))
    known = width > 0.0
    offset = np.clip((loc - middle) / np.where(known, width, 1.0), -_MAX_OFFSET, _MAX_OFFSET)
    position = ((offset + _MAX_OFFSET) * (SPLITS / (2.0 * _MAX_OFFSET))).astype(np.int64)
    return np.where(known, len(SPREADS) + np.minimum(position, SPLITS - 1), first)


def upper_chance(split: int) -> float:
    """Probability of the upper half for split model 0, ..., SPLITS - 1: logistic in the offset."""
    offset = _MAX_OFFSET * ((2.0 * split + 1.0) / SPLITS - 1.0)
    return float(1.0 / (1.0 + exp(np.array(-_CERTAINTY * offset))))


def quantize(projection: Array, loc: Array, middle: Array, width: Array, step: float) -> Symbols:
    """Symbols in [-SYMBOL_MAX, SYMBOL_MAX] of projections, int32, all (n,): 0 or 1 where there was a cell already."""
    z = projection - loc
    q = np.minimum(np.floor(np.abs(z) / step + ROUNDING), SYMBOL_MAX)
    return np.where(width > 0.0, projection >= middle, np.sign(z) * q).astype(np.int32)


def dequantize(symbols: Symbols, loc: Array, middle: Array, width: Array, step: float) -> tuple[Array, Array]:
    """The cells that the symbols tell: their middles y and their widths, (n,) each."""
    known = width > 0.0
    first = loc + np.sign(symbols) * (np.abs(symbols) + (0.5 - ROUNDING)) * step
    y = np.where(known, middle + width * (0.5 * symbols - 0.25), first)
    return y, np.where(known, 0.5 * width, np.where(symbols == 0, 2.0 - 2.0 * ROUNDING, 1.0) * step)


def squared(symbols: Symbols, variance: Array) -> Array:
    """About the squares of new rows' projections, in squared steps, as far as their symbols tell: (n,).

    variance (n,): expected of them, in squared steps; less than a zero cell holds is no news there.
    """
    size = symbols.astype(np.float64)
    return np.where(symbols == 0, np.minimum(variance, _ZERO), size * size)
