"""Description lengths of runs on held-out rows, and their comparison at equal FVE (2410.11179)."""

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
"""Quantisation steps per curve."""


@dataclass(frozen=True)
class Compared:
    """Description length of one run, at its own FVE and at the common FVE."""

    run: Path
    variant: str
    d_sae: int
    fve: float
    """Without quantisation."""
    own: DescriptionLength
    """At the coarsest step that costs this run at most ε FVE."""
    length: DescriptionLength | None
    """At the common FVE; None if the run doesn't reach it."""
    curve: tuple[DescriptionLength, ...] = ()
    """From coarse to fine steps, if requested."""

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON and tables."""
        return {
            "run": str(self.run), "variant": self.variant, "d_sae": self.d_sae, "fve": self.fve,
            "own": asdict(self.own), "at_fve": asdict(self.length) if self.length else None,
            "curve": [asdict(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Selection:
    """Runs at equal FVE, shortest description length first; runs that don't reach the FVE are last."""

    fve: float
    """FVE that every run is quantised down to."""
    epsilon: float
    runs: list[Compared] = field(default_factory=list)

    @property
    def least(self) -> Compared:
        """The run with the shortest description length."""
        return self.runs[0]


@own_torch_state()
def least_description(
    runs: Sequence[str | Path], fve: float | None = None, epsilon: float = EPSILON, n_rows: int = N_ROWS,
    *, curves: bool = False,
) -> Selection:
    """Description length of each run, on its own and at equal FVE.

    Args:
        runs: folders of finished runs over the same held-out rows; a sweep's folder stands for its members.
        fve: FVE that each run must keep when quantised; None picks one that all can.
        epsilon: FVE that quantisation may cost: for each run by itself and, without `fve`, for the worst run at equal FVE.
        n_rows: held-out rows, rounded up to whole sequences, before masking.
        curves: also compute bits at several FVEs.

    Raises:
        SaescopeError: a run can't be read or hasn't finished, sites or corpora differ, epsilon isn't between 0 and 1, or
            no run reaches the FVE.
    """
    if not 0 < epsilon < 1:
        raise SaescopeError(f"epsilon = {epsilon:g} is not a share of the variance; give a number between 0 and 1.")
    if n_rows < 1:
        raise SaescopeError(f"{n_rows} rows leave nothing to measure; give at least 1.")
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
    """Bits and FVE from the step that costs half of the FVE down to one that costs almost nothing."""
    if not encoded.fve > 0:
        return ()
    coarse, fine = encoded.within(encoded.fve / 2).step, encoded.within(encoded.fve - 1e-3 * encoded.fve).step
    ratio = (fine / coarse) ** (1 / (n_steps - 1))
    return tuple(encoded.at(coarse * ratio**i) for i in range(n_steps))


def members(runs: Sequence[str | Path]) -> list[Path]:
    """Folders of single runs, unique; a sweep's folder is expanded to its members, by name.

    Raises:
        SaescopeError: no folder is given, or one contains no run.
    """
    if not runs:
        raise SaescopeError("no run to compare; give run folders such as runs/sweep/topk-16.")
    found: list[Path] = []
    for folder in map(user_path, runs):
        inside = [folder] if (folder / "config.yaml").is_file() else sorted(
            config.parent for config in folder.glob("*/config.yaml")
        )
        if not inside:
            raise SaescopeError(
                f"{folder}: there is no run here (no config.yaml); give the folder of a run or of a sweep."
            )
        found += inside
    return list(dict.fromkeys(found))


def _check_same_rows(opened: Sequence[TrainedSAE]) -> None:
    """Check that all runs have the same held-out rows."""
    first = opened[0]
    for one in opened:
        for part, mine, firsts in (
            ("site", one.site, first.site), ("corpus", one.config.corpus, first.config.corpus),
            ("model", one.config.model and one.config.model.name, first.config.model and first.config.model.name),
        ):
            if mine != firsts:
                raise SaescopeError(
                    f"{one.folder}: its {part} differs from that of {first.folder}, so their bits can't be compared; give "
                    "runs of one model, site and corpus."
                )
