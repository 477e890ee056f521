"""The bar, the pages whose contents come later, and addresses."""

from pathlib import Path
from typing import Any

import pytest

from analysis.circuits.formats.store import save_circuit
from dashboard.state import address
from tests.analysis.circuits.graphs import circuit
from tests.analysis.run_folders import write_run
from tests.dashboard.pages import html, visit


def test_the_bar_carries_the_run_along(root: Path) -> None:
    write_run(root, "a&b")
    page = html(visit(page="evaluations", run="a&b", other="1"))
    assert '<a href="./?page=features&amp;run=a%26b" data-page="features">Features</a>' in page
    assert 'aria-current=page>Evaluations</a>' in page and "other=1" not in page.split("</nav>")[0]


def test_an_unknown_page_is_the_first(root: Path) -> None:
    assert visit(page="../../etc/passwd").title[0].value == "Runs"


def test_circuits_say_what_fills_them_and_draw_what_there_is(root: Path) -> None:
    folder = root.parent / "circuits"
    (folder / "half a circuit").mkdir(parents=True)
    app = visit(page="circuits")
    assert app.code[0].value == "make circuit-demo" and app.selectbox[0].options == ["example_circuit.json"]
    (graph,) = [e.proto for e in app.get("bidi_component") if e.proto.component_name == "saescope_circuit_graph"]
    assert "resid-25/f" in str(graph)
    save_circuit(circuit(name="<b>capital"), folder / "<b>capital")
    app = visit(page="circuits")
    assert not app.code and "<b>capital" not in html(app) and app.selectbox[0].options == ["<b>capital"]
    (graph,) = [e.proto for e in app.get("bidi_component") if e.proto.component_name == "saescope_circuit_graph"]
    assert "attn-0/f" in str(graph)


def test_a_run_that_is_gone_or_elsewhere_is_said_and_not_opened(root: Path) -> None:
    write_run(root, "here")
    write_run(root.parent / "outside", "secret")
    for asked in ("gone", "../outside/secret", str(root.parent / "outside" / "secret")):
        app = visit(page="evaluations", run=asked)
        assert "There is no run" in app.warning[0].value
        assert app.selectbox(key="run").value == "here"
        assert app.code[0].value == f"sae eval {root / 'here'}"


def test_choosing_a_run_forgets_what_belonged_to_the_other(root: Path) -> None:
    write_run(root, "new")
    write_run(root, "old", silent_s=100)
    app = visit(page="evaluations", run="new", index="pile", f="3", p="2")
    app.selectbox(key="run").set_value("old")
    app.run()
    assert dict(app.query_params) == {"page": "evaluations", "run": "old"}


@pytest.mark.parametrize(
    ("href", "state"),
    [("./?page=feature&run=a%26b&f=3", {"page": ["feature"], "run": ["a&b"], "f": ["3"]}), ("?", {}),
     ("?open=1.2&open=3.4", {"open": ["1.2", "3.4"]})],
)
def test_an_address_says_its_state(href: str, state: dict[str, Any]) -> None:
    assert address.state(href) == state


def test_waiting_for_one_of_several_runs_comes_to_rest(root: Path) -> None:
    write_run(root, "other")
    write_run(root, "going", n_lines=25, finished=False, silent_s=-300)
    assert "going is training" in visit(page="features", run="going").text[0].value
