"""Read an index: query features, contexts and tokens from memory-mapped arrays.

Doesn't need the model, the tokenizer or the SAE's weights. Thread-safe.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64, Int32

from analysis.index import store
from analysis.index.queries import cooccurrence, fires_on
from analysis.index.queries.search import Searcher
from analysis.index.queries.table import Stats
from analysis.index.types import (
    Both,
    Example,
    Feature,
    Group,
    Histogram,
    Hit,
    Neighbour,
    Picture,
    Side,
    Similar,
    Token,
    TokenShare,
)
from analysis.vocabulary import Vocabulary
from sae.errors import SaescopeError
from sae.io.files import read_json
from sae.io.paths import user_path

if TYPE_CHECKING:
    import scipy.sparse

    from sae.code import SparseCode

LONGEST_WINDOW = 1024
"""Maximum number of tokens in an example."""


def indexes(run: str | Path) -> list[Path]:
    """The finished indexes of a run, `default` first."""
    found = sorted(p.parent for p in (user_path(run) / "index").glob(f"*/{store.MANIFEST}"))
    return sorted((p for p in found if not p.name.startswith(".")), key=lambda p: (p.name != "default", p.name))


def open_index(folder: str | Path) -> "Index":
    """Open an index, given its folder `runs/NAME/index/CORPUS` or a run (for its default index).

    Raises:
        SaescopeError: there is no index, or it can't be read.
    """
    folder = user_path(folder)
    if not (folder / store.MANIFEST).exists() and (found := indexes(folder)):
        folder = found[0]
    if not folder.is_dir():
        raise SaescopeError(f"there is no index at {folder}; build one with `sae index RUN`.")
    if (folder / "config.yaml").exists():
        raise SaescopeError(f"{folder} has no index yet; build one with `sae index {folder}`.")
    return Index(folder)


class Index:
    """The features of one SAE over one corpus."""

    def __init__(self, folder: Path) -> None:
        """Use `open_index`."""
        self.folder, self.name, self.run = folder, folder.name, folder.parent.parent
        self.manifest = store.read_manifest(folder)
        counts = self.manifest["counts"]
        self.n_seqs, self.n_ctx, self.n_rows = counts["n_seqs"], counts["n_ctx"], counts["n_rows"]
        self.d_sae, self.n_values = counts["d_sae"], counts["n_values"]
        self.signed: bool = self.manifest["signed"]
        self.arrays = {name: store.open_array(folder, self.manifest, name) for name in store.ARRAYS
                       if name not in store.OPTIONAL or f"{name}.npy" in self.manifest["files"]}
        self.scale = self.arrays["scale"]
        self._fires_on: dict[int, tuple[TokenShare, ...]] = {}

    @property
    def stale(self) -> str | None:
        """A message if the run's weights have changed since indexing; else None."""
        try:
            now = read_json(self.run / "final" / "sae.json").get("weights_sha256")
        except SaescopeError:
            return f"the weights of {self.run} cannot be read, so this index may be out of date."
        if now == self.manifest["made_from"].get("weights_sha256"):
            return None
        refined = f" --refine {self.refine}" if self.refine else ""
        return f"{self.run} has been retrained since this index was built; run `sae index {self.run}{refined}`."

    @property
    def refine(self) -> int:
        """Number of refinement steps of the codes; encode prompts shown with this index the same way."""
        return int(self.manifest["made_from"].get("settings", {}).get("refine", 0))

    @property
    def sides(self) -> tuple[Side, ...]:
        """The possible signs of values."""
        return ("+", "-") if self.signed else ("+",)

    # -- contexts -----------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> Int32[np.ndarray, "n_seqs n_ctx"]:
        """Token ids, memory-mapped; −1 for activations without text."""
        return self.arrays["tokens"]

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The bytes of each token; None if the index was built without a tokenizer."""
        path = self.folder / store.VOCABULARY
        return store.read_vocabulary(path) if path.name in self.manifest["files"] else None

    def pieces(self, seq: int, start: int = 0, stop: int | None = None) -> list[str]:
        """The text of each token. A character made of several tokens is placed at the first; the others are ""."""
        start, stop = self._span(seq, start, stop)
        # a character may extend beyond either end of the span
        before, after = max(0, start - 3), min(self.n_ctx, stop + 3)
        ids = self.tokens[seq, before:after].tolist()
        if self.vocabulary is None:
            return ["·" if t < 0 else f"#{t}" for t in ids][start - before : stop - before]
        return self.vocabulary.pieces(ids)[start - before : stop - before]

    @property
    def of_images(self) -> bool:
        """Whether contexts are images."""
        return "pixels" in self.arrays

    def picture(self, seq: int) -> Picture | None:
        """The image of a context; None if contexts aren't images."""
        return Picture(self.names[seq], self.arrays["pixels"][seq], self.arrays["boxes"]) if self.of_images else None

    @cached_property
    def names(self) -> list[str]:
        """Names of the contexts if they are images; else empty."""
        return [bytes(name).rstrip(b"\0").decode(errors="replace") for name in self.arrays.get("names", ())]

    def code(self, seq: int) -> "SparseCode":
        """The code of a context: `n_ctx` rows; masked rows are empty."""
        import torch

        from sae.code import SparseCode

        self._span(seq, 0, None)
        indptr = self.arrays["row_indptr"][seq * self.n_ctx : (seq + 1) * self.n_ctx + 1]
        entries = slice(int(indptr[0]), int(indptr[-1]))
        feature = np.array(self.arrays["row_feature"][entries])
        value = self.arrays["row_value"][entries].astype(np.float32) * self.scale[feature]
        relative = torch.from_numpy(indptr - indptr[0])
        return SparseCode(torch.from_numpy(feature), torch.from_numpy(value), self.n_ctx, self.d_sae, indptr=relative)

    def values(self, feature: int, seq: int, start: int = 0, stop: int | None = None) -> Float32[np.ndarray, " n"]:
        """A feature's value at each token of a span; 0 where inactive."""
        self._known(feature)
        start, stop = self._span(seq, start, stop)
        position, value = self._column(feature)
        first = seq * self.n_ctx + start
        # same dtype, or searchsorted would convert the whole column
        ends = np.array([first, first + stop - start], position.dtype)
        lo, hi = np.searchsorted(position, ends)
        out = np.zeros(stop - start, np.float32)
        out[position[lo:hi] - first] = value[lo:hi].astype(np.float32) * self.scale[feature]
        return out

    def column(self, feature: int) -> tuple[Int32[np.ndarray, " n_active"], Float32[np.ndarray, " n_active"]]:
        """Rows where a feature is active (`seq · n_ctx + position`, ascending), and its values there."""
        self._known(feature)
        position, value = self._column(feature)
        return position, value.astype(np.float32) * self.scale[feature]

    def positions(self, feature: int) -> Int32[np.ndarray, " n_active"]:
        """Rows where a feature is active (`seq · n_ctx + position`, ascending), memory-mapped."""
        self._known(feature)
        return self._column(feature)[0]

    def window(self, feature: int, seq: int, position: int, before: int = 16, after: int = 15) -> Example:
        """The window of a context around a token."""
        self._span(seq, position, position + 1)
        start, stop = max(0, position - before), min(self.n_ctx, position + after + 1)
        return self._example(feature, seq, position, start, stop)

    def csc(self) -> "scipy.sparse.csc_array":
        """All codes as a scipy CSC array `[n_seqs · n_ctx, d_sae]` in fp32; positions stay memory-mapped."""
        import scipy.sparse

        arrays = self.arrays
        value = arrays["feature_value"].astype(np.float32)
        value *= np.repeat(arrays["scale"], np.diff(arrays["feature_indptr"]))
        shape = (self.n_seqs * self.n_ctx, self.d_sae)
        return scipy.sparse.csc_array((value, arrays["feature_position"], arrays["feature_indptr"]), shape=shape)

    # -- features -----------------------------------------------------------------------------------------------------

    def feature(self, i: int) -> Feature:
        """Everything about one feature except examples and neighbours."""
        self._known(i)
        of = self._stats.row(i)
        promoted, suppressed = self._tokens(i)
        edges, counts = self.arrays["histogram_edges"], self.arrays["histogram"][i]
        return Feature(
            feature=i, n_rows=self.n_rows, promoted=promoted, suppressed=suppressed,
            histogram=Histogram(edges.tolist(), counts[0].tolist(), counts[1].tolist()),
            **{key: of[key] for key in (
                "n_active", "density", "density_low", "density_high", "n_negative", "n_contexts", "max", "min", "mean",
                "second_moment", "std", "skew", "kurtosis", "decoder_norm", "dead",
            )},
        )

    def fires_on(self, i: int) -> tuple[TokenShare, ...]:
        """The three tokens that a feature fires on most, with their shares of its active rows; cached."""
        if i not in self._fires_on:
            self._fires_on[i] = fires_on.fires_on(self, i)
        return self._fires_on[i]

    def groups(self, i: int, side: str = "+") -> list[Group]:
        """The example groups on one side, with their bounds of |value| and numbers of rows."""
        self._known(i)
        s = self._side(side)
        edges = [float(e) for e in self.arrays["tenth_edges"][i, s]]
        population = self.arrays["population"][i, s].tolist()
        bounds = {"near": (0.0, 0.0)} | {f"q{j + 1}": (edges[j], edges[j + 1]) for j in range(10)}
        return [Group(name, *bounds.get(name, (edges[0], edges[-1])), n)
                for name, n in zip(store.GROUPS, population, strict=True)]

    def examples(
        self, i: int, group: str = "top", side: str = "+", n: int = 20, before: int = 16, after: int = 15
    ) -> list[Example]:
        """Examples of a group, at most one per context: `top` strongest first, others in seeded random order."""
        self._known(i)
        if group not in store.GROUPS:
            raise SaescopeError(f"there is no group {group!r}; choose from {', '.join(store.GROUPS)}.")
        rows = self.arrays["examples"][i, self._side(side), store.GROUPS.index(group)]
        found = [divmod(int(row), self.n_ctx) for row in rows[rows >= 0][: max(0, n)]]
        return [self.window(i, seq, position, before, after) for seq, position in found]

    def between(
        self, i: int, low: float, high: float, side: str = "+", n: int = 20, before: int = 16, after: int = 15
    ) -> tuple[int, list[Example]]:
        """The number of active rows with `low <= |value| < high` on one side, and examples, at most one per context.

        Examples are the first match in each of an even sample of contexts, strongest first.
        """
        position, value = self.column(i)
        size = -value if self._side(side) else value
        mine = np.flatnonzero((size >= low) & (size < high))
        _, first = np.unique(position[mine] // self.n_ctx, return_index=True)
        if len(first) > n:
            first = first[np.arange(n) * len(first) // n]
        rows = mine[first]
        rows = rows[np.argsort(-size[rows], kind="stable")]
        found = [divmod(int(position[row]), self.n_ctx) for row in rows]
        return len(mine), [self.window(i, seq, at, before, after) for seq, at in found]

    def neighbours(self, i: int, kind: str = "decoder") -> list[Neighbour]:
        """Nearest features by decoder cosine (`decoder`) or by co-activation (`coactivation`)."""
        self._known(i)
        arrays = self.arrays
        if kind == "decoder":
            pairs = zip(arrays["decoder_feature"][i].tolist(), arrays["decoder_cosine"][i].tolist(), strict=True)
            return [Neighbour(f, cosine) for f, cosine in pairs if f >= 0]
        if kind != "coactivation":
            raise SaescopeError(f"there are no neighbours by {kind!r}; choose 'decoder' or 'coactivation'.")
        columns = (arrays[f"coactive_{name}"][i].tolist() for name in ("feature", "jaccard", "pearson"))
        return [Neighbour(f, jaccard, jaccard, None if math.isnan(pearson) else pearson)
                for f, jaccard, pearson in zip(*columns, strict=True) if f >= 0]

    # -- over all features --------------------------------------------------------------------------------------------

    @cached_property
    def _stats(self) -> Stats:
        return Stats.read(self.folder / store.STATS)

    @property
    def stats(self) -> pa.Table:
        """One row per feature; for the columns see docs/index-format.md."""
        return self._stats.table

    def top(
        self, sort: str = "density", descending: bool = True, where: str | None = None, limit: int = 1000, offset: int = 0,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Features sorted by a column of the statistics, nulls last.

        Args:
            sort: the column to sort by.
            descending: largest first.
            where: a DuckDB condition on the columns, such as `density > 0.001 AND kurtosis > 5`.
            limit: maximum number of rows.
            offset: rows to skip first.
            columns: columns to return; None for all.
        """
        return self._stats.top(sort, descending, where, limit, offset, columns)

    # -- over all contexts --------------------------------------------------------------------------------------------

    def where(self, a: int, b: int, n: int = 20) -> Both:
        """Count tokens and contexts in which two features are both active, with examples of contexts."""
        self._known(a)
        self._known(b)
        return cooccurrence.where(self, a, b, n)

    def similar(self, code: "SparseCode", n: int = 20) -> list[Similar]:
        """The contexts most similar to a prompt's code, by exact cosine similarity of weighted peaks.

        A context (or prompt) is represented by each feature's largest value by magnitude over its rows, times
        log(contexts / contexts that the feature is active in), so features that fire everywhere get weight 0.
        """
        return cooccurrence.similar(self, code, n)

    @cached_property
    def weighted_norms(self) -> Float64[np.ndarray, " n_seqs"]:
        """Norms of the contexts' peaks as weighted by `similar`; cached."""
        return cooccurrence.weighted_norms(self)

    def search(self, text: str, regex: bool = False, n: int = 50) -> list[Hit]:
        """The first n occurrences of `text`, or matches of it as a regular expression, in corpus order."""
        return self._searcher.search(text, regex=regex, n=n)

    def search_evenly(self, text: str, regex: bool = False, n: int = 2000) -> tuple[list[Hit], int]:
        """At most n matches, evenly spaced over all matches in corpus order, and the total number of matches."""
        return self._searcher.evenly(text, regex=regex, n=n)

    @cached_property
    def _searcher(self) -> Searcher:
        if self.vocabulary is None:
            raise SaescopeError(f"{self.folder} was built without a tokenizer, so there is no text to search.")
        return Searcher(self.tokens, self.vocabulary)

    def verify(self) -> list[str]:
        """Check all checksums; return a message for each missing or altered file."""
        return list(store.problems(self.folder))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _column(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        lo, hi = (int(x) for x in self.arrays["feature_indptr"][feature : feature + 2])
        return self.arrays["feature_position"][lo:hi], self.arrays["feature_value"][lo:hi]

    def _example(self, feature: int, seq: int, position: int, start: int, stop: int) -> Example:
        start, stop = (0, self.n_ctx) if self.of_images else (start, stop)
        values = self.values(feature, seq, start, stop).tolist()
        return Example(
            feature, seq, position, start, stop, self.pieces(seq, start, stop), values, values[position - start],
            self.picture(seq),
        )

    def _tokens(self, i: int) -> tuple[list[Token], list[Token]]:
        if "promoted_token" not in self.arrays:
            return [], []
        ids, logits = self.arrays["promoted_token"][i].tolist(), self.arrays["promoted_logit"][i].tolist()
        text = self.vocabulary.text if self.vocabulary is not None else str
        tokens = [Token(t, text(t), logit) if t >= 0 else None for t, logit in zip(ids, logits, strict=True)]
        half = len(tokens) // 2
        return [t for t in tokens[:half] if t is not None], [t for t in tokens[half:] if t is not None]

    def _known(self, feature: int) -> None:
        if not 0 <= feature < self.d_sae:
            raise SaescopeError(f"there is no feature {feature}: {self.run.name} has features 0 to {self.d_sae - 1}.")

    def _side(self, side: str) -> int:
        if (name := "-" if side == "−" else side) not in self.sides:
            raise SaescopeError(f"there is no side {side!r}: values in this index have sides {' and '.join(self.sides)}.")
        return self.sides.index(name)  # type: ignore[arg-type]

    def _span(self, seq: int, start: int, stop: int | None) -> tuple[int, int]:
        stop = self.n_ctx if stop is None else stop
        if not (0 <= seq < self.n_seqs and 0 <= start <= stop <= self.n_ctx):
            raise SaescopeError(
                f"there are no tokens {start} to {stop} in context {seq}: contexts are 0 to {self.n_seqs - 1}, each of "
                f"{self.n_ctx} tokens."
            )
        return start, stop
