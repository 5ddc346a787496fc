"""How are sums and matrix products made exact?

Operands are integers in float64, so small that no partial sum reaches 2**53; the result is then the same for every
BLAS, blocking, thread count and device. `Fixed` numbers are such integers times 2**-bits.
"""

from torch import Tensor


def to_fixed(x: Tensor, bits: int) -> Tensor:
    """`x` in units of 2**-bits, rounded half to even: integer-valued float64, same shape."""
    return (x.double() * 2.0**bits).round_()


def shift(x: Tensor, bits: int) -> Tensor:
    """Drop `bits` fractional bits of an integer-valued float64 tensor, rounding half to even (in place)."""
    return x.mul_(2.0**-bits).round_()
