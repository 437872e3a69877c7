"""Line and bar charts as SVG text, to stand in a page that has no scripts and loads nothing.

    line_chart({"training": [(1, 0.9), (2, 0.4)]}, x_label="epoch", y_label="loss")

Each point tells its values where the mouse rests on it. Colours are CSS variables of the page, `--c0` to `--c8`, and
`currentColor`, so that a chart is legible on light and on dark ground.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Point", "bar_chart", "line_chart", "scatter_chart", "ticks"]

_WIDTH, _HEIGHT = 430, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 42

_Point = tuple[float, float]


class Point(NamedTuple):
    """A point of `scatter_chart`: what it tells, and the ends of an upright bar through it, where there is one."""

    x: float
    y: float
    told: str
    low: float | None = None
    high: float | None = None


def line_chart(
    curves: Mapping[str, Sequence[_Point]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    mark_x: float | None = None,
    dots: bool = True,
    strokes: Sequence[float] = (),
) -> str:
    """Curves over one pair of axes, with a legend where there are several.

    Args:
        curves: name to points; a point that is not finite is left out.
        x_label: below.
        y_label: above the upright axis.
        log_x: the level axis is logarithmic.
        mark_x: a dashed upright line.
        dots: draw each point.
        strokes: short strokes on the level axis.
    """
    shown = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in curves.items()}
    every = [point for points in shown.values() for point in points]
    if not every:
        return "<p>nothing to draw</p>"
    scale = math.log10 if log_x else float
    x0, x1 = min(scale(x) for x, _ in every), max(scale(x) for x, _ in every)
    x_ticks = [float(e) for e in range(math.ceil(x0), math.floor(x1) + 1)] if log_x else ticks(x0, x1)
    if not log_x:
        x0, x1 = min(x0, x_ticks[0]), max(x1, x_ticks[-1])
    y_ticks = ticks(min(y for _, y in every), max(y for _, y in every))
    y0, y1 = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - x0) / ((x1 - x0) or 1.0)
        return round(across, 1), round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (y1 - y) / ((y1 - y0) or 1.0), 1)

    parts = _axes([(at(x, y0)[0], f"1e{x:g}" if log_x else f"{x:g}") for x in x_ticks],
                  [(at(x0, y)[1], f"{y:g}") for y in y_ticks], x_label)  # fmt: skip
    for stroke in strokes:
        across, down = at(scale(stroke), y0)
        parts.append(f'<line x1="{across}" x2="{across}" y1="{down}" y2="{down - 6}" stroke="currentColor"/>')
    if mark_x is not None:
        across = at(scale(mark_x), y0)[0]
        parts.append(
            f'<line x1="{across}" x2="{across}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" class="mark">'
            f"<title>{mark_x:g}</title></line>"
        )
    for number, (name, points) in enumerate(shown.items()):
        places = [at(scale(x), y) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" class="line" style="stroke:var(--c{number % 9})"/>')
        if dots:
            parts += [
                f'<circle cx="{px}" cy="{py}" r="3" style="fill:var(--c{number % 9})">'
                f"<title>{html.escape(name)}: {html.escape(x_label)} {x:g}, {y:.4g}</title></circle>"
                for (px, py), (x, y) in zip(places, points, strict=True)
            ]
    legend = "".join(
        f'<span><i style="background:var(--c{number % 9})"></i>{html.escape(name)}</span>'
        for number, name in enumerate(shown)
    )
    return (
        f"<figure><figcaption>{html.escape(y_label)}</figcaption>{_svg(parts, y_label)}"
        f'<div class="legend">{legend if len(shown) > 1 else ""}</div></figure>'
    )


def bar_chart(bars: Sequence[tuple[float, str]], *, x_label: str, y_label: str, diagonal: bool = False) -> str:
    """Bars of height 0 to 1 over [0, 1], each with what it tells; `diagonal` draws y = x."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = _axes([(_LEFT + width * m, f"{m:g}") for m in marks],
                  [(_TOP + height * (1.0 - m), f"{m:g}") for m in marks], x_label)  # fmt: skip
    each = width / len(bars)
    for i, (value, told) in enumerate(bars):
        parts.append(
            f'<rect x="{_LEFT + each * i + 1:.1f}" y="{_TOP + height * (1.0 - value):.1f}" width="{each - 2:.1f}" '
            f'height="{height * value:.1f}" style="fill:var(--c0)"><title>{html.escape(told)}</title></rect>'
        )
    if diagonal:
        parts.append(f'<line x1="{_LEFT}" y1="{_TOP + height}" x2="{_LEFT + width}" y2="{_TOP}" class="mark"/>')
    return f"<figure><figcaption>{html.escape(y_label)}</figcaption>{_svg(parts, y_label)}</figure>"


def scatter_chart(points: Sequence[Point], *, x_label: str, y_label: str, line: int | None = None) -> str:
    """Points, each with its bar where it has one; `line` is the slope, 0 or 1, of a dashed line through the origin.

    A point that is not finite is left out, and a bar ends at the frame where it would be much longer than the points' spread.
    """
    shown = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not shown:
        return "<p>nothing to draw</p>"
    xs, ys = [p.x for p in shown], [p.y for p in shown] + ([0.0] if line == 0 else [])
    spread = max(max(ys) - min(ys), 1e-9)
    bars = {i: (p.low, p.high) for i, p in enumerate(shown) if p.low is not None and p.high is not None}
    bars = {i: ends for i, ends in bars.items() if not any(map(math.isnan, ends))}
    ys += [min(max(end, shown[i].y - spread), shown[i].y + spread) for i, ends in bars.items() for end in ends]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        right = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = min(max((y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 0.0), 1.0)
        return (
            round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * right, 1),
            round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * up, 1),
        )

    parts = _axes(
        [(at(x, 0)[0], f"{x:g}") for x in x_ticks], [(at(x_ticks[0], y)[1], f"{y:g}") for y in y_ticks], x_label
    )
    if line is not None:
        ends = (x_ticks[0], x_ticks[-1])
        if line:  # as far as both axes go
            ends = (max(x_ticks[0], y_ticks[0]), min(x_ticks[-1], y_ticks[-1]))
        if ends[0] < ends[1]:
            (x1, y1), (x2, y2) = (at(x, line * x) for x in ends)
            parts.append(f'<line x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}" class="mark"/>')
    for i, p in enumerate(shown):
        across, down = at(p.x, p.y)
        if i in bars:
            y1, y2 = (at(p.x, end)[1] for end in bars[i])
            parts.append(f'<line x1="{across}" x2="{across}" y1="{y1}" y2="{y2}" class="span"/>')
        parts.append(
            f'<circle cx="{across}" cy="{down}" r="3" style="fill:var(--c0)"><title>{html.escape(p.told)}</title></circle>'
        )
    return f"<figure><figcaption>{html.escape(y_label)}</figcaption>{_svg(parts, y_label)}</figure>"


def ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers around [low, high]."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 12) for n in range(first, last + 1)]


def _axes(x_marks: list[tuple[float, str]], y_marks: list[tuple[float, str]], x_label: str) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    parts = [f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" class="grid"/>' for y, _ in y_marks]
    parts += [f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{text}</text>' for y, text in y_marks]
    parts += [f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{text}</text>' for x, text in x_marks]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{html.escape(x_label)}</text>')
    return parts


def _svg(parts: list[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )
