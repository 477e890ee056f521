import numpy as np
import pytest

from analysis.index.types import Histogram
from analysis.render.figures import histogram
from tests.analysis.markup import Element, Page
from tests.analysis.samples import dead, feature


def test_bars_keep_every_count() -> None:
    low, high, counts = histogram.bars(feature(), "+")
    assert (low.tolist(), high.tolist(), counts.tolist()) == ([2.0, 4.0], [4.0, 8.0], [20, 10])
    low, high, heights = histogram.bars(feature(), "+", log_x=False)
    assert (heights * (high - low)).tolist() == [20, 10]


@pytest.mark.parametrize("log_x", [True, False])
@pytest.mark.parametrize("log_y", [True, False])
def test_a_signed_feature_has_a_panel_for_each_side(log_x: bool, log_y: bool) -> None:
    figure = histogram.figure(feature(n_negative=6), log_x=log_x, log_y=log_y, mark=-2.0)
    assert [trace.xaxis for trace in figure.data] == ["x", "x2"]
    assert list(figure.data[0].hovertext) == ["−1.00 to −2.00: 4 tokens", "−2.00 to −4.00: 2 tokens"]
    assert figure.layout.xaxis.type == ("log" if log_x else "linear")
    left = figure.layout.xaxis.range
    assert left[0] > left[1]  # mirrored
    assert figure.layout.shapes[0].xref == "x"  # the mark is on the negative side
    assert figure.data[0].marker.pattern.shape == "/" and not figure.data[1].marker.pattern.shape
    assert figure.layout.yaxis.type == ("log" if log_y else "linear")


def test_an_unsigned_feature_has_one_panel() -> None:
    figure = histogram.figure(feature(), mark=5.0)
    assert len(figure.data) == 1 and list(figure.data[0].y) == [20, 10]
    assert figure.layout.xaxis.range[0] == pytest.approx(np.log10(2.0))


def test_a_dead_feature_has_an_empty_figure() -> None:
    assert list(histogram.figure(dead()).data[0].y) == []
    assert histogram.svg(dead()) == ""
    assert histogram.alt(dead()) == "Histogram of feature 7: no active values."


def drawn_bars(svg: str) -> list[Element]:
    return [e for e in Page(svg).having("rect") if "class" not in e.attributes]


def test_axes_have_titles_and_the_drawing_its_feature() -> None:
    told = [e.text for e in Page(histogram.svg(feature())).having("text")]
    assert "Feature 7" in told and "tokens" in told and "value where active" in told and "up to 20 tokens" in told
    per_unit = [e.text for e in Page(histogram.svg(feature(), log_x=False, log_y=True)).having("text")]
    assert "tokens per unit, logarithmic" in per_unit


@pytest.mark.parametrize("log_x", [True, False])
def test_a_script_can_tell_which_value_lies_where(log_x: bool) -> None:
    page = Page(histogram.svg(feature(n_negative=6), log_x=log_x))
    negative, positive = page.having("rect", class_="sx-brush")
    ends = [(e.attributes["data-side"], float(e.attributes["data-start"]), float(e.attributes["data-stop"]))
            for e in (negative, positive)]
    assert ends == [("-", 1.0 if log_x else 0.0, 4.0), ("+", 2.0 if log_x else 0.0, 8.0)]
    assert positive.attributes["data-log"] == str(log_x).lower()
    # the bar from 4 to 8 lies where the data say
    x, width = float(positive.attributes["x"]), float(positive.attributes["width"])
    share = 0.5 if log_x else 4 / 8
    last = [e for e in page.having("rect") if "class" not in e.attributes][-1]
    assert float(last.attributes["x"]) == pytest.approx(x + share * width, abs=0.11)


def test_svg_bars_are_in_proportion() -> None:
    rects = drawn_bars(histogram.svg(feature()))
    heights = [float(e.attributes["height"]) for e in rects]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.11)
    widths = [float(e.attributes["width"]) for e in rects]
    assert widths[0] == pytest.approx(widths[1], abs=0.11)
    linear = drawn_bars(histogram.svg(feature(), log_x=False))
    areas = [float(e.attributes["height"]) * float(e.attributes["width"]) for e in linear]
    assert areas[0] == pytest.approx(2 * areas[1], rel=0.03)


def test_svg_mirrors_the_negative_side() -> None:
    left = [float(e.attributes["x"]) for e in drawn_bars(histogram.svg(feature(n_negative=6)))]
    # −2 to −4 lies left of −1 to −2, which lies left of 2 to 4
    assert left[1] < left[0] < left[2] < left[3]


@pytest.mark.parametrize("log_x", [True, False])
def test_a_value_is_marked_where_it_lies(log_x: bool) -> None:
    for value, share in ((4.0, 0.5), (2.0, 0.0 if log_x else 0.25), (80.0, 1.0), (-2.0, 0.5)):
        page = Page(histogram.svg(feature(n_negative=6), log_x=log_x, mark=value, marked="<your text>"))
        negative, positive = page.having("rect", class_="sx-brush")
        panel = negative if value < 0 else positive
        (line,) = [e for e in page.having("line") if e.attributes.get("stroke-dasharray")]
        wanted = float(panel.attributes["x"]) + share * float(panel.attributes["width"])
        assert float(line.attributes["x1"]) == pytest.approx(wanted, abs=0.06)
        assert any(e.text.startswith("<your text>") for e in page.having("text"))
    assert "sx-mark" not in "".join(histogram.svg(feature(), mark=mark) for mark in (None, 0.0, -1.0))


def test_the_alt_text_has_the_numbers() -> None:
    assert histogram.alt(feature(n_negative=6)) == (
        "Histogram of feature 7: 30 positive values from 2.00 to 8.00, most between 2.00 and 4.00; "
        "6 negative values from −1.00 to −4.00, most between −1.00 and −2.00."
    )


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0001), (1e-6, 1e6), (0.3, 40.0), (3.0, 3.5), (1e-30, 1e30)])
@pytest.mark.parametrize("log", [True, False])
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    ticks = histogram.ticks_of(low, high, log=log)
    assert 2 <= len(ticks) <= 12
    assert min(ticks) >= (low if log else 0) * (1 - 1e-6) and max(ticks) <= high * (1 + 1e-6)


def test_one_value_alone_can_be_drawn() -> None:
    one = feature(histogram=Histogram([1.0, 1.01], [1], [0]))
    assert Page(histogram.svg(one)).having("rect") and histogram.figure(one).data[0].y[0] == 1
    assert Page(histogram.svg(one, log_x=False, log_y=True)).having("rect")
