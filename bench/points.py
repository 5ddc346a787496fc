"""What does every codec give? Points: one decoded file each; and the interface behind which codecs stand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcodec.prior.catalog import Entry

Job = tuple[str, str]  # a setting, and the estimate to decode: mean or sample, "" for codecs that know only one


class Missing(ValueError):
    """A codec cannot run here; the message says what it needs, in one line."""


@dataclass(frozen=True)
class Point:
    """One decoded file.

    size: bytes, of the whole file. shown: 8-bit pixels, (h, w) or (h, w, 3). encode_s, decode_s: CPU seconds; None when
    not timed. nfe: denoiser evaluations of the decoder at full size, smaller ones as parts, estimate included. std (h, w):
    what the decoder says of its uncertainty, float32, in units of [-1, 1].
    """

    setting: str
    estimate: str
    size: int
    shown: NDArray[np.uint8]
    encode_s: float
    decode_s: float | None
    nfe: int | None = None
    std: NDArray[np.float32] | None = None


class Codec(Protocol):
    """name, version, prior ("" for most) identify it in the CSV."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def prior(self) -> str: ...

    @property
    def jobs(self) -> Sequence[Job]:
        """All that it measures of a picture."""

    def points(self, picture: Image.Image, jobs: Sequence[Job]) -> Iterator[Point]:
        """Do some of `jobs` on an 8-bit picture of mode L or RGB."""


def label(prior: Entry) -> str:
    """What a CSV calls a prior: its name and the first bytes of its digest."""
    return f"{prior.name}-{prior.digest[:4].hex()}"
