"""Small runs that are really trained and really indexed, one for each state a page can meet."""

import shutil
from pathlib import Path
from typing import Any

import torch

import training
from analysis.index import build
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


def _silence(run: Path) -> None:
    """Weights with which no feature ever fires."""
    sae = store.load(run)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    store.save(sae, run / "final", provenance=sae.provenance)
