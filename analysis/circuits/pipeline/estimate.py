"""Estimate a circuit's run time and memory from one batch, before the work begins."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from analysis.circuits.effects.gradients import clean_gradients
from analysis.circuits.graph import layer_of
from analysis.circuits.model import CircuitModel
from analysis.circuits.pipeline.config import CircuitConfig
from analysis.circuits.tasks.examples import Examples, Metric


@dataclass(frozen=True)
class Estimate:
    """Seconds per stage, and peak memory in bytes."""

    seconds: dict[str, float]
    n_bytes: int

    def __str__(self) -> str:
        """The estimate on one line."""
        parts = ", ".join(f"{name} {_time(s)}" for name, s in self.seconds.items() if s >= 1)
        return f"about {_time(sum(self.seconds.values()))} and {self.n_bytes / 1e9:.1f} GB ({parts})"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def estimate(
    config: CircuitConfig, model: CircuitModel, train: Sequence[Examples], test: Sequence[Examples], metric: Metric
) -> Estimate:
    """Time one forward and one backward pass of a batch, and extrapolate.

    The passes of a site run only the blocks after it. Unknown counts (how many edges there are) are taken from the config's
    limits, so the estimate errs on the high side.
    """
    part = train[0].take(slice(0, config.effects.batch))
    forward, both = _passes(model, part, metric)
    batches = sum(-(-len(group) // config.effects.batch) for group in train)
    tests = sum(-(-len(group) // config.effects.batch) for group in test)
    behind = _blocks_behind(model) / model.n_layers
    steps = {"attribution": 0, "relp": 0, "exact": 0}.get(config.effects.method, config.effects.n_steps)
    effects = batches * (both * (1 + steps * behind) + 2 * forward)
    sizes = 2 * config.checks.n_points
    neurons = batches * both * (1 + steps * model.n_layers / 2) if config.checks.neurons else 0
    seconds = {
        "effects": effects,
        "exact ablation": forward * config.effects.n_exact * behind if config.effects.n_exact else 0.0,
        "edges": batches * config.nodes.most * both * 0.3 if config.edges.most else 0.0,
        "tests": tests * forward * (sizes + config.checks.n_random * config.checks.n_points),
        "edges alone": tests * forward * config.nodes.most * 3 if config.edges.most else 0.0,
        "MLP activations": neurons + tests * forward * config.checks.n_points if config.checks.neurons else 0.0,
    }
    return Estimate(seconds, _bytes(model, part))


def _passes(model: CircuitModel, part: Examples, metric: Metric) -> tuple[float, float]:
    """Seconds of a forward pass, and of a forward plus backward pass; the first call is warm-up."""
    for _ in range(2):
        began = time.perf_counter()
        with torch.no_grad():
            model.model.logits(part.clean)
        middle = time.perf_counter()
        clean_gradients(model, part, metric)
        ended = time.perf_counter()
    return middle - began, ended - middle


def _blocks_behind(model: CircuitModel) -> int:
    """Blocks run by the passes of each site, summed over sites."""
    return sum(model.n_layers - (layer_of(site) or 0) for site in model.sites)


def _bytes(model: CircuitModel, part: Examples) -> int:
    """Peak memory: weights, a batch's logits and their gradient, tensors saved for backward, and all node effects."""
    network = sum(p.numel() * p.element_size() for p in model.model.bridge.parameters())
    saes = sum(p.numel() * p.element_size() for sae in model.saes.values() for p in sae.parameters())
    tokens = len(part) * part.n_ctx
    logits = 4 * tokens * model.model.d_vocab * 4
    cfg = model.model.bridge.cfg
    kept = tokens * model.n_layers * (14 * int(cfg.d_model) + 5 * int(cfg.d_mlp or 4 * cfg.d_model)) * 4
    return int(network + saes + logits + kept + 0.6e9)
