"""What does a codec make of a picture? dcodec and Pillow's codecs behind one interface: settings in, decoded files out.

Times are CPU seconds of all threads, as in the reference CSV: on a shared machine the wall clock measures the others.
"""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from PIL import __version__ as pillow_version

import dcodec
from dcodec import api
from dcodec.container import HEADER_SIZE, MAX_SIDE
from dcodec.pictures import to_image
from dcodec.prior import catalog

Job = tuple[str, str]  # a setting, and the estimate to decode: mean or sample, "" for codecs that know only one


@dataclass(frozen=True)
class Point:
    """One decoded file. shown: 8-bit pixels; nfe: denoiser evaluations of the decoder, estimate included."""

    setting: str
    estimate: str
    size: int
    shown: NDArray[np.uint8]
    encode_s: float
    decode_s: float
    nfe: int | None = None


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


@dataclass(frozen=True)
class Dcodec:
    """One stream a picture, of the highest rate; each rate is a prefix of it, and one walk decodes them all.

    encode_s is therefore that of the highest rate; decode_s and nfe count the walk up to the prefix, and its estimate.
    """

    rates: tuple[float, ...]
    weights: str = catalog.DEFAULT
    sample: bool = False
    name = "dcodec"
    version = dcodec.__version__

    @cached_property
    def prior(self) -> str:
        """Name and first bytes of the digest."""
        entry = catalog.find(self.weights)
        return f"{entry.name}-{entry.digest[:4].hex()}"

    @property
    def jobs(self) -> list[Job]:
        """Every rate, every estimate."""
        return [(f"rate={rate:g}", e) for rate in sorted(self.rates) for e in ("mean", "sample")[: 1 + self.sample]]

    def points(self, picture: Image.Image, jobs: Sequence[Job]) -> Iterator[Point]:
        """See Codec."""
        pixels = picture.width * picture.height
        wanted: dict[int, list[Job]] = {}
        for job in jobs:
            size = int(float(job[0].removeprefix("rate=")) * pixels / 8 + 1e-9)
            if size <= HEADER_SIZE:
                raise ValueError(f"{job[0]} of {picture.width}x{picture.height} pixels is no more than a header")
            wanted.setdefault(size, []).append(job)
        catalog.load(catalog.find(self.weights), "cpu")  # now, so that no time below includes it
        highest = int(max(self.rates) * pixels / 8 + 1e-9)
        begin = time.process_time()
        data = dcodec.encode(np.asarray(picture), size=highest, prior=self.weights)
        encode_s = time.process_time() - begin

        session = api._Session.of(data, max(wanted), self.weights, "cpu", 0, MAX_SIDE, None)
        counted = session.counted
        walk_s, walk_nfe = 0.0, 0
        begin = time.process_time()
        for size, state in session.states(sorted(wanted)):
            walk_s += time.process_time() - begin
            walk_nfe, before = counted.evaluations - walk_nfe, counted.evaluations
            raise NotImplementedError
