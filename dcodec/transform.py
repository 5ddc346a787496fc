"""Where do rows of H live? An orthonormal Haar pyramid, cut into tiles.

    picture (S, C, H, W) --haar--> low, detail --haar--> ... --tile--> bands: list of (S, T, p), coarse to fine

Every row of H is supported on one tile of one band, so rows of different tiles are orthogonal by construction. With no
levels and one tile, the band is the picture itself and rows are those of the published method.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The geometry of a pyramid: shapes of its bands in coefficients and tiles.

    A picture of C x h x w is extended to multiples of 2**levels; `tile` is a side in coefficients, 0 for the whole band.
    """

    channels: int
    height: int
    width: int
    levels: int
    tile: int

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the extended picture."""
        unit = 1 << self.levels
        return -(-self.height // unit) * unit, -(-self.width // unit) * unit

    def band(self, index: int) -> tuple[int, int, int]:
        """Channels, height and width of band `index` (0 is the low band, then details from coarse to fine)."""
        level = self.levels - max(index - 1, 0)
        h, w = (n >> level for n in self.padded)
        return self.channels * (3 if index else 1), h, w

    def grid(self, index: int) -> tuple[int, int]:
        """Tiles down and across of a band."""
        _, h, w = self.band(index)
        return (-(-h // self.tile), -(-w // self.tile)) if self.tile else (1, 1)

    def dim(self, index: int) -> int:
        """Coefficients p in a tile of a band."""
        c, h, w = self.band(index)
        return c * self.tile * self.tile if self.tile else c * h * w

    def support(self, index: int) -> Tensor:
        """(T, p) float64: ones where a tile of the band has coefficients, zeros where it reaches beyond the band."""
        return to_tiles(torch.ones(1, *self.band(index), dtype=torch.float64), self, index)[0]

    def __len__(self) -> int:
        return self.levels + 1


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the orthonormal 2-D Haar transform: (S, C, H, W) -> low (S, C, H/2, W/2), detail (S, 3C, H/2, W/2)."""
    a, b, c, d = x[..., 0::2, 0::2], x[..., 0::2, 1::2], x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    ab, cd, ab_, cd_ = a + b, c + d, a - b, c - d
    return (ab + cd) * 0.5, torch.cat([(ab_ + cd_) * 0.5, (ab - cd) * 0.5, (ab_ - cd_) * 0.5], 1)


def unhaar(low: Tensor, detail: Tensor) -> Tensor:
    """The inverse (and transpose) of `haar`."""
    across, down, diagonal = detail.chunk(3, 1)
    s, c, h, w = low.shape
    x = low.new_empty(s, c, 2 * h, 2 * w)
    lo, hi, lo_, hi_ = low + down, low - down, across + diagonal, across - diagonal
    x[..., 0::2, 0::2], x[..., 0::2, 1::2] = (lo + lo_) * 0.5, (lo - lo_) * 0.5
    x[..., 1::2, 0::2], x[..., 1::2, 1::2] = (hi + hi_) * 0.5, (hi - hi_) * 0.5
    return x


def to_tiles(band: Tensor, layout: Layout, index: int) -> Tensor:
    """(S, C, H, W) coefficients of band `index` -> (S, T, p); the band is extended by zeros to whole tiles."""
    s, c, h, w = band.shape
    rows, cols = layout.grid(index)
    if not layout.tile:
        return band.reshape(s, 1, c * h * w)
    t = layout.tile
    band = torch.nn.functional.pad(band, (0, cols * t - w, 0, rows * t - h))
    return band.reshape(s, c, rows, t, cols, t).permute(0, 2, 4, 1, 3, 5).reshape(s, rows * cols, c * t * t)


def from_tiles(tiles: Tensor, layout: Layout, index: int) -> Tensor:
    """The inverse of `to_tiles`."""
    s, t = tiles.shape[0], layout.tile
    c, h, w = layout.band(index)
    rows, cols = layout.grid(index)
    if not t:
        return tiles.reshape(s, c, h, w)
    band = tiles.reshape(s, rows, cols, c, t, t).permute(0, 3, 1, 4, 2, 5).reshape(s, c, rows * t, cols * t)
    return band[..., :h, :w]


def analyze(x: Tensor, layout: Layout, scale: int = 0) -> list[Tensor]:
    """Bands of `x` (S, C, H, W) in units of the full picture's orthonormal coefficients, low to fine, as (S, T, p).

    `scale` s: `x` is the picture averaged over 2**s x 2**s blocks, which has all bands but the s finest.
    """
    bands = []
    low = x * float(1 << scale)
    for level in range(scale + 1, layout.levels + 1):
        low, detail = haar(low)
        bands.append(to_tiles(detail, layout, layout.levels - level + 1))
    bands.append(to_tiles(low, layout, 0))
    return bands[::-1]


def synthesize(bands: list[Tensor], layout: Layout) -> Tensor:
    """The inverse of `analyze`; the number of bands tells the scale."""
    x = from_tiles(bands[0], layout, 0)
    for index in range(1, len(bands)):
        x = unhaar(x, from_tiles(bands[index], layout, index))
    return x * 2.0 ** (len(bands) - 1 - layout.levels)


def upsample(x: Tensor) -> Tensor:
    """A picture (S, C, H, W) at twice the size with no detail: what is known of it one scale finer."""
    return x.repeat_interleave(2, -2).repeat_interleave(2, -1)


def extend(x: Tensor, down: int, right: int) -> Tensor:
    """`x` (B, C, h, w) with `down` rows and `right` columns more, mirrored as often as it takes."""
    for dim, more in ((-2, down), (-1, right)):
        if more:
            n = x.shape[dim]
            at = torch.arange(n + more, device=x.device) % (2 * n)
            x = x.index_select(dim, torch.minimum(at, 2 * n - 1 - at))
    return x
