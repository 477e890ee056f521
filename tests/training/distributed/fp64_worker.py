"""Like `worker`, in fp64: weights, moments and products are doubles, starting from the same weights as in fp32.

The log rounds to fp32, so the numbers of each step are also written to RUNS/NAME.steps.json, by the first rank.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from sae.base import SAE
from training import run
from training.metric_window import Window


def in_double(steps: list[dict[str, float]]) -> None:
    """Make this process train in fp64, and append the numbers of each step to a list."""
    new_sae, add = run.new_sae, Window.add

    def begun(*args: Any) -> SAE:
        sae = new_sae(*args).double()
        torch.set_default_dtype(torch.float64)  # the training sets it back at its end
        return sae

    def kept(self: Window, values: dict[str, Any]) -> None:
        steps.append({name: float(value) for name, value in values.items()})
        add(self, values)

    run.new_sae, Window.add = begun, kept  # type: ignore[method-assign]


def main(configs: str, runs: str) -> None:
    """Train each."""
    steps: list[dict[str, float]] = []
    in_double(steps)
    for config in json.loads(Path(configs).read_text()):
        run.train(config, runs=runs, quiet=True)
        if os.environ.get("RANK", "0") == "0":
            (Path(runs) / f"{config['name']}.steps.json").write_text(json.dumps(steps))
        steps.clear()


if __name__ == "__main__":
    main(*sys.argv[1:])
