"""Match the features of two dictionaries by direction."""

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor


def cosines(
    directions: Float[Tensor, "d_sae d"], truth: Float[Tensor, "n_features d"]
) -> Float[np.ndarray, "n_features d_sae"]:
    """Cosine of each true feature with each dictionary feature; 0 for zero rows."""
    a, b = (x.detach().cpu().double() for x in (truth, directions))
    unit = [x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (a, b)]
    return (unit[0] @ unit[1].t()).numpy()


def match(cosine: Float[np.ndarray, "n_features d_sae"]) -> Int64[np.ndarray, " n_features"]:
    """The match of each true feature, −1 for none: the one-to-one assignment that maximises the sum of |cosine|."""
    from scipy.optimize import linear_sum_assignment

    out = np.full(len(cosine), -1, dtype=np.int64)
    rows, columns = linear_sum_assignment(-np.abs(cosine))
    out[rows] = columns
    return out
