"""Batches from the user's own loader: a DataLoader, a list, a generator. Used in the order given.

The first rows are kept in memory. They are split and calibrated like an array (`training.activations.row_sequences`,
`calibration`): as sequences of n_ctx consecutive rows, a fraction of which is held out. After that, every row is trained on
that passes the mask and doesn't equal a held-out row, so a loader may be iterated again, in any order. Rows are regrouped
into batches of `data.batch_rows`; an incomplete batch at the end of a pass is dropped.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.errors import SaescopeError
from training.activations.arrays import Arrays, as_rows, by_hook
from training.activations.batches import FIRST, Address, Batch
from training.activations.superblock_storage import Place

_SEED = 0x5AE5C0BE


class Opened(NamedTuple):
    """An iterable whose first batch has been read."""

    first: object
    batches: Iterator[object]
    """All batches, the first included."""
    once: bool
    """Whether it can only be iterated once, like a generator."""


def opened(given: object) -> Opened:
    """Read the first batch.

    Raises:
        SaescopeError: not an iterable of batches, or an empty one.
    """
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        raise SaescopeError(
            f"rows must be an array, a pair, a dict of arrays by hook, or an iterable of batches, not "
            f"{type(given).__name__}."
        )
    running = iter(given)
    try:
        first = next(running)
    except StopIteration:
        raise SaescopeError(
            "the iterable yields no batches; if it is a generator that was already used, create a new one."
        ) from None
    return Opened(first, chain([first], running), once=running is given)


class Loader:
    """An iterable of batches, with its first `stretch_rows` rows or more kept in memory."""

    def __init__(self, given: Iterable[object], begun: Opened, hooks: Sequence[str], stretch_rows: int) -> None:
        """Read the first rows; `hooks` are the hooks of the site and its mask.

        Raises:
            SaescopeError: batches that are not rows of the same width (`training.activations.arrays`), or all empty.
        """
        self.given, self.once, self.hooks = given, begun.once, tuple(hooks)
        self.widths: dict[str, int] = {}
        self._rest = self._batches(begun.batches)
        found, n_rows = [], 0
        for batch in self._rest:
            # copy: a generator may reuse one buffer
            found.append({hook: rows.cpu().clone() for hook, rows in batch.items()})
            n_rows += len(found[-1][hooks[0]])
            if n_rows >= stretch_rows:
                break
        if not n_rows:
            raise SaescopeError("the iterable yields no rows: all its batches are empty.")
        self.ended = n_rows < stretch_rows
        """Whether the rows in memory are all rows."""
        self.first_rows = len(found[0][hooks[0]])
        self.stretch = Arrays(
            {hook: torch.cat([batch[hook] for batch in found]) for hook in hooks}, hooks, name="the iterable's first rows"
        )

    @property
    def n_rows(self) -> int | None:
        """Rows per pass if known: the exact number, or the number of batches times the size of the first."""
        if self.ended:
            return self.stretch.n_rows
        try:
            return len(self.given) * self.first_rows  # type: ignore[arg-type]
        except TypeError:
            return None

    def passed(self, epoch: int) -> Iterator[dict[str, Float[Tensor, "n_rows _"]]]:
        """The batches of a pass; pass 0 can be requested only once."""
        if epoch:
            return self._batches(iter(self.given))
        starts = range(0, self.stretch.n_rows, self.first_rows)
        stretch = ({hook: self.stretch.rows(hook, i, i + self.first_rows) for hook in self.hooks} for i in starts)
        return chain(stretch, self._rest)

    def _batches(self, running: Iterator[object]) -> Iterator[dict[str, Float[Tensor, "n_rows _"]]]:
        """Check each batch and skip empty ones."""
        for number, given in enumerate(running):
            what = f"batch {number} of the iterable"
            acts = {hook: as_rows(array) for hook, array in by_hook(given, self.hooks, what).items()}
            widths = {hook: rows.shape[1] for hook, rows in acts.items()}
            self.widths = self.widths or widths
            for hook, rows in acts.items():
                if widths[hook] != self.widths[hook]:
                    raise SaescopeError(
                        f"{what} has rows of width {widths[hook]}, earlier batches of {self.widths[hook]} ({hook}); the "
                        "width must not change."
                    )
                finite = rows.isfinite().all(1)
                if not finite.all():
                    raise SaescopeError(
                        f"{hook}: NaN or infinite values in {what}, row {int((~finite).nonzero()[0, 0])}; clean them and "
                        "start again."
                    )
            if len(rows):
                yield acts


class LoaderBatches:
    """The stream of training batches of a loader; the counterpart of `training.activations.batches.Batches`."""

    def __init__(
        self, loader: Loader, held_out: Mapping[str, Float[Tensor, "n_held _"]], limits: Mapping[str, float], *,
        batch_rows: int, place: Place | None = None,
    ) -> None:
        """`held_out`: rows never to train on. `limits`: the largest norm at each of the mask's hooks.

        Batches are returned at `place`, in host memory by default.
        """
        self.loader, self.limits, self.batch_rows = loader, limits, batch_rows
        self.held_out = row_keys(held_out, loader.hooks)
        self.place = place or Place()

    def stream(
        self, start: Address = FIRST, *, prefetch: int = 0,  # noqa: ARG002  (workers are the loader's own)
        rank: int = 0, n_ranks: int = 1,  # noqa: ARG002
    ) -> Generator[Batch, None, None]:
        """Endless batches starting at an address; earlier ones are read and skipped.

        Raises:
            SaescopeError: a generator is exhausted, a pass has too few rows for a batch, or there are several ranks.
        """
        if n_ranks > 1:
            raise SaescopeError(
                "a loader's batches cannot be split over ranks; pass arrays, or use rows on disk (acts:FOLDER)."
            )
        epoch = 0
        while True:
            n_batches = 0
            for batch in self._pass(epoch):
                n_batches += 1
                if batch.address >= start:
                    yield batch
            if not n_batches:
                raise SaescopeError(
                    f"the iterable has too few rows for a single batch of {self.batch_rows}; lower data.batch_rows or add "
                    "rows."
                )
            if self.loader.once:
                raise SaescopeError(
                    f"the generator ended after {n_batches:,} batches, {n_batches * self.batch_rows:,} rows, but "
                    "train.budget needs more; lower the budget, or pass a list or a DataLoader."
                )
            epoch += 1

    def _pass(self, epoch: int) -> Iterator[Batch]:
        hooks, n_seen, j = self.loader.hooks, 0, 0
        acts: dict[str, Tensor] = {}
        numbers = torch.zeros(0, dtype=torch.int64)
        for given in self.loader.passed(epoch):
            with self.place.working():
                here = self.place.bring(given)
                kept = self._keep(here).nonzero().squeeze(1)
                numbers = torch.cat([numbers, n_seen + kept.cpu()])
                new = {hook: here[hook].index_select(0, kept.to(here[hook].device)) for hook in hooks}
                acts = {hook: torch.cat([acts[hook], new[hook]]) if acts else new[hook] for hook in hooks}
            n_seen += len(here[hooks[0]])
            while len(numbers) >= self.batch_rows:
                batch = self.place.hand_over({hook: rows[: self.batch_rows] for hook, rows in acts.items()})
                yield Batch(Address(epoch, 0, j), numbers[: self.batch_rows], batch)
                numbers, j = numbers[self.batch_rows :], j + 1
                acts = {hook: rows[self.batch_rows :] for hook, rows in acts.items()}

    def _keep(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> Bool[Tensor, " n_rows"]:
        """Mask of rows that are neither held out nor above the mask's limits."""
        keys = row_keys(acts, self.loader.hooks)
        self.held_out = self.held_out.to(keys.device)
        keep = ~torch.isin(keys, self.held_out)
        for hook, limit in self.limits.items():
            keep &= (acts[hook].float().norm(dim=1) <= limit).to(keep.device)
        return keep


def row_keys(acts: Mapping[str, Float[Tensor, "n_rows _"]], hooks: Sequence[str]) -> Int64[Tensor, " n_rows"]:
    """A hash of each row: equal for equal rows; collides for at most one in 2^33 pairs of other rows.

    Σ bits_i m_i mod 2^64 over a row's fp32 bit patterns, with fixed random odd m.
    """
    bits = torch.cat([acts[hook].float() for hook in hooks], 1).contiguous().view(torch.int32).long()
    generator = torch.Generator().manual_seed(_SEED)
    odd = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
    return (bits * odd.to(bits.device)).sum(1)
