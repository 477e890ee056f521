"""Synthetic rows with known features: sums of directions with hierarchy, correlation, signs and noise; and their codes.

    x_r = Σ_f code_rf direction_f + noise_r

Each row is a pure function of the config and the row's number: rows are drawn `DRAWN` at a time from a generator seeded by
(seed, row // DRAWN). As a corpus, `corpus: {synthetic: {...}}` without a model, they are used for batches, calibration and
evaluation like any other rows; the hook is called `acts`.

Features form trees, in depth-first order. A root is present with probability `density` (by rank, if `zipf` is set). If a
parent is present, then with probability `child` exactly one of its children is (`exclusive`), or else each child is present
independently with probability `child` / number of children. Singles are roots without children, after the trees. Roots of a
group are correlated: they threshold Gaussians with correlation `correlation`. With `rank`, all roots are correlated through
that many shared factors in random proportions (as in SynthSAEBench, 2602.14687). A bipolar feature takes either sign with
probability 1/2.
"""

from collections.abc import Mapping
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.code import SparseCode, from_dense
from training.activations.sources import row_norms
from training.config.synthetic import SyntheticConfig

DRAWN = 1024
"""Rows drawn together."""
KEPT_BYTES = 1 << 27
"""Memory for drawn rows that are kept, since every pass over the rows needs them again."""
HOOK = "acts"


class Synthetic:
    """Synthetic rows and their codes. Implements `training.activations.sources.Source`."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.directions = config.directions()
        self.parents = config.parents()
        self.widths, self.dtypes = {HOOK: config.d}, {HOOK: torch.float32}
        self.device, self.computed, self.group = torch.device("cpu"), True, 1
        kept = KEPT_BYTES // (4 * DRAWN * (config.d + len(self.parents)))
        self._drawn = lru_cache(maxsize=max(8, kept))(self._draw)

    def _draw(self, number: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n n_features"]]:
        """`DRAWN` rows from row `number · DRAWN`, and their codes."""
        config, rng = self.config, np.random.default_rng([self.config.seed, 1, number])
        present = self._present(rng)
        lengths = 1 + config.spread * rng.uniform(-1, 1, present.shape)
        signs = np.where(config.is_bipolar() & (rng.random(present.shape) < 0.5), -1, 1)
        codes = torch.from_numpy(present * lengths * signs).float()
        noise = config.noise / config.d**0.5 * rng.standard_normal((DRAWN, config.d))
        return codes @ self.directions + torch.from_numpy(noise).float(), codes

    def _present(self, rng: np.random.Generator) -> Bool[np.ndarray, "n n_features"]:
        config = self.config
        shared, n_roots = self._shared(rng), config.roots + config.singles
        own = rng.standard_normal((DRAWN, n_roots))
        normal = config.correlation**0.5 * shared + (1 - config.correlation) ** 0.5 * own
        limits = np.array([NormalDist().inv_cdf(1 - p) for p in config.root_density()])
        chance = rng.random((DRAWN, len(self.parents)))
        out = np.zeros(chance.shape, dtype=bool)
        parents = np.array(self.parents)
        out[:, parents < 0] = normal > limits
        for above, below in self._families():
            # a single draw chooses between mutually exclusive children
            n = below.shape[1]
            which = chance[:, below[:, :1]] * n / max(config.child, 1e-12)
            has = (np.floor(which) == np.arange(n)) if config.exclusive else (chance[:, below] < config.child / n)
            out[:, below] = out[:, above, None] & has & (config.child > 0)
        return out

    def _families(self) -> list[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "n n_children"]]]:
        """Parents and their children, level by level; all parents of a level have the same number of children."""
        parents = np.array(self.parents)
        level = np.flatnonzero(parents < 0)[: self.config.roots]
        out = []
        for n in self.config.branching:
            order = np.argsort(parents, kind="stable")
            first = np.searchsorted(parents[order], level)
            below = order[first[:, None] + np.arange(n)]
            out.append((level, below))
            level = below.reshape(-1)
        return out

    def _shared(self, rng: np.random.Generator) -> Float[np.ndarray, "n n_roots"]:
        """The shared part of the Gaussians behind parentless features: of their group, or a mixture of factors."""
        config = self.config
        if config.rank:
            return rng.standard_normal((DRAWN, config.rank)) @ config.loadings()
        n_groups = (config.roots + config.singles) // config.group
        return rng.standard_normal((DRAWN, n_groups)).repeat(config.group, axis=1)

    def part(self, start: int, stop: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n n_features"]]:
        """Rows `start` to `stop` and their codes."""
        first = start // DRAWN
        pieces = [
            [part[max(start - number * DRAWN, 0) : stop - number * DRAWN] for part in self._drawn(number)]
            for number in range(first, max(first + 1, -(-stop // DRAWN)))
        ]
        x, codes = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return x, codes

    def _blocks(self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, which: int) -> Tensor:
        out = torch.empty(len(blocks) * block_rows, (self.config.d, len(self.parents))[which])
        # in corpus order, so that each chunk is drawn only once
        for i in np.argsort(blocks, kind="stable"):
            start = int(blocks[i]) * block_rows
            out[i * block_rows : (i + 1) * block_rows] = self.part(start, start + block_rows)[which]
        return out

    def rows(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, "n_rows d"]:
        """The rows of these blocks."""
        assert hook == HOOK, hook
        return self._blocks(blocks, block_rows, 0)

    def read(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Mapping[str, Float[Tensor, "n_rows _"]]
    ) -> None:
        """Fill `out` with the rows of these blocks."""
        for hook, rows in out.items():
            rows.copy_(self.rows(hook, blocks, block_rows))

    def norms(
        self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int,
        rows: Float[Tensor, "n_rows d"] | None = None,
    ) -> Float[Tensor, " n_rows"]:
        """The norms of these rows."""
        return row_norms(self.rows(hook, blocks, block_rows) if rows is None else rows).cpu()

    def codes(self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> SparseCode:
        """The true codes of the rows of these blocks."""
        return from_dense(self._blocks(blocks, block_rows, 1))
