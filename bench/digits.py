"""What is a prior of a small domain worth? MNIST's digits in files of a few bytes, beside codecs that are given more.

The digits are those of MNIST's 10,000-digit file: the first 9,000 to train on, the last 1,000 to measure (not MNIST's own
split). A classical codec gets, for each digit, the best PSNR of its sweep among the files that are small enough.
"""

import gzip
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import dcodec
from bench import codecs, states
from bench.metrics import psnr
from bench.points import Codec
from dcodec import estimates
from dcodec.container import HEADER_SIZE
from dcodec.pictures import from_array, to_image
from dcodec.prior import catalog

TRAIN, SIDE = 9000, 28


def read(path: Path) -> NDArray[np.uint8]:
    """The digits (N, 28, 28) of an IDX file, gzipped."""
    data = gzip.decompress(path.read_bytes())
    if data[:4] != b"\0\0\x08\x03" or tuple(np.frombuffer(data, ">u4", 2, 8)) != (SIDE, SIDE):
        raise ValueError(f"{path}: expected a gzipped IDX file of {SIDE}x{SIDE} pictures")
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, SIDE, SIDE)


def pack(digits: NDArray[np.uint8], out: Path) -> None:
    """Write the digits to train on as a tar of PNG files, for `dcodec train`."""
    with tarfile.open(out, "w") as archive:
        for i, digit in enumerate(digits[:TRAIN]):
            file = io.BytesIO()
            Image.fromarray(digit).save(file, "PNG")
            member = tarfile.TarInfo(f"{i:05}.png")
            member.size = file.tell()
            file.seek(0)
            archive.addfile(member, file)


def ours(digit: NDArray[np.uint8], size: int, prior: str, preset: str, rows: int | None, walk_once: bool) -> float:
    """PSNR (dB) of the mean that a dcodec file of `size` bytes shows. walk_once: of the encoder's state, no file is decoded."""
    if walk_once:
        x = torch.from_numpy(from_array(digit))[None]
        setting, written = states.walk(catalog.load(catalog.find(prior)), x, size, preset, rows or 0)
        return psnr(digit, np.asarray(to_image(estimates.mean(setting, written.settled(setting, size - HEADER_SIZE)))))
    data = dcodec.encode(digit, size=size, prior=prior, preset=preset, rows=rows)
    if len(data) != size:
        raise AssertionError(f"{len(data)} bytes instead of {size}")
    return psnr(digit, np.asarray(dcodec.decode(data, prior=prior)))


def classical(digit: NDArray[np.uint8], codec: Codec, most: int) -> tuple[float, int] | None:
    """The best PSNR (dB) of a codec's files of up to `most` bytes and that file's size; None when none is so small."""
    points = codec.points(Image.fromarray(digit), codec.jobs)
    return max(((psnr(digit, p.shown), p.size) for p in points if p.size <= most), default=None)


def compare(
    digits: NDArray[np.uint8], size: int, most: int, prior: str, preset: str, rows: int | None, names: Sequence[str],
    walk_once: bool = False,
) -> Iterator[dict[str, tuple[float, int] | None]]:  # fmt: skip
    """For each digit, (PSNR, bytes) by codec. Raises points.Missing when one of `names` cannot run here."""
    others = {name: codecs.find(name, (), prior) for name in names}
    for digit in digits:
        found: dict[str, tuple[float, int] | None] = {"dcodec": (ours(digit, size, prior, preset, rows, walk_once), size)}
        yield found | {name: classical(digit, codec, most) for name, codec in others.items()}
