"""Many runs of the same prompts that differ at one site: prompts are repeated in a batch, earlier blocks run once."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.circuits.model import CircuitModel
from analysis.circuits.tasks.examples import Examples
from training.model.frozen import FrozenModel
from training.model.splice import Forward, Reconstruct
from training.site import Site


class Repeats:
    """Runs of a batch of examples repeated n times, as whole batches one after another.

    Attributes:
        examples: the repeated examples.
        n: number of repeats.
    """

    def __init__(self, model: CircuitModel, examples: Examples, n: int, freeze: Iterable[str] | None = None) -> None:
        self.examples, self.n, self._model = examples.take(torch.arange(len(examples)).repeat(n)), n, model
        self._forward: Forward = model.model
        if freeze is not None:
            self._forward = FrozenModel.at(model.model, self.examples.clean, freeze)

    @contextmanager
    def at(self, site: Site) -> Iterator[None]:
        """While open, blocks before this site's hooks replay their outputs from the first run."""
        # the linear forward runs over the bridge, which has its own blocks
        hooks = site.hooks if self._forward is self._model.model else ()
        with self._model.model.replayed(hooks):
            yield

    def logits(self, at: Mapping[Site, Reconstruct]) -> Float[Tensor, "n_seqs n_logits d_vocab"]:
        """Logits of the clean prompts, with these sites' targets replaced."""
        return self._model.run(self.examples.clean, self.examples.keep, at, self._forward)
