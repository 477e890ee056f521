"""Parts of a sweep, trained by several processes: the SAEs of one that trains them all."""

import json
from pathlib import Path

import pytest

from tests.helpers import refusal, run_sae, train, tree, write_config

SWEEP = [
    {"name": "a"}, {"name": "b", "sae": {"k": 8}}, {"name": "c", "site": "blocks.1.hook_resid_post"},
    {"name": "d", "sae": {"d_sae": 32}},
]


def saes(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder / "runs/quick").items() if "/final/" in name or "sae_w" in name}


def swept(folder: Path) -> Path:
    folder.mkdir()
    path = write_config(folder, cache={"name": "c"})
    path.write_text(json.dumps({**json.loads(path.read_text()), "sweep": SWEEP}))
    return folder


def test_parts_make_the_saes_of_the_whole(tmp_path: Path) -> None:
    whole, parts = swept(tmp_path / "whole"), swept(tmp_path / "parts")
    assert train(whole).code == 0
    first = train(parts, "--part", "1/2")
    assert first.code == 0 and "caching activations" in first.err
    cache = tree(parts / "cache")
    assert sorted(p.name for p in (parts / "runs/quick").iterdir() if p.is_dir()) == ["a", "c", "checkpoints"]
    second = train(parts, "--part", "2/2")
    assert second.code == 0 and "caching activations" not in second.err, "the model read the text once"
    assert {name: tree(parts / "cache")[name] for name in cache if "checked" not in name} == {
        name: data for name, data in cache.items() if "checked" not in name}
    assert saes(parts) == saes(whole)
    assert sorted(p.name for p in (parts / "runs/quick/checkpoints").iterdir()) == ["part-1-of-2", "part-2-of-2"]
    assert "already finished" in train(parts, "--part", "2/2", "--resume").err
    assert run_sae(parts, "index", "runs/quick/b", "--quiet").code == 0


@pytest.mark.parametrize(("part", "override", "facts"), [
    ("3/2", "name=x", "--part 3/2"), ("0/2", "name=x", "--part 0/2"), ("one", "name=x", "1/4"),
    ("1/5", "name=x", "has 4 members"), ("1/2", "cache.mode=stream", "cache.mode=disk"),
])
def test_what_is_no_part(tmp_path: Path, part: str, override: str, facts: str) -> None:
    assert facts in refusal(train(swept(tmp_path / "c"), override, "--part", part))
    assert not tree(tmp_path / "c/runs")
