"""The notebooks, cell after cell as Jupyter runs them, in a short form: on a tiny model with tiny SAEs and few pairs."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.circuits.formats.opening import open_circuit
from tests.analysis.circuits.pipeline.test_run import HOOKS, fields, pairs
from tests.helpers import ROOT, quick_fields, write_corpus

NOTEBOOKS = ROOT / "analysis" / "notebooks"
ORDER = ("first-circuit", "reading-a-graph", "interventions", "from-the-dashboard", "tracing", "shift")
"""The first trains SAEs and finds the circuit that the others open."""
OWN_CIRCUIT = {"tracing", "shift"}
"""Those whose `circuit` is another."""


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    return found


def run_cells(name: str) -> tuple[dict[str, Any], list[Any]]:
    """Run the code of a notebook; what its cells leave in the namespace, and what each shows."""
    space: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for i, cell in enumerate(read(name)["cells"]):
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, f"{name}[{i}]", "exec"), space)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), f"{name}[{i}]", "eval"), space))
    return space, shown


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("notebooks")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("SAESCOPE_NOTEBOOKS", str(folder))
    write_corpus(folder / "corpus")
    (folder / "configs" / "circuits").mkdir(parents=True)
    sweep = [{"name": name, "site": HOOKS[name]} for name in ("resid-0", "mlp-1")]
    quick = quick_fields(name="saes", eval={"n_rows": 64, "n_tokens": 0}, train={"budget": "4 steps"})
    saes = {**quick, "sweep": sweep}
    (folder / "configs" / "circuits" / "demo-saes.yaml").write_text(json.dumps(saes))
    short = fields(
        name="demo", task={"pairs": pairs()[:8]}, effects={"n_steps": 1, "n_exact": 0, "batch": 8},
        nodes={"most": 12, "choose": "effects"}, edges={"most": 40},
        checks={"bootstraps": 10, "n_random": 0, "n_points": 2, "neurons": False},
    )
    (folder / "configs" / "circuits" / "demo.yaml").write_text(json.dumps(short))
    yield folder
    patch.undo()


def test_all_notebooks_are_run_and_none_holds_outputs() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(ORDER)
    for name in ORDER:
        notebook = read(name)
        assert notebook["nbformat"] == 4
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)


def test_the_notebooks_run(_elsewhere: Path) -> None:
    for name in ORDER:
        space, shown = run_cells(name)
        circuit = open_circuit(_elsewhere / "circuits" / "demo")
        assert name in OWN_CIRCUIT or (space["circuit"].names == circuit.names and len(circuit.nodes))
        for value in shown:
            drawn = value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)
            assert drawn
    assert (_elsewhere / "circuits" / "demo" / "graph.html").is_file()
    assert open_circuit(_elsewhere / "circuits" / "demo" / "graph.json").names == circuit.names
