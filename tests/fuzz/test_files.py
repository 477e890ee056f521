"""Damaged files and manifests: what opens them answers with one sentence or with what can be read, never a traceback."""

import gzip
import io
import json
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as safetensors

from analysis import runs
from analysis.circuits.formats.circuit_tracer.writing import write_graph
from analysis.circuits.formats.opening import open_circuit
from analysis.circuits.formats.store import save_circuit
from analysis.index import build, open_index
from analysis.labels.store import Label, Labels
from sae import store
from sae.errors import SaescopeError
from tests.analysis.circuits import graphs
from tests.analysis.indexed_runs import train_tiny
from tests.fuzz.damage import damaged, torn
from tests.helpers import HOOK
from training.activations.cache import CacheSource
from training.activations.folder import ActsDir
from training.config.text_source import TextSource
from training.corpus.documents import documents
from training.corpus.tokens import open_tokens


class Target(NamedTuple):
    """Files that may be damaged, and what opens them afterwards."""

    files: list[Path]
    use: Callable[[], object]


def _index(run: Path) -> None:
    index = open_index(run)
    feature = int(index.top("density", limit=1, columns=["feature"])["feature"][0].as_py())
    index.feature(feature), index.examples(feature, n=2), index.verify()


def _labels(run: Path) -> None:
    with closing(Labels(run)) as own:
        own.all(), own.names(), own.search("x")


def _cache(folder: Path, hook: str) -> None:
    tokens = open_tokens(folder)
    source = CacheSource(folder, [hook])
    source.rows(hook, np.arange(2), 32), tokens.n_eligible(), tokens.units()


def _rows(folder: Path) -> None:
    acts = ActsDir(str(folder))
    for hook in acts.hooks:
        acts.rows(hook, 0, min(4, acts.n_rows))


def _text(source: str) -> None:
    list(islice(documents([TextSource(source=source)]), 50))


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """One of everything that is written or read, really made."""
    root = tmp_path_factory.mktemp("fuzz")
    run = train_tiny(root, "whole")
    build(run, quiet=True)
    with closing(Labels(run)) as own:  # an open one keeps files beside the database, which go when it is closed
        own.put([Label(f, f"word {f}", "auto", score=0.8, baseline=0.5) for f in range(8)])
    (cache,) = [p.parent for p in (root / "cache").glob("*/manifest.json")]
    save_circuit(graphs.circuit(), root / "circuit")
    write_graph(graphs.circuit(), root / "graph.json")
    acts, text = root / "acts", root / "text"
    acts.mkdir(), text.mkdir()
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).normal(size=(64, 8)).astype(np.float16))
    (acts / "0.npy").write_bytes(buffer.getvalue())
    (acts / "1.safetensors").write_bytes(safetensors({"acts": torch.randn(32, 8)}))
    lines = b"".join(json.dumps({"text": f"document {i} of several words"}).encode() + b"\n" for i in range(20))
    (text / "a.jsonl").write_bytes(lines)
    (text / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.table({"text": [f"document {i}" for i in range(20)]}), text / "c.parquet")
    (text / "d.txt").write_text("some text\n\nmore text\n" * 5)

    def kept(*folders: Path) -> list[Path]:
        found = (p for folder in folders for p in folder.rglob("*") if p.is_file())
        return sorted(p for p in found if p.suffix not in (".lock", ".svg"))

    return {
        "sae": Target(kept(run / "final"), lambda: store.load(run / "final")),
        "run": Target(
            [run / name for name in ("summary.json", "metrics.jsonl", "config.yaml")], lambda: runs.read(root / "runs", run)
        ),
        "index": Target(kept(run / "index" / "default"), lambda: _index(run)),
        "labels": Target([run / "labels.sqlite"], lambda: _labels(run)),
        "cache": Target(kept(cache), lambda: _cache(cache, HOOK)),
        "circuit": Target(kept(root / "circuit"), lambda: open_circuit(root / "circuit")),
        "graph": Target([root / "graph.json"], lambda: open_circuit(root / "graph.json")),
        "acts": Target(kept(acts), lambda: _rows(acts)),
        "jsonl": Target([text / "a.jsonl"], lambda: _text(f"jsonl:{text}/a.jsonl")),
        "gz": Target([text / "b.jsonl.gz"], lambda: _text(f"jsonl:{text}/b.jsonl.gz")),
        "parquet": Target([text / "c.parquet"], lambda: _text(f"parquet:{text}/c.parquet")),
        "text": Target([text / "d.txt"], lambda: _text(f"text:{text}/*.txt")),
    }


KINDS = ["sae", "run", "index", "labels", "cache", "circuit", "graph", "acts", "jsonl", "gz", "parquet", "text"]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_damaged(kind: str, targets: dict[str, Target], data: st.DataObject) -> None:
    target = targets[kind]
    path = data.draw(st.sampled_from(target.files))
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole) if len(whole) < 100_000 else torn(whole)))
        target.use()
    except SaescopeError as error:
        text = str(error)
        assert 10 < len(text) < 3000 and "Traceback" not in text, text
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_all_open(kind: str, targets: dict[str, Target]) -> None:
    assert targets[kind].files
    targets[kind].use()
