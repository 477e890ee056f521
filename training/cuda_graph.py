"""Capture a training step in a CUDA graph and replay it with one launch.

A replay repeats every launch of the step with the same addresses and host-side values. So rows are copied to the buffers
used at capture, and what changes between steps (rows seen, learning rate, Adam's bias corrections) is read from a table on
the device, with one line per upcoming step and a counter that advances through it. A step then costs the host one copy of
the rows and one launch.

The first steps run uncaptured, and so do two steps after anything changes that the launches depend on: k, the room for dead
features, weights written from outside. Then the step is captured again. Either way each step is taken exactly once, by the
same code.
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
"""Warm-up steps before a capture: they compile kernels and allocate what outlives a step."""
AHEAD = 512
"""Steps whose values are put on the device at a time."""


class Moment(NamedTuple):
    """The values that change from step to step."""

    rows_seen: int | Int64[Tensor, ""]
    """Training rows before the step."""
    rates: Float32[Tensor, "2"] | None
    """For the optimiser, on the device: see `sae.kernels.Backend.optimizer_step`. None: it uses host-side values."""


class Line(NamedTuple):
    """The values of one step, on the host."""

    rows_seen: int
    lr_over_bias: float
    one_over_bias2: float


@runtime_checkable
class Recorder(Protocol):
    """Runs steps and records their launches."""

    def run(self, step: Callable[[], None]) -> None:
        """Run a step in such a way that it can be recorded afterwards."""
        ...

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record the step's launches without running them; return a function that replays them. Raises RuntimeError."""
        ...


class CudaGraphs:
    """Record CUDA graphs that share one memory pool, since what a step allocates is free again when it ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        """The graphs in use."""

    def run(self, step: Callable[[], None]) -> None:
        """Run it on the stream on which it will be captured."""
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            step()
        here.wait_stream(self.stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture it. Launches of other threads that read, copy or save meanwhile are not captured."""
        graph, others = torch.cuda.CUDAGraph(), list(self.graphs)  # keep a reference, or their pool could be freed
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
    """Restore what torch leaves in capture mode when a capture fails: stream, random generator, memory pool."""
    here, generator = torch.cuda.current_stream(device), torch.cuda.default_generators[torch.cuda.current_device()]
    drawn = generator.clone_state()
    try:
        yield
    except RuntimeError:
        torch.cuda.set_stream(here)
        generator.graphsafe_set_state(drawn)
        with suppress(RuntimeError):  # raised if that has already been done
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise


@functools.cache
def cuda_graphs(device: torch.device) -> CudaGraphs:
    """The recorder of a device, shared by all its trainers."""
    return CudaGraphs(device)


class Captured:
    """One trainer's step, with the buffers it reads on replay."""

    def __init__(
        self, step: Callable[[Mapping[str, Tensor], Moment], None], line: Callable[[int], Line], device: torch.device,
        recorder: Recorder, state: Iterable[Tensor],
    ) -> None:
        """`state`: all tensors that a step writes and others might too; `line`: step number → values of the next step."""
        self._step, self._line, self._recorder, self.state = step, line, recorder, list(state)
        self._table = torch.zeros(AHEAD, 2, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._lines = range(0)
        """Upcoming steps whose values are on the device."""
        self._acts: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self._key: Hashable = None
        self._n_same = 0
        self.recording = False
        """Whether a step is being recorded; stays True if recording failed."""

    def step(self, acts: Mapping[str, Tensor], n_steps: int, launches: Hashable) -> None:
        """Take the step after `n_steps`, on raw rows by hook.

        Args:
            launches: a key that is equal for two steps if their launches are the same, given rows of the same shape.

        Raises:
            RuntimeError: the step could not be captured, and was not taken.
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
            # tell autograd that the replay changed them
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
        """Put the values of the next steps on the device, unless they are already there."""
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
