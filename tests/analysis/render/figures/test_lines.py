"""Curves as SVG, read back as XML: what is drawn lies where its numbers say."""

import re
from xml.etree import ElementTree

import pytest

from analysis.render.figures.lines import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, decades, lines, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.78, 0.88, [0.78, 0.8, 0.82, 0.84, 0.86, 0.88]),
    (0.0, 291.0, [0, 50, 100, 150, 200, 250, 300]), (3.0, 3.0, [3, 3.2]),
])
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_points_lie_where_their_numbers_say() -> None:
    curves = [
        Line("a < b", [0.0, 0.5, 1.0], [0.0, 100.0, 50.0], [None] * 3, [None] * 3),
        Line("b", [1.0], [80.0], [60.0], [100.0]),
    ]
    root = ElementTree.fromstring(lines(curves, x_title="FVE", y_title="bits"))
    inner = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    dots = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]
    expected = [(0, 0), (0.5, 1), (1, 0.5), (1, 0.8)]
    assert dots == [
        pytest.approx((LEFT + x * inner[0], HEIGHT - BOTTOM - y * inner[1]), abs=0.06) for x, y in expected
    ]
    bars = [p.get("d", "") for p in root.iter(f"{SVG}path") if "V" in p.get("d", "")]
    (bar,) = bars
    bottom, top = (float(n) for n in re.findall(r"[\d.]+", bar)[1:])
    assert bottom - top == pytest.approx(0.4 * inner[1], abs=0.2)
    assert {"a < b", "b", "FVE", "bits"} <= {t.text for t in root.iter(f"{SVG}text")}


def test_a_logarithmic_axis_is_marked_at_powers_of_ten() -> None:
    assert decades(1.0, 100.0) == [1, 10, 100] and decades(3.0, 3.0) == [1, 10] and decades(0.2, 11.0) == [0.1, 1, 10, 100]
    drawn = lines([Line("a", [10.0, 100.0], [0.0, 1.0], [None] * 2, [None] * 2)], x_title="n", y_title="y", log_x=True)
    root = ElementTree.fromstring(drawn)
    across = [(float(c.get("cx", "")) - LEFT) / (WIDTH - LEFT - RIGHT) for c in root.iter(f"{SVG}circle")]
    assert across == pytest.approx([0, 1], abs=1e-3)
    assert {"10", "100"} <= {t.text for t in root.iter(f"{SVG}text")}


def test_a_curve_without_points_is_only_named() -> None:
    root = ElementTree.fromstring(lines([Line("none", [], [], [], [])], x_title="x", y_title="y"))
    assert not list(root.iter(f"{SVG}circle"))
