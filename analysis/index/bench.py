"""Benchmark index builds and queries on synthetic data.

*Making*: 200,704 rows of width 768 in a bf16 cache, 2,048 features, k = 32, after a small index has compiled all loops.
*Answering*: an index of more than 20 million values over 16,384 features with power-law densities.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.corpus_rows import CorpusRows
from analysis.index.builder import make, write_index
from analysis.index.encode import Codes
from analysis.index.read import Index, open_index
from analysis.trained import TrainedSAE
from sae import store
from sae.base import SAE
from sae.init import initialise
from sae.kernels import backend
from sae.variants import VARIANTS
from training.activations.cache import CacheSource, fill
from training.activations.calibration import KeepMask
from training.activations.harvest import Data
from training.bench.cache import HOOK
from training.config.reading import resolve
from training.config.schema import Config
from training.corpus.tokens import Tokens, write_tokens
from training.display import Display

N_CTX, N_VOCAB, BUDGET = 256, 16_384, 1_000_000_000
N_QUERIES = 300


def bench_index(
    *, n_rows: int = 200_704, d_in: int = 768, d_sae: int = 2048, k: int = 32, n_values: int = 20_000_000,
    wide: int = 16_384,
) -> dict[str, Any]:
    """Measure the build time (s) and the query latency (ms).

    Args:
        n_rows, d_in, d_sae, k: size of the index to build.
        n_values: minimum number of stored values in the index to query.
        wide: its number of features.
    """
    with tempfile.TemporaryDirectory() as root:
        _make(Path(root) / "small", 4 * N_CTX, d_in, min(64, d_sae), min(4, k))
        making = _make(Path(root) / "made", n_rows, d_in, d_sae, k)
        answering = _answers(_wide_index(Path(root) / "wide", n_values, wide))
    return {"n_threads": torch.get_num_threads(), "making": making, "answering": answering}


def _config(d_sae: int, k: int) -> Config:
    (config,) = resolve({
        "name": "bench", "model": None, "site": HOOK, "sae": {"variant": "topk", "d_sae": d_sae, "k": k},
        "corpus": {"sources": "acts:nowhere", "n_ctx": N_CTX}, "data": {"mask_hooks": [HOOK]},
    })
    return config


def _sae(config: Config, d_in: int, run: Path) -> SAE:
    sae = VARIANTS["topk"][0](config.sae, d_in)
    initialise(sae, torch.randn(1024, d_in, generator=torch.Generator().manual_seed(0)))
    sae.kernels = backend("cpu")
    run.mkdir(parents=True)
    store.save(sae, run / "final", provenance={})
    return sae


def _tokens(folder: Path, n_seqs: int) -> Tokens:
    """Token ids with language-like frequencies; the first of each sequence is masked."""
    draws = np.random.Generator(np.random.Philox(0)).random((n_seqs, N_CTX))
    ids = np.minimum((N_VOCAB ** draws).astype(np.int32), N_VOCAB - 1)
    eligible = np.ones((n_seqs, N_CTX), dtype=bool)
    eligible[:, 0] = False
    held_out = np.arange(n_seqs) % 20 == 19
    return write_tokens(folder, ids, held_out, eligible, np.zeros((0, 3), np.int64), [], {"synthetic": 0})


def _make(root: Path, n_rows: int, d_in: int, d_sae: int, k: int) -> dict[str, Any]:
    config = _config(d_sae, k)
    tokens = _tokens(root / "cache", -(-n_rows // N_CTX))
    generator = torch.Generator().manual_seed(0)

    def compute(seqs: np.ndarray) -> dict[str, torch.Tensor]:
        return {HOOK: torch.randn(len(seqs), N_CTX, d_in, generator=generator).bfloat16()}

    fill(tokens, compute, {HOOK: d_in}, dtype="bfloat16", shard_rows=65_536)
    source = CacheSource(root / "cache", [HOOK])
    sae = _sae(config, d_in, root / "run")
    began = time.perf_counter()
    mask = KeepMask(source, tokens, config.data)
    trained = TrainedSAE(root / "run", sae, config.site)
    rows = CorpusRows(trained, config, Data(source, tokens, None), mask, tokens.n_seqs)
    folder = root / "run/index/default"
    make(folder, rows, {"rows": rows.facts()}, budget=BUDGET, display=Display(quiet=True))
    seconds = time.perf_counter() - began
    counts = open_index(folder).manifest["counts"]
    return {**counts, "d_in": d_in, "k": k, "seconds": seconds, "rows_per_s": counts["n_rows"] / seconds}


def _wide_index(root: Path, n_values: int, d_sae: int) -> Index:
    """An index over synthetic codes, without activations."""
    per_row = 42
    n_seqs = -(-n_values // (per_row * N_CTX)) + 8
    config = _config(d_sae, 32)
    tokens = _tokens(root / "cache", n_seqs)
    codes = _power_law_codes(tokens.eligible.reshape(-1), d_sae, per_row + 6)
    fill(tokens, lambda seqs: {HOOK: torch.ones(len(seqs), N_CTX, 1)}, {HOOK: 1}, dtype="float32", shard_rows=10**7)
    source = CacheSource(root / "cache", [HOOK])
    mask = KeepMask(source, tokens, config.data)
    trained = TrainedSAE(root / "run", _sae(config, 32, root / "run"), config.site)
    rows = CorpusRows(trained, config, Data(source, tokens, None), mask, n_seqs)
    folder = root / "run/index/default"
    folder.mkdir(parents=True)
    write_index(folder, rows, codes, {}, None, BUDGET, Display(quiet=True))
    return open_index(folder)


def _power_law_codes(kept: np.ndarray, d_sae: int, n_draws: int) -> Codes:
    """Codes of all kept rows: features drawn with a density that decreases with their index, duplicates dropped."""
    rng = np.random.Generator(np.random.Philox(1))
    counts = np.zeros(len(kept), np.int64)
    features, values = [], []
    for start in range(0, len(kept), 65_536):
        rows = np.flatnonzero(kept[start : start + 65_536])
        drawn = np.sort((d_sae * rng.random((len(rows), n_draws)) ** 1.7).astype(np.int32), axis=1)
        fresh = np.ones(drawn.shape, bool)
        fresh[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        counts[start + rows] = fresh.sum(1)
        features.append(drawn[fresh])
        values.append((0.1 + rng.exponential(size=int(fresh.sum()))).astype(np.float32))
    indptr = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return Codes(kept, indptr, np.concatenate(features), np.concatenate(values))


def _answers(index: Index) -> dict[str, Any]:
    """Median and worst latency of each query in ms, after one warm-up call."""
    rng = np.random.Generator(np.random.Philox(2))
    counts = np.diff(index.arrays["feature_indptr"])
    active, densest = np.flatnonzero(counts), np.argsort(-counts)[:40]
    anyone = lambda: int(rng.choice(active))  # noqa: E731
    prompt = [_stretch(index, int(seq), 32) for seq in rng.integers(index.n_seqs, size=20)]
    whole = [index.code(int(seq)) for seq in rng.integers(index.n_seqs, size=20)]
    times = {
        "feature": _timed(lambda: index.feature(anyone()), N_QUERIES),
        "examples": _timed(lambda: index.examples(anyone()), N_QUERIES),
        "where": _timed(lambda: index.where(anyone(), anyone()), N_QUERIES),
        "where, densest features": _timed(lambda: index.where(*map(int, rng.choice(densest, 2))), N_QUERIES),
        "similar, prompt of 32 tokens": _timed(lambda: index.similar(prompt[int(rng.integers(20))]), 60),
        "similar, prompt of 256 tokens": _timed(lambda: index.similar(whole[int(rng.integers(20))]), 60),
    }
    return {"n_values": index.n_values, "n_rows": index.n_rows, "d_sae": index.d_sae, "ms": times}


def _stretch(index: Index, seq: int, n: int) -> Any:
    from sae.code import SparseCode

    code = index.code(seq)
    assert code.indptr is not None
    end = int(code.indptr[n])
    return SparseCode(code.feature[:end], code.value[:end], n, code.d_sae, indptr=code.indptr[: n + 1])


def _timed(ask: Callable[[], object], n: int) -> dict[str, float]:
    ask()
    times = []
    for _ in range(n):
        began = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - began))
    return {"median": statistics.median(times), "worst": max(times)}


def show(figures: dict[str, Any], display: Display) -> None:
    """Print the results as two tables."""
    made, asked = figures["making"], figures["answering"]
    display.table(
        f"Building an index ({figures['n_threads']} threads)",
        [(f"{made['d_sae']:,} features, {made['n_rows']:,} rows, d_in {made['d_in']}, k {made['k']}",
          f"{made['seconds']:.1f}", f"{made['rows_per_s']:,.0f}")], ("", "seconds", "rows/s"),
    )
    rows = [(name, f"{ms['median']:.2f}", f"{ms['worst']:.2f}") for name, ms in asked["ms"].items()]
    display.table(f"Querying an index of {asked['n_values']:,} values", rows, ("", "median ms", "worst ms"))
