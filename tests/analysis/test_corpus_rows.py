"""Rows that a training is judged on, against reading tokens and activations by hand."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.corpus_rows import open_rows
from analysis.trained import open_trained
from sae.errors import SaescopeError
from tests.helpers import HOOK, quick_fields, write_corpus
from training.activations.harvest import open_data
from training.config.reading import resolve
from training.config.schema import Config
from training.corpus.tokens import Tokens
from training.display import Display
from training.run import train


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    yield resolve(quick_fields())[0]


def test_training_rows_with_their_documents(config: Config) -> None:
    train(config, quiet=True)
    x, document, n_held_out = open_rows(open_trained("runs/quick")).training(1000, seed=3)
    data = open_data(config, (HOOK,), Display(quiet=True))
    tokens, n_ctx = data.tokens, config.corpus.n_ctx
    of_row = {}
    for first, n, number in np.load(tokens.folder / "segments.npy"):  # type: ignore[operator]
        of_row |= dict.fromkeys(range(first, first + n), number)
    seqs = np.sort(np.random.default_rng(3).permutation(tokens.sequences(held_out=False))[:32])
    assert len(seqs) == 32 and not tokens.held_out[seqs].any()
    kept = [row for seq in seqs for row in range(seq * n_ctx, (seq + 1) * n_ctx) if tokens.eligible.flat[row]]
    assert document.tolist() == [of_row[row] for row in kept]
    every = data.source.rows(HOOK, np.arange(tokens.n_seqs), n_ctx)
    assert torch.equal(x, every[kept])
    # 8 sequences are evaluated, each of a document of its own, more than the cache holds out
    assert n_held_out == 8 > len(np.unique(tokens.documents()[tokens.held_out]))


def test_every_token_is_of_the_document_that_has_it(config: Config) -> None:
    tokens = open_data(config, (HOOK,), Display(quiet=True)).tokens
    assert tokens.folder is not None
    lines = [json.loads(line) for line in (tokens.folder / "documents.jsonl").read_text().splitlines()]
    found = tokens.documents()
    assert np.bincount(found[tokens.eligible], minlength=len(lines)).tolist() == [line["n_tokens"] for line in lines]
    for number, line in enumerate(lines):
        assert (tokens.held_out[(found == number).any(1)] == line["held_out"]).all()
    plain = Tokens(tokens.held_out, tokens.eligible, None, {})
    with pytest.raises(SaescopeError, match=r"corpus\.documents"):
        plain.documents()


def test_rows_of_ones_own_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`acts:own` is beside runs/; a folder of that name where the command is called from has other rows."""
    rows = np.random.default_rng(0).standard_normal((1280, 8)).astype(np.float32)
    for place, those in (("home", rows), ("elsewhere", rows + 1)):
        (tmp_path / place / "own").mkdir(parents=True)
        np.save(tmp_path / place / "own/a.npy", those)
    monkeypatch.chdir(tmp_path / "home")
    fields = quick_fields(model=None, corpus={"sources": "acts:own"}, site="acts")
    train(fields, quiet=True)
    here = open_rows(open_trained("runs/quick"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = open_rows(open_trained("../home/runs/quick"))
    assert there.facts() == here.facts()
    assert torch.equal(there.held_out().x, here.held_out().x)
    other = open_rows(open_trained("../home/runs/quick"), ["corpus.sources=acts:own"])
    assert torch.equal(other.kept(np.arange(1)).x, torch.from_numpy(rows[:32] + 1)), "asked for by name"
