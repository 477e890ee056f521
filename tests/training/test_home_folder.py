"""Paths that begin with `~`, wherever a person may write one; no folder called `~` comes into being."""

import shutil
from pathlib import Path

import pytest

import sae
from analysis.labels.store import Labels
from tests.helpers import refusal, run_sae, train, write_config, write_corpus


def test_every_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, place = tmp_path / "home", tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("HOME", str(home))
    write_corpus(home / "corpus")
    config = write_config(place, corpus={"sources": "text:~/corpus/*.txt"}, cache={"dir": "~/cache", "name": "c"})
    shutil.copy(config, home / "quick.yaml")
    assert run_sae(place, "train", "~/quick.yaml", "--runs=~/runs", "--quiet").code == 0
    assert sae.load("~/runs/quick").d_sae == 64
    outcome = train(place, "name=b", "sae.init.from=~/runs/quick", "--runs=~/runs", "--quiet")
    assert outcome.code == 0, outcome
    assert "c " in run_sae(place, "cache", "ls", "--dir=~/cache").out
    assert "whole" in run_sae(place, "cache", "verify", "~/cache/c").out
    Labels("~/runs/quick").set_label(3, "three")
    assert {path.name for path in home.iterdir()} == {"corpus", "cache", "quick.yaml", "runs"}
    assert (home / "runs/quick/labels.sqlite").exists()
    assert not (place / "~").exists()
    said = refusal(train(place, "name=c", "cache.dir=~nobody-of-this-name/cache"))
    assert "~nobody-of-this-name/cache: this user has no home folder" in said
