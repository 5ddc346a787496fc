"""Which directions carry the most variance, with the same bits on every machine?

LAPACK's eigenvectors differ between builds. Here: block orthogonal iteration on matrices rounded to integers (every
product exact), Cholesky-QR and a fixed number of Jacobi sweeps elementwise in IEEE operations. Convergence is not needed
for correctness: whatever comes out is the same everywhere, and orthonormal to 2**-20.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BITS = 22  # unit vectors are integers in units of 2**-BITS
_UNIT = float(1 << BITS)
_SHORT = 1 << (52 - 2 * BITS)  # numbers in a row of BITS bits whose square stays exact, with room for what rounding adds


def _exponent(a: Array) -> NDArray[np.int32]:
    """The binary exponent of the largest magnitude in each matrix of `a` (P, m, n)."""
    exponent: NDArray[np.int32] = np.frexp(np.abs(a).max(axis=(1, 2)))[1]
    return exponent


def _scaled(a: Array, exponent: NDArray[np.int32]) -> Array:
    """`a` (P, m, n) times 2**exponent (P,) or (P, m), exactly. np.ldexp of all numbers takes ten times as long."""
    power = np.ldexp(1.0, exponent)
    return a * power.reshape(power.shape + (1,) * (3 - power.ndim))


def _unit_rows(y: Array) -> Array:
    """Scale each row of `y` (P, k, p) to BITS bits, fewer where it is long; round to integers."""
    bits = min(BITS, (52 - y.shape[2].bit_length()) // 2)
    return np.rint(_scaled(y, bits - np.frexp(np.abs(y).max(axis=2))[1]))


def gram(y: Array) -> Array:
    """y y' of rows `y` (P, k, p) of some BITS bits: (P, k, k), exact up to 2**53, beyond that the same everywhere.

    Long rows are cut in two halves of bits, whose products are exact; their sum may round, elementwise and in this order.
    """
    if y.shape[2] <= _SHORT:
        return np.matmul(y, y.transpose(0, 2, 1))
    half = _exponent(y) - BITS // 2
    high = _scaled(np.rint(_scaled(y, -half)), half)
    low = y - high
    cross = np.matmul(high, low.transpose(0, 2, 1))
    high, low = (np.matmul(a, a.transpose(0, 2, 1)) for a in (high, low))
    return high + (cross + cross.transpose(0, 2, 1)) + low


def orthonormal(y: Array) -> Array:
    """Orthonormal rows spanning those of the integer-valued `y` (P, k, p), in units of 2**-BITS: Cholesky-QR.

    A row that depends on earlier ones, to within rounding, comes out as zeros.
    """
    k = y.shape[1]
    both = np.concatenate([gram(y), y], 2)  # (P, k, k + p)
    floor = np.diagonal(both, axis1=1, axis2=2) * 2.0**-36
    for j in range(k):
        square = both[:, j, j]
        live = square > floor[:, j]
        pivot = np.where(live, np.sqrt(np.where(live, square, 1.0)), np.inf)
        row = both[:, j, j:] / pivot[:, None]
        both[:, j, j:] = row
        both[:, j + 1 :, j + 1 :] -= row[:, 1 : k - j, None] * row[:, None, 1:]
    return np.rint(np.clip(both[:, :, k:], -1.0, 1.0) * _UNIT)


def jacobi(a: Array, sweeps: int) -> tuple[Array, Array]:
    """Eigenvalues (P, n) and eigenvectors (P, n, n) of symmetric `a` (P, n, n): round-robin Jacobi rotations.

    Golub & Van Loan, Matrix Computations, section 8.5; unsorted. Indices that are rotated together stand half of the matrix
    apart, so that a round works on slices; then all move on to their next partners. An odd one out is given a partner of zeros,
    with which nothing rotates.
    """
    n, half = a.shape[1], a.shape[1] // 2
    if n % 2:
        values, vectors = jacobi(np.pad(a, ((0, 0), (0, 1), (0, 1))), sweeps)
        return values[:, :n], vectors[:, :n, :n]
    at = np.concatenate([np.arange(half), np.arange(half, n)[::-1]])  # which index stands where
    step = np.argsort(at)[np.concatenate([[0, n - 1], np.arange(1, n - 1)])[at]]  # where what comes next stands now
    moved = (np.concatenate([step, np.arange(n, 2 * n)])[:, None] * n + step).ravel()
    a = np.moveaxis(a, 0, 2)  # matrices last: operations run along them where there are many
    eye = np.broadcast_to(np.eye(n)[:, at, None], a.shape)
    both = np.concatenate([a[at[:, None], at], eye]).reshape(2 * n * n, -1)  # eigenvectors under the matrix
    other = np.empty_like(both)
    for _ in range(sweeps * (n - 1)):
        app, apq = both[: half * n : n + 1], both[half : half * n : n + 1]  # (half, P)
        aqq = both[half * (n + 1) : n * n : n + 1]
        live = np.abs(apq) > np.abs(app) * 2.0**-60
        theta = (aqq - app) / (np.where(live, apq, 1.0) * 2.0)
        t = 1.0 / (np.abs(theta) + np.sqrt(theta * theta + 1.0))
        t = np.where(live, np.where(theta < 0, -t, t), 0.0)
        c = 1.0 / np.sqrt(t * t + 1.0)
        s = t * c
        square = both.reshape(2 * n, n, -1)
        _turn(square[:half], square[half:n], c[:, None], s[:, None])
        _turn(square[:, :half], square[:, half:], c, s)
        both.take(moved, 0, other, "clip")
        both, other = other, both
        at = at[step]
    back = np.argsort(at)
    square = both.reshape(2 * n, n, -1)
    return square[np.arange(n), np.arange(n)][back].T, np.moveaxis(square[n:, back], 2, 0)


def _turn(first: Array, second: Array, c: Array, s: Array) -> None:
    """Turn two halves of matrices against each other, by cosines c and sines s."""
    turned = c * first - s * second
    second *= c
    second += s * first
    first[:] = turned


def _complement(y: Array, off: Array | None) -> Array:
    """The part of the rows of `y` (P, k, p) off the rows `off` (P, j, p).

    A row is at most 2**bits sqrt(p) long and those of `off` are 2**BITS: bits leave products of both room below 2**53.
    """
    if off is None or not off.shape[1]:
        return y
    exponent = _exponent(y) - min(BITS, 53 - BITS - ((y.shape[2] - 1).bit_length() + 1) // 2)
    y = np.rint(_scaled(y, -exponent))
    inside = np.rint(np.matmul(y, off.transpose(0, 2, 1)) * 2.0**-BITS)
    y -= np.rint(np.matmul(inside, off) * 2.0**-BITS)
    return _scaled(y, exponent)


def principal_directions(
    deviations: Array,
    rank: int,
    *,
    own: Array | float = 1.0,
    pool: Array | None = None,
    pool_weight: Array | float = 0.0,
    off: Array | None = None,
    support: Array | None = None,
    start: Array | None = None,
    iterations: int = 2,
) -> tuple[Array, Array]:
    """The leading eigenvectors of own * A A' + pool_weight * pool, for P matrices A at once.

    deviations: A (P, p, S), integers of at most 13 bits: centred samples as columns.
    own, pool_weight: (P,) or scalar. pool: a shared covariance (p, p), any scale.
    off: orthonormal rows (P, j, p) in units of 2**-BITS that the directions must be orthogonal to.
    support: (P, p) ones where a matrix has coefficients at all, zeros elsewhere.
    start: (k, p) first guess in units of 2**-BITS; default fixed random directions.
    Returns rows (P, rank, p) in units of 2**-BITS, orthonormal, by falling variance, and the variances (P, rank).
    """
    count, p, _ = deviations.shape
    k = min(p, rank + 4)
    k += k & 1 if k < p else 0  # Jacobi pairs them up
    if start is None:
        raw = np.random.Philox(key=7).random_raw(p * k).astype(np.int64)
        start = _unit_rows(((raw & 0xFFFFF) - 0x80000).astype(np.float64).reshape(1, p, k).transpose(0, 2, 1))[0]
    q = np.broadcast_to(start[:k], (count, k, p))
    own = np.broadcast_to(np.asarray(own, np.float64), (count,))[:, None, None]
    if pool is not None:
        top = _exponent(pool[None])
        weight = np.ldexp(np.broadcast_to(np.asarray(pool_weight, np.float64), (count,)), top[0] - BITS)
        pool = np.rint(_scaled(pool[None], BITS - top))[0]

    def times_covariance(q: Array) -> Array:  # (P, k, p), in units of 2**-BITS
        inner = np.matmul(q, deviations)  # (P, k, S), exact
        peak = _exponent(inner)
        inner = np.rint(_scaled(inner, np.minimum(BITS - peak, 0)))
        y = own * _scaled(np.matmul(inner, deviations.transpose(0, 2, 1)), np.maximum(peak - BITS, 0))
        if pool is not None:
            y += weight[:, None, None] * np.matmul(q, pool)
        return y if support is None else y * support[:, None, :]

    for _ in range(iterations):
        q = _complement(_unit_rows(times_covariance(q)), off)
        q = orthonormal(_complement(_unit_rows(q), off))  # twice: the first leaves little, with large rounding errors
    y = _complement(times_covariance(q), off)
    exponent = _exponent(y)
    bits = min(BITS, 51 - BITS - p.bit_length() // 2)
    ritz = np.matmul(q, np.rint(_scaled(y, bits - exponent)).transpose(0, 2, 1))
    values, vectors = jacobi((ritz + ritz.transpose(0, 2, 1)) * 0.5, sweeps=4)
    order = np.argsort(-values, axis=1, kind="stable")[:, :rank]
    values = np.take_along_axis(values, order, 1) * np.ldexp(1.0, exponent - bits - 2 * BITS)[:, None]
    vectors = np.take_along_axis(vectors, order[:, None, :], 2)
    return np.rint(np.matmul(np.rint(vectors * _UNIT).transpose(0, 2, 1), q) * 2.0**-BITS), values
