"""The training log as a picture: SVG written as text, so that the same log gives the same bytes on any machine.

The Hub and GitHub show an SVG file that a card names as an image. It has a ground of its own, so that it can be read on
a dark page too, and no scripts, fonts or links.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._entry import Entry

__all__ = ["plot_log"]

_HEIGHT, _PANEL = 300, 380  # of the picture, and the width of one panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 40, 44  # margins of a panel
_COLOURS = {"train_loss": "#1f6fb4", "val_error": "#c2571a", "test_error": "#1b7f4d"}
_NAMES = {"train_loss": "training loss", "val_error": "validation error", "test_error": "test error"}

_Points = list[tuple[float, float]]


def plot_log(entry: Entry) -> str | None:
    """The SVG of `train_log.csv`: training loss and errors in % (or deviances) over epochs; None where the log has neither.

    Only an image of what was logged: an epoch without a value has no point.
    """
    curves = {key: points for key in _NAMES if (points := _points(entry.log, key))}
    panels = [
        ("Training loss", {key: value for key, value in curves.items() if key == "train_loss"}),
        (_error_title(entry), {key: value for key, value in curves.items() if key != "train_loss"}),
    ]
    panels = [(title, shown) for title, shown in panels if shown]
    if not panels:
        return None
    width = _PANEL * len(panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222222">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="#ffffff"/>',
    ]
    for number, (title, shown) in enumerate(panels):
        lines += _panel(title, shown, _PANEL * number)
    return "\n".join([*lines, "</svg>", ""])


def _error_title(entry: Entry) -> str:
    return "Deviance an outcome" if entry.has_outcomes else "Error, %"


def _points(log: Sequence[dict[str, str]], key: str) -> _Points:
    points = []
    for row in log:
        try:
            point = float(row["epoch"]), float(row[key])
        except (KeyError, ValueError):
            continue
        if all(map(math.isfinite, point)):
            points.append(point)
    return points


def _panel(title: str, curves: dict[str, _Points], left: int) -> list[str]:
    """One pair of axes with its curves; both axes linear, the upright one from zero, or from below it."""
    x_ticks = _ticks(max(x for points in curves.values() for x, _ in points), whole=True)
    values = [y for points in curves.values() for _, y in points]
    y_ticks = _ticks(max(*values, *(-y for y in values)))
    if min(values) < 0:  # a log-likelihood has any sign
        step = y_ticks[1]
        marks = range(math.floor(min(values) / step), max(math.ceil(max(values) / step), 0) + 1)
        y_ticks = [round(step * n, 12) for n in marks]
    low, high = y_ticks[0], y_ticks[-1]
    x0, x1 = left + _LEFT, left + _PANEL - _RIGHT
    y0, y1 = _HEIGHT - _BOTTOM, _TOP

    def place(x: float, y: float) -> tuple[str, str]:
        return f"{x0 + (x1 - x0) * x / x_ticks[-1]:.1f}", f"{y0 + (y1 - y0) * (y - low) / (high - low):.1f}"

    lines = [f'<text x="{left + _LEFT}" y="20" font-weight="bold">{title}</text>']
    for y in y_ticks:
        _, height = place(0, y)
        lines.append(f'<line x1="{x0}" y1="{height}" x2="{x1}" y2="{height}" stroke="#dddddd"/>')
        lines.append(f'<text x="{x0 - 6}" y="{height}" dy="4" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        across, _ = place(x, low)
        lines.append(f'<text x="{across}" y="{y0 + 16}" text-anchor="middle">{x:g}</text>')
    lines.append(f'<text x="{(x0 + x1) // 2}" y="{y0 + 34}" text-anchor="middle">epoch</text>')
    for number, (key, points) in enumerate(curves.items()):
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{_COLOURS[key]}" stroke-width="2"/>')
        lines += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{_COLOURS[key]}"/>' for x, y in places]
        if len(curves) > 1 or key != "train_loss":
            line = _TOP + 14 + 16 * number
            lines.append(f'<text x="{x1}" y="{line}" text-anchor="end" fill="{_COLOURS[key]}">{_NAMES[key]}</text>')
    return lines


def _ticks(largest: float, whole: bool = False) -> list[float]:
    """Three to seven round numbers from 0 to the first that is at least `largest`."""
    largest = max(largest, 1.0 if whole else 1e-9)
    exponent = math.floor(math.log10(largest)) - 1
    steps = [m * 10.0**e for e in (exponent, exponent + 1) for m in (1, 2, 5)]
    step = next(s for s in steps if math.ceil(largest / s) <= 6 and (s >= 1 or not whole))
    return [round(step * n, 12) for n in range(math.ceil(largest / step) + 1)]
