"""Sharded checkpoints with torch.distributed.checkpoint: each rank writes and reads its own shard.

    checkpoints/step-00000120/state.json              as of one process, with the number of ranks
                              shard-R-….safetensors   the shard of rank R, with its position in the whole tensors
                              shard-R-….sha256        its digest (`sae.io.chunks`)

This is torch's safetensors format, without pickles. Any number of ranks can resume from it, or from a single-process
checkpoint.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.futures import Future

from sae.base import SAE
from sae.errors import SaescopeError, first_line
from sae.io import chunks
from sae.io.files import atomic_dir, remove_all_abandoned, tensor_bytes, tensors_head, write_json
from sae.io.snapshot import Snapshot
from training.checkpoint import KEPT, WHAT_THEN, Checkpoints
from training.distributed import layout
from training.trainer import Trainer


class Writer(dcp.HuggingFaceStorageWriter):
    """torch's writer, but without copying all tensors in memory, and with a digest."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        """The file of this rank, and its digest."""
        pieces = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
        offsets = {item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)} for item in plan.items}
        head, order = tensors_head(pieces, {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"})
        name = f"shard-{plan.storage_data['shard_index']:05d}-model-00001-of-00001.safetensors"
        path = Path(self.path) / name
        with path.open("xb") as file:
            file.write(head)
            for piece in order:
                file.write(tensor_bytes(pieces[piece]))
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".sha256").write_text(chunks.digest(path))
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(i.index, pieces[i.index.fqn].nbytes, name) for i in plan.items])
        return done


@dataclass(frozen=True)
class ShardedCheckpoints(Checkpoints):
    """The checkpoints in a folder that all ranks can access, of a run on data described by `made_from`."""

    saes: Sequence[SAE]
    """The SAEs in training (this rank's shards)."""
    mesh: DeviceMesh
    """[rows, shards], on the CPU."""
    group: dist.ProcessGroup
    """All ranks; a separate group, since another thread writes while training continues."""

    def write(self, facts: dict[str, Any], snapshots: Sequence[Snapshot]) -> None:
        """Write a checkpoint and remove all but the last two. A collective.

        Raises:
            SaescopeError: a rank could not write, so the checkpoint was not saved.
        """
        if dist.get_rank():
            self._write_pieces(self._told(None), snapshots)
            return
        remove_all_abandoned(self.folder, "step-*")  # a resumed run may not save at the same step again
        with ExitStack() as stack:
            try:
                part = stack.enter_context(atomic_dir(self.folder / f"step-{facts['n_steps']:08d}"))
            except (SaescopeError, OSError):
                self._told(None)
                raise
            self._write_pieces(self._told(part), snapshots)
            write_json(part / "state.json", facts | {"n_ranks": dist.get_world_size()})
        for old in self.finished()[:-KEPT]:
            shutil.rmtree(old)

    def tensors(self, place: Path, state: dict[str, Any], trainers: Sequence[Trainer]) -> list[dict[str, Tensor]]:
        """Read the tensors of each trainer of this rank. A collective.

        Raises:
            SaescopeError: a file is missing, damaged or altered.
        """
        if "n_ranks" not in state:
            return [
                {name: self._cut(sae, name, tensor) for name, tensor in whole.items()}
                for sae, whole in zip(self.saes, super().tensors(place, state, trainers), strict=True)
            ]
        self._check_digests(place)
        found = [{name: layout.empty_like(tensor) for name, tensor in t.tensors().items()} for t in trainers]
        with _failing(place):
            dcp.load(
                self._spread(found), storage_reader=dcp.HuggingFaceStorageReader(str(place)), process_group=self.group
            )
        return found

    def _told(self, folder: Path | None) -> Path | None:
        """Broadcast the folder created by the first rank; None if it could not create one."""
        told = [None if folder is None else str(folder)]
        dist.broadcast_object_list(told, group=self.group, group_src=0)
        return None if told[0] is None else Path(told[0])

    def _write_pieces(self, folder: Path | None, snapshots: Sequence[Snapshot]) -> None:
        if folder is None:
            raise SaescopeError(f"the first rank could not write in {self.folder}.")
        state = self._spread([snapshot.tensors() for snapshot in snapshots])
        with _failing(folder):
            dcp.save(state, storage_writer=Writer(str(folder), save_distributed=True), process_group=self.group)

    def _spread(self, states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The state of all trainers as one dict of DTensors over all features, from this rank's pieces."""
        out: dict[str, Tensor] = {}
        for i, (sae, tensors) in enumerate(zip(self.saes, states, strict=True)):
            for name, tensor in tensors.items():
                axis, part = layout.feature_axis(sae, name), sae.ranks.part(sae.config.d_sae)
                common = tensor.view(1) if tensor.dim() == 0 else tensor  # the format's readers take no slice of a number
                out[f"{i}.{name}"] = common if axis is None else layout.spread(tensor, axis, part, self.mesh)
        return out

    def _cut(self, sae: SAE, name: str, tensor: Tensor) -> Tensor:
        axis = layout.feature_axis(sae, name)
        return tensor if axis is None else layout.cut(tensor, axis, sae.ranks.part(sae.config.d_sae))

    def _check_digests(self, place: Path) -> None:
        """Verify checksums; each rank reads some of the files."""
        altered: list[str | None] = [None] * dist.get_world_size()
        mine = sorted(place.glob("*.sha256"))[dist.get_rank() :: dist.get_world_size()]
        bad = [file.stem for file in mine if not _is_whole(file)]
        dist.all_gather_object(altered, bad[0] if bad else None, group=self.group)
        if name := next(filter(None, altered), None):
            raise SaescopeError(f"{place / name}.safetensors is missing or was altered: its checksum differs; {WHAT_THEN}")


def _is_whole(digest: Path) -> bool:
    file = digest.with_suffix(".safetensors")
    return file.exists() and chunks.digest(file) == digest.read_text()


@contextmanager
def _failing(folder: Path) -> Iterator[None]:
    """Turn torch's error about a rank that could not read or write into one message."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise SaescopeError(f"{folder}: rank {rank} could not read or write its part ({first_line(cause)}).") from error
