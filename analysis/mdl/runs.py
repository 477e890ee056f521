"""Description lengths of runs, and the selection by them at one distortion, on held-out rows (2410.11179)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from analysis.corpus_rows import open_rows
from analysis.mdl.description_length import EPSILON, DescriptionLength, Encoded, compare
from analysis.trained import TrainedSAE, open_trained
from sae.errors import SaescopeError
from sae.io.paths import user_path
from sae.torch_state import own_torch_state
from training.display import Display

N_ROWS = 16_384
N_STEPS = 14
"""Quantisation steps that a curve is drawn through."""


@dataclass(frozen=True)
class Compared:
    """One run, by itself and at the distortion of all."""

    run: Path
    variant: str
    d_sae: int
    fve: float
    """With exact values."""
    own: DescriptionLength
    """At the coarsest step that costs this run ε of the variance."""
    length: DescriptionLength | None
    """At the FVE of all; None where the run does not reach it."""
    curve: tuple[DescriptionLength, ...] = ()
    """From coarse to fine steps, where it was asked for."""

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON and tables."""
        return {
            "run": str(self.run), "variant": self.variant, "d_sae": self.d_sae, "fve": self.fve,
            "own": asdict(self.own), "at_fve": asdict(self.length) if self.length else None,
            "curve": [asdict(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Selection:
    """Runs at one distortion, that of the least description length first; those that do not reach it last."""

    fve: float
    """What the values of each are quantised down to."""
    epsilon: float
    runs: list[Compared] = field(default_factory=list)

    @property
    def least(self) -> Compared:
        """The run of the fewest bits."""
        return self.runs[0]


@own_torch_state()
def least_description(
    runs: Sequence[str | Path], fve: float | None = None, epsilon: float = EPSILON, n_rows: int = N_ROWS,
    *, curves: bool = False,
) -> Selection:
    """The description length of each run, and all of them at equal distortion.

    Args:
        runs: folders of finished runs over the same held-out rows; that of a sweep stands for its members.
        fve: the FVE each must keep when its values are quantised; None for what all of them can.
        epsilon: share of the variance that quantisation may cost: each run by itself, and without `fve` the worst of
            them at equal distortion.
        n_rows: held-out rows, rounded up to whole sequences, before masked ones are left out.
        curves: bits at several FVEs too.

    Raises:
        SaescopeError: a run cannot be read or has not finished, sites or corpora differ, epsilon is not a share, or no
            run reaches the FVE.
    """
    if not 0 < epsilon < 1:
        raise SaescopeError(f"epsilon = {epsilon:g} is not a share of the variance; give one between 0 and 1.")
    if n_rows < 1:
        raise SaescopeError(f"{n_rows} rows leave nothing to measure; give 1 at least.")
    folders = members(runs)
    opened = [open_trained(folder) for folder in folders]
    _check_same_rows(opened)
    x, target = open_rows(opened[0], display=Display()).held_out(n_rows)
    saes = {str(one.folder): one.sae for one in opened}
    encoded = {name: Encoded(sae, x, target) for name, sae in saes.items()}
    level, lengths = compare(encoded, fve, epsilon)
    return Selection(level, epsilon, [
        Compared(
            Path(name), saes[name].config.variant, saes[name].d_sae, encoded[name].fve,
            encoded[name].within(encoded[name].fve - epsilon), length, curve(encoded[name]) if curves else (),
        )
        for name, length in lengths.items()
    ])


def curve(encoded: Encoded, n_steps: int = N_STEPS) -> tuple[DescriptionLength, ...]:
    """Bits and FVE from the step that costs half of the FVE down to one where rounding hardly costs any more."""
    if not encoded.fve > 0:
        return ()
    coarse, fine = encoded.within(encoded.fve / 2).step, encoded.within(encoded.fve - 1e-3 * encoded.fve).step
    ratio = (fine / coarse) ** (1 / (n_steps - 1))
    return tuple(encoded.at(coarse * ratio**i) for i in range(n_steps))


def members(runs: Sequence[str | Path]) -> list[Path]:
    """The folders of single runs, each once; a sweep's folder gives its members, by name.

    Raises:
        SaescopeError: none is given, or one holds no run.
    """
    if not runs:
        raise SaescopeError("no run to compare; give the folders of some, such as runs/sweep/topk-16.")
    found: list[Path] = []
    for folder in map(user_path, runs):
        inside = [folder] if (folder / "config.yaml").is_file() else sorted(
            config.parent for config in folder.glob("*/config.yaml")
        )
        if not inside:
            raise SaescopeError(
                f"{folder}: no run lies here (it has no config.yaml); give the folder of a run or of a sweep."
            )
        found += inside
    return list(dict.fromkeys(found))


def _check_same_rows(opened: Sequence[TrainedSAE]) -> None:
    """Refuse runs over other rows than the first's."""
    first = opened[0]
    for one in opened:
        for part, mine, firsts in (
            ("site", one.site, first.site), ("corpus", one.config.corpus, first.config.corpus),
            ("model", one.config.model and one.config.model.name, first.config.model and first.config.model.name),
        ):
            if mine != firsts:
                raise SaescopeError(
                    f"{one.folder}: its {part} is not that of {first.folder}, so bits per row do not compare; give runs of "
                    "one model, site and corpus."
                )
