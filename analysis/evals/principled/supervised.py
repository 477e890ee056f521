"""Supervised dictionaries from a task's known attributes (2405.08366, §3).

An activation is modelled as the mean plus one code per attribute value,

    â = E[a] + Σ_attribute u_{attribute, value}

with *mean* codes u = E[a | attribute = value] − E[a], or *MSE* codes, a joint least-squares fit. The two agree if
attributes are independent and balanced. No SAE with one feature per value is expected to do better.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Supervised:
    """A dictionary with one direction for each value of each attribute."""

    mean: Float64[np.ndarray, " d"]
    codes: tuple[Float64[np.ndarray, "_ d"], ...]
    """Codes by attribute; values that don't occur have code 0."""

    def reconstruct(self, values: Int64[np.ndarray, "n n_attributes"]) -> Float64[np.ndarray, "n d"]:
        """Reconstruct â for examples with these values."""
        return self.mean + sum(code[value] for code, value in zip(self.codes, values.T, strict=True))

    def edit(
        self, attribute: int, old: Int64[np.ndarray, " n"], new: Int64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, "n d"]:
        """Vector that changes an attribute's value: the new code minus the old one."""
        return self.codes[attribute][new] - self.codes[attribute][old]


def mean_codes(
    acts: Float64[np.ndarray, "n d"], values: Int64[np.ndarray, "n n_attributes"], n_values: tuple[int, ...]
) -> Supervised:
    """Supervised dictionary with conditional means as codes."""
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
    """Supervised dictionary with least-squares codes, (CᵀC)⁺ Cᵀ (A − E[A]), of minimum norm."""
    mean = acts.mean(0)
    design = np.concatenate([np.eye(size)[column] for column, size in zip(values.T, n_values, strict=True)], 1)
    found = np.linalg.pinv(design) @ (acts - mean)
    cuts = np.cumsum(n_values)[:-1]
    return Supervised(mean, tuple(np.split(found, cuts)))


def variance_explained(
    acts: Float64[np.ndarray, "n d"], x_hat: Float64[np.ndarray, "n d"]
) -> float:
    """Variance explained: 1 − Σ‖a − â‖² / Σ‖a − mean‖²."""
    return float(1 - np.square(acts - x_hat).sum() / np.square(acts - acts.mean(0)).sum())
