"""The rows that a finished training is judged on, for measures that its own summary does not have."""

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from training.activations.calibration import KeepMask
from training.activations.harvest import Data, open_data, open_heldout
from training.config.schema import Config
from training.display import Display
from training.evaluate import HeldOut


def heldout_rows(
    config: Config, n_rows: int | None = None, *, quiet: bool = True
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
    """Inputs and targets of the kept held-out rows of a training, raw.

    Args:
        config: of the run.
        n_rows: rounded up to whole sequences, before masked rows are left out; None for those its own evaluation took.
        quiet: say nothing where activations must be made.
    """
    data, mask = _opened(config, quiet=quiet)
    held = open_heldout(config, data, Display(quiet=quiet), n_rows or 0)
    heldout = HeldOut(held.source, held.tokens, mask, config.site.hooks, n_rows or config.eval.n_rows)
    acts = {hook: rows.float() for hook, rows in heldout.acts.items()}
    return config.site.rows(acts)


def training_rows(
    config: Config, n_rows: int, *, seed: int = 0, quiet: bool = True
) -> tuple[Float[Tensor, "n d_in"], Int64[np.ndarray, " n"], int]:
    """Inputs of kept rows that were trained on, raw; the document of each; and how many documents are held out.

    Args:
        config: of the run.
        n_rows: in sequences drawn at random by `seed`, before masked rows are left out.
        seed: of the draw.
        quiet: say nothing where activations must be made.
    """
    data, mask = _opened(config, quiet=quiet)
    tokens, documents = data.tokens, data.tokens.documents()
    drawn = np.random.default_rng(seed).permutation(tokens.sequences(held_out=False))[: -(-n_rows // tokens.n_ctx)]
    seqs = np.sort(drawn)
    keep = mask.keep(seqs, tokens.n_ctx)
    acts = {hook: data.source.rows(hook, seqs, tokens.n_ctx)[keep].float() for hook in config.site.hooks}
    held = open_heldout(config, data, Display(quiet=quiet))
    evaluated = HeldOut(held.source, held.tokens, mask, config.site.hooks, config.eval.n_rows)
    n_held_out = len(np.unique(held.tokens.documents()[evaluated.seqs]))
    return config.site.rows(acts).x, documents[seqs].reshape(-1)[keep.numpy()], n_held_out


def _opened(config: Config, *, quiet: bool) -> tuple[Data, KeepMask]:
    mask_hooks = config.data.mask_hooks or config.site.hooks
    data = open_data(config, tuple(dict.fromkeys((*config.site.hooks, *mask_hooks))), Display(quiet=quiet))
    return data, KeepMask(data.source, data.tokens, config.data.model_copy(update={"mask_hooks": mask_hooks}))
