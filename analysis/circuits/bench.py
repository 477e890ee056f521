"""Benchmark node effects: time per prompt pair by number of sites and of steps; it should be linear in both.

Prompts are random tokens and SAEs are untrained, which changes the active features but not the amount of work.
"""

import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from analysis.circuits.effects.nodes import batch_effects
from analysis.circuits.model import CircuitModel
from analysis.circuits.tasks.examples import Examples
from analysis.circuits.tasks.metrics import logit_difference
from sae.base import SAE
from sae.errors import SaescopeError
from sae.init import initialise
from sae.variants import VARIANTS
from training.bench.setup import machine
from training.display import Display
from training.model.language_model import Model
from training.model.load import load_model
from training.site import Site

KINDS = ("hook_attn_out", "hook_mlp_out", "hook_resid_post")


def bench_circuits(
    *, model: str = "smollm2-135m", n_sites: Sequence[int] = (2, 4, 8), n_steps: Sequence[int] = (1, 2, 5),
    n_pairs: int = 8, n_ctx: int = 12, d_sae: int = 4608, k: int = 32, repeats: int = 3, display: Display | None = None,
) -> dict[str, Any]:
    """Time integrated gradients per prompt pair by number of sites and steps, and fit a line.

    Cells are timed in turns, after one warm-up call per set of sites. Sites are centred on the middle of the model, so
    that the mean number of later blocks is the same for every set.

    Args:
        model: the language model.
        n_sites: sizes of the sets of sites.
        n_steps: numbers of integrated-gradients steps.
        n_pairs: prompt pairs, in one batch.
        n_ctx: tokens per prompt.
        d_sae, k: size and sparsity of the SAEs.
        repeats: timed rounds; a cell's time is the median.
        display: shows progress, in passes through the model (one per site and step).

    Raises:
        SaescopeError: the model has too few sites.
    """
    network = load_model(model)
    if max(n_sites) > len(KINDS) * network.n_layers:
        raise SaescopeError(f"{max(n_sites)} sites were asked for, but {model} has only {len(KINDS) * network.n_layers}.")
    examples = _examples(network, n_pairs, n_ctx)
    models = {n: _circuit_model(network, examples, n, d_sae, k) for n in n_sites}
    cells = [(n, steps) for n in n_sites for steps in n_steps]
    seconds: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
    for circuit_model in models.values():
        batch_effects(circuit_model, examples, logit_difference, method="ig", n_steps=1)
    passes = repeats * sum(n * steps for n, steps in cells)
    with (display or Display(quiet=True)).task("timing", passes, "passes") as task:
        for n, steps in cells * repeats:
            began = time.perf_counter()
            batch_effects(models[n], examples, logit_difference, method="ig", n_steps=steps)
            seconds[n, steps].append(time.perf_counter() - began)
            task.advance(n * steps)
    found = [float(np.median(seconds[cell])) / n_pairs for cell in cells]
    rows = [{"n_sites": n, "n_steps": steps, "ms_per_pair": 1e3 * s} for (n, steps), s in zip(cells, found, strict=True)]
    return {
        "model": model, "n_pairs": n_pairs, "n_ctx": n_ctx, "d_sae": d_sae, "k": k, "repeats": repeats,
        "machine": machine(), "cells": rows, "fit": line(cells, found),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def line(cells: Sequence[tuple[int, int]], seconds: Sequence[float]) -> dict[str, float]:
    """Fit seconds = fixed + per site + per site and step, by least squares of relative errors.

    Returns:
        The three coefficients in milliseconds, R², and the largest relative deviation of a cell.
    """
    sites, steps = np.array(cells, dtype=float).T
    design, found = np.stack([np.ones_like(sites), sites, sites * steps], 1), np.array(seconds)
    weights, *_ = np.linalg.lstsq(design / found[:, None], np.ones_like(found), rcond=None)
    residual = found - design @ weights
    return {
        "fixed_ms": 1e3 * weights[0], "per_site_ms": 1e3 * weights[1], "per_site_and_step_ms": 1e3 * weights[2],
        "r_squared": float(1 - residual.var() / found.var()), "largest_deviation": float(np.abs(residual / found).max()),
    }


def show(figures: dict[str, Any], display: Display) -> None:
    """Print the timings: one row per number of sites, one column per number of steps."""
    cells = {(cell["n_sites"], cell["n_steps"]): f"{cell['ms_per_pair']:.0f}" for cell in figures["cells"]}
    sites, steps = ({cell[i]: None for cell in cells} for i in (0, 1))
    fit = figures["fit"]
    display.table(
        f"ms per pair in {figures['model']}, {figures['n_ctx']} tokens; {figures['peak_gb']:.1f} GB at the peak",
        [(f"{n} sites", *(cells[n, step] for step in steps)) for n in sites], ("", *(f"{step} steps" for step in steps)),
    )
    display.say(
        f"{fit['fixed_ms']:.1f} ms + {fit['per_site_ms']:.1f} ms per site + {fit['per_site_and_step_ms']:.2f} ms per site "
        f"and step: R² {fit['r_squared']:.3f}, largest deviation of a cell {fit['largest_deviation']:.0%}"
    )


def _examples(model: Model, n_pairs: int, n_ctx: int) -> Examples:
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(0, model.d_vocab, (2, n_pairs, n_ctx), generator=draw)
    right, wrong = torch.randint(0, model.d_vocab, (2, n_pairs, 1), generator=draw)
    return Examples(clean, corrupt, right, wrong, torch.ones(n_pairs, n_ctx, dtype=torch.bool))


def _circuit_model(model: Model, examples: Examples, n_sites: int, d_sae: int, k: int) -> CircuitModel:
    """A model with untrained SAEs at its middle sites."""
    hooks = [f"blocks.{block}.{kind}" for block in range(model.n_layers) for kind in KINDS]
    first = (len(hooks) - n_sites) // 2
    hooks = hooks[first : first + n_sites]
    acts = model.activations(examples.clean, hooks)
    return CircuitModel(model, {Site(input=hook): _sae(acts[hook].flatten(0, 1).float(), d_sae, k) for hook in hooks})


def _sae(rows: torch.Tensor, d_sae: int, k: int) -> SAE:
    kind, config = VARIANTS["topk"]
    sae = kind(config.model_validate({"variant": "topk", "d_sae": d_sae, "k": k}), rows.shape[1])
    initialise(sae, rows)
    return sae
