"""Which elementary functions give the same bits on every machine?

Built from single IEEE operations only (numpy's +, -, *, /, rint, sqrt, frexp, ldexp), unlike the C library's.
Accuracy is a few units in the last place of float64; what counts is that it is the same few everywhere.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LN2_HIGH = 0.693147180369123816490  # 33 leading bits: k * _LN2_HIGH is exact for |k| < 2**20
_LN2_LOW = 1.90821492927058770002e-10
_HALF_PI_HIGH = 1.5707963267341256  # 33 leading bits
_HALF_PI_LOW = 6.077100506506192e-11


def log(x: Any) -> Array:
    """Natural logarithm of `x` > 0, elementwise, float64."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = np.where(low, exponent - 1, exponent).astype(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)  # log m = 2 atanh(s), |s| < 0.172
    z = s * s
    series = np.zeros_like(z)
    for k in range(12, -1, -1):
        series = series * z + 1.0 / (2 * k + 1)
    return exponent * _LN2_HIGH + (2.0 * s * series + exponent * _LN2_LOW)


def exp(x: Any) -> Array:
    """Exponential of `x`, elementwise, float64; arguments are clamped to [-700, 700]."""
    x = np.clip(np.asarray(x, np.float64), -700.0, 700.0)
    k = np.rint(x * 1.4426950408889634)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW  # |r| < 0.35
    series = np.ones_like(r)
    for n in range(16, 0, -1):
        series = series * r / n + 1.0
    return np.ldexp(series, k.astype(np.int32))


def cos_turns(numerator: NDArray[np.int64], denominator: int) -> Array:
    """cos(2 pi * numerator / denominator) for integers: the argument is reduced exactly before any rounding."""
    quarter = 4 * (numerator % denominator)  # in quarter turns, times `denominator`
    quarter = np.minimum(quarter, 4 * denominator - quarter)  # cos is even: 0 .. 2 quarter turns
    sign = np.where(quarter > denominator, -1.0, 1.0)
    quarter = np.where(quarter > denominator, 2 * denominator - quarter, quarter)  # 0 .. 1 quarter turn
    angle = quarter.astype(np.float64) / float(denominator) * 1.5707963267948966
    z = angle * angle
    series = np.ones_like(z)
    for n in range(22, 0, -2):
        series = 1.0 - series * z / (n * (n - 1))
    return sign * series


def sin(x: Any) -> Array:
    """Sine of `x` in radians, elementwise, float64; accurate to 1e-12 for |x| < 1e5."""
    return _sin_quarters(x, 0)


def cos(x: Any) -> Array:
    """Cosine of `x` in radians, elementwise, float64; accurate to 1e-12 for |x| < 1e5."""
    return _sin_quarters(x, 1)


def _sin_quarters(x: Any, ahead: int) -> Array:
    """sin(x + ahead * pi / 2): quarter turns are taken off in two parts (Cody and Waite), the rest is a Taylor series."""
    x = np.asarray(x, np.float64)
    quarters = np.rint(x * 0.6366197723675814)
    r = (x - quarters * _HALF_PI_HIGH) - quarters * _HALF_PI_LOW  # |r| < pi / 4
    z = r * r
    sine, cosine = np.ones_like(z), np.ones_like(z)
    for n in range(20, 0, -2):
        sine = 1.0 - sine * z / (n * (n + 1))
        cosine = 1.0 - cosine * z / (n * (n - 1))
    turn = (quarters.astype(np.int64) + ahead) & 3
    value = np.where(turn & 1, cosine, r * sine)
    return np.where(turn & 2, -value, value)


def normal_cdf(x: Any) -> Array:
    """Cumulative distribution of the standard normal, elementwise, float64, absolute error below 1e-15."""
    x = np.asarray(x, np.float64)
    t = np.minimum(np.abs(x), 12.0)
    density = exp(t * t * -0.5) * 0.3989422804014327
    near = np.minimum(t, 4.0)  # Phi(t) = 1/2 + density * (t + t^3/3 + t^5/15 + ...)
    term, series = near, near
    for n in range(3, 121, 2):
        term = term * near * near / n
        series = series + term
    far = np.maximum(t, 4.0)  # Laplace's continued fraction for the tail
    fraction = far
    for n in range(40, 0, -1):
        fraction = far + n / fraction
    upper = np.where(t < 4.0, 0.5 - density * series, density / fraction)
    return np.where(x > 0, 1.0 - upper, upper)
