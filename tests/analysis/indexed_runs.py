"""Small runs that are really trained and really indexed, one for each state a page can meet."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import training
from analysis.index import build
from analysis.index.store import read_vocabulary, write_vocabulary
from analysis.labels.store import Labels
from analysis.vocabulary import Vocabulary
from sae import store
from tests.analysis.run_folders import write_run
from tests.helpers import quick_fields, write_corpus

HOSTILE = "<script>alert(1)</script>"
STATES = ("healthy", "going", "unindexed", "dead", "one", "corrupt", "abstopk")


def train_tiny(root: Path, name: str, **sections: Any) -> Path:
    """A run below `root`/runs, of 64 features, k = 4, unless said otherwise; its corpus and cache lie beside."""
    if not (root / "corpus").exists():
        write_corpus(root / "corpus")
        # markup in what the features fire on
        (root / "corpus" / "000-hostile.txt").write_text(f"{HOSTILE} & <b>bold</b> \u202eturned\u202c " * 8)
    fields = quick_fields(
        name=name, corpus={"sources": f"text:{root / 'corpus'}/*.txt"}, cache={"dir": str(root / "cache")}, **sections)
    training.train(fields, runs=root / "runs", quiet=True)
    return root / "runs" / name


def write_states(root: Path) -> Path:
    """A folder of runs with one in each state: `healthy`, `abstopk`, `one` feature, all `dead`, and so on."""
    runs = root / "runs"
    healthy = train_tiny(root, "healthy")
    shutil.copytree(healthy, runs / "unindexed")
    build(healthy, quiet=True)
    shutil.copytree(healthy, runs / "corrupt")
    (runs / "corrupt" / "index" / "default" / "manifest.json").write_text("{")
    _silence(shutil.copytree(runs / "unindexed", runs / "dead"))
    build(runs / "dead", quiet=True)
    build(train_tiny(root, "abstopk", sae={"variant": "abstopk"}), quiet=True)
    build(train_tiny(root, "one", sae={"d_sae": 1, "k": 1}), quiet=True)
    write_run(runs, "going", n_lines=25, finished=False, silent_s=-3600)
    return runs


NASTY = (
    "<script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", "\u202eturned\u2066", "a\x00b\x07\x1b[31m",
    "x" * 5000, '"><svg onload=window.pwned=1>', "**bold** [link](javascript:window.pwned=1) :red[x] $x$",
    '=HYPERLINK("http://elsewhere")', "\u0301\u0301\u200b\ufeff", "</textarea><style>*{display:none}</style>",
)
NASTY_BYTES = (b"\xff\xfe", b"\xf0\x9f", b"\x98\x80", b"\xed\xa0\x80")
NASTY_NAME = "<img src=x onerror=window.pwned=1> \u202e**x** &amp;"


def write_hostile(healthy: Path, runs: Path) -> Path:
    """A copy of a run in whose name, tokens, labels, notes, tags and lists are texts that want to be more than text."""
    run = Path(shutil.copytree(healthy, runs / NASTY_NAME))
    index = run / "index" / "default"
    n_tokens = len(read_vocabulary(index / "vocabulary.parquet").tokens)
    words = [*(text.encode() for text in NASTY), *NASTY_BYTES]
    write_vocabulary(index / "vocabulary.parquet", Vocabulary([words[i % len(words)] for i in range(n_tokens)]))
    stats, labels = pq.read_table(index / "stats.parquet"), Labels(run)
    texts = pa.array([NASTY[i % len(NASTY)] for i in range(len(stats))])
    for column in ("top_token", "promoted_token"):
        stats = stats.set_column(stats.column_names.index(column), column, texts)
    pq.write_table(stats, index / "stats.parquet")
    for feature, text in enumerate(NASTY):
        labels.set_label(feature, text[:900])
        labels.set_note(feature, text)
        labels.add_tag(feature, text[:90])
        labels.add_to_list(text[:190], feature)
    return run


def _silence(run: Path) -> None:
    """Weights with which no feature ever fires."""
    sae = store.load(run)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    store.save(sae, run / "final", provenance=sae.provenance)
