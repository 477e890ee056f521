"""Sequences for evaluation: of many held-out documents, a little of each, on the cache's side of the split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import quick_fields, write_corpus
from tests.training.corpus.test_packing import BOS, SPECIAL, TOKENIZER, by_document, ids_of
from training.config.reading import resolve
from training.config.schema import Config
from training.config.text_source import TextSource
from training.corpus.document import Document
from training.corpus.documents import documents
from training.corpus.heldout import heldout_tokens, sample
from training.corpus.packing import Packed, is_held_out
from training.corpus.tokens import Tokens, make_tokens, spread, write_tokens
from training.model.language_model import Model
from training.model.load import load_model

N_CTX = 16


def sampled(documents: Any, n_seqs: int, *, bos: bool = True, held_out: float = 0.3) -> Packed:
    return sample(
        documents, TOKENIZER, n_ctx=N_CTX, n_seqs=n_seqs, bos=BOS if bos else None, special_ids=SPECIAL, held_out=held_out
    )


def corpus(n: int, words: int = 60, groups: int = 0) -> list[Document]:
    text = "the cat sat on the mat " * words
    return [Document(f"{i} {text}", f"document {i}", group=f"group {i % groups}" if groups else "") for i in range(n)]


def held(documents: list[Document], share: float = 0.3) -> dict[str, list[int]]:
    return {d.label: ids_of(d.text) for d in documents if is_held_out(d.split_key, share)}


@pytest.mark.parametrize("bos", [True, False])
def test_one_sequence_of_each_document_where_there_are_enough(bos: bool) -> None:
    text = corpus(400)
    result = sampled(text, 64, bos=bos)
    there = held(text)
    assert result.tokens.shape == (64, N_CTX) and result.held_out.all() and len(result.labels) == 64
    assert (result.eligible == ~np.isin(result.tokens, list(SPECIAL))).all()
    found = by_document(result)
    length = N_CTX - bos
    assert found == {label: ids[:length] for label, ids in list(there.items())[:64]}
    if bos:
        assert (result.tokens[:, 0] == BOS).all() and (result.tokens == BOS).sum() == 64


def test_the_corpus_is_read_no_further_than_needed() -> None:
    read = []

    def endless():
        for document in corpus(10**5):
            read.append(document)
            yield document

    sampled(endless(), 20)
    # 20 held-out documents, and a batch of the tokenizer
    assert len(read) < 1000


def test_few_documents_share_the_sequences_evenly() -> None:
    text = corpus(30)
    there = held(text)
    assert 4 < len(there) < 20
    found = by_document(sampled(text, 40))
    assert set(found) == set(there)
    for label, ids in found.items():
        assert ids == there[label][: len(ids)], "each from its beginning, nothing left out"
        assert 40 // len(there) <= len(ids) / (N_CTX - 1) <= -(-40 // len(there))


def test_what_the_corpus_has_is_all_there_is() -> None:
    text = corpus(20, words=2)
    result = sampled(text, 1000)
    n_tokens = sum(map(len, held(text).values()))
    assert 0 < len(result.tokens) < 1000
    assert sum(map(len, by_document(result).values())) > n_tokens - N_CTX


def test_short_documents_follow_each_other() -> None:
    """Paragraphs do not fill a sequence alone; every token is still of its own document."""
    text = [Document(f"the dog {i}", f"document {i}") for i in range(400)]
    there = held(text)
    found = by_document(sampled(text, 12))
    assert len(found) > 12
    # a document that goes on behind the last sequence is cut there
    assert all(ids == there[label][: len(ids)] for label, ids in found.items())
    assert sum(found[label] != there[label] for label in found) <= 1


def test_groups_share_evenly_and_give_each_document_a_turn() -> None:
    text = corpus(200, groups=20)
    result = sampled(text, 30)
    groups = {label["group"] for label in result.labels}
    assert groups == {d.group for d in text if is_held_out(d.split_key, 0.3)}
    per_group = np.unique([label["group"] for label in result.labels], return_counts=True)[1]
    assert per_group.max() - per_group.min() <= 1, "one sequence of one document after the other"
    assert all(label["n_tokens"] == N_CTX - 1 for label in result.labels)


def test_of_equal_texts_one_counts() -> None:
    text = corpus(40)
    once, twice = sampled(text, 1000), sampled([*text, *(d._replace(label="again") for d in text)], 1000)
    assert once.labels == twice.labels and np.array_equal(once.tokens, twice.tokens)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("native:tiny", dtype="float32")


def config_of(folder: Path, **corpus: Any) -> Config:
    over = {"cache": {"dir": str(folder / "cache")}, "corpus": {"sources": f"text:{folder}/corpus/*.txt", **corpus}}
    return resolve(quick_fields(**over))[0]


def cache_of(folder: Path, model: Model, **corpus: Any) -> tuple[Config, Tokens]:
    write_corpus(folder / "corpus", n_files=600)
    config = config_of(folder, **corpus)
    return config, make_tokens(config, model)


def test_a_small_cache_is_evaluated_on_documents_beyond_it(tmp_path: Path, model: Model) -> None:
    config, cache = cache_of(tmp_path, model)
    found = heldout_tokens(config, lambda: model, cache, 64)
    kind, unit = found.units()
    assert kind == "document" and len(np.unique(unit)) >= 64
    packed = cache.documents()[cache.held_out]
    assert len(np.unique(packed)) < 20, "the cache itself has few"
    # none was trained on: what the split holds out is a document's hash
    texts = {d.label: d.text for d in documents(config.corpus.sources, config.corpus.seed)}
    assert found.folder is not None
    for line in map(json.loads, (found.folder / "documents.jsonl").read_text().splitlines()):
        assert is_held_out(texts[line["label"]], config.corpus.held_out)
    again = heldout_tokens(config, lambda: model, cache, 64)
    assert again.folder == found.folder and np.array_equal(again.tokens, found.tokens)


def test_equal_inputs_make_equal_files(tmp_path: Path, model: Model) -> None:
    made = []
    for name in ("a", "b"):
        config, cache = cache_of(tmp_path / name, model)
        folder = heldout_tokens(config, lambda: model, cache, 10).folder
        assert folder is not None
        made.append({p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()})
    assert made[0] == made[1] and "manifest.json" in made[0]


def test_the_built_in_corpus_has_64_documents_of_which_modules_are_groups() -> None:
    result = sampled(documents([TextSource(source="python-stdlib")]), 80, held_out=0.1)
    assert len(result.tokens) == 80 and len(result.labels) >= 64
    assert 10 <= len({label["group"] for label in result.labels}) < len(result.labels)


def test_documents_of_a_group_are_one_unit(tmp_path: Path) -> None:
    result = sampled(corpus(200, groups=40), 30)
    tokens = write_tokens(
        tmp_path / "heldout", result.tokens, result.held_out, result.eligible, result.segments, result.labels, {}
    )
    kind, unit = tokens.units()
    assert kind == "group"
    groups = np.array([label["group"] for label in result.labels])[tokens.documents()]
    pairs = {(int(u), str(g)) for u, g in zip(unit.reshape(-1), groups.reshape(-1), strict=True)}
    assert len(pairs) == len({u for u, _ in pairs}) == len({g for _, g in pairs}) >= 5


def test_sequences_without_text_are_their_own_units() -> None:
    kind, unit = Tokens(np.zeros(3, dtype=bool), np.ones((3, 4), dtype=bool), None, {}).units()
    assert kind == "sequence" and unit.tolist() == [[0] * 4, [1] * 4, [2] * 4]


def test_spread_takes_as_many_at_equal_distances() -> None:
    seqs = np.arange(100, 200)
    assert spread(seqs, 4).tolist() == [112, 137, 162, 187]
    assert spread(seqs, 100).tolist() == spread(seqs, 500).tolist() == seqs.tolist()
    for n in range(1, 100):
        gaps = np.diff(spread(seqs, n))
        assert len(gaps) == n - 1 and (n == 1 or gaps.max() - gaps.min() <= 1)
