"""What do encoder and decoder hold alike? A setting, made from the header, and the state of their walk."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcodec.container import BitstreamError, Header
from dcodec.posterior import Measured
from dcodec.prior import EIGHTHS, Prior
from dcodec.profiles import Profile, profile
from dcodec.surprise import Account
from dcodec.transform import Layout

MAX_WHOLE = 1 << 20  # values of a picture whose rows span all of it


@dataclass(frozen=True)
class Setting:
    """What a walk needs besides symbols: the header's content made concrete. chunk: samples through the denoiser at once.

    picture: channels, height and width of what is coded; the layout's are those of the walk, which latent models make smaller.
    """

    prior: Prior
    picture: tuple[int, int, int]
    profile: Profile
    layout: Layout
    seed: int
    first_step: float
    device: str = "cpu"
    chunk: int = 0

    @property
    def surprising(self) -> bool:
        """Whether rows may turn out other than foreseen, tile by tile: not those of a right prior."""
        return self.profile.gains and self.prior.doubt > 1.0

    @classmethod
    def of(cls, header: Header, prior: Prior, device: str = "cpu", chunk: int = 0) -> "Setting":
        """The walk that a header describes."""
        picture = 1 if header.gray else 3, header.height, header.width
        channels, height, width = prior.latent.shape(*picture[1:]) if prior.latent else picture
        if channels not in prior.channels:
            if channels != 1:
                raise ValueError(f"prior {prior.name} knows pictures of {prior.channels[0]} channels, not of {channels}")
            channels = prior.channels[-1]  # gray pictures are pictures in colour too
        p = profile(header.preset, header.rows)
        if not p.tile and channels * height * width > MAX_WHOLE:
            raise BitstreamError(
                f"preset {header.preset} takes pictures of up to {MAX_WHOLE} values, "
                f"not {header.width}x{header.height}x{channels}: use preset fast"
            )
        layout = p.layout(channels, height, width, prior.size)
        octaves, eighths = divmod(header.step - 128, 8)
        first = p.first_step * (1 << p.depth(height, width)) * EIGHTHS[eighths] * 2.0**octaves
        return cls(prior, picture, p, layout, header.seed, first, device, chunk)


@dataclass(frozen=True)
class State:
    """All that encoder and decoder know alike after `refresh` refreshes.

    measured: rows and measurements, a band. step: quantization step next.
    gains: half octaves of energy, (r,) int64 a band, by which the picture last exceeded what the samples showed, a region.
    samples: of P(x|y) before the last measurements, (S, C, h, w) at `scale`; None at the start and in presets without `warm`.
    centre: quieter ones, (M, C, h, w), whose mean is nearer to E[x|y] than theirs; None where nobody asked for them yet.
    energy: squared error of the samples' mean to expect off the measured rows, a band that they have (B,).
    accounts: of what rows turned out to be, tile by tile, a band.
    """

    refresh: int
    step: float
    measured: tuple[Measured, ...]
    gains: tuple[NDArray[np.int64], ...]
    scale: int
    samples: Tensor | None
    centre: Tensor | None
    energy: NDArray[np.float64]
    accounts: tuple[Account, ...]


def start(setting: Setting) -> State:
    """Nothing measured."""
    layout = setting.layout
    nothing = tuple(Measured.nothing(layout.dim(i)) for i in range(len(layout)))
    gains = tuple(np.zeros(math.prod(layout.regions(i)), np.int64) for i in range(len(layout)))
    accounts = tuple(Account.nothing(math.prod(layout.grid(i))) for i in range(len(layout)))
    return State(0, setting.first_step, nothing, gains, layout.coarsest, None, None, np.zeros(0), accounts)
