"""How is a chart drawn with nothing but text? Lines with markers over two axes, as one SVG element."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 680, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 218, 34, 48  # around the plot; the legend stands at the right
# Okabe and Ito 2008, and two more: told apart by the colour-blind
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fa3", "#666666")


@dataclass(frozen=True)
class Line:
    """points: (x, y), joined in this order. label: in the legend, "" for none; note: beside the last point.
    colour: an index. dashed: as lines of others are. hollow: its markers."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False
    hollow: bool = False
    note: str = ""


def chart(title: str, x_name: str, y_name: str, lines: Sequence[Line], *, log_x: bool = False) -> str:
    """The SVG element of some lines; ValueError when there is no point to draw."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        raise ValueError(f"chart {title!r} has no point")
    x_ticks, y_ticks = (log_ticks if log_x else ticks)(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_at = _scale(min(*xs, *x_ticks), max(*xs, *x_ticks), _LEFT, WIDTH - _RIGHT, math.log if log_x else float)
    y_at = _scale(min(*ys, *y_ticks), max(*ys, *y_ticks), HEIGHT - _BOTTOM, _TOP, float)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 18, title, "start", 'font-weight="600" font-size="14"'),
    ]
    for x in x_ticks:
        at = x_at(x)
        out.append(f'<path d="M{at:.1f} {_TOP}V{HEIGHT - _BOTTOM}" stroke="#ddd"/>')
        out.append(_text(at, HEIGHT - _BOTTOM + 17, f"{x:g}", "middle"))
    for y in y_ticks:
        at = y_at(y)
        out.append(f'<path d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        out.append(_text(_LEFT - 7, at + 4, f"{y:g}", "end"))
    out.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 10, x_name, "middle"))
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    out.append(_text(16, middle, y_name, "middle", f'transform="rotate(-90 16 {middle:.0f})"'))
    for line in lines:
        at_points = [(x_at(x), y_at(y)) for x, y in line.points]
        out += _drawn(line, at_points)
        if line.note:
            out.append(_text(at_points[-1][0] + 6, at_points[-1][1] + 4, line.note, "start", 'font-size="11"'))
    for number, line in enumerate(line for line in lines if line.label):
        height = _TOP + 12 + 19 * number
        out += _drawn(line, [(WIDTH - _RIGHT + 12, height), (WIDTH - _RIGHT + 36, height)])
        out.append(_text(WIDTH - _RIGHT + 43, height + 4, line.label, "start"))
    return "\n".join([*out, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from `low` or just below to `high` or just above."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * unit for factor in (1, 2, 5, 10) if span / (factor * unit) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from `low` or just below to `high` or just above."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    first = max(i for i, value in enumerate(every) if value <= low * (1 + 1e-9))
    last = min(i for i, value in enumerate(every) if value >= high * (1 - 1e-9))
    return [float(f"{value:.3g}") for value in every[first : last + 1]]


def _scale(low: float, high: float, start: float, end: float, axis: Callable[[float], float]) -> Callable[[float], float]:
    span = (axis(high) - axis(low)) or 1.0
    return lambda value: start + (end - start) * (axis(value) - axis(low)) / span


def _drawn(line: Line, at: Sequence[tuple[float, float]]) -> list[str]:
    colour = _COLOURS[line.colour % len(_COLOURS)]
    fill = "#fff" if line.hollow else colour
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    markers = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{fill}" stroke="{colour}"/>' for x, y in at]
    return [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{1.4 if line.dashed else 2.4}"{dash}/>', *markers]


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
