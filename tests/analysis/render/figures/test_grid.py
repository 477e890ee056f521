"""Maps of numbers: every number is there, the least is framed, and nothing is where there is none."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from analysis.render.figures.grid import Grid, grids, least


def test_every_number_is_drawn_and_the_least_framed() -> None:
    one = Grid("bits & more", ["8", "16"], ["1", "2", "4"], np.array([[9.0, 5.25, np.nan], [7.0, 3.0, 12.0]]))
    drawn = grids([one, one], "k", "features")
    ElementTree.fromstring(drawn)
    assert re.findall(r">(\d+\.\d)<", drawn) == ["9.0", "5.2", "7.0", "3.0", "12.0"] * 2
    assert drawn.count("#D55E00") == 2
    framed = drawn.split("#D55E00")[1]
    assert re.search(r">(\d+\.\d)<", framed)[1] == "3.0"  # type: ignore[index]
    assert "least 3.0 at features 16, k 2" in drawn and "bits &amp; more" in drawn
    assert least(one) == (1, 1)


def test_shades_fall_from_the_least_to_the_largest() -> None:
    drawn = grids([Grid("a", ["r"], ["x", "y", "z"], np.array([[1.0, 10.0, 100.0]]))], "c", "r")
    assert re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", drawn) == ["1", "0.525", "0.05"]


def test_a_map_without_numbers() -> None:
    nothing = Grid("a", ["r"], ["c"], np.array([[np.nan]]))
    assert least(nothing) is None
    assert "no number" in grids([nothing], "c", "r") and "<rect x" not in grids([nothing], "c", "r")
    assert "rgba" in grids([Grid("a", ["r"], ["c"], np.array([[0.0]]))], "c", "r")
