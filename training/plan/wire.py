"""Bytes that a rank sends in a training step.

N ranks form a grid: S of them share the features and see the same rows, R = N / S share the rows of a batch. Of B rows a
rank sees b = B / R, and of F features it holds F / S. Numbers are fp32 but where it is said. Collectives go round a ring: a
sum of n bytes over m ranks costs each of them 2 n (m − 1) / m, and to gather n bytes of each costs n (m − 1).

    gradients        Σ over R of the parameters of the rank's own features, Σ over N of all others (b_dec, a skip path);
                     and Σ over S, on the way back, of b_dec where it is subtracted from the input
    candidates       top k of a row: each gathers the sizes of the k candidates of every row of S ranks
                     top of a batch: Σ over N of three histograms (2,048 + 1,024 + 1,024 counts of 8 bytes), and one count
                     thresholds (ReLU, JumpReLU, Gated): none
    reconstructions  Σ over S of one [b, d_out] for every prefix, or pass (Gated has two); nothing on the way back
    dead             greatest over R of when each own feature last fired, 8 bytes
    revival          while features are dead, with AuxK: candidates of them, and their reconstruction

Numbers that are sums already (losses, norms, L0: under 1 kB) are left out.
"""

from typing import NamedTuple

HISTOGRAMS = 8 * (2048 + 1024 + 1024)


class Grid(NamedTuple):
    """How ranks are arranged."""

    n: int
    """In all."""
    shards: int
    """Those that share the features."""

    @property
    def rows(self) -> int:
        """Those that share the rows."""
        return self.n // self.shards


class SAESizes(NamedTuple):
    """What of an SAE its traffic depends on; parameters are numbers of them."""

    d_sae: int
    d_in: int
    d_out: int
    own: int
    """Parameters of single features."""
    common: int
    """All others."""
    mode: str
    """How features are selected: `topk`, `batch_topk`, `threshold`."""
    k: int
    n_prefixes: int = 1
    n_passes: int = 1
    subtracts_b_dec: bool = False
    k_aux: int = 0
    """Dead features that AuxK takes for each row; 0: it is off."""


def bytes_per_step(sae: SAESizes, grid: Grid, batch_rows: int) -> dict[str, int]:
    """What each rank sends, by what for."""
    rows = batch_rows // grid.rows
    sent = {
        "gradients": _sum(4 * sae.own // grid.shards, grid.rows) + _sum(4 * sae.common, grid.n)
        + (sae.n_passes * _sum(4 * sae.d_in, grid.shards) if sae.subtracts_b_dec else 0),
        "candidates": 0,
        "reconstructions": _sum(4 * sae.n_prefixes * sae.n_passes * rows * sae.d_out, grid.shards),
        "dead": _sum(8 * sae.d_sae // grid.shards, grid.rows),
        "revival": 0,
    }
    if sae.mode == "topk":
        sent["candidates"] = _gathered(4 * rows * sae.k, grid.shards)
    elif sae.mode == "batch_topk":
        sent["candidates"] = _sum(HISTOGRAMS, grid.n) + _gathered(8, grid.n)
    if sae.k_aux:
        sent["revival"] = _gathered(4 * rows * sae.k_aux, grid.shards) + _sum(4 * rows * sae.d_out, grid.shards)
    return sent


def _sum(n_bytes: int, n_ranks: int) -> int:
    return 2 * n_bytes * (n_ranks - 1) // n_ranks


def _gathered(n_bytes: int, n_ranks: int) -> int:
    return n_bytes * (n_ranks - 1)
