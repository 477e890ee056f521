"""How fast a training step is: Saescope beside a dense step and other libraries, on the same weights and batches.

One step is forward, loss, backward, clipping, Adam, unit decoder rows where the method has them, and firing counts.
The contestants take turns step by step in an order drawn anew each round, so that whatever else the machine does falls
on all alike; libraries that need another environment run in a process of their own that waits while others step.
Beside each figure stands the floor, the encoder product alone: the faster of `torch.mm` (into memory that is kept) and
`F.linear` on these tensors, in the number format of that contestant, measured in the same rounds.
"""

import json
import platform
import random
import statistics
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sae.errors import SaescopeError
from sae.kernels import Backend, ParamState, Select, backend
from training.bench_peers import peak_mib

LR, BETAS, EPS, CLIP = 2e-4, (0.9, 0.999), 1e-8, 1.0
WORKER = Path(__file__).with_name("bench_peers.py")
PEERS = ("SAELens", "dictionary_learning")
N_PREFIXES = 5


class Shape(NamedTuple):
    """The size of a step."""

    n_rows: int
    d_in: int
    d_sae: int
    k: int


SHAPES = (Shape(2048, 768, 16_384, 32), Shape(1024, 576, 4_608, 32), Shape(1024, 768, 65_536, 64))


@dataclass
class Setup:
    """What all contestants begin with."""

    shape: Shape
    batches: Float[Tensor, "n_batches n_rows d_in"]
    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    dead: Bool[Tensor, " d_sae"] | None

    @classmethod
    def make(cls, shape: Shape, *, n_batches: int = 8, dead_share: float = 0.0, seed: int = 0) -> "Setup":
        """Rows that are sums of few of many directions, heavy-tailed in frequency, as activations are; tied weights."""
        draw = torch.Generator().manual_seed(seed)
        atoms = F.normalize(torch.randn(2 * shape.d_in, shape.d_in, generator=draw), dim=1)
        odds = 1 / torch.arange(1, len(atoms) + 1)
        batches = []
        for _ in range(n_batches):
            chosen = torch.multinomial(odds.expand(shape.n_rows, -1), 24, generator=draw)
            size = torch.rand(shape.n_rows, 24, generator=draw) * 4
            rows = torch.einsum("rc,rcd->rd", size, atoms[chosen])
            batches.append(rows + 0.3 * torch.randn(shape.n_rows, shape.d_in, generator=draw))
        rows = torch.randn(shape.d_sae, shape.d_in, generator=draw)
        rows /= rows.norm(dim=1, keepdim=True)
        dead = None
        if dead_share:
            dead = torch.rand(shape.d_sae, generator=draw) < dead_share
        return cls(shape, torch.stack(batches), rows.clone().t(), rows, dead)

    def save(self, path: Path) -> None:
        """For the workers."""
        fields = {"batches": self.batches, "W_enc": self.W_enc, "W_dec": self.W_dec, "dead": self.dead}
        torch.save(fields | {"k": self.shape.k, "lr": LR, "n_threads": torch.get_num_threads()}, path)


# -- contestants ------------------------------------------------------------------------------------------------------


class Contestant(ABC):
    """Something that takes training steps."""

    name: str
    precision: str = "fp32"

    @abstractmethod
    def step(self, batch: int) -> tuple[float, float]:
        """One step on the batch of this number: (milliseconds, reconstruction loss)."""

    def close(self) -> None:  # noqa: B027  (most have no process to let go of)
        """Let go of processes."""


class Ours(Contestant):
    """A step as the trainer takes it, through one of the backends."""

    def __init__(
        self, setup: Setup, variant: str, precision: str, kernels: Backend, *, keep_setup: bool = True
    ) -> None:
        self.name, self.precision = f"saescope {variant} {precision}", precision
        self.setup, self.variant, self.kernels = setup, variant, kernels
        self.select = Select(
            "batch_topk" if variant == "batchtopk" else "topk", k=setup.shape.k, absolute=variant == "abstopk"
        )
        d_sae = setup.shape.d_sae
        self.prefixes = tuple(d_sae >> n for n in reversed(range(N_PREFIXES))) if variant == "matryoshka" else None
        weights = setup.W_enc, setup.W_dec
        if keep_setup:
            weights = weights[0].t().clone().t(), weights[1].clone()
        self.W_enc, self.W_dec = (w.requires_grad_() for w in weights)
        self.b_enc = torch.zeros(d_sae, requires_grad=True)
        self.b_dec = torch.zeros(setup.shape.d_in, requires_grad=True)
        self.params = [
            ParamState(p, torch.zeros_like(p), torch.zeros_like(p), unit_rows=p is self.W_dec)
            for p in (self.W_enc, self.W_dec, self.b_enc, self.b_dec)
        ]
        self.fired = torch.zeros(d_sae, dtype=torch.int64)
        self.n_steps = 0

    def step(self, batch: int) -> tuple[float, float]:
        """Forward, loss, backward, optimiser, counts."""
        x = self.setup.batches[batch]
        began = time.perf_counter()
        self.n_steps += 1
        out = self.kernels.autoencode(
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.select, b_pre=self.b_dec, prefixes=self.prefixes
        )
        target = x.expand_as(out.x_hat)
        # the square and its gradient in one pass each; written out, x_hat would be read and written five times
        loss = F.mse_loss(out.x_hat, target, reduction="sum") / (len(target) * len(x))
        if self.setup.dead is not None:
            loss = loss + self.auxk(x, x - out.x_hat[-1])
        loss.backward()
        self.kernels.optimizer_step(
            self.params, step=self.n_steps, lr=LR, betas=BETAS, eps=EPS, clip=CLIP
        )
        for p in self.params:
            p.param.grad = None
        self.fired += out.code.counts()
        ms = (time.perf_counter() - began) * 1e3
        return ms, float((x - out.x_hat[-1].detach()).square().sum() / len(x))

    def auxk(self, x: Tensor, residual: Tensor) -> Tensor:
        """The auxiliary loss over the dead."""
        dead = self.setup.dead
        assert dead is not None
        k_aux = min(x.shape[1] // 2, int(dead.sum()))
        aux = self.kernels.auxk(x, self.W_enc, self.b_enc, self.W_dec, dead, k_aux, b_pre=self.b_dec)
        return (residual.detach() - aux).square().sum() / len(x) / 32


class Dense(Contestant):
    """A careful dense step in eager torch: one product each way, foreach clipping, fused Adam."""

    name = "dense eager"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.weight = setup.W_enc.t().clone().requires_grad_()
        self.W_dec = setup.W_dec.clone().requires_grad_()
        self.b_enc = torch.zeros(setup.shape.d_sae, requires_grad=True)
        self.b_dec = torch.zeros(setup.shape.d_in, requires_grad=True)
        self.params = [self.weight, self.W_dec, self.b_enc, self.b_dec]
        self.optimizer = torch.optim.Adam(self.params, lr=LR, betas=BETAS, eps=EPS, fused=True)
        self.fired = torch.zeros(setup.shape.d_sae, dtype=torch.int64)

    def step(self, batch: int) -> tuple[float, float]:
        """Forward, loss, backward, optimiser, counts."""
        x = self.setup.batches[batch]
        began = time.perf_counter()
        top = F.linear(x - self.b_dec, self.weight, self.b_enc).relu().topk(self.setup.shape.k, dim=1, sorted=False)
        acts = torch.zeros(len(x), len(self.weight)).scatter(1, top.indices, top.values)
        residual = x - (acts @ self.W_dec + self.b_dec)
        reconstruction = residual.square().sum() / len(x)
        loss = reconstruction if self.setup.dead is None else reconstruction + self.auxk(x, residual)
        loss.backward()
        with torch.no_grad():
            grad = self.W_dec.grad
            assert grad is not None
            grad.sub_((grad * self.W_dec).sum(1, keepdim=True) * self.W_dec)
            torch.nn.utils.clip_grad_norm_(self.params, CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
            self.fired += torch.bincount(top.indices.view(-1), minlength=len(self.fired))
        return (time.perf_counter() - began) * 1e3, float(reconstruction.detach())

    def auxk(self, x: Tensor, residual: Tensor) -> Tensor:
        """The auxiliary loss over the compacted dead."""
        ids = self.setup.dead.nonzero().squeeze(-1)  # type: ignore[union-attr]
        pre = F.linear(x - self.b_dec, self.weight[ids], self.b_enc[ids]).relu()
        top = pre.topk(min(x.shape[1] // 2, len(ids)), dim=1, sorted=False)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        return (residual.detach() - acts @ self.W_dec[ids]).square().sum() / len(x) / 32


class Peer(Contestant):
    """Another library's step, in a process of its own."""

    def __init__(self, name: str, setup_file: Path, python: Path) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [str(python), str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer = self.ask(start=name, setup=str(setup_file))
        if "missing" not in self.answer:
            self.name = f"{name} {self.answer['version']}"

    def ask(self, **request: object) -> dict[str, Any]:
        """One request and its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SaescopeError(f"bench: the process of {self.name} ended; see its message above.")
        return json.loads(line)

    def step(self, batch: int) -> tuple[float, float]:
        """One step, timed over there."""
        answer = self.ask(step=batch)
        return answer["ms"], answer["loss"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


# -- measuring --------------------------------------------------------------------------------------------------------


class Floor:
    """The encoder product alone, in one number format."""

    def __init__(self, setup: Setup, precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.x, self.w = setup.batches[0].to(dtype), setup.W_enc.t().contiguous().to(dtype)
        self.out = torch.empty(self.x.shape[0], self.w.shape[0], dtype=dtype)
        self.times: dict[str, list[float]] = {"torch.mm": [], "F.linear": []}

    def measure(self) -> None:
        """One product each way."""
        began = time.perf_counter()
        torch.mm(self.x, self.w.t(), out=self.out)
        middle = time.perf_counter()
        F.linear(self.x, self.w)
        self.times["torch.mm"].append((middle - began) * 1e3)
        self.times["F.linear"].append((time.perf_counter() - middle) * 1e3)

    def medians(self) -> dict[str, float]:
        """Milliseconds of each."""
        return {name: statistics.median(times) for name, times in self.times.items()}


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and minimum."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return {"median": middle, "q1": low, "q3": high, "min": min(times)}


def contestants(
    setup: Setup, variants: Sequence[str], precisions: Sequence[str], dense: bool, python: Path | None, folder: Path
) -> tuple[list[Contestant], list[str]]:
    """Everyone who takes part, and who could not."""
    found: list[Contestant] = [
        Ours(setup, variant, precision, backend("cpu", "cpu", precision))
        for precision in precisions for variant in variants
    ]
    missing: list[str] = []
    if dense:
        found.append(Dense(setup))
    if python is not None:
        setup.save(folder / "setup.pt")
        for name in PEERS:
            peer = Peer(name, folder / "setup.pt", python)
            if "missing" in peer.answer:
                missing.append(f"{name}: {peer.answer['missing']}")
                peer.close()
            else:
                found.append(peer)
    return found, missing


def breakdown(ours: Ours, n_steps: int = 3) -> dict[str, float]:
    """Milliseconds of each operation in one step."""
    from sae.kernels import cpu_run

    cpu_run.timings = {}
    total = sum(ours.step(i % len(ours.setup.batches))[0] for i in range(n_steps))
    parts = {name: seconds * 1e3 / n_steps for name, seconds in sorted(cpu_run.timings.items(), key=lambda p: -p[1])}
    cpu_run.timings = None
    return parts | {"everything else": total / n_steps - sum(parts.values())}


def measure(
    setup: Setup, field: Sequence[Contestant], *, repeats: int, warmup: int, loss_steps: int, seed: int
) -> dict[str, Any]:
    """Interleaved times of everyone, with floors; then the losses after `loss_steps` steps."""
    precisions = sorted({c.precision for c in field})
    floors = {precision: Floor(setup, precision) for precision in precisions}
    times: dict[str, list[float]] = {c.name: [] for c in field}
    first: dict[str, float] = {}
    losses: dict[str, float] = {}
    n_taken, order = 0, random.Random(seed)

    def round_of_steps(keep: bool) -> None:
        nonlocal n_taken
        for floor in floors.values() if keep else ():
            floor.measure()
        for c in order.sample(list(field), len(field)):
            ms, losses[c.name] = c.step(n_taken % len(setup.batches))
            first.setdefault(c.name, ms)
            if keep:
                times[c.name].append(ms)
        n_taken += 1

    for i in range(max(warmup + repeats, loss_steps)):
        round_of_steps(keep=warmup <= i < warmup + repeats)
    medians = {precision: floor.medians() for precision, floor in floors.items()}
    rows = []
    for c in field:
        floor_ms = min(medians[c.precision].values())
        stats = spread(times[c.name])
        rows.append({
            "name": c.name, "ms": stats, "rows_per_second": setup.shape.n_rows / stats["median"] * 1e3,
            "floor_ms": floor_ms, "times_floor": stats["median"] / floor_ms, "first_step_ms": first[c.name],
            "loss": losses[c.name], "loss_after_steps": n_taken,
        })
    return {"floors_ms": medians, "contestants": rows}


def bench_kernels(
    shapes: Sequence[Shape] = SHAPES, *, repeats: int = 7, warmup: int = 2, loss_steps: int = 0,
    variants: Sequence[str] = ("topk", "abstopk", "batchtopk", "matryoshka"), precisions: Sequence[str] | None = None,
    dense: bool = True, dead_shares: Sequence[float] = (0.0, 0.01), peers: Path | None = None, memory: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Time training steps of each shape.

    Args:
        shapes: (n_rows, d_in, d_sae, k) of each step.
        repeats: timed steps of each contestant.
        warmup: steps before these; the first holds compilation and is reported apart.
        loss_steps: go on (untimed) until this many steps have been taken, and report the losses there.
        variants: of Saescope; the first also with each of `dead_shares`.
        precisions: of Saescope's encoder; None means fp32, and bf16 where the processor has it.
        dense: also a dense step in eager torch.
        dead_shares: shares of dead features; above 0 with AuxK.
        peers: the Python of an environment with other libraries (`make bench-peers`); None leaves them out.
        memory: also the peak memory of each, in processes of their own.
        seed: of data, weights and order.
    """
    from sae.kernels.cpu import bf16_is_fast

    if precisions is None:
        precisions = ("bf16", "fp32") if bf16_is_fast() else ("fp32",)
    results = []
    for shape in shapes:
        for share in dead_shares:
            chosen = variants if share == 0 else variants[:1]
            setup = Setup.make(Shape(*shape), dead_share=share, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                field, missing = contestants(setup, chosen, precisions, dense, peers, Path(folder))
                try:
                    result = measure(setup, field, repeats=repeats, warmup=warmup, loss_steps=loss_steps, seed=seed)
                    result["breakdown_ms"] = {c.name: breakdown(c) for c in field if isinstance(c, Ours)}
                    result["peak_mib"] = peaks(setup, field, share, seed) if memory else {}
                finally:
                    for c in field:
                        c.close()
            results.append({"shape": Shape(*shape)._asdict(), "dead_share": share, "missing": missing} | result)
    return {"machine": machine(), "results": results}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import os

    return {
        "processor": processor(), "n_cores": os.cpu_count(), "n_threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(), "load_average": os.getloadavg(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
             ] if info.exists() else []
    return names[0] if names else platform.processor()


# -- memory -----------------------------------------------------------------------------------------------------------


def peaks(setup: Setup, field: Sequence[Contestant], dead_share: float, seed: int) -> dict[str, float]:
    """Peak MiB of each contestant's own process, its libraries and the benchmark's batches included."""
    found: dict[str, float] = {}
    for c in field:
        if isinstance(c, Peer):
            found[c.name] = c.ask(peak=True)["mib"]
        else:
            variant = c.variant if isinstance(c, Ours) else "dense"
            found[c.name] = peak_of(setup.shape, variant, c.precision, dead_share, seed)
    return found


def peak_of(shape: Shape, variant: str, precision: str, dead_share: float, seed: int) -> float:
    """Peak MiB of a fresh process that takes three steps."""
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    settings = (tuple(shape), variant, precision, dead_share, seed, torch.get_num_threads())
    process = context.Process(target=_three_steps, args=(theirs, *settings))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as ended:
        raise SaescopeError(f"bench: measuring the memory of {variant} failed; see the message above.") from ended
    finally:
        process.join()


def _three_steps(
    connection: Any, shape: tuple[int, int, int, int], variant: str, precision: str, dead_share: float, seed: int,
    n_threads: int,
) -> None:
    """In the process of `peak_of`."""
    torch.set_num_threads(n_threads)
    setup = Setup.make(Shape(*shape), n_batches=1, dead_share=dead_share, seed=seed)
    c: Contestant = Dense(setup)
    if variant != "dense":
        c = Ours(setup, variant, precision, backend("cpu", "cpu", precision), keep_setup=False)
    for _ in range(3):
        c.step(0)
    connection.send(peak_mib())


# -- the table --------------------------------------------------------------------------------------------------------


def show(figures: dict[str, Any], write: Callable[[Any], None]) -> None:
    """Write one table per shape, e.g. with `rich.console.Console().print`."""
    from rich.table import Table

    for result in figures["results"]:
        shape, share = result["shape"], result["dead_share"]
        title = ", ".join(f"{name} {value:,}" for name, value in shape.items())
        table = Table(title=title + (f", {share:.0%} dead, AuxK" if share else ""))
        for column in ("step", "ms", "quartiles", "rows/s", "× floor", "slowest is", "peak MiB", "loss"):
            table.add_column(column, justify="left" if column == "step" else "right")
        slowest = max(row["ms"]["median"] for row in result["contestants"])
        for row in sorted(result["contestants"], key=lambda row: row["ms"]["median"]):
            ms, peak = row["ms"], result["peak_mib"].get(row["name"])
            table.add_row(
                row["name"], f"{ms['median']:.1f}", f"{ms['q1']:.1f}–{ms['q3']:.1f}", f"{row['rows_per_second']:,.0f}",
                f"{row['times_floor']:.2f}", f"{slowest / ms['median']:.1f}× this",
                "" if peak is None else f"{peak:,.0f}", f"{row['loss']:.4g}",
            )
        write(table)
        for missing in result["missing"]:
            write(f"not measured: {missing}")
        for name, parts in result["breakdown_ms"].items():
            write(f"{name}: " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items()))
