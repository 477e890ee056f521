"""Run a training that a real SIGTERM stops after a given step: `python -m tests.training.interrupted CONFIG RUNS STEP`."""

import json
import os
import signal
import sys
from pathlib import Path

from sae.errors import SaescopeError
from training.run import sweep
from training.trainer import Trainer


def main(config: str, runs: str, at_step: str) -> int:
    """Send SIGTERM to this process while step `at_step` is under way."""
    step, sent = Trainer.step, []

    def step_and_signal(self: Trainer, acts: dict) -> None:
        step(self, acts)
        if self.n_steps == int(at_step) and not sent:  # a second one would end the process at once
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer.step = step_and_signal  # type: ignore[method-assign]
    try:
        sweep(json.loads(Path(config).read_text()), runs=runs, quiet=True)
    except SaescopeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
