"""Where do rows of H live? A wavelet pyramid, cut into tiles.

    picture (S, C, H, W) --split--> low, detail --split--> ... --tile--> bands: list of (S, T, p), coarse to fine

Every row of H is supported on one tile of one band, so rows of different tiles are (nearly) orthogonal by construction. The
wavelet is the 9/7 of Cohen, Daubechies and Feauveau in lifting form (Daubechies and Sweldens 1998, section 7.6): within a few
percent of orthonormal, and any side will do, even or odd. With no levels and one tile, the band is the picture itself and
rows are those of the published method.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# predict, update, predict, update; then scale low and high, so that a constant picture keeps its energy. Float32 numbers:
# each step below is one IEEE operation an element.
_LIFT = (-1.5861343145370483, -0.05298011749982834, 0.8829110860824585, 0.4435068666934967)
_LOW, _HIGH = 1.1496044397354126, 0.8698644638061523
_UNLOW, _UNHIGH = 0.8698644638061523, 1.1496044397354126

REGION, REGION_TILES = 128, 4  # a side of the regions that have a gain of their own: pixels, and tiles at least


@dataclass(frozen=True)
class Layout:
    """The geometry of a pyramid: shapes of its bands in coefficients and tiles.

    levels: of the pyramid; tile: a side in coefficients, 0 for the whole band; coarsest: the scale at which samples are
    first drawn, at most `levels`. Scale s halves a picture s times, sides rounded up.
    """

    channels: int
    height: int
    width: int
    levels: int
    tile: int
    coarsest: int = 0

    def size(self, scale: int) -> tuple[int, int]:
        """Height and width of the picture at a scale."""
        return -(-self.height >> scale), -(-self.width >> scale)

    def band(self, index: int) -> tuple[int, int, int]:
        """Channels, height and width of band `index` (0 is the low band, then details from coarse to fine)."""
        level = self.levels - max(index - 1, 0)
        return self.channels * (3 if index else 1), *self.size(level)

    def grid(self, index: int) -> tuple[int, int]:
        """Tiles down and across of a band."""
        _, h, w = self.band(index)
        return (-(-h // self.tile), -(-w // self.tile)) if self.tile else (1, 1)

    def dim(self, index: int) -> int:
        """Coefficients p in a tile of a band."""
        c, h, w = self.band(index)
        return c * self.tile * self.tile if self.tile else c * h * w

    def support(self, index: int) -> Tensor:
        """(T, p) float64: ones where a tile of the band has coefficients, zeros where it reaches beyond them."""
        c, h, w = self.band(index)
        ones = torch.ones(1, c, h, w, dtype=torch.float64)
        if index:  # an odd side has one high coefficient less than low ones
            finer_h, finer_w = self.size(self.levels - index)
            across, down, diagonal = ones.chunk(3, 1)
            for part in (across, diagonal):
                part[..., finer_w // 2 :] = 0.0
            for part in (down, diagonal):
                part[..., finer_h // 2 :, :] = 0.0
        return to_tiles(ones, self, index)[0]

    def regions(self, index: int) -> tuple[int, int]:
        """Regions down and across of a band, of some REGION pixels a side and at least REGION_TILES tiles."""
        down, across = (
            max(1, min((side + REGION // 2) // REGION, tiles // REGION_TILES))
            for side, tiles in zip((self.height, self.width), self.grid(index), strict=True)
        )
        return down, across

    def region(self, index: int) -> Tensor:
        """(T,) int64: the region that each tile of the band lies in."""
        (down, across), (rows, cols) = self.regions(index), self.grid(index)
        return ((torch.arange(rows) * down // rows)[:, None] * across + torch.arange(cols) * across // cols).flatten()

    def refine(self, values: Tensor, index: int) -> Tensor:
        """(r,) values of the regions of the band before at the middles of those of band `index`."""
        (down, across), (rows, cols) = self.regions(index - 1), self.regions(index)
        y, x = ((2 * torch.arange(n) + 1) * m // (2 * n) for n, m in ((rows, down), (cols, across)))
        return values.view(down, across)[y][:, x].flatten()

    def __len__(self) -> int:
        return self.levels + 1


def _lift(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Low (n + 1) // 2 and high n // 2 coefficients of `x` along `dim`, of length n > 1."""
    n = x.shape[dim]
    low, high = (x[_at(x, dim, slice(k, n, 2))].contiguous() for k in (0, 1))
    for i, factor in enumerate(_LIFT):
        _add_neighbours(*((low, high) if i % 2 else (high, low)), factor, dim, before=i % 2)
    return low.mul_(_LOW), high.mul_(_HIGH)


def _unlift(low: Tensor, high: Tensor, dim: int) -> Tensor:
    """The inverse of `_lift`, up to rounding."""
    low, high = low * _UNLOW, high * _UNHIGH
    for i, factor in reversed(list(enumerate(_LIFT))):
        _add_neighbours(*((low, high) if i % 2 else (high, low)), -factor, dim, before=i % 2)
    shape = list(low.shape)
    shape[dim] += high.shape[dim]
    x = low.new_empty(shape)
    x[_at(x, dim, slice(0, None, 2))] = low
    x[_at(x, dim, slice(1, None, 2))] = high
    return x


def _add_neighbours(to: Tensor, of: Tensor, factor: float, dim: int, *, before: int) -> None:
    """Add to each element `factor` times the sum of its two neighbours in `of`; the signal is mirrored at its ends.

    before: 1 when `of` has an element to the right of each of `to`, and the first has none to its left; else 0.
    """
    inner = of.shape[dim] - 1
    if inner:
        pairs = of.narrow(dim, 0, inner) + of.narrow(dim, 1, inner)
        to.narrow(dim, before, inner).add_(pairs.mul_(factor))
    for at, end in ((0, 0), (to.shape[dim] - 1, inner)):
        if not before <= at < before + inner:
            to.narrow(dim, at, 1).add_(of.narrow(dim, end, 1) * 2.0 * factor)
            if to.shape[dim] == 1:
                break


def _at(x: Tensor, dim: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * (dim % x.ndim), part)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the transform: (S, C, H, W) -> low (S, C, h, w), detail (S, 3C, h, w), h and w half of H and W, rounded up.

    Where a side is odd, the details end one coefficient earlier, with zeros in its place.
    """
    s, c, height, width = x.shape
    up, down = _lift(x, -2)
    low, across = _lift(up, -1)
    down, diagonal = _lift(down, -1)
    h, w = low.shape[2:]
    if (height | width) & 1 == 0:
        return low, torch.cat([across, down, diagonal], 1)
    detail = x.new_zeros(s, 3 * c, h, w)
    for part, band in zip(detail.chunk(3, 1), (across, down, diagonal), strict=True):
        part[..., : band.shape[2], : band.shape[3]] = band
    return low, detail


def join(low: Tensor, detail: Tensor | None, height: int, width: int) -> Tensor:
    """The inverse of `split`, for a picture of height x width; no details are details of zero."""
    s, c, h, w = low.shape
    if detail is None:
        detail = low.new_zeros(s, 3 * c, h, w)
    across, down, diagonal = detail.chunk(3, 1)
    high_h, high_w = height // 2, width // 2
    up = _unlift(low, across[..., :high_w], -1)
    down = _unlift(down[..., :high_h, :], diagonal[..., :high_h, :high_w], -1)
    return _unlift(up, down, -2)


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
    """Bands of `x` (S, C, H, W) in units of the full picture's coefficients, low to fine, as (S, T, p).

    `scale` s: `x` is the picture halved s times, which has all bands but the s finest.
    """
    bands = []
    low = x * float(1 << scale)
    for level in range(scale + 1, layout.levels + 1):
        low, detail = split(low)
        bands.append(to_tiles(detail, layout, layout.levels - level + 1))
    bands.append(to_tiles(low, layout, 0))
    return bands[::-1]


def synthesize(bands: list[Tensor], layout: Layout) -> Tensor:
    """The inverse of `analyze`; the number of bands tells the scale."""
    x = from_tiles(bands[0], layout, 0)
    for index in range(1, len(bands)):
        x = join(x, from_tiles(bands[index], layout, index), *layout.size(layout.levels - index))
    return x * 2.0 ** (len(bands) - 1 - layout.levels)


def upsample(x: Tensor, layout: Layout, scale: int) -> Tensor:
    """What is known at `scale` of a picture (S, C, h, w) at the next coarser scale: no detail."""
    return join(x * 2.0, None, *layout.size(scale))


def extend(x: Tensor, down: int, right: int) -> Tensor:
    """`x` (B, C, h, w) with `down` rows and `right` columns more, mirrored as often as it takes."""
    for dim, more in ((-2, down), (-1, right)):
        if more:
            n = x.shape[dim]
            at = torch.arange(n + more, device=x.device) % (2 * n)
            x = x.index_select(dim, torch.minimum(at, 2 * n - 1 - at))
    return x
