"""What do rows say of a codec? Curves of a quality over rate, picture by picture and on average."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bench import lpips

Row = Mapping[str, str]
Curve = dict[float, float]  # bpp (dcodec: the rate asked for) -> quality
Curves = dict[str, dict[str, Curve]]  # label -> picture -> curve


@dataclass(frozen=True)
class Quality:
    """A column of the CSV as something to draw. value: of the cell; sign: -1 where less is better."""

    column: str
    name: str
    value: Callable[[float], float] = float
    sign: int = 1


PSNR = Quality("psnr_rgb", "PSNR, dB")
MS_SSIM = Quality("ms_ssim", "MS-SSIM, dB", lambda s: -10 * math.log10(1 - s) if s < 1 else math.inf)
LPIPS = Quality(lpips.NAME, "LPIPS (SqueezeNet), less is better", sign=-1)
QUALITIES = (PSNR, MS_SSIM, LPIPS)


def own(row: Row) -> bool:
    """Whether a row is of dcodec, with whatever preset."""
    return row["codec"].startswith("dcodec")


def label_of(row: Row) -> str:
    """What a codec, its prior and its estimate are called together; the mean is not named."""
    return " ".join(part for part in (row["codec"], row.get("prior"), row.get("estimate")) if part and part != "mean")


def rate_of(row: Row) -> float:
    """Bits a pixel: what was asked for where a codec meets any rate, else those of the file."""
    asked = row["setting"].startswith("rate=")
    return float(row["setting"].removeprefix("rate=")) if asked else float(row["bpp"])


def curves(rows: Iterable[Row], quality: Quality = PSNR, mark: str = "") -> Curves:
    """All curves, in order of appearance; `mark` ends every label. Rows without the quality are left out."""
    found: Curves = {}
    for row in rows:
        value = quality.value(float(row[quality.column])) if row.get(quality.column) else math.nan
        if math.isfinite(value):
            found.setdefault(label_of(row) + mark, defaultdict(dict))[row["image"]][rate_of(row)] = value
    return found


def at(by_picture: Mapping[str, Curve], rate: float, *, exact: bool) -> dict[str, float]:
    """picture -> quality at a rate, for the pictures whose curve reaches it; linear in bpp between points unless `exact`."""
    if exact:
        return {picture: curve[rate] for picture, curve in by_picture.items() if rate in curve}
    return {
        picture: float(np.interp(rate, sorted(curve), [curve[bpp] for bpp in sorted(curve)]))
        for picture, curve in by_picture.items()
        if min(curve) <= rate <= max(curve)
    }


def signed(curve: Curve, sign: int) -> Curve:
    """More is better, whatever the quality's sign."""
    return {bpp: sign * value for bpp, value in curve.items()}


def averages(rows: Iterable[Row], quality: Quality, pictures: set[str]) -> dict[str, list[tuple[float, float]]]:
    """label -> (bpp, quality), rising: means over `pictures` of each setting that was measured on all of them."""
    found: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for row in rows:
        value = quality.value(float(row[quality.column])) if row.get(quality.column) else math.nan
        if math.isfinite(value) and row["image"] in pictures:
            settings = found.setdefault(label_of(row), defaultdict(dict))
            settings[row["setting"]][row["image"]] = float(row["bpp"]), value
    out = {}
    for label, settings in found.items():
        means = [np.mean(list(points.values()), axis=0) for points in settings.values() if len(points) == len(pictures)]
        if means:
            out[label] = sorted((float(bpp), float(value)) for bpp, value in means)
    return out
