"""Which pictures stand beside each other in a report, and how do they fit into one file?"""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bench import curves, kept
from bench.curves import LPIPS, Row

PANELS = ("mean", "sample", "uncertainty", "original", "jpeg", "bpg")
NOTE = "Pictures are stored here as PNG where that fits, else as WebP; the figures are of what was decoded."
NEAR = 1.3  # a file of another codec is shown where its rate is within this factor
MOST_BYTES = 10_500_000  # of all pictures: 14 MB as base64

# tried in this order until all pictures fit: WebP's quality (None: PNG, as kept) and by what their sides are divided; three
# pictures stand side by side on a page, so that half their size shows more of Kodak than the same bytes at full size
_FORMS: tuple[tuple[int | None, int], ...] = ((None, 1), (90, 1), (75, 1), (60, 1), (85, 2), (75, 2), (50, 2), (50, 4))

Panel = tuple[Path | None, str]  # a file, and what is said of it


@dataclass(frozen=True)
class Album:
    """sources: data URIs. pictures: name -> for each rate of dcodec {"title", "panels": {panel: [index or None, caption]}}."""

    sources: list[str]
    pictures: dict[str, list[dict[str, object]]]


def collect(rows: Sequence[Row], folder: Path, most: int = MOST_BYTES) -> Album:
    """All pictures of `rows` that are in `folder` (see kept). ValueError when they cannot be made to fit into `most` bytes."""
    found: dict[str, list[tuple[str, dict[str, Panel]]]] = {}
    for image in dict.fromkeys(row["image"] for row in rows if row["codec"] == "dcodec"):
        mine = [row for row in rows if row["image"] == image]
        if kept.path_of(folder, kept.ORIGINAL, "", "", image).exists():
            settings = dict.fromkeys(row["setting"] for row in mine if row["codec"] == "dcodec")
            found[image] = [_step(mine, image, s, folder) for s in sorted(settings, key=lambda s: float(s[5:]))]
    files = sorted({path for steps in found.values() for _, panels in steps for path, _ in panels.values() if path})
    index = {path: i for i, path in enumerate(files)}
    pictures: dict[str, list[dict[str, object]]] = {
        image: [
            {"title": title, "panels": {name: [path and index[path], text] for name, (path, text) in panels.items()}}
            for title, panels in steps
        ]
        for image, steps in found.items()
    }
    return Album(_sources(files, most), pictures)


def _step(rows: Sequence[Row], image: str, setting: str, folder: Path) -> tuple[str, dict[str, Panel]]:
    """Rows of one picture -> the title and the panels of one rate."""
    ours = {row["estimate"]: row for row in rows if (row["codec"], row["setting"]) == ("dcodec", setting)}
    some = next(iter(ours.values()))
    panels: dict[str, Panel] = {}
    for estimate in ("mean", "sample"):
        at = kept.path_of(folder, "dcodec", setting, estimate, image)
        measured = estimate in ours and at.exists()
        panels[estimate] = (at, f"{estimate}: {_figures(ours[estimate])}") if measured else _absent(estimate)
    at = kept.path_of(folder, "dcodec", setting, kept.STD, image)
    panels["uncertainty"] = (at, "uncertainty: white where samples differ") if at.exists() else _absent("uncertainty")
    panels["original"] = kept.path_of(folder, kept.ORIGINAL, "", "", image), "original"
    for name, codecs in (("jpeg", kept.BESIDE[:1]), ("bpg", kept.BESIDE[1:])):
        near = _nearest((row for row in rows if row["codec"] in codecs), curves.rate_of(some))
        at = kept.path_of(folder, near["codec"], near["setting"], near["estimate"], image) if near else folder / "none"
        told = near and f"{near['codec']} {near['setting']}: {float(near['bpp']):.3f} bpp, {_figures(near)}"
        panels[name] = (at, told) if told and at.exists() else (None, f"{name}: no file within a factor of {NEAR} of this rate")
    return f"{some['bytes']} bytes, {float(some['bpp']):.3f} bpp", panels


def _absent(name: str) -> Panel:
    return None, f"{name}: not measured"


def _nearest(rows: Iterable[Row], rate: float) -> Row | None:
    def far(row: Row) -> float:
        return abs(math.log(float(row["bpp"]) / rate))

    row = min(rows, key=far, default=None)
    return row if row is not None and far(row) <= math.log(NEAR) else None


def _figures(row: Row) -> str:
    distance = f", LPIPS {float(row[LPIPS.column]):.3f}" if row.get(LPIPS.column) else ""
    return f"{float(row['psnr_rgb']):.2f} dB{distance}"


def _sources(files: Sequence[Path], most: int) -> list[str]:
    """A data URI of each file, all in the first of _FORMS that fits."""
    for quality, divisor in _FORMS:
        total, out = 0, []
        for path in files:
            data = path.read_bytes() if quality is None else _webp(path, quality, divisor)
            total += len(data)
            if total > most:
                break
            kind = "png" if quality is None else "webp"
            out.append(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
        else:
            return out
    raise ValueError(f"{len(files)} pictures do not fit into {most} bytes: report fewer, or crops")


def _webp(path: Path, quality: int, divisor: int) -> bytes:
    file = io.BytesIO()
    with Image.open(path) as image:
        image.reduce(divisor).save(file, "WEBP", quality=quality)
    return file.getvalue()
