import numpy as np
import pytest

from analysis.render.figures import scatter
from tests.analysis.samples import HOSTILE


def test_points_carry_their_features() -> None:
    figure = scatter.figure([4, 9, 2], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], x_title="density", y_title="max", selected=9)
    assert list(figure.data[0].customdata) == [4, 9, 2]
    assert (figure.data[1].x[0], figure.data[1].y[0]) == (2.0, 2.0)
    assert figure.layout.dragmode == "select"


def test_what_a_logarithmic_axis_cannot_show_is_counted() -> None:
    figure = scatter.figure([0, 1, 2], [0.0, 0.1, np.nan], [1.0, 1.0, 1.0], x_title="a", y_title="b", log_x=True)
    assert list(figure.data[0].customdata) == [1]
    assert figure.layout.annotations[0].text == "2 features not above 0 omitted"
    assert figure.layout.xaxis.type == "log"


def test_no_features_at_all() -> None:
    figure = scatter.figure([], [], [], x_title="a", y_title="b", log_x=True, log_y=True)
    assert len(figure.data[0].x) == 0
    assert scatter.alt([], [], "a", "b") == "a against b: no features."


def test_the_map_has_equal_axes() -> None:
    figure = scatter.layout_map([1, 2], [0.0, 1.0], [0.0, np.nan], depth=[0.5, 0.7], depth_title="density", selected=1)
    assert figure.layout.yaxis.scaleanchor == "x" and list(figure.data[0].customdata) == [1]
    assert list(figure.data[0].marker.color) == [0.5]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_labels(text: str) -> None:
    figure = scatter.figure([1], [1.0], [1.0], x_title="a", y_title="b", names=[text])
    assert "<" not in figure.data[0].text[0] and len(figure.data[0].text[0]) < 500
    figure.to_json().encode("utf-8")


def test_the_alt_text_is_in_numbers() -> None:
    x = [1.0, 2.0, 3.0, 4.0, np.inf]
    said = scatter.alt(x, [8.0, 6.0, 4.0, 2.0, 0.0], "density", "max")
    assert said == "4 features: density from 1.00 to 4.00, max from 2.00 to 8.00; rank correlation −1.00."
    assert scatter.alt([1.0], [2.0], "a", "b") == "1 feature: a from 1.00 to 1.00, b from 2.00 to 2.00."


def test_the_name_of_a_saved_figure_is_a_file_name() -> None:
    assert scatter.png_options("../a b/<x>")["toImageButtonOptions"]["filename"] == "..-a-b--x-"
