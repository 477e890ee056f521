"""Supervised dictionaries: what activations look like where a task's attributes are known (2405.08366, §3).

An activation is taken to be the mean and one code for each attribute's value,

    â = E[a] + Σ_attribute u_{attribute, value}

with *mean* codes u = E[a | attribute = value] − E[a], or *MSE* codes, the least-squares fit of all at once. The two are one
where attributes are independent and balanced. No SAE is expected to do better with one feature a value.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Supervised:
    """A dictionary with one direction for each value of each attribute."""

    mean: Float64[np.ndarray, " d"]
    codes: tuple[Float64[np.ndarray, "_ d"], ...]
    """By attribute; values that did not occur have the code 0."""

    def reconstruct(self, values: Int64[np.ndarray, "n n_attributes"]) -> Float64[np.ndarray, "n d"]:
        """â of examples with these values."""
        return self.mean + sum(code[value] for code, value in zip(self.codes, values.T, strict=True))

    def edit(
        self, attribute: int, old: Int64[np.ndarray, " n"], new: Int64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, "n d"]:
        """What changes an attribute from one value to another: one direction out, one in."""
        return self.codes[attribute][new] - self.codes[attribute][old]


def mean_codes(
    acts: Float64[np.ndarray, "n d"], values: Int64[np.ndarray, "n n_attributes"], n_values: tuple[int, ...]
) -> Supervised:
    """Codes that are conditional means."""
    mean = acts.mean(0)
    codes = []
    for column, size in zip(values.T, n_values, strict=True):
        one_hot = np.eye(size)[column]
        count = one_hot.sum(0)[:, None]
        codes.append(np.where(count > 0, one_hot.T @ (acts - mean) / count.clip(min=1), 0.0))
    return Supervised(mean, tuple(codes))


def mse_codes(
    acts: Float64[np.ndarray, "n d"], values: Int64[np.ndarray, "n n_attributes"], n_values: tuple[int, ...]
) -> Supervised:
    """Codes that reconstruct the activations best, (CᵀC)⁺ Cᵀ (A − E[A]), the shortest of equals."""
    mean = acts.mean(0)
    design = np.concatenate([np.eye(size)[column] for column, size in zip(values.T, n_values, strict=True)], 1)
    found = np.linalg.pinv(design) @ (acts - mean)
    cuts = np.cumsum(n_values)[:-1]
    return Supervised(mean, tuple(np.split(found, cuts)))


def variance_explained(
    acts: Float64[np.ndarray, "n d"], x_hat: Float64[np.ndarray, "n d"]
) -> float:
    """1 − Σ‖a − â‖² / Σ‖a − mean‖²."""
    return float(1 - np.square(acts - x_hat).sum() / np.square(acts - acts.mean(0)).sum())
