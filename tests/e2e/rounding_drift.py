"""How far fp32 training on one process drifts when its initial weights are perturbed by 1e-7: the effect of rounding alone.

    python -m tests.e2e.rounding_drift --variant matryoshka --n 12

Runs the trainings of `tests.e2e.ranks`. Prints the first step in which the active features, the dead features and the loss
(by more than 1e-5) differ from the unperturbed training.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.base import SAE
from tests.e2e.ranks import VARIANTS, WITHIN, D, config
from tests.training.distributed.launched import write_rows
from training import run
from training.trainer import Trainer

BY = 1e-7
"""Relative perturbation of each weight (standard deviation)."""


class Seen(NamedTuple):
    """Active features, dead features and loss of a step."""

    support: frozenset[int]
    dead: frozenset[int]
    loss: float


def trained(variant: str, rows: str, runs: Path, steps: int, seed: int) -> list[Seen]:
    """All steps of a training; seed 0 leaves the weights unperturbed."""
    seen: list[Seen] = []
    new_sae, count = run.new_sae, Trainer._count

    def perturbed(*args: Any) -> SAE:
        sae, draw = new_sae(*args), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in (sae.W_enc, sae.W_dec) if seed else ():
                weight.mul_(1 + BY * torch.randn(weight.shape, generator=draw))
        return sae

    def look(self: Trainer, step: Any, *args: Any) -> None:
        code, dead = step.code.csr(), self.dead().nonzero().squeeze(-1)
        places = code.rows() * code.d_sae + code.feature
        seen.append(Seen(frozenset(places.tolist()), frozenset(dead.tolist()), float(step.loss.detach())))
        count(self, step, *args)

    run.new_sae, Trainer._count = perturbed, look  # type: ignore[method-assign]
    try:
        run.train(config(variant, rows, steps, 1) | {"name": f"{variant}-{seed}"}, runs=runs, quiet=True)
    finally:
        run.new_sae, Trainer._count = new_sae, count  # type: ignore[method-assign]
    return seen


def first(differs: Sequence[bool]) -> str:
    """The first step that differs."""
    return f"step {differs.index(True) + 1}" if True in differs else "never"


def main(variant: str, n: int, steps: int) -> None:
    """Train once unperturbed and n times perturbed, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder) / "rows", 120_000, D)
        alone = trained(variant, rows, Path(folder), steps, 0)
        for seed in range(1, n + 1):
            pairs = list(zip(alone, trained(variant, rows, Path(folder), steps, seed), strict=True))
            apart = [abs(b.loss / a.loss - 1) for a, b in pairs]
            beyond = [x > WITHIN for x in apart]
            n_other = next((len(a.support - b.support) for a, b in pairs if a.support != b.support), 0)
            sys.stdout.write(
                f"{variant} {seed}: support differs first in {first([a.support != b.support for a, b in pairs])} "
                f"({n_other} of {len(alone[0].support)}), the dead "
                f"in {first([a.dead != b.dead for a, b in pairs])}, the loss in {first(beyond)}; {sum(beyond)} steps, "
                f"{max(apart):.1e} at most\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="matryoshka")
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    main(arguments.variant, arguments.n, arguments.steps)
