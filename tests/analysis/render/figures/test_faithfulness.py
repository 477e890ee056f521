import io
from xml.etree import ElementTree

from rich.console import Console

from analysis.circuits.checks.curve import Curve
from analysis.render.figures import faithfulness
from analysis.render.tables import faithfulness as table
from sae.metrics import Interval
from tests.analysis.samples import HOSTILE

FEATURES = Curve(
    "features", (0, 1, 10, 100), (0, 1, 9, 80),
    (Interval(0.0), Interval(0.1, 0.05, 0.2), Interval(0.4, 0.3, 0.5), Interval(0.8, 0.7, 0.9)), Interval(0.43, 0.4, 0.5),
)
NEURONS = Curve("MLP activations", (1, 10), (1, 10), (Interval(-0.02), Interval(0.1)), Interval(0.04))
LEVELS = {"all features, no errors": Interval(0.9, 0.85, 0.95)}


def test_curves_have_bands_and_levels_go_across() -> None:
    drawn = faithfulness.figure([FEATURES, NEURONS], LEVELS)
    band, features, neurons = drawn.data
    assert list(features.x) == [1, 10, 100] and list(features.y) == [0.1, 0.4, 0.8]
    assert list(band.x) == [1, 10, 100, 100, 10, 1] and list(band.y) == [0.2, 0.5, 0.9, 0.7, 0.3, 0.05]
    assert list(neurons.y) == [-0.02, 0.1] and drawn.layout.xaxis.type == "log"
    assert features.line.color != neurons.line.color and "0.05" in features.customdata[0][1]
    across = [shape.y0 for shape in drawn.layout.shapes]
    assert across == [0.9, 0, 1] and "0.90" in drawn.layout.annotations[0].text
    # neither ground is assumed
    assert drawn.layout.paper_bgcolor is None and drawn.layout.font.color is None


def test_a_picture_has_the_same_points() -> None:
    root = ElementTree.fromstring(faithfulness.picture([FEATURES, NEURONS]))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 5
    assert faithfulness.picture([FEATURES]) == faithfulness.picture([FEATURES])


def test_words_for_those_who_do_not_see_it() -> None:
    words = faithfulness.alt([FEATURES, NEURONS], LEVELS)
    assert "features 0.80 with 100 nodes" in words and "no errors 0.90" in words
    assert "nothing yet" in faithfulness.alt([])


def test_a_table_has_a_column_per_size() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(table.text([FEATURES, NEURONS], LEVELS))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines[0][-5:] == ["0", "1", "10", "100", "area"]
    assert lines[1] == ["features", "0.00", "0.10", "0.40", "0.80", "0.43"]
    assert lines[2] == ["MLP", "activations", "−0.02", "0.10", "0.04"]
    assert lines[3][-1] == "0.90" and table.two_digits(float("nan")) == "–"


def test_hostile_names() -> None:
    several = [Curve(text, (1,), (1,), (Interval(0.5),), Interval(0.5)) for text in HOSTILE]
    drawn = faithfulness.figure(several, {text: Interval(0.1) for text in HOSTILE})
    assert all("<" not in trace.name for trace in drawn.data)
    assert all("<" not in note.text for note in drawn.layout.annotations)
    drawn.to_json().encode("utf-8")
    ElementTree.fromstring(faithfulness.picture(several))
