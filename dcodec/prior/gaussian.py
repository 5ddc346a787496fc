"""What is the best linear denoiser of pictures, and what does a prior without weights look like?

Photographs have, to second order, a 1/f^2-like spectrum in opponent colours. With x ~ N(0, B' diag(L) B), B the orthonormal
DCT, L = a (f0^2 + f^2)^-p per colour channel (f in cycles per two pixels), the Wiener filter is the exact denoiser:

    D(x, sigma) = B' diag(L / (L + sigma^2)) B x

Computed in fixed point with exact products: the same bits everywhere, any height and width.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcodec.exact.elementwise import at_once
from dcodec.exact.functions import cos_turns, exp, log
from dcodec.exact.linear import shift, to_fixed
from dcodec.prior.catalog import PHOTO_SPECTRUM, Spectrum, gaussian_digest

VALUE_BITS = 16  # pictures in the filter: units of 2**-16
COEFFICIENT_BITS = 20  # transform matrices: units of 2**-20
GAIN_BITS = 24
BLOCK = 1 << 18  # numbers filtered at once on a CPU: what its cache holds

_OPPONENT = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))


def opponent() -> NDArray[np.float64]:
    """The orthonormal opponent-colour transform (3, 3), rows luma, red-blue, green-magenta."""
    m = np.array(_OPPONENT)
    return m / np.sqrt((m * m)[:, :1] + (m * m)[:, 1:2] + (m * m)[:, 2:])


def dct_matrix(n: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II (n, n), rows are frequencies."""
    return _dct_rows(n, np.arange(n), n)


def _dct_rows(n: int, k: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Rows `k` of the orthonormal DCT-II of length n, their first `columns` entries."""
    cosines = cos_turns(np.arange(4 * n), 4 * n)
    rows = cosines[(2 * np.arange(columns) + 1) * k[:, None] % (4 * n)] * np.sqrt(2.0 / n)
    rows[k == 0] *= np.sqrt(0.5)
    return rows


def spectrum(h: int, w: int, parameters: Spectrum) -> NDArray[np.float64]:
    """Variances L (C, h, w) of the DCT coefficients of opponent channels."""
    fy, fx = np.arange(h)[:, None] / h, np.arange(w)[None] / w
    f2 = fy * fy + fx * fx
    return np.stack([a * exp(log(f0 * f0 + f2) * -p) for a, f0, p in parameters])


@lru_cache(maxsize=8)
def _halved(n: int, device: str) -> tuple[tuple[Tensor, ...], Tensor]:
    """The DCT-II of length n as half-length matrices, fixed point, and the frequencies (n,) of their rows, one after the other.

    A row of the DCT is even or odd about the middle, so half of its products suffice: odd rows act on differences, and even
    ones, a DCT-II of length n / 2, fold again.
    """
    parts, frequencies, step, columns = [], [], 1, n
    while columns % 2 == 0 and columns > 16:
        columns //= 2
        frequencies.append(np.arange(step, n, 2 * step))
        parts.append(_dct_rows(n, frequencies[-1], columns))
        step *= 2
    frequencies.append(np.arange(0, n, step))
    parts.append(_dct_rows(n, frequencies[-1], columns))
    fixed = tuple(to_fixed(torch.from_numpy(part), COEFFICIENT_BITS).to(device) for part in parts)
    return fixed, torch.from_numpy(np.concatenate(frequencies)).to(device)


def _times(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """`matrix` (k, n) on dimension `dim` of `x`, -2 or -1, which is n long."""
    return matrix @ x if dim == -2 else x @ matrix.T


def _dct(x: Tensor, dim: int) -> Tensor:
    """DCT-II of integer-valued float64 `x` along `dim`, -2 or -1, in units smaller by 2**-COEFFICIENT_BITS.

    Frequencies come in the order of `_halved`.
    """
    (*odd, last), _ = _halved(x.shape[dim], str(x.device))
    out = torch.empty_like(x)
    at = 0
    for matrix in odd:
        half = len(matrix)
        low, high = x.narrow(dim, 0, half), x.narrow(dim, half, half).flip(dim)
        out.narrow(dim, at, half).copy_(_times(matrix, low - high, dim))
        x = high.add_(low)
        at += half
    out.narrow(dim, at, len(last)).copy_(_times(last, x, dim))
    return out


def _idct(z: Tensor, dim: int) -> Tensor:
    """The transpose of `_dct`."""
    (*odd, last), _ = _halved(z.shape[dim], str(z.device))
    at = z.shape[dim] - len(last)
    x = _times(last.T, z.narrow(dim, at, len(last)), dim)
    for matrix in reversed(odd):
        half = len(matrix)
        at -= half
        difference = _times(matrix.T, z.narrow(dim, at, half), dim)
        x = torch.cat([x + difference, x.sub_(difference).flip(dim)], dim)
    return x


@lru_cache(maxsize=4)
def _variances(h: int, w: int, parameters: Spectrum, device: str) -> Tensor:
    """(C, h, w), frequencies in the order of `_halved`."""
    (_, fy), (_, fx) = _halved(h, device), _halved(w, device)
    return torch.from_numpy(spectrum(h, w, parameters)).to(device)[:, fy][:, :, fx].contiguous()


@lru_cache(maxsize=2)  # a round's samples, one after the other, all have the same noise; they stand or lie (positions.py)
def _gains(h: int, w: int, sigma: float, parameters: Spectrum, device: str) -> Tensor:
    variance = _variances(h, w, parameters, device)
    return to_fixed(variance / (variance + sigma * sigma), GAIN_BITS)  # (C, h, w)


def wiener(x: Tensor, sigma: float, parameters: Spectrum) -> Tensor:
    """E[x0 | x = x0 + sigma n] under the spectrum: (B, C, h, w) float32 in and out, C = 3, or 1 for gray (luma)."""
    b, c, h, w = x.shape
    colours = to_fixed(torch.from_numpy(opponent()), COEFFICIENT_BITS).to(x.device) if c == 3 else None
    gains = _gains(h, w, sigma, parameters[:c], str(x.device))
    out = torch.empty_like(x)
    pictures = max(1, at_once(x, BLOCK) // (c * h * w))
    for part, to in zip(*(torch.split(a, pictures) for a in (x, out)), strict=True):
        z = to_fixed(part, VALUE_BITS).reshape(-1, c, h * w)
        z = z if colours is None else shift(colours @ z, COEFFICIENT_BITS)
        z = shift(_dct(z.reshape(-1, c, h, w), -2), COEFFICIENT_BITS)
        z = shift(_dct(z, -1), COEFFICIENT_BITS)
        z = shift(z.mul_(gains), GAIN_BITS)  # (B, C, h, w) frequencies
        z = shift(_idct(z, -1), COEFFICIENT_BITS)
        z = shift(_idct(z, -2), COEFFICIENT_BITS).reshape(-1, c, h * w)
        z = z if colours is None else shift(colours.T @ z, COEFFICIENT_BITS)
        to.copy_(z.mul_(2.0**-VALUE_BITS).reshape(to.shape))
    return out


@dataclass(frozen=True)
class GaussianPrior:
    """x ~ N(0, B' diag(L) B): no weights, an exact denoiser, a posterior in closed form. The oracle of the tests."""

    parameters: Spectrum = PHOTO_SPECTRUM
    name: str = "gaussian"

    @property
    def size(self) -> None:
        """Any scale."""

    @property
    def doubt(self) -> float:
        """None: it is exact."""
        return 1.0

    @property
    def turned(self) -> bool:
        """It would make no difference: as they are."""
        return False

    @property
    def latent(self) -> None:
        """Pictures themselves."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channel counts this prior can denoise."""
        return (1, len(self.parameters))

    @property
    def digest(self) -> bytes:
        """sha256 of all that defines the prior (32 bytes)."""
        return gaussian_digest(self.parameters)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x = x0 + sigma n]: (B, C, h, w) float32 in and out."""
        return wiener(x, sigma, self.parameters)

    def to(self, device: str) -> "GaussianPrior":
        """The same prior; its matrices follow the pictures' device."""
        return self

    def covariance(self, channels: int, h: int, w: int) -> NDArray[np.float64]:
        """The dense covariance (D, D), D = channels * h * w, for small pictures."""
        transform = np.kron(dct_matrix(h), dct_matrix(w))  # (hw, hw)
        if channels == 3:
            transform = np.kron(opponent(), transform)
        else:
            transform = np.kron(np.eye(channels), transform)
        variance = spectrum(h, w, self.parameters[:channels]).reshape(-1, 1)
        return np.asarray(transform.T @ (variance * transform), np.float64)

    def draw(self, channels: int, h: int, w: int, seed: int) -> NDArray[np.float32]:
        """One picture (C, h, w) float32 from the prior; values may leave [-1, 1]. For experiments, not shared."""
        deviation = np.sqrt(spectrum(h, w, self.parameters[:channels]))
        z = deviation * np.random.default_rng(seed).standard_normal((channels, h, w))
        x = np.matmul(np.matmul(dct_matrix(h).T, z), dct_matrix(w))
        if channels == 3:
            x = np.tensordot(opponent().T, x, 1)
        return x.astype(np.float32)
