"""What the members of a sweep share: rows, mask, clock, batches, held-out rows."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sae.devices import resolve_device
from training.activations.batches import FIRST, Address, Batch, Batches
from training.activations.calibration import KeepMask
from training.activations.harvest import Data, open_heldout
from training.activations.superblock_storage import Place, place_for
from training.config.schema import Config
from training.display import Display
from training.evaluate import HeldOut
from training.memory import require, training_bytes
from training.schedule import Clock


@runtime_checkable
class BatchStream(Protocol):
    """A stream of batches that can start at any address."""

    def stream(
        self, start: Address = FIRST, *, prefetch: int = 1, rank: int = 0, n_ranks: int = 1
    ) -> Generator[Batch, None, None]:
        """Batches starting at an address; with several ranks, this rank's part of each."""
        ...


@dataclass(frozen=True)
class Shared:
    """The data that feeds the trainers."""

    data: Data
    mask: KeepMask
    clock: Clock
    batches: BatchStream
    heldout: HeldOut | None
    """None if nothing is held out."""


def all_hooks(members: Sequence[Config]) -> tuple[str, ...]:
    """The hooks of the members' sites, followed by further hooks of the mask."""
    return tuple(dict.fromkeys((*site_hooks(members), *(members[0].data.mask_hooks or ()))))


def site_hooks(members: Sequence[Config]) -> tuple[str, ...]:
    """The hooks of the members' sites."""
    return tuple(dict.fromkeys(hook for m in members for hook in m.site.hooks))


def mask_of(members: Sequence[Config], data: Data) -> KeepMask:
    """The mask over `data.mask_hooks`, or over the members' hooks if that is null."""
    hooks = members[0].data.mask_hooks or site_hooks(members)
    return KeepMask(data.source, data.tokens, members[0].data.model_copy(update={"mask_hooks": hooks}))


def share(members: Sequence[Config], data: Data, display: Display) -> Shared:
    """Set up shuffled batches, mask and held-out rows, for rows with random access."""
    first, hooks, mask = members[0], site_hooks(members), mask_of(members, data)
    training = data.tokens.side(held_out=False)
    clock = Clock.of(first.train.budget, batch_rows=first.data.batch_rows, epoch_rows=training.n_eligible())
    batches = Batches(
        data.source, training, mask.over(data.source, training), hooks, seed=first.data.seed,
        batch_rows=first.data.batch_rows, superblock_rows=first.data.superblock_rows, block_rows=first.block_rows,
        say=display.say,
    )
    batches.place = _place(members, data, batches)
    display.say(
        f"shuffling {batches.n_superblocks} superblocks of {batches.superblock_rows:,} rows, "
        f"{batches.superblock_bytes() / 1e6:,.0f} MB each, {1 + first.data.prefetch} {batches.place.name}"
    )
    return Shared(data, mask, clock, batches, _heldout(first, data, mask, hooks, display))


def _heldout(first: Config, data: Data, mask: KeepMask, hooks: Sequence[str], display: Display) -> HeldOut | None:
    held = open_heldout(first, data, display)
    if not len(held.tokens.sequences(held_out=True)):
        return None
    return HeldOut(held.source, held.tokens, mask, hooks, first.eval.n_rows)


def _place(members: Sequence[Config], data: Data, batches: Batches) -> Place:
    """Whether superblocks are kept on the device or in host memory, given the memory that training needs.

    Raises:
        SaescopeError: they fit in neither.
    """
    first, widths = members[0], data.source.widths
    n_bytes = (1 + first.data.prefetch) * batches.superblock_bytes()
    place = place_for(resolve_device(first.train.device), n_bytes, training_bytes(members, widths))
    if place.on_host:
        require(n_bytes, f"{1 + first.data.prefetch} superblocks", "lower data.superblock_rows or data.prefetch")
    return place


class Reader:
    """Iterate over the rows of a stream of batches, keeping the address of the next batch."""

    def __init__(self, stream: Generator[Batch, None, None], start: Address) -> None:
        self.stream, self.next = stream, start

    def __iter__(self) -> "Reader":
        return self

    def __next__(self) -> Mapping[str, Float[Tensor, "n_rows _"]]:
        """Rows by hook."""
        batch = next(self.stream)
        # if this was the superblock's last batch, the stream moves on to the next superblock by itself
        self.next = batch.address._replace(j=batch.address.j + 1)
        return batch.acts

    def close(self) -> None:
        """Stop preparing batches."""
        self.stream.close()
