"""Minimum description length of handwritten digits: width, sparsity, and what features look like (2410.11179).

Ayonrinde, Pearce & Sharkey's claim: a dictionary that is too wide and sparse memorises whole digits, one that is too dense
has fragments, and the minimum description length is in between, with strokes. Here: scikit-learn's 1,797 digits of 8 × 8
pixels, a fifth held out, and TopK SAEs on a grid of widths and ks; all ks of a width train on one stream of batches.

Bits are per image, from `analysis.mdl.description_length`, at the coarsest quantisation that keeps a common FVE; empty if
an SAE doesn't reach it. Three accounts at each FVE:

    bits_at    codes of held-out images, given the dictionary: the paper's, for plentiful data
    train_at   codes of the training images, given the dictionary
    total_at   the same plus the dictionary, at `WEIGHT_BITS` per weight of each feature sent, divided by the number of
               training images: the cost of sending them to a receiver without the dictionary

What features look like (medians or shares over features that fire on training images):

    cos_image  largest cosine of the direction with a centred training image
    whole      share of features closer to a training image than half of the held-out images are
    images     number of training images the feature fires on
    remembers  share of features that are `whole` and fire on at most `FEW` training images
    pixels     (Σ w²)² / Σ w⁴: effective number of pixels, of 64, that the direction covers

The setting `compared` provides baselines: images in place of features, a dictionary of single pixels, and principal
components, with all coefficients sent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from analysis.mdl.description_length import EPSILON, Encoded, decoder_bits
from analysis.reproduce.jobs import Job
from analysis.reproduce.mdl_digits_pictures import draw
from analysis.reproduce.shared_stream import short_name, train_together
from analysis.reproduce.tables import Row, write_table
from sae.base import SAE, Transform
from sae.io.arrays import write_array
from sae.variants.topk import AbsTopKConfig, TopK
from training.activations.harvest import open_data
from training.config.reading import merged, resolve
from training.config.schema import Config
from training.display import Display

WEIGHT_BITS = 8.0
"""Bits per dictionary weight in `total_at`."""
D = 64
"""Pixels per image."""
FEW = 3
ACCOUNTS = ("bits_at", "train_at", "total_at")


def run(job: Job) -> list[Row]:
    """Train (or resume) and measure the SAEs of one width; or measure the baselines."""
    fields, levels, ks = trainings(job)
    if job.setting == "compared":
        (config,) = resolve(merged(fields, {"name": job.setting, "sae": {"d_sae": D, "k": D}}))
        return list(compared(*split(config), levels))
    sweep = [{"name": f"{job.setting}-k{k}", "sae": {"k": k}} for k in ks if k <= fields["sae"]["d_sae"]]
    fields = merged(fields, {"sae": {"k": 1}}) | {"sweep": sweep}
    done = train_together(replace(job, fields=fields))
    train, held = split(done[0][0])
    return [
        {"setting": short_name(config), "d_sae": trained.sae.d_sae, "k": config.sae.k,  # type: ignore[attr-defined]
         **measured(trained.sae, train, held, levels)}
        for config, trained in done
    ]


def trainings(job: Job) -> tuple[dict[str, Any], tuple[float, ...], tuple[int, ...]]:
    """Training fields of a job on the digits (written next to its folder), its FVEs and its ks."""
    fields = {key: value for key, value in job.fields.items() if key not in ("fves", "ks")}
    fields = merged(fields, {"corpus": {"sources": f"acts:{digits_folder(job)}"}})
    return fields, tuple(job.fields["fves"]), tuple(job.fields["ks"])


def digits_folder(job: Job) -> Path:
    """Folder with the digits as activation rows, next to a job's folder; written if missing."""
    folder = job.folder.parent / "digits"
    if not (folder / "digits.npy").exists():
        write_array(folder / "digits.npy", digits().numpy())
    return folder


def digits() -> Float[Tensor, "n d"]:
    """scikit-learn's images as rows, pixels from 0 to 16."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data).float()


def split(config: Config) -> tuple[Float[Tensor, "n_train d"], Float[Tensor, "n_held d"]]:
    """Training images and held-out images of a training."""
    tokens = open_data(config, ("acts",), Display(quiet=True)).tokens
    images = digits()[: tokens.n_seqs * tokens.n_ctx].view(tokens.n_seqs, tokens.n_ctx, D)
    train, held = (images[tokens.sequences(held_out=side)].reshape(-1, D) for side in (False, True))
    return train, held


def measured(
    sae: SAE, train: Float[Tensor, "n_train d"], held: Float[Tensor, "n_held d"], levels: Sequence[float],
    weight_bits: float = WEIGHT_BITS,
) -> Row:
    """An SAE's FVE, its bits in each account at each FVE it reaches, and what its features look like."""
    seen, unseen = Encoded(sae, train), Encoded(sae, held)
    own = unseen.within(unseen.fve - EPSILON)
    row: Row = {"fve": unseen.fve, "fve_train": seen.fve, "l0": own.l0, "bits": own.bits}
    for level in levels:
        on_held = unseen.within(level) if level < unseen.fve else None
        on_train = seen.within(level) if level < seen.fve else None
        row[f"bits_at_{level:g}"] = on_held.bits if on_held else None
        row[f"train_at_{level:g}"] = on_train.bits if on_train else None
        row[f"total_at_{level:g}"] = on_train.bits + decoder_bits(
            on_train.n_features, D, weight_bits=weight_bits
        ) / len(train) if on_train else None
    fires = torch.stack([code.counts() for code in seen.codes]).sum(0)
    alive = fires > 0
    mean = train.mean(0)
    return row | {
        "alive": int(alive.sum()), **looks(sae.W_dec.detach()[alive], train - mean, held - mean, fires[alive])
    }


def looks(
    directions: Float[Tensor, "n d"], train: Float[Tensor, "n_train d"], held: Float[Tensor, "n_held d"],
    fires: Int64[Tensor, " n"],
) -> Row:
    """How similar directions are to images, and how many pixels they cover; images are centred.

    `fires`: number of training images each direction's feature fires on.
    """
    nearest, usual = nearness(directions, train), nearness(held, train).median()
    whole = nearest > usual
    pixels = directions.square().sum(1).square() / directions.pow(4).sum(1)
    return {
        "cos_image": float(nearest.median()), "whole": float(whole.float().mean()),
        "images": float(fires.double().median()), "remembers": float((whole & (fires <= FEW)).float().mean()),
        "pixels": float(pixels.median()),
    }


def nearness(directions: Float[Tensor, "n d"], images: Float[Tensor, "n_images d"]) -> Float[Tensor, " n"]:
    """Largest cosine of each direction with an image."""
    return (normalize(directions) @ normalize(images).T).max(1).values


def compared(
    train: Float[Tensor, "n_train d"], held: Float[Tensor, "n_held d"], levels: Sequence[float]
) -> Iterator[Row]:
    """Baselines: held-out images as features; single pixels, whose dictionary is free; principal components."""
    mean = train.mean(0)
    once = torch.ones(len(held), dtype=torch.int64)
    yield {"setting": "image", **looks(held - mean, train - mean, held - mean, once)}
    components = torch.linalg.svd(train - mean, full_matrices=False).Vh
    for setting, directions, centre, weight_bits in (
        ("pixel", torch.eye(D), torch.zeros(D), 0.0), ("component", components, mean, WEIGHT_BITS)
    ):
        sae = TopK(AbsTopKConfig(d_sae=D, k=D), D, input=Transform(centre, torch.ones(())))
        sae.W_dec.data.copy_(directions)
        sae.W_enc.data.copy_(directions.T)
        yield {"setting": setting, "d_sae": D, "k": D, **measured(sae, train, held, levels, weight_bits)}


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    """Write the minimum over the grid for each account and seed, and draw the pictures."""
    grid = [row for row in rows if row["setting"] not in ("image", "pixel", "component")]
    levels = jobs[0].fields["fves"]
    found = [
        {"setting": account, "seed": seed, **least(grid, account, seed)}
        for account in (f"{kind}_{level:g}" for level in levels for kind in ACCOUNTS)
        for seed in dict.fromkeys(row["seed"] for row in grid)
    ]
    write_table(out / "mdl-digits-least.csv", [row for row in found if "bits" in row])
    job = jobs[0]
    (config,) = resolve(merged(trainings(job)[0], {"name": "split", "sae": {"d_sae": D, "k": D}}))
    train, _ = split(config)
    folders = {row["setting"]: job.folder.with_name(f"{width(row)}-{job.seed}") / row["setting"] for row in grid}
    draw(grid, train - train.mean(0), folders, out, [f"{kind}_{levels[len(levels) // 2]:g}" for kind in ACCOUNTS])


def width(row: Row) -> str:
    """The setting of the job that made a row."""
    return str(row["setting"]).partition("-")[0]


def least(grid: Sequence[Row], account: str, seed: int) -> Row:
    """Width, k and feature statistics of the SAE with the fewest bits; empty if none reaches the FVE."""
    reached = [row for row in grid if row["seed"] == seed and row.get(account) is not None]
    if not reached:
        return {}
    best = min(reached, key=lambda row: row[account])
    shown = ("d_sae", "k", "fve", "alive", "cos_image", "whole", "images", "remembers", "pixels")
    return {**{key: best[key] for key in shown}, "bits": best[account]}
