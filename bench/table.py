"""What do the measurements say? Mean quality at chosen rates, codec by codec, as a Markdown table."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bench.bd import bd_rate
from bench.curves import LPIPS, PSNR, Curves, Quality, Row, at, curves, label_of, own, rate_of, signed

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
    found = {float(row["setting"].removeprefix("rate=")) for row in rows if own(row)}
    return sorted(found) or list(RATES)


def markdown(rows: Sequence[Row], rates: Sequence[float], reference: Sequence[Row] = (), quality: Quality = PSNR) -> str:
    """Rates down, codecs across.

    dcodec: the exact rate; others: linear in bpp between the two settings around the rate, picture by picture.
    A mean is given only where all pictures of `rows` reach the rate, else how many do. Then each dcodec's estimate that the
    quality is about (perception: the sample) minus JPEG (of `rows`, else of the reference), over the pictures where both
    reach the rate, and how many those are.
    reference: rows of other measurements; only those of the same pictures count.
    """
    pictures = {row["image"] for row in rows}
    found = curves(rows, quality) | curves((row for row in reference if row["image"] in pictures), quality, mark="*")
    jpeg = found.get("jpeg", found.get("jpeg*", {}))
    ours = {label for label in found if label.startswith("dcodec") and not label.endswith("*")}
    about = [label for label in found if label in ours and label.endswith(" sample") == (quality is LPIPS)]
    head = ["bpp", *found, *(f"{label} - jpeg" for label in about)]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    digits = 3 if quality is LPIPS else 2
    for rate in rates:
        cells = [f"{rate:g}"]
        for label, curve in found.items():
            reached = at(curve, rate, exact=label in ours)
            whole = len(reached) == len(pictures)
            cells.append(f"{np.mean(list(reached.values())):.{digits}f}" if whole else f"({len(reached)})")
        them = at(jpeg, rate, exact=False)
        for label in about:
            us = at(found[label], rate, exact=True)
            both = sorted(us.keys() & them.keys())
            gain = f"{np.mean([us[p] - them[p] for p in both]):+.{digits}f} " if both else ""
            cells.append(f"{gain}({len(both)})")
        lines.append(cells)
    lines.append(["BD-rate", *(_bd(found, label, about, ours, quality.sign) for label in found), *("" for _ in about)])
    notes = [
        f"{quality.name}; mean over {len(pictures)} picture{'s' * (len(pictures) != 1)}; "
        "in brackets: how many pictures reach the rate (no mean unless all do), or are compared."
    ]
    if about:
        notes.append(f"BD-rate: bits of {about[0]} against the column's codec at equal quality, mean over pictures.")
    if any(label.endswith("*") for label in found):
        notes.append("*: of the reference CSV.")
    elif reference:
        notes.append("The reference CSV has none of these pictures.")
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n" + " ".join(notes)


def side_by_side(rows: Sequence[Row]) -> str:
    """Codecs down, at each of dcodec's rates: what they show and what it takes, all that meet the rate on the same pictures.

    Means over the pictures that dcodec was measured on; a codec that lacks one of them at a rate is left out there. NFE and
    seconds are the decoder's, its estimate included.
    """
    head = ["bpp", "", "PSNR, dB", "LPIPS", "NFE", "CPU s", "bytes"]
    lines = [head, ["---:", "---", *(["---:"] * 5)]]
    asked = [row for row in rows if row["setting"].startswith("rate=")]
    pictures = {row["image"] for row in asked if own(row)}
    for rate in rates_of(rows):
        groups: dict[str, dict[str, Row]] = {}
        for row in asked:
            if rate_of(row) == rate:
                groups.setdefault(label_of({**row, "prior": ""}), {})[row["image"]] = row
        for label, group in groups.items():
            if group.keys() >= pictures:
                cells = [_mean(list(group.values()), column) for column in _SIDE_BY_SIDE]
                lines.append([f"{rate:g}", label, *cells])
    notes = [f"Means over {len(pictures)} picture{'s' * (len(pictures) != 1)}.", *sorted({row["prior"] for row in asked})]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n" + " ".join(notes)


_SIDE_BY_SIDE = {"psnr_rgb": ".2f", "lpips_squeeze": ".3f", "nfe": ",.0f", "decode_s": ".1f", "bytes": ".0f"}  # column -> form


def _mean(rows: Sequence[Row], column: str) -> str:
    values = [float(row[column]) for row in rows if row[column]]
    return format(np.mean(values), _SIDE_BY_SIDE[column]) if len(values) == len(rows) else ""


def _bd(found: Curves, label: str, tests: Sequence[str], ours: set[str], sign: int) -> str:
    """Mean BD-rate of the first of `tests` against a codec, over the pictures where both share qualities."""
    if not tests or label in ours:
        return ""
    test, anchor = found[tests[0]], found[label]
    rates = [bd_rate(signed(anchor[p], sign), signed(test[p], sign)) for p in sorted(test.keys() & anchor.keys())]
    valid = [value for value in rates if math.isfinite(value)]
    return f"{np.mean(valid):+.1f} % ({len(valid)})" if valid else "(0)"
