"""Loss terms: pure functions of tensors, summed over `d_out` or features and averaged over rows.

Each is invariant to the batch size: the loss of two equal halves is the loss of either.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sae.code import SparseCode


def reconstruction(
    target: Float[Tensor, "n_rows d_out"], x_hat: Float[Tensor, "n_rows d_out"]
) -> Float[Tensor, ""]:
    """Squared error ‖target − x_hat‖², mean over rows."""
    # one pass for the value and one for the gradient; written out it would be five
    return functional.mse_loss(x_hat, target, reduction="sum") / len(target)


def l1(code: SparseCode, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
    """Σ |value| · ‖W_dec[feature]‖, mean over rows.

    The norm keeps the penalty from being escaped by small activations on long decoder rows (Conerly et al., "Update on
    how we train SAEs", Anthropic, April 2024).
    """
    # summed by feature first: the gradient of norms[feature] would be added up by threads in any order
    return (code.sums(code.value.abs()) * norms).sum() / code.n_rows


def auxk(residual: Float[Tensor, "n_rows d_out"], aux_hat: Float[Tensor, "n_rows d_out"]) -> Float[Tensor, ""]:
    """‖e − ê‖² of Gao et al. (2406.04093, §A.2), mean over rows.

    e is the reconstruction error, a constant here: dead features learn what the living leave over, and the living are
    not taught to leave more.
    """
    return functional.mse_loss(aux_hat, residual.detach(), reduction="sum") / len(residual)
