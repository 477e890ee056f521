"""A training step as one launch: captured in a CUDA graph, and replayed.

A replay repeats every launch of the step with the same addresses and the same numbers of the host. So rows are copied to
where they were at capture, and what differs from step to step (rows seen, learning rate, Adam's bias corrections) stands
in a table on the device, a line for each of the steps to come, of which a counter there takes the next. A step then
costs the host a copy of the rows and one launch.

The first steps run launch by launch, and so do two after anything has changed that the launches depend on: another k,
more room for dead features, weights that were written from outside. Then the step is captured anew. Every step is taken
once, whichever way, and by the same code.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol, runtime_checkable
from weakref import WeakSet

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

N_WARM = 2
"""Steps before a capture: they compile kernels, and make what outlives a step."""
AHEAD = 512
"""Steps whose numbers are put on the device at a time."""


class Moment(NamedTuple):
    """What differs from step to step."""

    rows_seen: int | Int64[Tensor, ""]
    """Training rows before the step."""
    rates: Float32[Tensor, "2"] | None
    """For the optimiser, on the device: see `sae.kernels.Backend.optimizer_step`. None: it goes by the host's numbers."""


class Line(NamedTuple):
    """The numbers of one step, on the host."""

    rows_seen: int
    lr_over_bias: float
    one_over_bias2: float


@runtime_checkable
class Recorder(Protocol):
    """What can run launches, and record them."""

    def run(self, step: Callable[[], None]) -> None:
        """Run a step so that it can be recorded afterwards."""
        ...

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """What repeats the step's launches, none of which run now. Raises RuntimeError where that cannot be."""
        ...


class CudaGraphs:
    """Records in CUDA graphs, all of which share one pool of memory: what a step allocates is free again at its end."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        """Those in use."""

    def run(self, step: Callable[[], None]) -> None:
        """On the stream on which it will be captured."""
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            step()
        here.wait_stream(self.stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture it. Threads that read, copy and save meanwhile are no part of it."""
        graph, others = torch.cuda.CUDAGraph(), list(self.graphs)  # held, or their pool might go before it is shared
        pool = others[0].pool() if others else torch.cuda.graph_pool_handle()
        with (
            torch.cuda.device(self.device), _as_before(self.device, pool),
            torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            step()
        self.graphs.add(graph)
        return graph.replay


@contextmanager
def _as_before(device: torch.device, pool: tuple[int, int]) -> Iterator[None]:
    """Put right what torch leaves as in a capture when one fails: the stream, random numbers, where memory is from."""
    here, generator = torch.cuda.current_stream(device), torch.cuda.default_generators[torch.cuda.current_device()]
    drawn = generator.clone_state()
    try:
        yield
    except RuntimeError:
        torch.cuda.set_stream(here)
        generator.graphsafe_set_state(drawn)
        with suppress(RuntimeError):  # it says so where that has been done
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise


@functools.cache
def cuda_graphs(device: torch.device) -> CudaGraphs:
    """The recorder of a device, which all its trainers share."""
    return CudaGraphs(device)


class Captured:
    """A step of one trainer, with what it reads when it is replayed."""

    def __init__(
        self, step: Callable[[Mapping[str, Tensor], Moment], None], line: Callable[[int], Line], device: torch.device,
        recorder: Recorder, state: Iterable[Tensor],
    ) -> None:
        """`state`: all tensors that a step writes and others might; `line`: the numbers of the step after so many."""
        self._step, self._line, self._recorder, self.state = step, line, recorder, list(state)
        self._table = torch.zeros(AHEAD, 2, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._lines = range(0)
        """Steps whose numbers are there and to come."""
        self._acts: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self._key: Hashable = None
        self._n_same = 0
        self.recording = False
        """A step is being recorded; if that failed, it still is."""

    def step(self, acts: Mapping[str, Tensor], n_steps: int, launches: Hashable) -> None:
        """The step after `n_steps`, on raw rows by hook.

        Args:
            launches: equal where those of two steps are the same, for rows of one shape.

        Raises:
            RuntimeError: it could not be captured, and has not been taken.
        """
        key = launches, tuple((hook, rows.shape, rows.dtype) for hook, rows in acts.items()), self._versions()
        if key != self._key:
            self._replay, self._n_same = None, 0
            self._acts = {hook: torch.empty_like(rows, device=self._table.device) for hook, rows in acts.items()}
        for hook, rows in acts.items():
            self._acts[hook].copy_(rows, non_blocking=True)
        self._look_ahead(n_steps)
        if self._replay is None and self._n_same < N_WARM:
            self._recorder.run(self._run)
        else:
            if self._replay is None:
                self.recording = True
                self._replay = self._recorder.record(self._run)
                self.recording = False
            self._replay()
            # autograd has to learn that they changed
            torch.autograd.graph.increment_version(self.state)
        self._n_same += 1
        self._lines = self._lines[1:]
        self._key = (*key[:2], self._versions())

    def _versions(self) -> Sequence[int]:
        return tuple(tensor._version for tensor in self.state)

    def _run(self) -> None:
        line = self._table.index_select(0, self._place)[0]
        self._step(self._acts, Moment(line[0], line[1:].view(torch.float32)))
        self._place += 1

    def _look_ahead(self, n_steps: int) -> None:
        """Put the numbers of the next steps on the device, unless they are there."""
        if self._lines and self._lines[0] == n_steps:
            return
        self._lines = range(n_steps, n_steps + AHEAD)
        lines = [self._line(n) for n in self._lines]
        rates = torch.tensor([line[1:] for line in lines], dtype=torch.float64).float()
        table = torch.stack([torch.tensor([line.rows_seen for line in lines]), rates.view(torch.int64)[:, 0]], 1)
        if self._table.is_cuda:
            table = table.pin_memory()
        self._table.copy_(table, non_blocking=True)
        self._place.zero_()
