"""Features of two dictionaries matched with each other by their directions."""

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor


def cosines(
    directions: Float[Tensor, "d_sae d"], truth: Float[Tensor, "n_features d"]
) -> Float[np.ndarray, "n_features d_sae"]:
    """Cosine of each true feature with each of the dictionary; 0 with a zero row."""
    a, b = (x.detach().cpu().double() for x in (truth, directions))
    unit = [x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (a, b)]
    return (unit[0] @ unit[1].t()).numpy()


def match(cosine: Float[np.ndarray, "n_features d_sae"]) -> Int64[np.ndarray, " n_features"]:
    """For each true feature the one it is matched with, −1 for none: the sum of |cosine| is as large as can be."""
    from scipy.optimize import linear_sum_assignment

    out = np.full(len(cosine), -1, dtype=np.int64)
    rows, columns = linear_sum_assignment(-np.abs(cosine))
    out[rows] = columns
    return out
