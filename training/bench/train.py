"""Benchmark a config's training steps with sparse kernels against `kernels=reference`: same weights and batches, in one
process, alternating."""

import random
import statistics
import time
from typing import Any

from sae.devices import resolve_device
from training.activations.batches import Batches
from training.activations.calibration import KeepMask, calibrate
from training.activations.harvest import open_data
from training.config import reading as configs
from training.display import Display
from training.schedule import Clock
from training.trainer import Trainer, new_sae

BACKENDS = ("auto", "reference")


def bench_train(config: str, *, n_steps: int = 30, n_warmup: int = 3, seed: int = 0) -> dict[str, Any]:
    """Median step time and tokens/s of each backend, and their ratio, over `n_steps` steps after `n_warmup`."""
    first = configs.read(config)[0]
    data = open_data(first, first.site.hooks, Display())
    mask = KeepMask(data.source, data.tokens, first.data.model_copy(update={"mask_hooks": first.site.hooks}))
    clock = Clock.of(first.train.budget, batch_rows=first.data.batch_rows, epoch_rows=data.tokens.n_eligible())
    batches = Batches(
        data.source, data.tokens, mask, first.site.hooks, seed=first.data.seed, batch_rows=first.data.batch_rows,
        superblock_rows=first.data.superblock_rows, block_rows=first.block_rows,
    )
    device = resolve_device(first.train.device)
    calibration = calibrate(first.site, mask)
    trainers = {}
    for name in BACKENDS:
        chosen = first.model_copy(update={"train": first.train.model_copy(update={"kernels": name})})
        trainers[name] = Trainer(chosen, new_sae(chosen, calibration), clock, device)
    stream = batches.stream(prefetch=0)
    times: dict[str, list[float]] = {name: [] for name in BACKENDS}
    draw = random.Random(seed)
    for step in range(n_warmup + n_steps):
        batch = next(stream)
        for name in draw.sample(BACKENDS, len(BACKENDS)):
            began = time.perf_counter()
            trainers[name].step(batch.acts)
            if step >= n_warmup:
                times[name].append(time.perf_counter() - began)
    stream.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "config": first.name, "device": str(device), "kernels": trainers["auto"].sae.kernels.name, "n_steps": n_steps,
        "ms": {name: 1e3 * value for name, value in medians.items()},
        "tokens_per_s": {name: first.data.batch_rows / value for name, value in medians.items()},
        "ratio": medians["reference"] / medians["auto"],
        "fve": {name: trainer.metrics()["fve"] for name, trainer in trainers.items()},
    }
