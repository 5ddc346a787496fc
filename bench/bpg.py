"""What would BPG make of a picture? `bpgenc` and `bpgdec` where they are on PATH; otherwise the coder inside it.

A BPG file (Bellard's specification, 0.9.8, sections 2 and 3) is one HEVC intra picture whose VPS and SPS are replaced by a
header of some 16 bytes. x265 codes the same picture inside a HEIF file: its slices and PPS, with such a header in front,
are what a BPG file of it would take. How near that comes to libbpg's own files is in NOTES.md, measured.
"""

import io
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import plugins
from bench.points import Job, Point

EQUIVALENT = "hevc-intra (BPG-equivalent)"  # what a CSV calls files that are counted, not written
SWEEP = (22, 26, 28, *range(30, 52))
QUICK = (30, 34, 38, 42, 46, 49, 51)

_VCL = range(32)  # types of NAL units that hold slices
_PPS = 34
_START_CODE = 3  # bytes before every NAL unit but the first
# x265 by default spends bits on texture that looks like the picture's and is not: bad for any error, and unlike libbpg
_X265 = {"tune": "psnr", "x265:psy-rd": "0", "x265:psy-rdoq": "0"}


@dataclass(frozen=True)
class Bpg:
    """libbpg's programs, `-e jctvc -f 444` where they have that encoder, at quantizers `values`."""

    version: str
    values: tuple[int, ...]
    name = "bpg"
    prior = ""

    @property
    def jobs(self) -> list[Job]:
        """The sweep."""
        return [(f"q={value}", "") for value in self.values]

    def points(self, picture: Image.Image, jobs: Sequence[Job]) -> Iterator[Point]:
        """See codecs.Codec. Times are those of the programs, start and PNG included."""
        encoder = ("-e", "jctvc") if "jctvc" in _told() else ()  # slower and better than x265, which may be the default
        with tempfile.TemporaryDirectory() as folder:
            png, file, shown = (Path(folder) / name for name in ("in.png", "out.bpg", "out.png"))
            picture.save(png)
            for setting, _ in jobs:
                began = _children_s()
                _run("bpgenc", *encoder, "-f", "444", "-q", setting.removeprefix("q="), "-o", file, png)
                encoded = _children_s()
                _run("bpgdec", "-o", shown, file)
                with Image.open(shown) as decoded:
                    pixels = np.asarray(decoded.convert(picture.mode))
                yield Point(setting, "", file.stat().st_size, pixels, encoded - began, _children_s() - encoded)


@dataclass(frozen=True)
class HevcIntra:
    """x265's intra pictures, 4:4:4, constant quality `values`, counted as BPG files."""

    version: str
    values: tuple[int, ...]
    name = EQUIVALENT
    prior = ""

    @property
    def jobs(self) -> list[Job]:
        """The sweep."""
        return [(f"crf={value}", "") for value in self.values]

    def points(self, picture: Image.Image, jobs: Sequence[Job]) -> Iterator[Point]:
        """See codecs.Codec."""
        plugins.teach("heic")  # this may be another process than the one that looked for the codec
        colour: dict[str, Any] = {"chroma": 444} if picture.mode == "RGB" else {}
        for setting, _ in jobs:
            file = io.BytesIO()
            began = time.process_time()
            options = _X265 | {"x265:crf": setting.removeprefix("crf=")}
            picture.save(file, "HEIF", enc_params=options, **colour)
            encoded = time.process_time()
            with Image.open(file) as decoded:
                pixels = np.asarray(decoded.convert(picture.mode))
            decoded_s = time.process_time() - encoded
            yield Point(setting, "", bpg_size(file.getvalue(), *picture.size), pixels, encoded - began, decoded_s)


def programs() -> str | None:
    """Version of the `bpgenc` on PATH; None unless `bpgdec` is there too."""
    if not (shutil.which("bpgenc") and shutil.which("bpgdec")):
        return None
    words = _told().split()
    return words[words.index("version") + 1] if "version" in words[:-1] else "unknown"


def _told() -> str:
    """What bpgenc tells about itself when there is no file."""
    said = subprocess.run(["bpgenc"], capture_output=True, text=True, check=False)
    return said.stdout + said.stderr


def bpg_size(heif: bytes, width: int, height: int) -> int:
    """Bytes of the BPG file of the one HEVC picture in a HEIF file; ValueError when there is none."""
    boxes = dict(_boxes(heif))
    if b"mdat" not in boxes or b"hvcC" not in boxes.get(b"meta", b""):
        raise ValueError("expected a HEIF file of one HEVC picture")
    record = boxes[b"meta"].partition(b"hvcC")[2]
    units = [unit for unit in _parameter_sets(record) if unit[0] >> 1 & 63 == _PPS]
    units += [unit for unit in _length_prefixed(boxes[b"mdat"]) if unit[0] >> 1 & 63 in _VCL]
    data = sum(map(len, units)) + _START_CODE * (len(units) - 1)
    # magic, two bytes of formats and flags, sizes; then the length and the three bytes of what remains of the SPS
    return 4 + 2 + _ue7(width) + _ue7(height) + _ue7(data + 4) + 1 + 3 + data


def _ue7(value: int) -> int:
    """Bytes of a number in groups of 7 bits (specification, section 2.1)."""
    return max(1, -(-value.bit_length() // 7))


def _boxes(heif: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of a file's outermost boxes (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while at + 8 <= len(heif):
        size = int.from_bytes(heif[at : at + 4], "big")
        if size < 8:
            raise ValueError(f"a box of {size} bytes in a HEIF file")
        yield heif[at + 4 : at + 8], heif[at + 8 : at + size]
        at += size


def _length_prefixed(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 4 < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _parameter_sets(record: bytes) -> Iterator[bytes]:
    """NAL units of a HEVC decoder configuration record (ISO/IEC 14496-15, section 8.3.3.1)."""
    at = 23
    for _ in range(record[22]):
        count = int.from_bytes(record[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            size = int.from_bytes(record[at : at + 2], "big")
            yield record[at + 2 : at + 2 + size]
            at += 2 + size


def _run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-200:]}")


def _children_s() -> float:
    """CPU seconds of all programs run so far."""
    import resource  # not on Windows, where there is no bpgenc on PATH either

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
