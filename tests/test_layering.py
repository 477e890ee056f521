"""The floors import downwards only, heavy libraries live in one file each, and imports do nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["sae", "training", "analysis", "dashboard"]
COMMON = {"torch", "numpy", "einops", "jaxtyping"}
ALLOWED = {
    "sae": {"pydantic", "pydantic_core", "safetensors", "filelock"},
    "training": {"pydantic", "safetensors", "ruamel", "transformer_lens", "transformers", "tokenizers",
                 "huggingface_hub", "jinja2", "gguf", "datasets", "fsspec", "pyarrow", "wandb", "rich", "psutil"},
    "analysis": {"pydantic", "safetensors", "scipy", "duckdb", "re2", "sklearn", "networkx", "plotly", "rich", "httpx",
                 "mlxtend"},
    "dashboard": {"streamlit"},
}
KERNELS = {"numba", "llvmlite", "triton", "psutil"}
ONE_FILE = {
    "transformer_lens": "training/model/load.py", "wandb": "training/loggers.py", "datasets": "training/corpus/hub.py",
    "fsspec": "training/storage/remote.py", "httpx": "analysis/labels/by_model/endpoint.py",
    "mlxtend": "analysis/reproduce/k_sparse.py",
}


# a script that the environment of other libraries runs; nothing here imports it
ELSEWHERE = ROOT / "training" / "bench" / "peers.py"


def python_files() -> list[Path]:
    return [p for floor in FLOORS for p in sorted((ROOT / floor).rglob("*.py")) if p != ELSEWHERE]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    below = set(FLOORS[: FLOORS.index(floor) + 1])
    libraries = set().union(*(ALLOWED[f] for f in FLOORS[1 : FLOORS.index(floor) + 1])) | ALLOWED["sae"] | COMMON
    if "kernels" in path.parts:
        libraries |= KERNELS
    assert imports(path) <= below | libraries


def test_nobody_imports_what_runs_elsewhere() -> None:
    assert not [p for p in python_files() if f"bench import {ELSEWHERE.stem}" in p.read_text()]


@pytest.mark.parametrize("library", ONE_FILE)
def test_one_file_imports_a_heavy_library(library: str) -> None:
    assert {str(p.relative_to(ROOT)) for p in python_files() if library in imports(p)} == {ONE_FILE[library]}


def test_streamlit_only_in_dashboard() -> None:
    assert all(p.relative_to(ROOT).parts[0] == "dashboard" for p in python_files() if "streamlit" in imports(p))


def test_no_dashboard_file_is_called_like_a_library() -> None:
    # Streamlit puts the script's folder first on sys.path
    libraries = set().union(*ALLOWED.values()) | COMMON | KERNELS | {"pandas", *FLOORS} | set(sys.stdlib_module_names)
    names = {p.stem for p in (ROOT / "dashboard").rglob("*.py")} - {"__init__"}
    assert not names & libraries


@pytest.mark.parametrize("floor", FLOORS)
def test_packages_come_from_this_repository(floor: str) -> None:
    module = __import__(floor)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT)


def test_importing_the_floors_is_silent_and_light() -> None:
    code = "import sys, sae, training, analysis, dashboard; sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_help_loads_neither_torch_nor_a_command() -> None:
    code = (
        "import sys; from sae.cli import main; main(['--help']); "
        "assert not {'torch', 'training.commands', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert "train" in run.stdout and "Train the SAE" in run.stdout


def top_level_imports() -> set[tuple[str, str]]:
    """Pairs (importer, imported) of modules of this repository; imports inside functions are exempt."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in python_files()}
    found = set()
    for name, path in modules.items():
        for node in _statements(ast.parse(path.read_text()).body):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [one if one in modules else node.module for one in whole]
            else:
                continue
            found |= {(name, target) for target in targets if target in modules and target != name}
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def cycles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    return [sorted(group) for group in networkx.strongly_connected_components(networkx.DiGraph(edges)) if len(group) > 1]


def below(folder: str, module: str) -> str | None:
    """The file or folder directly in `folder` that holds a module; None if it lies elsewhere or is the folder itself."""
    prefix = f"{folder}." if folder else ""
    return prefix + module[len(prefix) :].split(".")[0] if module.startswith(prefix) else None


def test_no_cycle_joins_files() -> None:
    assert not cycles(top_level_imports())


def test_no_cycle_joins_the_files_and_folders_of_a_folder() -> None:
    imported = top_level_imports()
    folders = {module.rpartition(".")[0] for edge in imported for module in edge}
    for folder in folders:
        joined = {(below(folder, a), below(folder, b)) for a, b in imported}
        assert not cycles({(a, b) for a, b in joined if a and b and a != b}), folder


def test_a_cycle_would_be_found() -> None:
    assert cycles({("a.x", "b.y"), ("b.z", "a.w")}) == []
    assert cycles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [["a", "b", "c"]]
    assert below("training", "training.model.load") == "training.model" and below("training.model", "training.run") is None
