"""What do people look at? One HTML file with curves, tables and pictures, drawn from the rows of a CSV alone.

It needs no server and no network: charts are SVG, pictures are part of the file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from bench import album, bd, curves, svg
from bench.curves import LPIPS, MS_SSIM, PSNR, QUALITIES, Curve, Quality, Row

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
CHARTS = {"psnr": PSNR, "ms_ssim": MS_SSIM, "lpips": LPIPS}  # file names of the SVG files


def page(rows: Sequence[Row], title: str, folder: Path | None = None) -> str:
    """The HTML file. folder: what `bench rd --keep` wrote; without it there are no pictures.

    Raises ValueError when no row is dcodec's.
    """
    if not any(map(curves.own, rows)):
        raise ValueError("expected rows of dcodec among them, found " + (", ".join({row["codec"] for row in rows}) or "none"))
    rows = one_name(rows)
    count = len({row["image"] for row in rows if curves.own(row)})
    shown = album.collect(rows, folder) if folder else album.Album([], {})
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{count} picture{"s" * (count != 1)}; {escape(_measured(rows))}. Rates count whole files.</p>',
        '<div class="charts">', *charts(rows).values(), "</div>",
        "<h2>Bits against others at equal quality (BD-rate)</h2>", _bd_table(rows),
        "<h2>Time</h2>", _time_table(rows),
    ]  # fmt: skip
    if shown.pictures:
        body.append("<h2>Prefixes of one file</h2>")
        body.append('<p class="note">Move a slider: each of its steps is a prefix of one file of dcodec, beside the other '
                    "codecs' file that is nearest in size. " + escape(album.NOTE) + "</p>")  # fmt: skip
        body += [_figure(image, len(found)) for image, found in shown.pictures.items()]
    data = json.dumps(asdict(shown)).replace("</", "<\\/")
    return _PAGE.substitute(title=escape(title), body="\n".join(body), pictures=data)


def one_name(rows: Sequence[Row]) -> list[Row]:
    """Rows without their prior's name where there is only one: labels are short then."""
    priors = {row["prior"] for row in rows if row.get("prior")}
    return [{**row, "prior": ""} if len(priors) == 1 else row for row in rows]


def beside(rows: Sequence[Row], reference: Sequence[Row]) -> list[Row]:
    """Rows, then those of other measurements of the same pictures, their codecs marked with a star."""
    pictures = {row["image"] for row in rows}
    return [*rows, *({**row, "codec": row["codec"] + "*"} for row in reference if row["image"] in pictures)]


def charts(rows: Sequence[Row]) -> dict[str, str]:
    """Name -> SVG: quality over rate for each quality that dcodec was measured in, and distortion against perception."""
    out = {}
    colours: dict[str, int] = {}
    for name, quality in CHARTS.items():
        pictures = _pictures(rows, quality)
        if pictures:
            lines = [
                _line(label, points, colours)
                for label, points in curves.averages(rows, quality, pictures).items()
            ]  # fmt: skip
            out[name] = svg.chart(f"Rate and {quality.name.split(',')[0]}", "bits a pixel", quality.name, lines, log_x=True)
    both = _pictures(rows, PSNR) & _pictures(rows, LPIPS)
    if lines := _trades(rows, both, colours):
        out["trade"] = svg.chart("Distortion and perception at equal rate", PSNR.name, LPIPS.name, lines)
    return out


def _pictures(rows: Sequence[Row], quality: Quality) -> set[str]:
    """Those that dcodec was measured on in this quality."""
    return {row["image"] for row in rows if curves.own(row) and row.get(quality.column)}


def _line(label: str, points: Sequence[tuple[float, float]], colours: dict[str, int]) -> svg.Line:
    codec = label.removesuffix(" sample")  # a codec's estimates share its colour
    ours = label.startswith("dcodec")
    return svg.Line(label, points, colours.setdefault(codec, len(colours)), dashed=not ours, hollow=label != codec)


def _trades(rows: Sequence[Row], pictures: set[str], colours: dict[str, int]) -> list[svg.Line]:
    """At each of dcodec's rates its sample and its mean, joined; the others, from rate to rate."""
    rows = [row for row in rows if row["image"] in pictures]
    found = [curves.curves(rows, quality) for quality in (PSNR, LPIPS)]
    rates = sorted({curves.rate_of(row) for row in rows if row["codec"] == "dcodec"})

    def points(label: str) -> list[tuple[float, float]]:
        out = []
        for rate in rates:
            at = [curves.at(f.get(label, {}), rate, exact=label.startswith("dcodec")) for f in found]
            if all(len(values) == len(pictures) for values in at):
                out.append((float(np.mean(list(at[0].values()))), float(np.mean(list(at[1].values())))))
        return out

    ours = zip(rates, points("dcodec sample"), points("dcodec"), strict=False)
    lines = [
        svg.Line("" if i else "dcodec: sample to mean", pair, colours.setdefault("dcodec", len(colours)), note=f"{rate:g} bpp")
        for i, (rate, *pair) in enumerate(ours)
    ]
    others = [label for label in found[0] if not label.startswith("dcodec")]
    return lines and lines + [_line(label, at, colours) for label in others if (at := points(label))]


def _bd_table(rows: Sequence[Row]) -> str:
    found = {quality: curves.curves(rows, quality) for quality in QUALITIES}
    ours = [label for label in found[PSNR] if label.startswith("dcodec")]
    tests = [
        (label, quality) for label in ours for quality in QUALITIES
        if label in found[quality] and (quality is LPIPS or not label.endswith(" sample"))  # what a sample is for
    ]  # fmt: skip
    lines = []
    for anchor in (label for label in found[PSNR] if label not in ours):
        cells = [_bd(found[quality].get(anchor, {}), found[quality][label], quality.sign) for label, quality in tests]
        lines.append([anchor, *cells])
    head = ["", *(f"{label}, {quality.name.split(',')[0]}" for label, quality in tests)]
    return _table(head, lines) + (
        '<p class="note">Percent more bits than the line\'s codec (negative: fewer), mean over pictures where both share '
        "qualities (their number in brackets); square brackets: 95 % by bootstrap over pictures.</p>"
    )


def _bd(anchor: Mapping[str, Curve], test: Mapping[str, Curve], sign: int) -> str:
    both = sorted(anchor.keys() & test.keys())
    rates = [bd.bd_rate(curves.signed(anchor[p], sign), curves.signed(test[p], sign)) for p in both]
    values = [value for value in rates if math.isfinite(value)]
    if not values:
        return "–"
    low, high = bd.bootstrap(values)
    return f"{np.mean(values):+.1f} [{low:+.1f}, {high:+.1f}] ({len(values)})"


def _time_table(rows: Sequence[Row]) -> str:
    """A line for each rate of codecs that meet one, and one for all settings of each other codec."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        setting = row["setting"] if row["setting"].startswith("rate=") else "all settings"
        groups.setdefault((curves.label_of(row), setting), []).append(row)
    columns = ("encode_s", "decode_s", "nfe", "peak_mb")
    lines = [
        [label, setting, *(_mean(group, column) for column in columns), str(len({row["image"] for row in group}))]
        for (label, setting), group in groups.items()
    ]  # fmt: skip
    head = ["", "setting", "encode, CPU s", "decode, CPU s", "NFE of the decoder", "peak MiB", "pictures"]
    return _table(head, lines)


def _mean(group: Sequence[Row], column: str) -> str:
    values = [float(row[column]) for row in group if row.get(column)]
    return f"{np.mean(values):.3g}" if values else "–"


def _measured(rows: Sequence[Row]) -> str:
    """Machines, commits and versions."""
    mine = [row for row in rows if curves.own(row)]
    parts = []
    for name, chosen, column in (("machine", rows, "machine"), ("commit", mine, "commit"), ("version", mine, "version")):
        values = sorted({row[column] for row in chosen if row.get(column)})
        if values:
            parts.append(f"{name} {', '.join(values)}")
    return "; ".join(parts)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def cells(kind: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(value)}</{kind}>" for value in values) + "</tr>"

    body = "\n".join([cells("th", head), *(cells("td", line) for line in lines)])
    return f'<div class="wide"><table>{body}</table></div>'


def _figure(image: str, steps: int) -> str:
    panels = "".join(
        f'<div class="panel" data-name="{escape(name)}"><img alt="{escape(name)} of {escape(image)}"><span></span></div>'
        for name in album.PANELS
    )
    return (
        f'<figure data-picture="{escape(image)}"><figcaption>{escape(image)} '
        f'<input type="range" min="0" max="{steps - 1}" value="0" aria-label="rate"> <output></output></figcaption>'
        f'<div class="panels">{panels}</div></figure>'
    )
