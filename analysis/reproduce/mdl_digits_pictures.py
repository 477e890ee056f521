"""Pictures of `mdl-digits`: bits over width × k, and what features look like.

    mdl-digits.svg           one map per account at one FVE: means over seeds if all reach it, minimum framed
    mdl-digits-features.png  four SAEs of the first seed: the narrowest and densest; those with the fewest bits, including
                             and excluding the dictionary; the widest and sparsest. For each, evenly spaced features from
                             most to least active. Last, centred digits
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.render.figures.grid import Grid, grids, least
from analysis.render.figures.png import galleries
from analysis.reproduce.tables import Row
from sae import store
from sae.io.files import write_bytes

SHOWN, SIDE = 36, 8
"""Images per panel, and pixels per side."""
TITLES = {
    "bits_at": "bits per held-out image, FVE {}", "train_at": "bits per training image, FVE {}",
    "total_at": "the same with the dictionary, FVE {}",
}


def draw(
    grid: Sequence[Row], images: Float[Tensor, "n d"], folders: dict[str, Path], out: Path, accounts: Sequence[str]
) -> None:
    """Draw both pictures.

    Args:
        grid: rows of all SAEs.
        images: centred training images.
        folders: folders of the first seed's SAEs, by setting.
        out: output folder.
        accounts: columns to map; features are shown for the minimum of the first and of the last.
    """
    maps = [mean_map(grid, account) for account in accounts]
    write_bytes(out / "mdl-digits.svg", grids(maps, "k", "features").encode())
    panels = [features(folders[setting], images) for setting in telling(maps[-1], maps[0])]
    galleries(out / "mdl-digits-features.png", [*panels, pictures(images[:SHOWN])], pixel=5)


def mean_map(grid: Sequence[Row], account: str) -> Grid:
    """Means over seeds; empty where any seed has no value."""
    widths, ks = (sorted({row[key] for row in grid}) for key in ("d_sae", "k"))
    values = np.full((len(widths), len(ks)), np.nan)
    for i, width in enumerate(widths):
        for j, k in enumerate(ks):
            found = [row[account] for row in grid if (row["d_sae"], row["k"]) == (width, k)]
            if found and None not in found:
                values[i, j] = np.mean(found)
    kind, _, level = account.rpartition("_")
    return Grid(TITLES[kind].format(level), [str(w) for w in widths], [str(k) for k in ks], values)


def telling(*maps: Grid) -> list[str]:
    """Settings whose features are shown: narrowest and densest, the minimum of each map, widest and sparsest."""
    narrow, wide = maps[0].rows[0], maps[0].rows[-1]
    dense = max((k for k in maps[0].columns if int(k) <= int(narrow)), key=int)
    best = [f"d{one.rows[at[0]]}-k{one.columns[at[1]]}" for one in maps if (at := least(one)) is not None]
    return [f"d{narrow}-k{dense}", *best, f"d{wide}-k{maps[0].columns[0]}"]


def features(run: Path, images: Float[Tensor, "n d"]) -> Float[np.ndarray, "_ side side"]:
    """Directions of at most `SHOWN` active features of a run, evenly spaced by activity."""
    sae = store.load(run)
    counts = sae.encode(images + sae.input.mean).counts()
    order = torch.argsort(counts, descending=True, stable=True)[: int((counts > 0).sum())]
    chosen = np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)
    return pictures(sae.W_dec.detach()[order[chosen]])


def pictures(rows: Float[Tensor, "n d"]) -> Float[np.ndarray, "n side side"]:
    """Rows of pixels as images."""
    return rows.reshape(-1, SIDE, SIDE).double().numpy()
