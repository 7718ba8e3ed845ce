"""The plot of the growth of the cost: what is drawn lies where the numbers say."""

import xml.etree.ElementTree as ET

import pytest

from benchmarks.growth_plot import Point, figure

SVG = "{http://www.w3.org/2000/svg}"
POINTS = {
    "taps": [Point(x=3, low=1.01, middle=1.03, high=1.06), Point(x=1, low=0.98, middle=1.00, high=1.02)],
    "side": [Point(x=256, low=1.01, middle=1.04, high=1.10)],
}


def test_dots_are_in_order_on_one_scale_with_the_line_at_one() -> None:
    root = ET.fromstring(figure(POINTS, "a net"))
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in root.iter(f"{SVG}circle")]
    bars = [(float(bar.get("y1", "")), float(bar.get("y2", ""))) for bar in root.iter(f"{SVG}line") if bar.get("opacity")]
    ones = {float(line.get("y1", "")) for line in root.iter(f"{SVG}line") if line.get("stroke-dasharray")}
    values = [1.00, 1.03, 1.04]  # sorted by x inside of a panel
    assert [x for x, _ in dots] == sorted(x for x, _ in dots)
    (one,) = ones
    per_unit = (one - dots[1][1]) / 0.03
    assert [y for _, y in dots] == pytest.approx([one - per_unit * (value - 1) for value in values], abs=0.2)
    assert bars[2] == pytest.approx((one - per_unit * 0.01, one - per_unit * 0.10), abs=0.4)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a net", "taps", "side", "1", "3", "256"} <= set(texts)


def test_one_value_everywhere_is_drawn_inside_of_its_panel() -> None:
    root = ET.fromstring(figure({"taps": [Point(x=1, low=1, middle=1, high=1)]}, "flat"))
    (dot,) = root.iter(f"{SVG}circle")
    panel = root.findall(f"{SVG}rect")[1]
    top, height = float(panel.get("y", "")), float(panel.get("height", ""))
    assert top < float(dot.get("cy", "")) < top + height
