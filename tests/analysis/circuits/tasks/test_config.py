"""Tasks from configs, files and Python."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from analysis.circuits.tasks.config import TaskConfig, make_task
from analysis.circuits.tasks.metrics import METRICS
from analysis.circuits.tasks.pairs_file import read_pairs
from analysis.circuits.tasks.task import Pair
from sae.errors import SaescopeError
from training.model.language_model import Model
from training.model.load import load_model

LINES = '{"clean": "ab", "corrupt": "cd", "right": "x", "wrong": ["y", "z"]}\n\n{"clean": "ef", "corrupt": "gh", "right": ["x"], "wrong": "y"}\n'
READ = (Pair("ab", "cd", ("x",), ("y", "z")), Pair("ef", "gh", ("x",), ("y",)))


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load_model("native:tiny")


def pairs(n: int) -> tuple[Pair, ...]:
    return tuple(Pair(f"a{i}", f"b{i}", ("x",), ("y",)) for i in range(n))


def test_a_file_and_inline_pairs_are_the_same_task(tmp_path: Path, tiny: Model) -> None:
    path = tmp_path / "letters.jsonl"
    path.write_text(LINES)
    assert read_pairs(path) == READ
    task = make_task(TaskConfig(file=str(path)), tiny)
    fields = {"pairs": [
        {"clean": "ab", "corrupt": "cd", "right": "x", "wrong": ["y", "z"]},
        {"clean": "ef", "corrupt": "gh", "right": ["x"], "wrong": "y"},
    ]}
    inline = TaskConfig.model_validate(fields)
    assert inline == TaskConfig(pairs=READ) == TaskConfig.model_validate(inline.model_dump())
    other = make_task(inline, tiny)
    assert (task.name, other.name) == ("letters", "pairs")
    assert (task.train, task.held_out, task.metric) == (other.train, other.held_out, METRICS["logit_difference"])
    assert {*task.train, *task.held_out} == {*READ}


@pytest.mark.parametrize(("bad", "facts"), [
    ("{", ["line 2", "not JSON"]), ("[1]", ["line 2", "not an object"]), ('{"clean": 1}', ["line 2", "clean", "string"]),
    ('{"right": "x"}', ["line 2", "clean"]), ('{"clean": "a", "rihgt": "x"}', ["line 2", "rihgt", "clean, corrupt, right"]),
])
def test_bad_lines(bad: str, facts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(LINES.splitlines()[0] + "\n" + bad + "\n")
    with pytest.raises(SaescopeError) as caught:
        read_pairs(path)
    assert [fact for fact in [str(path), *facts] if fact not in str(caught.value)] == []


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.jsonl", "binary.jsonl", "missing.jsonl", "."):
        with pytest.raises(SaescopeError, match=name.replace(".", r"\.")):
            read_pairs(tmp_path / name)


@pytest.mark.parametrize(("fields", "facts"), [
    ({}, ["none is given"]), ({"builtin": "ioi", "prompts": ["a"]}, ["builtin and prompts"]),
    ({"builtin": "ioy"}, ["ioi"]), ({"builtin": "ioi", "n_trian": 3}, ["n_trian"]),
    ({"builtin": "ioi", "metric": "loss"}, ["log_probability"]), ({"pairs": [{"clean": "a", "wright": "b"}]}, ["wright"]),
    ({"builtin": "ioi", "n_train": 0}, ["n_train"]),
])
def test_bad_configs(fields: dict[str, object], facts: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        TaskConfig.model_validate(fields)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_own_pairs_are_dealt_by_seed(tiny: Model) -> None:
    first, again, other = (make_task(TaskConfig(pairs=pairs(10), seed=seed), tiny) for seed in (0, 0, 1))
    assert first == again and first.train != other.train
    assert (len(first.train), len(first.held_out)) == (5, 5) and not {*first.train} & {*first.held_out}
    few = make_task(TaskConfig(pairs=pairs(10), n_train=3, n_held_out=2), tiny)
    assert (len(few.train), len(few.held_out)) == (3, 2)
    assert len(make_task(TaskConfig(pairs=pairs(10), n_train=3), tiny).held_out) == 7
    assert len(make_task(TaskConfig(pairs=pairs(10), n_held_out=3), tiny).train) == 7
    alone = make_task(TaskConfig(pairs=pairs(1)), tiny)
    assert alone.train == alone.held_out == [pairs(1)[0]]
    with pytest.raises(SaescopeError, match=r"10 pairs.*8 training.*3 held-out"):
        make_task(TaskConfig(pairs=pairs(10), n_train=8, n_held_out=3), tiny)


def test_single_prompts(tiny: Model) -> None:
    task = make_task(TaskConfig.model_validate({"prompts": [{"prompt": "abc", "right": "e"}]}), tiny)
    assert task.metric is METRICS["log_probability"] and task.name == "prompts"
    assert task.train == [Pair("abc", None, ("e",))]
    for metric in ("logit_difference", "probability_difference"):
        fields = {"prompts": [{"prompt": "abc", "right": "e"}], "metric": metric}
        with pytest.raises(SaescopeError, match=r"'abc' has none"):
            make_task(TaskConfig.model_validate(fields), tiny)
    with pytest.raises(SaescopeError, match="empty"):
        make_task(TaskConfig.model_validate({"prompts": ""}), tiny)
