"""Which numbers define a preset? They are part of the format: change one, raise the version."""

import math
from dataclasses import dataclass

from dcodec.transform import Layout

BELOW = 2  # levels of the pyramid beyond the coarsest samples


@dataclass(frozen=True)
class Profile:
    """The constants of a walk.

    samples: draws of P(x|y) a round (S) at full size; coarse: times as many at coarser scales; rounds: of them a refresh.
    evaluations: of the denoiser for a sample from pure noise.
    warm: a round starts from the last one's samples, `noise` steps of noise added, and takes one evaluation; all but the last
    of a refresh go `relaxation` times as far as the denoiser says.
    centre: samples of a second, quieter chain, whose mean is where rows are expected (0: where the first one's is);
    centre_rounds, centre_noise, centre_relaxation: what rounds, noise and relaxation are of the first.
    gains: a small symbol a band and refresh tells how far the picture exceeds the samples' spread, symbols tell it of tiles.
    tile: side of a tile in coefficients, 0 for the whole picture; rank: new rows a tile and refresh at most.
    limit: rows a refresh at most, 0 for no limit.
    own: weight of a tile's own sample covariance, against its band's pool.
    first_step: quantization step of the first refresh, in units of the coarsest samples' pixels; ratio: of later ones.
    averaged: samples whose average is the mean estimate.
    threshold: a row is measured when its predicted variance exceeds threshold * step**2.
    split: a row is measured again, its cell cut in two, when the cell is at least split * step wide,
    ripe: and when the samples' variance along it, about a sixth of the true one, is at least ripe * step**2.
    opening: the samples move from scale s to s - 1 when the step falls under opening * 2**s.
    """

    name: str
    samples: int
    warm: bool
    gains: bool
    evaluations: int
    tile: int
    rank: int
    limit: int
    own: float
    first_step: float
    ratio: float
    threshold: float
    split: float = 1.95
    ripe: float = 0.0
    opening: float = 0.7072
    coarse: int = 1
    rounds: int = 1
    noise: float = 0.7
    relaxation: float = 1.5
    centre: int = 0
    centre_rounds: int = 8
    centre_noise: float = 0.3
    centre_relaxation: float = 1.75
    last_step: float = 2.0**-8
    averaged: int = 8

    def depth(self, height: int, width: int) -> int:
        """The scale at which a picture has the area of some 24 to 48 pixels square (tiled presets only)."""
        deepest = min(height, width).bit_length() - 1 if self.tile else 0
        return min(deepest, max(0, (math.isqrt(height * width) // 24).bit_length() - 1))

    def layout(self, channels: int, height: int, width: int, least: tuple[int, int] | None = None) -> Layout:
        """The pyramid of a picture: samples begin at `depth`, or sooner, where the picture still has `least` pixels a side."""
        deepest = min(height, width).bit_length() - 1 if self.tile else 0
        coarsest = depth = self.depth(height, width)
        while coarsest and least and (-(-height >> coarsest) < least[0] or -(-width >> coarsest) < least[1]):
            coarsest -= 1
        return Layout(channels, height, width, min(depth + BELOW, deepest), self.tile, coarsest)


def profile(preset: str, rows: int = 0) -> Profile:
    """The profile of a preset; `rows` is psc's rows a step."""
    if preset == "psc":
        return Profile(
            "psc", samples=100, warm=False, gains=False, evaluations=8,
            tile=0, rank=rows, limit=rows, own=1.0, first_step=0.5, ratio=0.5, threshold=0.4,
        )  # fmt: skip
    if preset == "whole":
        return Profile(
            "whole", samples=192, warm=False, gains=False, evaluations=4,
            tile=0, rank=8, limit=0, own=1.0, first_step=4.0, ratio=0.8, threshold=0.36, averaged=64,
        )  # fmt: skip
    return Profile(
        "fast", samples=8, coarse=2, rounds=4, centre=2, warm=True, gains=True, evaluations=8, tile=4, rank=16,
        limit=0, own=0.5, first_step=1.0, ratio=0.8408964152537145, threshold=0.36, ripe=0.05,
    )  # fmt: skip
