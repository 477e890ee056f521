"""The legs of the end-to-end benchmark: filling a cache, training runs, and their parts, alternating.

All inputs are generated in one folder: a Llama network with random weights, random text, own rows
(`training.bench.inputs`). A run is stopped as soon as it has been measured (`training.bench.throughput`).
"""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.activations.cache import CacheSource, hook_folder
from training.activations.harvest import make_cache, open_data
from training.bench.inputs import make_model, make_rows, make_text
from training.bench.parts import Step, copy_rates, forward_rate, rate, read_rate, write_rate
from training.bench.throughput import Watched, paced
from training.config.reading import resolve
from training.config.schema import Config
from training.corpus.tokens import make_tokens
from training.display import Display, Task
from training.model.devices import fast_dtype, torch_dtype
from training.model.load import load_model
from training.sweep_shared import Shared, all_hooks, share

BUDGET = "500M tokens"
"""Nominal budget of the runs, which stop long before: so logging and the like are as rare as in a long run."""
WINDOW = "300k tokens"
"""Dead window, short enough that AuxK is active while measuring, as in most of a long run."""
N_KEPT = 16
"""Batches to cycle through when measuring the step alone."""
N_WRITTEN = 64 * 2**20
"""Bytes per file when measuring writes."""
N_THREADS = tuple(sorted({1, min(8, os.cpu_count() or 1)}))
"""Numbers of threads for reading and writing; the best result counts."""
N_SEQS = {"cpu": (16,), "cuda": (16, 64, 256)}
"""Numbers of sequences per forward pass; the best result counts."""
TITLES = {"cache": "training from the cache", "rows": "training from own rows", "stream": "training on a stream"}


@dataclass(frozen=True)
class Size:
    """The sizes of an SAE, its network and its corpus."""

    d_in: int
    d_sae: int
    k: int
    batch_rows: int
    n_layers: int
    n_heads: int
    d_mlp: int
    n_ctx: int
    n_tokens: int
    superblock_rows: int


class Legs:
    """The benchmark of one size, in its own folder; `rates` holds the results in rows per second, by name."""

    def __init__(
        self, folder: Path, size: Size, device: torch.device, seconds: float, overrides: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        """Generate text and a network; one copy is loaded as the model, the other stays bare."""
        self.folder, self.size, self.device, self.seconds = folder, size, device, seconds
        self.overrides, self.say = overrides, say
        self.rates: dict[str, list[float]] = {}
        self.facts: dict[str, Any] = {"device": str(device), "seconds": seconds, "rounds": 0}
        say("generating a network and text")
        self.bare = make_model(
            folder / "model", d_model=size.d_in, n_layers=size.n_layers, n_heads=size.n_heads, d_mlp=size.d_mlp,
            n_ctx=size.n_ctx, dtype=torch_dtype(fast_dtype(device)), device=device,
        )
        make_text(folder / "text.jsonl", n_tokens=size.n_tokens, n_ctx=size.n_ctx)
        self.model = load_model(f"local:{folder / 'model'}", device=str(device), dtype="auto")
        self.facts["model_dtype"] = str(self.model.dtype).removeprefix("torch.")

    @property
    def hook(self) -> str:
        """The hook that is read: after the last block."""
        return f"blocks.{self.size.n_layers - 1}.hook_resid_post"

    def config(self, leg: str, name: str) -> Config:
        """The config of a run: defaults, except for sizes, folders and `WINDOW`.

        Args:
            leg: `cache`, `rows` or `stream`.
            name: name of the run and of the cache.
        """
        size, own = self.size, leg == "rows"
        text = {"sources": f"jsonl:{self.folder / 'text.jsonl'}", "n_ctx": size.n_ctx, "n_tokens": size.n_tokens}
        cache = {"dir": str(self.folder / "cache"), "name": name, "shard_rows": min(65_536, size.n_tokens // 8)}
        fields: dict[str, Any] = {
            "name": name,
            "model": None if own else {"name": f"local:{self.folder / 'model'}", "device": str(self.device)},
            "corpus": {"sources": f"acts:{self.folder / 'rows'}", "n_ctx": size.n_ctx} if own else text,
            "cache": cache | {"mode": "stream" if leg == "stream" else "disk"},
            "site": "acts" if own else self.hook,
            "data": {"batch_rows": size.batch_rows, "superblock_rows": size.superblock_rows},
            "sae": {"variant": "topk", "d_sae": size.d_sae, "k": size.k},
            "train": {"budget": BUDGET, "device": str(self.device), "dead_window": WINDOW},
            "eval": {"n_rows": min(16_384, size.n_tokens // 32), "n_tokens": 0},
        }
        # own rows have neither model nor cache
        fitting = [text for text in self.overrides if not (own and text.startswith(("model.", "cache.")))]
        return resolve(fields, fitting)[0]

    def once(self, legs: Sequence[str]) -> None:
        """Run one round of all measurements."""
        name = f"round-{self.facts['rounds']}"
        self._measure_model()
        if any(leg != "stream" for leg in legs):
            self.say("filling a cache")
            self._fill(name)
        for leg in legs:
            if leg in TITLES:
                self.say(TITLES[leg])
                self._train(leg, name)
                # free the run's device memory for the next run's superblocks
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        self._measure_model()
        row_bytes = 2 * self.size.d_in
        for part, value in copy_rates(self.device, self.seconds / 4).items():
            self._note(part, value / row_bytes)
        self._note("write", max(write_rate(self.folder, N_WRITTEN, n, self.seconds / 4) for n in N_THREADS) / row_bytes)
        self.facts["rounds"] += 1

    def _note(self, name: str, rows_per_s: float) -> None:
        self.rates.setdefault(name, []).append(rows_per_s)
        self.say(f"{name}: {rows_per_s:,.0f} tokens/s")

    def _measure_model(self) -> None:
        """Measure the bare forward pass with the best number of sequences."""
        found = {
            n: forward_rate(self.bare, n, self.size.n_ctx, self.model.d_vocab, self.device, self.seconds / 4)
            for n in N_SEQS.get(self.device.type, N_SEQS["cpu"])
        }
        self.facts["model_n_seqs"] = max(found, key=found.__getitem__)
        self._note("model", max(found.values()))

    def _fill(self, name: str) -> None:
        """Measure filling a cache, then reading its files."""
        config = self.config("cache", name)
        tokens = make_tokens(config, self.model)
        clock = Clocked()
        make_cache(config, self.model, tokens, (self.hook,), clock)
        self._note("fill", clock.per_second())
        assert tokens.folder is not None
        self._read("cache", sorted(hook_folder(tokens.folder, self.hook).glob("shard-*.npy")))

    def _read(self, leg: str, files: Sequence[Path]) -> None:
        row_bytes = 2 * self.size.d_in
        self._note(f"read {leg}", max(read_rate(files, n, self.seconds / 4) for n in N_THREADS) / row_bytes)

    def _train(self, leg: str, name: str) -> None:
        """Train until it has been measured, then measure the step alone on the same batches."""
        rows = self.folder / "rows"
        if leg == "rows" and not rows.exists():
            source = CacheSource(self.folder / "cache" / name, [self.hook])
            corpus = self.config("cache", name).corpus
            make_rows(rows, source, self.hook, n_rows=corpus.n_tokens, n_ctx=corpus.n_ctx)
        if leg == "rows":
            self._read(leg, sorted(rows.glob("*.npy")))
        model = None if leg == "rows" else self.model

        def opened(members: Sequence[Config], display: Display) -> Shared:
            return share(members, open_data(members[0], all_hooks(members), display, model), display)

        config = self.config(leg, name)
        watch, shared = paced(
            config, self.folder / "runs" / f"{leg}-{name}", opened, self.device, seconds=self.seconds, keep=N_KEPT
        )
        self._note(leg, watch.rows_per_s)
        step = Step(config, shared, self.device, watch.kept, watch.n_warmup)
        self._note(f"step {leg}", rate(step.one, self.device, self.seconds / 4))
        self._remember(leg, watch, step)

    def _remember(self, leg: str, watch: Watched, step: Step) -> None:
        """Record facts about how a leg was measured."""
        self.facts["kernels"] = step.trainer.sae.kernels.name
        self.facts.setdefault("stretches", {})[leg] = watch.facts() | {"dead_share": step.trainer.dead_share}


class Clocked(Display):
    """A quiet display that records the time of each piece of work."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.marks: list[tuple[float, int]] = []

    @contextmanager
    def task(self, title: str, total: int, unit: str = "tokens") -> Iterator[Task]:
        """Like `Display.task`, but record the time of every piece of work and of the end."""
        with super().task(title, total, unit) as task:
            advance = task.advance

            def marked(n: int) -> None:
                advance(n)
                self.marks.append((time.perf_counter(), n))

            task.advance = marked  # type: ignore[method-assign]
            yield task
        self.marks.append((time.perf_counter(), 0))

    def per_second(self) -> float:
        """Units per second from the end of the first piece, when everything is running."""
        return sum(n for _, n in self.marks[1:]) / (self.marks[-1][0] - self.marks[0][0])
