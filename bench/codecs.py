"""What does a codec make of a picture? dcodec and Pillow's codecs behind one interface (`points`), found by name.

Times are CPU seconds of all threads, as in the reference CSV: on a shared machine the wall clock measures the others.
"""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from PIL import __version__ as pillow_version

import dcodec
from bench import bpg, peers, plugins, states
from bench.points import Codec, Job, Missing, Point, label
from dcodec import estimates, spread, stream
from dcodec.api import budget
from dcodec.container import HEADER_SIZE, MAX_SIDE
from dcodec.pictures import from_array, to_image
from dcodec.prior import catalog
from dcodec.session import Session
from dcodec.state import Setting, State


@dataclass(frozen=True)
class Dcodec:
    """One stream a picture, of the highest rate; each rate is a prefix of it, and one walk decodes them all.

    encode_s is therefore that of the highest rate; decode_s and nfe count the walk up to the prefix, and its estimate.
    walk_once: take the state of each prefix from the encoder instead of decoding it, which halves the time. The states are
    the same (tests/test_codec.py compares them); what is lost is decode_s and nfe. rows: a step, preset psc only.
    """

    rates: tuple[float, ...]
    weights: str = catalog.DEFAULT
    sample: bool = False
    walk_once: bool = False
    preset: str = "fast"
    rows: int = 0
    version = f"{dcodec.__version__} (torch {torch.__version__}, numpy {np.__version__})"

    @property
    def name(self) -> str:
        """The preset behind a dash, but for the default."""
        return "dcodec" if self.preset == "fast" else f"dcodec-{self.preset}"

    @cached_property
    def prior(self) -> str:
        """See points.label."""
        return label(catalog.find(self.weights))

    @property
    def jobs(self) -> list[Job]:
        """Every rate, every estimate."""
        return [(f"rate={rate}", e) for rate in sorted(self.rates) for e in ("mean", "sample")[: 1 + self.sample]]

    def points(self, picture: Image.Image, jobs: Sequence[Job]) -> Iterator[Point]:
        """See Codec."""
        wanted: dict[int, list[Job]] = {}
        for job in jobs:
            size = budget(float(job[0].removeprefix("rate=")), *picture.size)
            if size <= HEADER_SIZE:
                raise ValueError(f"{job[0]} of {picture.width}x{picture.height} pixels is no more than a header")
            wanted.setdefault(size, []).append(job)
        catalog.load(catalog.find(self.weights), "cpu")  # now, so that no time below includes it
        highest = budget(max(self.rates), *picture.size)
        begin = time.process_time()
        if self.walk_once:
            place, written = self._walk(np.asarray(picture), highest)
            encode_s = time.process_time() - begin
            for size in sorted(wanted):
                state = written.settled(place, size - HEADER_SIZE)
                for name, estimate in wanted[size]:
                    shown, std = _estimate(place, state, estimate)
                    yield Point(name, estimate, size, shown, encode_s, None, std=std)
            return
        data = dcodec.encode(np.asarray(picture), size=highest, prior=self.weights, preset=self.preset, rows=self.rows or None)
        encode_s = time.process_time() - begin

        begin = time.process_time()
        session = Session.of(data, max(wanted), self.weights, "cpu", 0, MAX_SIDE)
        walk_s, walk_nfe, counted = 0.0, Fraction(0), session.counted
        mark = counted.evaluations
        for size, state in session.states(sorted(wanted)):
            walk_s += time.process_time() - begin
            walk_nfe += counted.evaluations - mark
            for name, estimate in wanted[size]:
                begin, mark = time.process_time(), counted.evaluations
                shown, std = _estimate(session.setting, state, estimate)
                decode_s, nfe = walk_s + time.process_time() - begin, round(walk_nfe + counted.evaluations - mark)
                yield Point(name, estimate, size, shown, encode_s, decode_s, nfe, std)
            begin, mark = time.process_time(), counted.evaluations

    def _walk(self, picture: NDArray[np.uint8], size: int) -> tuple[Setting, stream.Written]:
        """What `dcodec.encode` does for `size` bytes, with all steps kept."""
        x = from_array(picture)
        prior = catalog.load(catalog.find(self.weights))
        return states.walk(prior, torch.from_numpy(x)[None], size, self.preset, self.rows)


def _estimate(
    setting: Setting, state: State, estimate: str
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """What dcodec shows, and for the mean the spread of the samples behind it (as `dcodec.progressive`)."""
    if estimate == "sample":
        return np.asarray(to_image(estimates.samples(setting, state, 1)[0])), None
    drawn = estimates.behind_mean(setting, state)
    return np.asarray(to_image(estimates.average(drawn))), spread.std(setting, state, drawn)


@dataclass(frozen=True)
class Classic:
    """A codec of Pillow, or of a package that adds to it.

    scale: what the settings' numbers are called; the file's options follow from `_options`.
    """

    name: str
    version: str
    scale: str
    values: tuple[float, ...]
    prior = ""

    @property
    def jobs(self) -> list[Job]:
        """The sweep."""
        return [(f"{self.scale}={value:g}", "") for value in self.values]

    def points(self, picture: Image.Image, jobs: Sequence[Job]) -> Iterator[Point]:
        """See Codec."""
        if self.name in plugins.PACKAGES:
            plugins.teach(self.name)  # this may be another process than the one that looked for the codec
        for setting, _ in jobs:
            kind, options = _options(self.name, float(setting.removeprefix(self.scale + "=")), len(picture.mode))
            file = io.BytesIO()
            begin = time.process_time()
            picture.save(file, kind, **options)
            encoded = time.process_time()
            with Image.open(file) as decoded:
                shown = np.asarray(decoded.convert(picture.mode))
            yield Point(setting, "", len(file.getvalue()), shown, encoded - begin, time.process_time() - encoded)


def _options(name: str, value: float, channels: int) -> tuple[str, dict[str, Any]]:
    """Pillow's format and options; those of the reference CSV (shared/data/README.md), but for AVIF's program."""
    if name == "jpeg":
        return "JPEG", {"quality": int(value), "optimize": True, "progressive": True, "subsampling": "4:2:0"}
    if name == "webp":
        return "WEBP", {"quality": int(value), "method": 6}
    if name == "jxl":
        return "JXL", {"quality": value, "effort": 7}
    if name == "heic":
        return "HEIF", {"quality": int(value)}
    if name == "avif":
        return "AVIF", {"quality": int(value), "speed": 4, "subsampling": "4:2:0", "max_threads": 1}
    layers = [8 * channels / value]  # value: bits a pixel
    colour = int(channels == 3)
    return "JPEG2000", {"irreversible": True, "mct": colour, "quality_mode": "rates", "quality_layers": layers}


# Pillow's name of the library, the settings' scale, the sweep, and a quick one: the reference CSV's where it has one
_CLASSIC: dict[str, tuple[str, str, tuple[float, ...], tuple[float, ...]]] = {
    "jpeg": ("libjpeg_turbo", "q", (*range(1, 30), *range(30, 60, 2), *range(60, 100, 5)), (2, 5, 10, 20, 30, 50, 75)),
    "webp": ("webp", "q", (*range(0, 10), *range(10, 30, 2), *range(30, 100, 5)), (0, 5, 15, 30, 50, 75)),
    "jpeg2000": (
        "jpg_2000", "target_bpp",
        (0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2),
        (0.05, 0.1, 0.2, 0.4, 0.8),
    ),
    "avif": ("avif", "q", tuple(range(0, 84, 4)), (0, 10, 20, 30, 45, 60)),
    "jxl": ("pillow-jxl-plugin", "q", (*range(1, 30, 2), *range(30, 100, 5)), (5, 15, 30, 50, 70)),
    "heic": ("pillow-heif", "q", tuple(range(0, 84, 4)), (0, 10, 20, 30, 45, 60)),
}  # fmt: skip
PSC_ROWS = 12  # a step: as many as PSC's repository takes
CLASSIC = (*_CLASSIC, "bpg")
NAMES = ("dcodec", "dcodec-psc", *CLASSIC, *peers.NAMES)
DEFAULT = ("dcodec", *CLASSIC)


def _version(name: str) -> str:
    """Of the library that codes a format. Missing when it is not here."""
    if name in plugins.PACKAGES:
        return f"{plugins.teach(name)} (Pillow {pillow_version})"
    library = _CLASSIC[name][0]
    found = features.version(library)
    if not found:
        raise Missing(f"this Pillow was built without {library}")
    return f"{found} (Pillow {pillow_version})"


def find(
    name: str, rates: Sequence[float], prior: str, *, sample: bool = False, quick: bool = False, walk_once: bool = False
) -> Codec:
    """The codec called `name`. Missing (a ValueError) when this machine lacks it, ValueError when nobody knows it."""
    if name == "dcodec":
        return Dcodec(tuple(rates), prior, sample, walk_once)
    if name == "dcodec-psc":
        return Dcodec(tuple(rates), prior, sample, walk_once, "psc", PSC_ROWS)
    if name in peers.NAMES:
        return peers.find(name, rates, prior)
    if name == "bpg":
        values = bpg.QUICK if quick else bpg.SWEEP
        if (libbpg := bpg.programs()) is not None:
            return bpg.Bpg(libbpg, values)
        return bpg.HevcIntra(f"x265 of pillow-heif {_version('heic')}", values)
    if name not in _CLASSIC:
        raise ValueError(f"codec {name!r} is unknown: there are {', '.join(NAMES)}")
    _, scale, sweep, few = _CLASSIC[name]
    return Classic(name, _version(name), scale, few if quick else sweep)
