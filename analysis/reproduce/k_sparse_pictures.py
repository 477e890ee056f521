"""Pictures of `k-sparse`: the error against k, and units as images.

    k-sparse.svg           error at the chosen α against k, annealed and constant; baselines as horizontal lines
    k-sparse-features.png  evenly spaced units of the first seed's SAEs, by increasing k
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from analysis.render.figures.lines import Line, lines
from analysis.render.figures.png import galleries
from analysis.reproduce.tables import Row, summary
from sae.io.files import write_bytes

SHOWN = 36
"""Units shown per SAE."""
LEVELS = {"raw": "pixels", "pca": "PCA", "dae": "denoising autoencoder"}


def draw(rows: Sequence[Row], decoders: Mapping[str, Float[Tensor, "d_sae d"]], out: Path) -> None:
    """Draw both pictures; `decoders` are those of one seed's k-sparse settings."""
    errors = {one["setting"]: one for one in summary(rows) if one["metric"] == "error"}
    k_of = {row["setting"]: row["k"] for row in rows if row.get("k") is not None}
    curves = [
        _line(title, sorted((k_of[name], errors[name]) for name in k_of if name.endswith("-flat") is flat))
        for title, flat in (("k-sparse, k falls to it", False), ("k-sparse, k throughout", True))
    ]
    ends = (min(k_of.values()), max(k_of.values()))
    curves += [_line(title, [(k, errors[name]) for k in ends]) for name, title in LEVELS.items() if name in errors]
    drawn = lines(curves, x_title="k", y_title="classification error", log_x=True)
    write_bytes(out / "k-sparse.svg", drawn.encode())
    annealed = sorted((name for name in decoders if not name.endswith("-flat")), key=lambda name: k_of[name])
    panels = [_pictures(decoders[name]) for name in annealed]
    galleries(out / "k-sparse-features.png", panels, pixel=1 if panels[0].shape[1] > 16 else 4)


def _line(title: str, points: Sequence[tuple[float | int, Row]]) -> Line:
    ks, found = [float(k) for k, _ in points], [row for _, row in points]
    return Line(title, ks, *([row[key] for row in found] for key in ("mean", "low", "high")))


def _pictures(decoder: Float[Tensor, "d_sae d"]) -> Float[np.ndarray, "n side side"]:
    chosen = np.linspace(0, len(decoder) - 1, min(SHOWN, len(decoder))).round().astype(int)
    side = round(decoder.shape[1] ** 0.5)
    return decoder[chosen].reshape(-1, side, side).double().numpy()
