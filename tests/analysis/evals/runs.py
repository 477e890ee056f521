"""Small runs that are really trained, with enough held-out documents for intervals."""

from pathlib import Path
from typing import Any

import training
from tests.helpers import quick_fields, write_corpus


def train_small(root: Path, name: str, **sections: Any) -> Path:
    """A run below `root`/runs of 64 features, k = 4, unless said otherwise, over two dozen held-out documents."""
    if not (root / "corpus").exists():
        write_corpus(root / "corpus")
    corpus = {"sources": f"text:{root / 'corpus'}/*.txt", "held_out": 0.4}
    usual = {"corpus": corpus, "cache": {"dir": str(root / "cache")}, "eval": {"n_rows": 1024, "n_tokens": 512}}
    fields = quick_fields(name=name, **usual | sections)
    training.train(fields, runs=root / "runs", quiet=True)
    return root / "runs" / name
