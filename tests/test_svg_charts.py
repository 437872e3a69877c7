"""Charts: well-formed, in their place, and safe whatever a name holds."""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gode_zoo.report.svg_charts import Point, bar_chart, line_chart, scatter_chart, ticks


def points(figure):
    (line,) = (e for e in ET.fromstring(figure).iter("polyline"))
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]


def test_points_are_where_they_belong():
    got = points(line_chart({"a": [(0, 0), (5, 1), (10, 2)]}, x_label="x", y_label="y"))
    (x0, y0), (x1, y1), (x2, y2) = got
    assert x0 < x1 < x2 and y0 > y1 > y2  # a larger y is higher up
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.2) and y1 == pytest.approx((y0 + y2) / 2, abs=0.2)


def test_a_logarithmic_axis():
    got = points(line_chart({"a": [(1e-4, 1), (1e-3, 2), (1e-2, 3)]}, x_label="x", y_label="y", log_x=True))
    assert got[1][0] - got[0][0] == pytest.approx(got[2][0] - got[1][0], abs=0.2)


def test_what_cannot_be_drawn():
    assert len(points(line_chart({"a": [(1, 1), (2, math.nan), (3, math.inf), (4, 1)]}, x_label="x", y_label="y"))) == 2
    assert line_chart({"a": [(1, math.nan)]}, x_label="x", y_label="y") == "<p>nothing to draw</p>"
    assert len(points(line_chart({"a": [(1, 5)]}, x_label="x", y_label="y", mark_x=1))) == 1


def test_names_are_text():
    chart = line_chart({"<script>": [(0, 0)], "&": [(1, 1)]}, x_label="<x>", y_label='"<y>"')
    chart += bar_chart([(0.5, "<b>")], x_label="<x>", y_label="<y>")
    ET.fromstring(f"<div>{chart}</div>")
    assert "<script>" not in chart and "<y>" not in chart


def test_bars():
    bars = list(
        ET.fromstring(bar_chart([(0.0, "none"), (0.5, "half"), (1.0, "all")], x_label="x", y_label="y")).iter("rect")
    )
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[0] == 0 and heights[1] == pytest.approx(heights[2] / 2)


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6))
def test_ticks_are_few_and_around(low, span):
    high = low + span
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 9
    assert marks[0] <= low + 1e-6 * span + 1e-9 and marks[-1] >= high - 1e-6 * span - 1e-9


def test_scattered_points_with_their_bars():
    spread = [
        Point(0, 1, "a <b>", 0, 2),
        Point(10, 11, "c", 10, 1e9),
        Point(5, math.nan, "d"),
        Point(5, 5, "e", math.nan, 6),
    ]
    root = ET.fromstring(scatter_chart(spread, x_label="x", y_label="y", line=1))
    (first, second, _), bars = root.iter("circle"), [e for e in root.iter("line") if e.get("class") == "span"]
    assert float(first.get("cx")) < float(second.get("cx")) and float(first.get("cy")) > float(second.get("cy"))
    assert first.find("title").text == "a <b>"
    assert float(bars[0].get("y1")) > float(first.get("cy")) > float(bars[0].get("y2"))
    assert float(bars[1].get("y2")) >= 10  # a bar without end stops at the frame
    (equal,) = (e for e in root.iter("line") if e.get("class") == "mark")
    middle = (float(equal.get("x1")) + float(equal.get("x2"))) / 2
    assert float(first.get("cx")) <= middle <= float(second.get("cx"))


def test_a_level_line_and_equal_points():
    root = ET.fromstring(scatter_chart([Point(3, 2, ""), Point(3, 2, "")], x_label="x", y_label="y", line=0))
    (level,) = (e for e in root.iter("line") if e.get("class") == "mark")
    assert level.get("y1") == level.get("y2") and float(level.get("y1")) > float(next(root.iter("circle")).get("cy"))
    assert scatter_chart([Point(math.inf, 1, "")], x_label="x", y_label="y") == "<p>nothing to draw</p>"
