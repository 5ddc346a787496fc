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


def _exponent(a: Array) -> NDArray[np.int32]:
    """The binary exponent of the largest magnitude in each matrix of `a` (P, m, n)."""
    exponent: NDArray[np.int32] = np.frexp(np.abs(a).max(axis=(1, 2)))[1]
    return exponent


def _normalized(a: Array, bits: int) -> Array:
    """Scale each matrix of `a` (P, m, n) by a power of two to `bits` bits and round to integers."""
    return np.rint(np.ldexp(a, (bits - _exponent(a))[:, None, None]))


def _columns(y: Array) -> Array:
    """Scale each column of `y` (P, m, n) to BITS bits, or as many as keep its Gram matrix exact; round to integers."""
    bits = min(BITS, (52 - y.shape[1].bit_length()) // 2)
    exponent = np.frexp(np.abs(y).max(axis=1))[1]
    return np.rint(np.ldexp(y, (bits - exponent)[:, None, :]))


def orthonormal(y: Array) -> Array:
    """Orthonormal columns spanning those of the integer-valued `y` (P, m, k), in units of 2**-BITS: Cholesky-QR.

    A column that depends on earlier ones, to within rounding, comes out as zeros.
    """
    k = y.shape[2]
    gram = np.matmul(y.transpose(0, 2, 1), y)  # exact: see _columns
    x = y.copy()
    floor = np.diagonal(gram, axis1=1, axis2=2) * 2.0**-36
    for j in range(k):
        live = gram[:, j, j] > floor[:, j]
        pivot = np.where(live, np.sqrt(np.where(live, gram[:, j, j], 1.0)), np.inf)
        u = gram[:, j:, j] / pivot[:, None]
        column = x[:, :, j] / pivot[:, None]
        x[:, :, j] = column
        if j + 1 < k:
            gram[:, j + 1 :, j + 1 :] -= u[:, 1:, None] * u[:, None, 1:]
            x[:, :, j + 1 :] -= column[:, :, None] * u[:, None, 1:]
    return np.rint(np.clip(x, -1.0, 1.0) * _UNIT)


def jacobi(a: Array, sweeps: int) -> tuple[Array, Array]:
    """Eigenvalues (P, n) and eigenvectors (P, n, n) of symmetric `a` (P, n, n), n even: round-robin Jacobi rotations.

    Golub & Van Loan, Matrix Computations, section 8.5; unsorted. Indices that are rotated together stand half of the matrix
    apart, so that a round works on slices; then all move on to their next partners.
    """
    n, half = a.shape[1], a.shape[1] // 2
    at = np.concatenate([np.arange(half), np.arange(half, n)[::-1]])  # which index stands where
    step = np.argsort(at)[np.concatenate([[0, n - 1], np.arange(1, n - 1)])[at]]  # where what comes next stands now
    a, v = a[:, at[:, None], at], np.broadcast_to(np.eye(n)[:, at], a.shape)
    p, q = np.arange(half), np.arange(half, n)
    for _ in range(sweeps * (n - 1)):
        app, aqq, apq = a[:, p, p], a[:, q, q], a[:, p, q]
        live = np.abs(apq) > np.abs(app) * 2.0**-60
        theta = (aqq - app) / (np.where(live, apq, 1.0) * 2.0)
        t = 1.0 / (np.abs(theta) + np.sqrt(theta * theta + 1.0))
        t = np.where(live, np.where(theta < 0, -t, t), 0.0)
        c = 1.0 / np.sqrt(t * t + 1.0)
        s = t * c
        a = _turned(a[:, :half], a[:, half:], c[:, :, None], s[:, :, None], 1)
        c, s = c[:, None], s[:, None]
        a = _turned(a[:, :, :half], a[:, :, half:], c, s, 2)[:, step[:, None], step]
        v = _turned(v[:, :, :half], v[:, :, half:], c, s, 2)[:, :, step]
        at = at[step]
    back = np.argsort(at)
    return np.diagonal(a, axis1=1, axis2=2)[:, back], v[:, :, back]


def _turned(first: Array, second: Array, c: Array, s: Array, axis: int) -> Array:
    """Two halves of matrices turned against each other, by cosines c and sines s, joined along `axis`."""
    return np.concatenate([c * first - s * second, s * first + c * second], axis)


def _complement(y: Array, off: Array | None) -> Array:
    """The part of the columns of `y` (P, p, k) off the rows `off` (P, j, p)."""
    if off is None or not off.shape[1]:
        return y
    exponent = _exponent(y) - BITS
    y = np.rint(np.ldexp(y, -exponent[:, None, None]))
    inside = np.rint(np.matmul(off, y) * 2.0**-BITS)
    y = y - np.rint(np.matmul(off.transpose(0, 2, 1), inside) * 2.0**-BITS)
    return np.ldexp(y, exponent[:, None, None])


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
    start: (p, k) first guess in units of 2**-BITS; default fixed random directions.
    Returns rows (P, rank, p) in units of 2**-BITS, orthonormal, by falling variance, and the variances (P, rank).
    """
    count, p, _ = deviations.shape
    k = min(p, rank + 4)
    k += k & 1 if k < p else 0  # Jacobi pairs columns up
    if start is None:
        raw = np.random.Philox(key=7).random_raw(p * k).astype(np.int64)
        start = _columns(((raw & 0xFFFFF) - 0x80000).astype(np.float64).reshape(1, p, k))[0]
    q = np.broadcast_to(start[:, :k], (count, p, k))
    own = np.broadcast_to(np.asarray(own, np.float64), (count,))[:, None, None]
    if pool is not None:
        weight = np.ldexp(np.broadcast_to(np.asarray(pool_weight, np.float64), (count,)), _exponent(pool[None])[0] - BITS)
        pool = _normalized(pool[None], BITS)[0]

    def covariance_times(q: Array) -> Array:  # (P, p, k), in units of 2**-BITS
        inner = np.matmul(deviations.transpose(0, 2, 1), q)  # (P, S, k), exact
        peak = _exponent(inner)
        inner = np.rint(np.ldexp(inner, np.minimum(BITS - peak, 0)[:, None, None]))
        y = np.ldexp(np.matmul(deviations, inner), np.maximum(peak - BITS, 0)[:, None, None])
        y = own * y if pool is None else own * y + weight[:, None, None] * np.matmul(pool, q)
        return y if support is None else y * support[:, :, None]

    for _ in range(iterations):
        q = _complement(_columns(covariance_times(q)), off)
        q = orthonormal(_complement(_columns(q), off))  # twice: the first leaves little, with large rounding errors
    y = _complement(covariance_times(q), off)
    exponent = _exponent(y)
    bits = min(BITS, 51 - BITS - p.bit_length() // 2)
    ritz = np.matmul(q.transpose(0, 2, 1), np.rint(np.ldexp(y, (bits - exponent)[:, None, None])))
    values, vectors = jacobi((ritz + ritz.transpose(0, 2, 1)) * 0.5, sweeps=4)
    order = np.argsort(-values, axis=1, kind="stable")[:, :rank]
    values = np.ldexp(np.take_along_axis(values, order, 1), (exponent - bits - 2 * BITS)[:, None])
    vectors = np.take_along_axis(vectors, order[:, None, :], 2)
    rows = np.rint(np.matmul(q, np.rint(vectors * _UNIT)) * 2.0**-BITS)
    return np.ascontiguousarray(rows.transpose(0, 2, 1)), values
