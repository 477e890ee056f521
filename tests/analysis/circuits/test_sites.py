"""Which folders the runs of a circuit are."""

from pathlib import Path

import pytest

from analysis.circuits.sites import run_folders
from sae.errors import SaescopeError


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for name in ("b", "a"):
        (tmp_path / "sweep" / name / "final").mkdir(parents=True)
        (tmp_path / "sweep" / name / "config.yaml").touch()
    (tmp_path / "sweep" / "unfinished").mkdir()
    (tmp_path / "sweep" / "unfinished" / "config.yaml").touch()
    (tmp_path / "sweep" / "checkpoints").mkdir()
    return tmp_path / "sweep"


def test_a_sweep_a_glob_and_a_list_give_the_same_runs(sweep: Path) -> None:
    runs = [sweep / "a", sweep / "b"]
    assert run_folders([str(sweep)]) == run_folders([f"{sweep}/*"]) == run_folders([f"{sweep}/?"]) == runs
    assert run_folders([str(sweep / "a"), str(sweep / "b"), str(sweep)]) == runs
    expanded = [str(path) for path in sorted(sweep.iterdir()) if path.name != "unfinished"]
    assert len(expanded) == 3 and run_folders(expanded) == runs


def test_what_was_named_is_kept_for_a_clear_error(sweep: Path, tmp_path: Path) -> None:
    assert run_folders([str(sweep / "unfinished")]) == [sweep / "unfinished"]
    assert run_folders([str(tmp_path / "none")]) == [tmp_path / "none"]
    with pytest.raises(SaescopeError, match=r"no finished run at .*other/\*"):
        run_folders([str(tmp_path / "other/*")])
