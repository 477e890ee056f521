"""Real rows for the comparison with SAELens: held-out activations of a run's own cache.

    python -m tests.peers.rows RUN OUT.safetensors
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

from training.activations.calibration import KeepMask
from training.activations.harvest import open_data, open_heldout
from training.config import reading as configs
from training.display import Display
from training.evaluate import HeldOut

N_ROWS = 2048


def main(run: str, out: str) -> None:
    """Write kept held-out rows of the run's input hook as the tensor `x`."""
    (config,) = configs.read(Path(run) / "config.yaml")
    mask_hooks = config.data.mask_hooks or config.site.hooks
    data = open_data(config, tuple(dict.fromkeys((*config.site.hooks, *mask_hooks))), Display())
    mask = KeepMask(data.source, data.tokens, config.data.model_copy(update={"mask_hooks": mask_hooks}))
    held = open_heldout(config, data, Display())
    heldout = HeldOut(held.source, held.tokens, mask, config.site.hooks, N_ROWS)
    save_file({"x": heldout.acts[config.site.input].float().contiguous()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
