"""Held-out rows of one's own: documents, rows by number, none, and a cache of ours as the source; bad ones refused."""

from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.index import build, open_index
from sae.errors import SaescopeError
from tests.helpers import quick_fields, run_sae, write_corpus
from tests.training.test_tensors import SAE, SECTIONS, made, on
from training import train
from training.activations.batches import Batches
from training.activations.harvest import open_data
from training.config.reading import resolve
from training.corpus.packing import is_held_out
from training.display import Display
from training.sweep_shared import share

N_ROWS, N_CTX = 6016, 32
QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Rows whose first channel tells their number."""
    numbered = made(N_ROWS)
    numbered[:, 0] = np.arange(N_ROWS) / 1024
    return numbered


@pytest.fixture(scope="module")
def documents() -> np.ndarray:
    """Documents of 1 to 60 rows, so that most sequences hold several."""
    lengths = np.random.default_rng(1).integers(1, 60, 400)
    return np.repeat(np.arange(400) * 7, lengths)[:N_ROWS]


@pytest.fixture(scope="module")
def folder(rows: np.ndarray, documents: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rows/, documents.npy, and two ways to say that rows 100 to 899 are held out."""
    place = tmp_path_factory.mktemp("own")
    (place / "rows").mkdir()
    np.save(place / "rows" / "0.npy", rows)
    np.save(place / "documents.npy", documents)
    np.save(place / "marks.npy", (np.arange(N_ROWS) >= 100) & (np.arange(N_ROWS) < 900))
    np.save(place / "numbers.npy", np.arange(100, 900))
    return place


def fields_of(folder: Path, **corpus: Any) -> dict[str, Any]:
    paths = {key: str(folder / value) if isinstance(value, str) else value for key, value in corpus.items()}
    sections = SECTIONS | {
        "data": {"batch_rows": 64, "n_calib": 16, "outlier_multiple": None}, "eval": {"n_rows": N_ROWS},
        "corpus": {"n_ctx": N_CTX, "sources": f"acts:{folder / 'rows'}"} | paths,
    }
    return {"name": "own", "sae": SAE} | sections


def sides(fields: dict[str, Any]) -> tuple[set[int], set[int]]:
    """The numbers of the rows in one epoch's batches, and of those measured on."""
    members = resolve(fields)
    shared = share(members, open_data(members[0], ("acts",), QUIET), QUIET)
    assert isinstance(shared.batches, Batches)
    with closing(shared.batches.stream()) as stream:
        seen = [b.acts["acts"][:, 0].numpy() * 1024 for b in takewhile(lambda b: b.address.epoch == 0, stream)]
    held = np.empty(0) if shared.heldout is None else shared.heldout.acts["acts"][:, 0].numpy() * 1024
    return set(np.concatenate(seen).astype(int).tolist()), set(held.astype(int).tolist())


def test_documents_are_held_out_whole_also_within_a_sequence(folder: Path, documents: np.ndarray) -> None:
    trained, held = sides(fields_of(folder, documents="documents.npy", held_out=0.2))
    expected = {r for r in range(N_ROWS) if is_held_out(f"document {documents[r]}", 0.2)}
    assert held == expected and len(held) > 600
    assert not trained & held
    assert len(trained | held) > N_ROWS - 64, "all other rows are trained on, but for the last batch's rest"


@pytest.mark.parametrize("name", ["marks.npy", "numbers.npy"])
def test_the_rows_named_are_held_out(folder: Path, name: str) -> None:
    trained, held = sides(fields_of(folder, held_out_rows=name))
    assert held == set(range(100, 900)) and not trained & held and len(trained) > N_ROWS - 800 - 64


def test_none_held_out(folder: Path) -> None:
    trained, held = sides(fields_of(folder, held_out=0))
    assert len(trained) > N_ROWS - 64 and not held
    result = train(fields_of(folder, held_out=0), runs=folder / "none", quiet=True)
    assert result.summary["heldout"] == {}
    assert run_sae(folder, "index", "none/own", "--quiet").code == 0


def test_a_run_tells_its_rows_and_intervals_are_over_documents(folder: Path, documents: np.ndarray) -> None:
    fields = fields_of(folder, documents="documents.npy", held_out=0.2)
    summary = train(fields, runs=folder / "runs", quiet=True).summary["heldout"]
    expected = np.array([is_held_out(f"document {number}", 0.2) for number in documents])
    assert (summary["interval_unit"], summary["n_units"]) == ("document", len(np.unique(documents[expected])))
    assert summary["n_rows"] == expected.sum() and summary["fve"] > 0.5
    done = run_sae(folder, "rows", "runs/own", "use.npy")
    assert done.code == 0, done.err
    assert (np.load(folder / "use.npy") == np.where(expected, 2, 1)).all()
    build(folder / "runs" / "own", quiet=True)
    fidelity = open_index(folder / "runs" / "own").manifest["fidelity"]
    assert fidelity["held_out"] and fidelity["n_rows"] == expected.sum()


def test_the_same_in_python(rows: np.ndarray, documents: np.ndarray, folder: Path) -> None:
    fields = fields_of(folder, documents="documents.npy", held_out=0.2)
    by_file = train(fields, runs=folder / "file", quiet=True).summary["heldout"]
    sections = {key: fields[key] for key in ("data", "eval")} | {"corpus": {"n_ctx": N_CTX, "held_out": 0.2}}
    assert on(rows, documents=documents, **sections).summary["heldout"] == by_file
    marked = on(rows, held_out_rows=np.arange(100, 900), **sections | {"corpus": {"n_ctx": N_CTX}}).summary["heldout"]
    assert marked["n_rows"] == 800
    with pytest.raises(SaescopeError, match="whole arrays"):
        on([rows[:400], rows[400:]], documents=documents, **sections)


def test_a_cache_of_ours_is_a_source_with_its_documents(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    cache = {"dir": str(tmp_path / "cache"), "name": "c"}
    fields = quick_fields(corpus={"sources": f"text:{tmp_path}/corpus/*.txt"}, cache=cache)
    first = train(fields, runs=tmp_path / "runs", quiet=True)
    del fields["model"], fields["cache"], fields["site"]
    fields |= {"name": "from-cache", "corpus": {"sources": f"acts:{tmp_path}/cache/c", "n_ctx": 32}}
    again = train(fields, runs=tmp_path / "runs", quiet=True)
    assert again.summary["weights_sha256"] == first.summary["weights_sha256"], "the same rows in the same order"
    assert again.summary["heldout"]["interval_unit"] == "document"
    assert run_sae(tmp_path, "index", "runs/from-cache", "--quiet").code == 0
    for key, value, facts in (("n_ctx", 64, "32"), ("documents", "d", "documents"), ("held_out_rows", "r", "split")):
        corpus = {key: value}
        with pytest.raises(SaescopeError, match=facts):
            train(fields | {"name": "bad", "corpus": fields["corpus"] | corpus}, runs=tmp_path / "runs", quiet=True)


def test_rows_of_several_hooks_need_a_site(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", made(2000))
    with pytest.raises(SaescopeError, match="a, b"):
        resolve({"name": "x", "sae": SAE, "corpus": f"acts:{tmp_path}"})
    assert resolve({"name": "x", "sae": SAE, "site": "b", "corpus": f"acts:{tmp_path}"})[0].site.input == "b"
    assert resolve({"name": "x", "sae": SAE, "corpus": {"sources": [f"acts:{tmp_path}/a"]}})[0].site.input == "acts"


BAD = {
    "short": (np.arange(5), "5.* 6,016"), "floats": (np.arange(N_ROWS) / 2, "float64"),
    "far": (np.array([1, N_ROWS]), "6,016"), "negative": (np.array([-1]), "-1"),
    "all": (np.ones(N_ROWS, dtype=bool), "too few"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_to_hold_out(folder: Path, name: str) -> None:
    array, facts = BAD[name]
    np.save(folder / f"{name}.npy", array)
    key = "documents" if name == "short" else "held_out_rows"
    with pytest.raises(SaescopeError, match=facts):
        sides(fields_of(folder, **{key: f"{name}.npy"}))


def test_what_does_not_apply(folder: Path) -> None:
    (folder / "text.npy").write_text("no array")
    for corpus, facts in (({"documents": "missing.npy"}, "missing.npy"), ({"documents": "text.npy"}, "text.npy")):
        with pytest.raises(SaescopeError, match=facts):
            sides(fields_of(folder, **corpus))
    for corpus in ({"held_out": 0}, {"documents": "d.npy"}, {"held_out_rows": "d.npy"}):
        with pytest.raises(SaescopeError, match=next(iter(corpus))):
            resolve({"name": "x", "sae": SAE, "site": "blocks.0.hook_resid_post", "corpus": corpus})
    with pytest.raises(SaescopeError, match=r"corpus.held_out = 0.2.*held_out_rows"):
        train(fields_of(folder, held_out=0.2, held_out_rows="marks.npy"), runs=folder / "unused", quiet=True)
