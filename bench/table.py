"""What do the measurements say? Mean PSNR at chosen rates, codec by codec, as a Markdown table."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.bd import bd_rate

Row = Mapping[str, str]
Curve = dict[float, float]  # bpp (dcodec: the rate asked for) -> PSNR in dB
RATES = (0.1, 0.2, 0.3, 0.5)


def read(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV: a last line without its end was cut off."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if line.endswith("\n")))


def append(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Add rows in one write: processes that share the file do not mix lines."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with open(path, "ab", buffering=0) as file:
        file.write(text.getvalue().encode())


def rates_of(rows: Iterable[Row]) -> list[float]:
    """The rates that dcodec was measured at; RATES when there are none."""
    found = {float(row["setting"].removeprefix("rate=")) for row in rows if _own(row)}
    return sorted(found) or list(RATES)


def markdown(rows: Sequence[Row], rates: Sequence[float], reference: Sequence[Row] = ()) -> str:
    """Rates down, codecs across.

    dcodec: the exact rate; others: linear in bpp between the two settings around the rate, picture by picture.
    A mean is given only where all pictures of `rows` reach the rate, else how many do. Then each dcodec's mean estimate
    minus JPEG (of `rows`, else of the reference), over the pictures where both reach the rate, and how many those are.
    reference: rows of other measurements; only those of the same pictures count.
    """
    pictures = {row["image"] for row in rows}
    curves = _curves(rows, "") | _curves((row for row in reference if row["image"] in pictures), "*")
    jpeg = curves.get("jpeg", curves.get("jpeg*", {}))
    ours = {label for label in curves if label.startswith("dcodec") and not label.endswith("*")}
    means = sorted(label for label in ours if not label.endswith(" sample"))
    head = ["bpp", *curves, *(f"{label} - jpeg" for label in means)]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for rate in rates:
        cells = [f"{rate:g}"]
        for label, curve in curves.items():
            at = _at(curve, rate, exact=label in ours)
            cells.append(f"{np.mean(list(at.values())):.2f}" if len(at) == len(pictures) else f"({len(at)})")
        them = _at(jpeg, rate, exact=False)
        for label in means:
            us = _at(curves[label], rate, exact=True)
            both = sorted(us.keys() & them.keys())
            gain = f"{np.mean([us[p] - them[p] for p in both]):+.2f} " if both else ""
            cells.append(f"{gain}({len(both)})")
        lines.append(cells)
    lines.append(["BD-rate", *(_bd(curves, label, means, ours) for label in curves), *("" for _ in means)])
    notes = [
        f"PSNR in dB, mean over {len(pictures)} picture{'s' * (len(pictures) != 1)}; "
        "in brackets: how many pictures reach the rate (no mean unless all do), or are compared."
    ]
    if means:
        notes.append(f"BD-rate: bits of {means[0]} against the column's codec at equal PSNR, mean over pictures.")
    if any(label.endswith("*") for label in curves):
        notes.append("*: of the reference CSV.")
    elif reference:
        notes.append("The reference CSV has none of these pictures.")
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n" + " ".join(notes)


def _bd(curves: Mapping[str, Mapping[str, Curve]], label: str, means: Sequence[str], ours: set[str]) -> str:
    """Mean BD-rate of the first of `means` against a codec, over the pictures where both share qualities."""
    if not means or label in ours:
        return ""
    test, anchor = curves[means[0]], curves[label]
    found = [bd_rate(anchor[picture], test[picture]) for picture in sorted(test.keys() & anchor.keys())]
    valid = [value for value in found if math.isfinite(value)]
    return f"{np.mean(valid):+.1f} % ({len(valid)})" if valid else "(0)"


def _own(row: Row) -> bool:
    return row["codec"] == "dcodec"


def _curves(rows: Iterable[Row], mark: str) -> dict[str, dict[str, Curve]]:
    """label -> picture -> curve, in order of appearance; `mark` ends every label."""
    curves: dict[str, dict[str, Curve]] = {}
    for row in rows:
        label = " ".join([row["codec"], *([row["prior"]] if row.get("prior") else [])])
        if row.get("estimate") == "sample":
            label += " sample"
        bpp = float(row["setting"].removeprefix("rate=")) if _own(row) else float(row["bpp"])
        psnr = float(row["psnr_rgb"])
        if math.isfinite(psnr):
            curves.setdefault(label + mark, defaultdict(dict))[row["image"]][bpp] = psnr
    return curves


def _at(curves: Mapping[str, Curve], rate: float, *, exact: bool) -> dict[str, float]:
    """picture -> PSNR at a rate, for the pictures whose curve reaches it."""
    if exact:
        return {picture: curve[rate] for picture, curve in curves.items() if rate in curve}
    return {
        picture: float(np.interp(rate, sorted(curve), [curve[bpp] for bpp in sorted(curve)]))
        for picture, curve in curves.items()
        if min(curve) <= rate <= max(curve)
    }
