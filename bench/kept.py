"""Where do decoded pictures lie? `bench rd --keep DIR` writes them as PNG files, a folder a picture; the report reads them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import bpg
from bench.points import Point
from dcodec.pictures import std_image

BESIDE = ("jpeg", "bpg", bpg.EQUIVALENT)  # of the classical codecs, those that a report shows beside dcodec
ORIGINAL, STD = "original", "std"


def path_of(folder: Path, codec: str, setting: str, estimate: str, image: str) -> Path:
    """The file of one row's picture; `estimate` STD is the uncertainty, codec ORIGINAL the picture itself."""
    words = "_".join(part for part in (codec.partition(" ")[0], setting, estimate) if part)
    return folder / image / f"{words}.png"


def keep(folder: Path, codec: str, image: str, original: NDArray[np.uint8], point: Point) -> None:
    """Write what a point shows, where a report would show it; and the original, once."""
    if codec != "dcodec" and codec not in BESIDE:
        return
    (folder / image).mkdir(parents=True, exist_ok=True)
    first = path_of(folder, ORIGINAL, "", "", image)
    if not first.exists():
        Image.fromarray(original).save(first)
    Image.fromarray(point.shown).save(path_of(folder, codec, point.setting, point.estimate, image))
    if point.std is not None:
        std_image(point.std).save(path_of(folder, codec, point.setting, STD, image))
