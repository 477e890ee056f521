"""Selection by description length: the runs of a sweep at one distortion, on held-out rows of theirs (2410.11179)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.heldout import heldout_rows
from sae import store
from sae.description import EPSILON, DescriptionLength, Encoded, compare
from sae.errors import SaescopeError
from training import config as configs

N_ROWS = 16_384


@dataclass(frozen=True)
class Compared:
    """One run of a sweep at the distortion of all."""

    run: Path
    variant: str
    d_sae: int
    fve: float
    """With exact values."""
    length: DescriptionLength | None
    """None where the run does not reach the FVE."""


def least_description(
    runs: Sequence[str | Path], fve: float | None = None, epsilon: float = EPSILON, n_rows: int = N_ROWS
) -> tuple[float, list[Compared]]:
    """The runs at equal distortion, that of the least description length first.

    Args:
        runs: folders of finished runs over the same held-out rows.
        fve: the FVE each must keep when its values are quantised; None for what all of them can.
        epsilon: share of the variance that quantisation may cost the worst of them; only without `fve`.
        n_rows: held-out rows, rounded up to whole sequences, before masked ones are left out.

    Returns: the FVE, and the runs; those that do not reach it come last.

    Raises:
        SaescopeError: a run cannot be read or has not finished, sites or corpora differ, or no run reaches the FVE.
    """
    folders = list(dict.fromkeys(Path(run) for run in runs))
    if not folders:
        raise SaescopeError("no run to compare; give the folders of some, such as runs/sweep/topk-16.")
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise SaescopeError(f"{folder}: no run lies here (it has no config.yaml); give the folder of a run.")
    found = {str(folder): configs.read(folder / "config.yaml")[0] for folder in folders}
    first = found[str(folders[0])]
    for name, config in found.items():
        for part in ("site", "corpus", "model"):
            if getattr(config, part) != getattr(first, part):
                raise SaescopeError(
                    f"{name}: its {part} is not that of {folders[0]}, so bits per row do not compare; give runs of one "
                    "site and one corpus."
                )
    saes = {str(folder): store.load(folder) for folder in folders}
    rows, target = heldout_rows(first, n_rows, quiet=False)
    encoded = {name: Encoded(sae, rows, target) for name, sae in saes.items()}
    level, lengths = compare(encoded, fve, epsilon)
    return level, [
        Compared(Path(name), saes[name].config.variant, saes[name].d_sae, encoded[name].fve, length)
        for name, length in lengths.items()
    ]
