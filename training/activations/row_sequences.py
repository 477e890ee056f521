"""Rows that come without text, as sequences of n_ctx consecutive rows with a held-out split."""

from typing import Any

import numpy as np

from sae.errors import SaescopeError
from training.activations.arrays import Arrays
from training.activations.folder import ActsDir
from training.config.schema import Config
from training.corpus.packing import is_held_out
from training.corpus.tokens import Tokens
from training.memory import require


def acts_tokens(config: Config, acts: ActsDir | Arrays) -> Tokens:
    """The user's own rows as sequences of n_ctx consecutive rows; a shorter rest at the end is left out."""
    return _rows_as_tokens(config, acts.n_rows, config.corpus.sources[0].source, {"acts": acts.identity})


def synthetic_tokens(config: Config) -> Tokens:
    """Likewise the first n_tokens synthetic rows."""
    assert config.corpus.synthetic is not None
    facts = {"synthetic": config.corpus.synthetic.model_dump(mode="json"), "n_rows": config.corpus.n_tokens}
    return _rows_as_tokens(config, config.corpus.n_tokens, "corpus.synthetic", facts)


def blocks_are_split(config: Config) -> str:
    """What a person should know of a split without documents."""
    return (
        f"rows come without documents: blocks of corpus.n_ctx = {config.corpus.n_ctx} consecutive rows are trained on or "
        "held out, so that one document may be on both sides"
    )


def _rows_as_tokens(config: Config, n_rows: int, name: str, facts: dict[str, Any]) -> Tokens:
    """Rows without text. A sequence is held out by the hash of its number, so that the split depends on nothing else."""
    n_ctx = config.corpus.n_ctx
    n_seqs = n_rows // n_ctx
    require(n_rows, f"{name}: the mask of {n_rows:,} rows", "give fewer (corpus.n_tokens)")
    held_out = np.fromiter((is_held_out(f"sequence {i}", config.corpus.held_out) for i in range(n_seqs)), bool, n_seqs)
    if not n_seqs or held_out.all() or not held_out.any():
        raise SaescopeError(
            f"{name} has {n_rows} rows, {n_seqs} sequences of n_ctx = {n_ctx}: too few to train on some and hold out "
            f"others; lower corpus.n_ctx or give more rows."
        )
    facts |= {"n_ctx": n_ctx, "held_out": config.corpus.held_out}
    return Tokens(held_out, np.ones((n_seqs, n_ctx), dtype=bool), None, facts)
