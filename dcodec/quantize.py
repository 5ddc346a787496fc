"""How does a projection become a symbol, and a symbol a measurement?

    z = h x - loc  --quantize-->  symbol  --dequantize-->  y = loc + step * symbol,  y = h x + n,  var n = noise

The zero bin is a little wider than the others: at the rates of interest most symbols are zeros, and a value near the edge
costs more bits than it saves error.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Symbols = NDArray[np.int32]

ROUNDING = 0.42  # |z| / step + ROUNDING is cut to an integer; 0.5 would be plain rounding
SYMBOL_MAX = 255

# standard deviations in units of the step that an entropy model exists for: 2**-3 .. 2**7.5
SPREADS = np.array([2.0**-3 * 2.0 ** (i // 6) * (1.0, 1.122462048309373, 1.2599210498948732, 1.4142135623730951,
                    1.5874010519681994, 1.7817974362806785)[i % 6] for i in range(64)])  # fmt: skip
_MIDDLES = SPREADS[:-1] * SPREADS[1:]  # variances halfway between neighbours on the log axis


def spread_index(variance: Array, step: float) -> NDArray[np.int64]:
    """Index into SPREADS of the model for a projection of this variance, (n,) -> (n,)."""
    return np.searchsorted(_MIDDLES, variance / (step * step))


def quantize(z: Array, step: float) -> Symbols:
    """Deviations from the expected projection -> symbols in [-SYMBOL_MAX, SYMBOL_MAX], int32."""
    q = np.floor(np.abs(z) / step + ROUNDING)
    return (np.sign(z) * np.minimum(q, SYMBOL_MAX)).astype(np.int32)


def dequantize(loc: Array, symbols: Symbols, step: float) -> tuple[Array, Array]:
    """Measurements y (n,) and the variance of their quantization noise (n,): a uniform error over each bin."""
    width = np.where(symbols == 0, 2.0 - 2.0 * ROUNDING, 1.0) * step
    return loc + step * symbols, width * width / 12.0
