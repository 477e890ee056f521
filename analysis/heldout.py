"""The rows that a finished training is judged on, for measures that its own summary does not have."""

from jaxtyping import Float
from torch import Tensor

from training.calibration import KeepMask, input_rows, target_rows
from training.config import Config
from training.display import Display
from training.harvest import open_data
from training.heldout import HeldOut


def heldout_rows(
    config: Config, n_rows: int | None = None, *, quiet: bool = True
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
    """Inputs and targets of the kept held-out rows of a training, raw.

    Args:
        config: of the run.
        n_rows: rounded up to whole sequences, before masked rows are left out; None for those its own evaluation took.
        quiet: say nothing where activations must be made.
    """
    mask_hooks = config.data.mask_hooks or config.site.hooks
    data = open_data(config, tuple(dict.fromkeys((*config.site.hooks, *mask_hooks))), Display(quiet=quiet))
    mask = KeepMask(data.source, data.tokens, config.data.model_copy(update={"mask_hooks": mask_hooks}))
    held = HeldOut(data.source, data.tokens, mask, config.site.hooks, n_rows or config.eval.n_rows)
    acts = {hook: rows.float() for hook, rows in held.acts.items()}
    return input_rows(config.site, acts), target_rows(config.site, acts)
