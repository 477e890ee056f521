"""The page Evaluations, without a browser."""

import csv
import io
import json
from pathlib import Path

import pytest

from analysis.evals import overview
from analysis.runs import read
from tests.analysis.run_folders import write_run
from tests.dashboard.evaluated_runs import write_evaluated
from tests.dashboard.pages import drawn, html, said, saved, visit

FVE, L0 = "core.reconstruction.fve", "core.sparsity.l0"


@pytest.fixture
def three(root: Path) -> Path:
    """Two evaluated runs, one of them measured on other rows too, and one that was only trained."""
    write_evaluated(root, "wide", fve=0.8, l0=32)
    write_evaluated(root, "narrow", fve=0.7, l0=16, k=2)
    write_evaluated(root, "elsewhere", fve=0.9, l0=16, rows="others", k=3)
    write_run(root, "plain")
    return root


def test_without_runs_or_figures_it_says_what_makes_them(root: Path) -> None:
    assert visit(page="evaluations").code[0].value == "sae train configs/quickstart.yaml"
    write_run(root, "going", n_lines=25, finished=False, silent_s=-300)
    app = visit(page="evaluations")
    assert "going is training, 25% done" in app.text[0].value and "_seen" in app.session_state


def test_what_trainings_ended_with_is_shown_at_once(root: Path) -> None:
    write_run(root, "done")
    app = visit(page="evaluations")
    page = html(app)
    assert "held-out FVE ↑" in page and "0.750" in page and "0.740 … 0.760" in page
    assert "held-out CE recovered mean ↑" in page
    assert app.code[0].value.startswith("sae eval ") and app.code[0].value.endswith("runs/done")
    assert len(app.get("plotly_chart")) == 1


def test_figures_stand_beside_their_controls_with_intervals_and_directions(three: Path) -> None:
    app = visit(page="evaluations", run="wide")
    page = html(app)
    assert "core FVE ↑" in page and "1 − Σ‖t − t̂‖² / Σ‖t − mean t‖² (share; higher is better)" in page
    assert page.count('class="sx-control"') == 6 and "· <bdi>random" in page
    (own,) = overview.of_run(read(three, three / "wide")).rows()[:1]
    fve = own.figures[FVE]
    assert fve.low is not None and f"{fve.low:.3f}" in page
    assert 'class="sx-control"' not in html(visit(page="evaluations", run="wide", controls="false"))
    only = html(visit(page="evaluations", run="wide", find="NARR", m=[FVE]))
    assert "narrow" in only and "page=features&amp;run=elsewhere" not in only and "core L0" not in only.split("</table>")[0]


def test_runs_are_sorted_with_their_controls_below_them(three: Path) -> None:
    def names(**query: str) -> list[str]:
        page = html(visit(page="evaluations", run="wide", **query))
        rows = page.split("<tbody>")[1].split("</tbody>")[0].split("<tr")[1:]
        return [row.split("</th>")[0].split("<bdi>")[1].split("</bdi>")[0] for row in rows]

    sorted_ = names(order=FVE)
    assert sorted_[::3] == ["elsewhere", "wide", "narrow", "plain"]
    assert all({*sorted_[i : i + 2]} == {"pca", "random"} for i in (1, 4, 7))
    assert names(order=FVE, turned="true", controls="false") == ["narrow", "wide", "elsewhere", "plain"]
    assert names(order="run", controls="false") == ["elsewhere", "narrow", "plain", "wide"]


def test_a_figure_opens_its_definition_controls_seeds_and_command(three: Path) -> None:
    write_evaluated(three, "wide-1", fve=0.79, l0=32, seed=1)
    app = visit(page="evaluations", run="wide", cell=f"{FVE}~wide")
    page = html(app).split("data-figure")[1]
    assert "higher is better" in page and "40 documents" in page and "+0.750" in page and "frozen-decoder" in page
    assert "Seeds of this training" in page and "wide-1" in page and "0.790" in page
    assert any(code.value.endswith("wide --only core") for code in app.code)
    app.button(key="save This evaluation (JSON)").click()
    name, text = saved(drawn(app))
    assert name == "core.json" and json.loads(text)["eval_type_id"] == "core"
    assert "data-figure" not in html(visit(page="evaluations", run="wide", cell="core.no.thing~wide"))


def test_differences_are_paired_and_said_where_they_are_not(three: Path) -> None:
    page = html(visit(page="evaluations", run="wide", base="narrow")).split('aria-label="Differences"')[1]
    rows = {row.split("<bdi>")[1].split("</bdi>")[0]: row for row in page.split("<tbody>")[1].split("<tr>")[1:]}
    assert "+0.100" in rows["wide"] and "differs (one seed)" in rows["wide"]
    assert "measured on different rows" in rows["elsewhere"]


def test_seeds_of_one_training_are_one_side_of_a_difference(root: Path) -> None:
    for seed, noise in enumerate((0.0, 0.01, -0.01)):
        write_evaluated(root, f"wide-{seed}", fve=0.8 + noise, l0=32, seed=seed)
        write_evaluated(root, f"narrow-{seed}", fve=0.7 + noise, l0=16, seed=seed, k=2)
    page = html(visit(page="evaluations", run="wide-0", base="narrow-0")).split('aria-label="Differences"')[1]
    rows = {row.split("<bdi>")[1].split("</bdi>")[0]: row for row in page.split("<tbody>")[1].split("<tr>")[1:]}
    assert "+0.100" in rows["wide-0"] and "better" in rows["wide-0"] and "+0.0100" in rows["narrow-1"]


def test_the_figures_are_handed_out(three: Path) -> None:
    app = visit(page="evaluations", run="wide", find="wide")
    app.button(key="save CSV").click()
    rows = list(csv.DictReader(io.StringIO(saved(drawn(app))[1])))
    fve = next(row for row in rows if json.loads(row["figure"]) == FVE and json.loads(row["control"]) == "")
    assert float(fve["value"]) == pytest.approx(0.8) and float(fve["low"]) < 0.8 < float(fve["high"])
    assert {json.loads(row["control"]) for row in rows} == {"", "random", "pca"}
    app.button(key="save JSON").click()
    assert json.loads(saved(drawn(app))[1])[0]["figures"][FVE]["formula"].startswith("1 −")


def test_a_broken_evaluation_is_told_beside_the_whole_ones(three: Path) -> None:
    (three / "narrow" / "evals" / "core.json").write_text("{")
    app = visit(page="evaluations", run="wide")
    assert "cannot be read as JSON" in app.error[0].value and "0.800" in html(app)
    assert "narrow" in said(app)
