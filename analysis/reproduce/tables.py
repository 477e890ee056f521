"""Result tables of an experiment: one row per seed and setting, and a summary over seeds."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae.io.files import write_bytes

Row = dict[str, Any]
"""`seed`, `setting` and metrics by name: numbers, strings, or None if undefined."""
NOT_METRICS = ("seed", "setting", "machine")


def summary(rows: Sequence[Row]) -> list[Row]:
    """For each setting and metric, the mean over seeds and its 95 % t-interval.

    Seeds with an undefined value are skipped and not counted; a single seed has no interval.
    """
    names = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, int | float))
    out = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        for name in (n for n in names if n not in NOT_METRICS):
            values = [float(row[name]) for row in rows if row["setting"] == setting and row.get(name) is not None]
            if values:
                mean, low, high = t_interval(values)
                out.append({"setting": setting, "metric": name, "mean": mean, "low": low, "high": high,
                            "n_seeds": len(values)})
    return out


def t_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean, and mean ∓ t(0.975, n − 1) · s / √n; the bounds are None for a single value."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, atomically: one column per key, six significant digits, empty for None."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    names = [n for n in names if n not in ("seconds", "machine")] + [n for n in ("seconds", "machine") if n in names]
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_bytes(path, text.getvalue().encode())
