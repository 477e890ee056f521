"""Real rows for the comparison with SAELens: held-out activations of a run's own cache.

    python -m tests.peers.rows RUN OUT.safetensors
"""

import sys

from safetensors.torch import save_file

from analysis.corpus_rows import open_rows
from analysis.trained import open_trained

N_ROWS = 2048


def main(run: str, out: str) -> None:
    """Write kept held-out rows that the run's SAE reads as the tensor `x`."""
    save_file({"x": open_rows(open_trained(run)).held_out(N_ROWS).x.contiguous()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
