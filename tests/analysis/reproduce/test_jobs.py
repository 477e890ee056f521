"""The machinery of reproductions: jobs are done once, their tables are right, and a stopped one goes on."""

import csv
from pathlib import Path

import pytest

from analysis.reproduce import EXPERIMENTS
from analysis.reproduce.jobs import read_plan, reproduce
from analysis.reproduce.tables import t_interval, write_table
from sae.cli import main
from sae.errors import SaescopeError

PLAN = """
seeds: [0, 1, 2]
base: {offset: 1}
settings: {plain: {}, far: {offset: 10}}
short: {seeds: [5], settings: {far: {offset: 20}}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(EXPERIMENTS, "toy", "tests.analysis.reproduce.toy_experiment")
    monkeypatch.chdir(tmp_path)
    Path("configs/reproduce").mkdir(parents=True)
    Path("configs/reproduce/toy.yaml").write_text(PLAN)
    return tmp_path


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_every_seed_and_setting_and_their_interval(place: Path) -> None:
    reproduce("toy", quiet=True)
    rows = table("docs/results/toy.csv")
    assert [(r["seed"], r["setting"], r["value"]) for r in rows] == [
        ("0", "plain", "1"), ("0", "far", "10"), ("1", "plain", "2"), ("1", "far", "11"), ("2", "plain", "3"),
        ("2", "far", "12"),
    ]
    assert all(float(r["seconds"]) >= 0 and "threads" in r["machine"] for r in rows)
    far = next(r for r in table("docs/results/toy-summary.csv") if (r["setting"], r["metric"]) == ("far", "value"))
    # 11 ∓ 4.302653 · 1 / √3
    assert [float(far[k]) for k in ("mean", "low", "high")] == pytest.approx([11, 8.515862, 13.484138], abs=1e-4)
    assert far["n_seeds"] == "3"
    assert Path("docs/results/picture").read_text() == "6 6"


def test_an_undefined_figure_is_empty_and_not_counted(place: Path) -> None:
    reproduce("toy", quiet=True)
    assert [r["undefined"] for r in table("docs/results/toy.csv")[:3]] == ["", "", "1"]
    found = [r for r in table("docs/results/toy-summary.csv") if r["metric"] == "undefined"]
    assert [(r["mean"], r["n_seeds"]) for r in found] == [("1", "2"), ("1", "2")]


def test_goes_on_where_it_was_stopped(place: Path) -> None:
    runs = Path("runs/reproduce/toy")
    runs.mkdir(parents=True)
    (runs / "stop").write_text("plain-1")
    with pytest.raises(KeyboardInterrupt):
        reproduce("toy", quiet=True)
    assert not Path("docs/results/toy.csv").exists()
    (runs / "stop").unlink()
    reproduce("toy", quiet=True)
    done = (runs / "diary").read_text().split()
    assert done == ["plain-0", "far-0", "plain-1", "plain-1", "far-1", "plain-2", "far-2"]
    assert (runs / "plain-1" / "begun").exists()
    assert len(table("docs/results/toy.csv")) == 6


def test_several_processes_give_the_same_rows_and_do_the_other_jobs_where_one_fails(place: Path) -> None:
    one = reproduce("toy", quiet=True, runs="one")
    Path("configs/reproduce/toy.yaml").write_text(PLAN.replace("plain: {}", "plain: {offset: word}"))
    with pytest.raises(TypeError):
        reproduce("toy", quiet=True, runs="several", processes=2)
    assert sorted(path.stem for path in Path("several/toy").glob("*.json")) == ["far-0", "far-1", "far-2"]
    Path("configs/reproduce/toy.yaml").write_text(PLAN)
    several = reproduce("toy", quiet=True, runs="several", processes=2)
    values = [[(row["seed"], row["setting"], row["value"]) for row in rows] for rows in (one, several)]
    assert values[0] == values[1]
    assert Path("several/toy/diary").read_text().split().count("far-0") == 1


def test_other_fields_are_done_anew(place: Path) -> None:
    reproduce("toy", quiet=True)
    Path("configs/reproduce/toy.yaml").write_text(PLAN.replace("offset: 10", "offset: 30"))
    reproduce("toy", quiet=True)
    assert [r["value"] for r in table("docs/results/toy.csv")] == ["1", "30", "2", "31", "3", "32"]
    assert len(Path("runs/reproduce/toy/diary").read_text().split()) == 9


def test_a_job_may_have_several_settings(place: Path) -> None:
    Path("configs/reproduce/toy.yaml").write_text("seeds: [0, 1]\nbase: {offset: 1}\nsettings: {pair: {}}\n")
    rows = reproduce("toy", quiet=True)
    assert [(r["seed"], r["setting"]) for r in rows] == [(0, "left"), (0, "right"), (1, "left"), (1, "right")]


def test_the_short_form_leaves_the_committed_tables_alone(place: Path) -> None:
    rows = reproduce("toy", short=True, quiet=True)
    assert [r["value"] for r in rows] == [6, 25]
    assert not Path("docs/results/toy.csv").exists()
    assert Path("runs/reproduce/toy-short/toy.csv").exists()


def test_the_short_form_may_leave_a_setting_out(place: Path) -> None:
    Path("configs/reproduce/toy.yaml").write_text(PLAN.replace("far: {offset: 20}", "plain: null"))
    assert [r["setting"] for r in reproduce("toy", short=True, quiet=True)] == ["far"]


def test_one_seed_has_no_interval() -> None:
    assert t_interval([3.0]) == (3.0, None, None)


def test_a_table_with_rows_of_different_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"seconds": 1.0, "a": 0.123456789}, {"b": "x", "seconds": 2.0}])
    assert (tmp_path / "t.csv").read_text() == "a,b,seconds\n0.123457,,1\n,x,2\n"


def test_the_command(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["reproduce", "toy"]) == 0
    out, err = capsys.readouterr()
    assert "8.516 to 13.48" in out
    assert "toy 6/6, seed 2, far: value 12" in err


@pytest.mark.parametrize(("text", "says"), [
    ("seeds: []\nsettings: {a: {}}", "seeds"), ("settings: {}", "settings"), ("sets: {a: {}}", "sets"), ("- 1", "toy.yaml"),
])
def test_bad_plans(place: Path, text: str, says: str) -> None:
    Path("configs/reproduce/toy.yaml").write_text(text)
    with pytest.raises(SaescopeError, match=says):
        read_plan(Path("configs/reproduce/toy.yaml"))


def test_unknown_experiments_and_missing_configs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SaescopeError, match=r"no experiment called 'nothing'; there are .*toy"):
        reproduce("nothing")
    with pytest.raises(SaescopeError, match=r"no experiment config at elsewhere/toy\.yaml"):
        reproduce("toy", configs="elsewhere")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_config(name: str) -> None:
    root = Path(__file__).parents[3]
    plan = read_plan(root / "configs" / "reproduce" / f"{name}.yaml")
    assert len(plan.seeds) >= 3
    assert read_plan(root / "configs" / "reproduce" / f"{name}.yaml", short=True) != plan
