"""Indexes of codes that a test writes down, without a model or a training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from analysis.corpus_rows import CorpusRows
from analysis.index.builder import write_index
from analysis.index.encode import Codes
from analysis.index.read import Index, open_index
from analysis.index.store import write_vocabulary
from analysis.trained import TrainedSAE
from analysis.vocabulary import Vocabulary
from sae import store
from sae.base import SAE
from sae.code import from_dense
from sae.variants import VARIANTS
from training.activations.calibration import KeepMask
from training.activations.harvest import Data
from training.config.reading import resolve
from training.config.schema import Config
from training.corpus.tokens import Tokens
from training.display import Display


class NoRows:
    """A source that is never read."""

    def __init__(self) -> None:
        self.widths, self.dtypes = {"acts": 4}, {"acts": torch.float32}
        self.device, self.computed, self.group = torch.device("cpu"), False, 1

    def rows(self, hook: str, blocks: np.ndarray, block_rows: int) -> torch.Tensor:
        raise AssertionError

    def read(self, blocks: np.ndarray, block_rows: int, out: dict[str, torch.Tensor]) -> None:
        raise AssertionError

    def norms(self, hook: str, blocks: np.ndarray, block_rows: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        raise AssertionError


def config(d_sae: int, n_ctx: int, variant: str = "topk") -> Config:
    fields = {"variant": variant, "d_sae": d_sae, **({"k": 1} if "topk" in variant else {})}
    (made,) = resolve({
        "name": "made", "model": None, "site": "acts", "sae": fields,
        "corpus": {"sources": "acts:nowhere", "n_ctx": n_ctx}, "data": {"block_rows": 1},
    })
    return made


def make_index(
    folder: Path, acts: np.ndarray, tokens: np.ndarray, *, kept: np.ndarray | None = None, variant: str = "topk",
    words: Sequence[bytes] | None = None, budget: int = 10**9,
) -> Index:
    """The index of dense codes `[n_seqs, n_ctx, d_sae]` over these tokens."""
    n_seqs, n_ctx, d_sae = acts.shape
    kept = np.ones((n_seqs, n_ctx), bool) if kept is None else kept
    code = from_dense(torch.from_numpy(acts.reshape(-1, d_sae).astype(np.float32)))
    assert code.indptr is not None
    codes = Codes(kept.reshape(-1), code.indptr.numpy(), code.feature.numpy(), code.value.numpy())
    cfg = config(d_sae, n_ctx, variant)
    sae_: SAE = VARIANTS[variant][0](cfg.sae, 4)
    generator = torch.Generator().manual_seed(0)
    sae_.W_dec.data = torch.nn.functional.normalize(torch.randn(d_sae, 4, generator=generator), dim=1)
    store.save(sae_, folder / "run/final", provenance={})
    data = Tokens(np.arange(n_seqs) % 5 == 4, kept, tokens.astype(np.int32), {})
    mask = KeepMask(NoRows(), data, cfg.data.model_copy(update={"mask_hooks": ("acts",)}), {"acts": 1.0})
    trained = TrainedSAE(folder / "run", sae_, cfg.site)
    rows = CorpusRows(trained, cfg, Data(NoRows(), data, None), mask, n_seqs)
    made = folder / "run/index/default"
    made.mkdir(parents=True)
    if words is not None:
        write_with_words(made, rows, codes, words, budget)
    else:
        write_index(made, rows, codes, made_from(rows), None, budget, Display(quiet=True))
    return open_index(made)


def made_from(rows: CorpusRows) -> dict[str, str]:
    return {"weights_sha256": store.weights_hash(rows.trained.sae)}


def write_with_words(made: Path, rows: CorpusRows, codes: Codes, words: Sequence[bytes], budget: int) -> None:
    """As if a tokenizer with this vocabulary had been there."""
    import json

    write_index(made, rows, codes, made_from(rows), None, budget, Display(quiet=True))
    write_vocabulary(made / "vocabulary.parquet", Vocabulary(words))
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["files"]["vocabulary.parquet"] = {"sha256": "0"}
    (made / "manifest.json").write_text(json.dumps(manifest))


def random_codes(
    n_seqs: int, n_ctx: int, d_sae: int, *, signed: bool = False, share: float = 0.2, n_vocab: int = 7, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Dense codes and tokens."""
    rng = np.random.default_rng(seed)
    acts = (rng.random((n_seqs, n_ctx, d_sae)) < share) * rng.lognormal(0, 1, (n_seqs, n_ctx, d_sae))
    if signed:
        acts *= rng.choice([-1, 1], acts.shape)
    return acts.astype(np.float32), rng.integers(n_vocab, size=(n_seqs, n_ctx))
