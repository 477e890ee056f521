import random

import pytest

from analysis.render.figures import curves
from analysis.render.figures.curves import Curve
from analysis.render.palette import COLOURS, fade, places, style


def test_smoothing_is_a_moving_average_without_bias() -> None:
    assert curves.smooth([1.0, 5.0, 2.0], 0.0) == [1.0, 5.0, 2.0]
    assert curves.smooth([3.0] * 5, 0.9) == pytest.approx([3.0] * 5)
    assert curves.smooth([1.0, 4.0], 0.5) == pytest.approx([1.0, 3.0])


def test_thinning_keeps_ends_and_spikes() -> None:
    values = [random.Random(0).random() for _ in range(10_000)]
    values[1234], values[8765] = 50.0, -50.0
    rows, kept = curves.thin([float(row) for row in range(10_000)], values, 100)
    assert len(kept) <= 100
    assert {50.0, -50.0} <= set(kept)
    assert (rows[0], rows[-1]) == (0, 9999) and rows == sorted(rows)
    assert curves.thin([1.0, 2.0], [3.0, 4.0]) == ([1.0, 2.0], [3.0, 4.0])


def test_a_curve_with_held_out_points_has_error_bars_to_its_interval() -> None:
    curve = Curve("run", [1.0, 2.0], [0.1, 0.2], [(2.0, 0.15)], [(0.125, 0.2)])
    line, points = curves.figure("fve", [curve]).data
    assert (list(line.x), list(line.y)) == ([1, 2], [0.1, 0.2])
    assert (list(points.x), list(points.y)) == ([2], [0.15])
    assert (points.error_y.array[0], points.error_y.arrayminus[0]) == pytest.approx((0.05, 0.025))


def test_a_run_keeps_its_style_whoever_comes_or_goes() -> None:
    first = places({}, ["a", "b", "c"])
    assert first == {"a": 0, "b": 1, "c": 2}
    assert places(first, ["new", "a", "b", "c"]) == {"new": 3, **first}
    assert places(first, ["new", "b", "c"]) == {"new": 0, "b": 1, "c": 2}
    (line,) = curves.figure("fve", [Curve("run", [1.0, 2.0], [0.1, 0.2], style=2)]).data
    assert line.line.color == COLOURS[2]


def test_smoothing_leaves_the_raw_values_behind() -> None:
    raw, line = curves.figure("fve", [Curve("run", [1.0, 2.0], [1.0, 4.0])], smoothing=0.5).data
    assert list(raw.y) == [1.0, 4.0]
    assert list(line.y) == pytest.approx([1.0, 3.0])


def test_names_are_text_to_plotly() -> None:
    drawn = curves.figure("l0", [Curve('<a href="x">b</a>', [1.0, 2.0], [1.0, 2.0], [(1.0, 1.0)])])
    assert all("<" not in trace.name for trace in drawn.data)


@pytest.mark.parametrize("log", [False, True])
def test_nothing_and_zeros_can_be_drawn(log: bool) -> None:
    for curve in (Curve("empty", [], []), Curve("zeros", [1.0, 2.0], [0.0, 0.0]), Curve("point", [1.0], [0.0])):
        drawn = curves.figure("dead", [curve], log_x=log, log_y=log, smoothing=0.5)
        assert drawn.layout.yaxis.type == ("log" if log else "linear")
        assert len(drawn.layout.annotations) == int(log)


def test_shares_of_nearly_nothing_do_not_fill_the_panel() -> None:
    assert curves.figure("dead", [Curve("none", [1.0, 2.0], [0.0, 0.0])]).layout.yaxis.range == (-0.0005, 0.0105)
    assert curves.figure("dead", [Curve("some", [1.0, 2.0], [0.0, 0.5])]).layout.yaxis.range is None


def test_ticks_of_a_logarithmic_axis() -> None:
    assert {10, 20, 50, 100} <= set(curves.log_ticks([10.0, 100.0])) and 30 not in curves.log_ticks([10.0, 100.0])
    assert curves.log_ticks([1.0, 1e5]) == [0.1, 1, 10, 100, 1e3, 1e4, 1e5, 1e6]
    assert 0.4 in [round(tick, 6) for tick in curves.log_ticks([0.3, 0.9])]
    assert curves.log_ticks([0.0, -1.0]) == []


def test_the_words_beside_a_figure_hold_its_numbers() -> None:
    assert curves.alt("dead", [Curve("a", [1.0], [0.0125]), Curve("b", [], [])]) == (
        "Dead features over training tokens: a ends at 1.25%."
    )
    assert "no values yet" in curves.alt("l0", [])


def test_styles_differ() -> None:
    assert len({style(i)[:2] for i in range(24)}) == 24
    assert fade("#0072B2", 0.5) == "rgba(0,114,178,0.5)"


@pytest.mark.parametrize("ground", ["#ffffff", "#171713"])
@pytest.mark.parametrize("colour", COLOURS[:4])
def test_the_first_colours_stand_out_on_both_grounds(colour: str, ground: str) -> None:
    light, dark = sorted((_luminance(colour), _luminance(ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 2.9


def _luminance(colour: str) -> float:
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in bytes.fromhex(colour[1:])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
