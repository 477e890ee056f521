"""Judge the features of a probe's circuit: by a sheet that a person fills in, or by a rule on where they fire.

A sheet is a CSV with one row per candidate: `site`, `feature`, `effect`, the `tokens` it fires on most in unlabelled
texts, and `spurious`, to be filled in with `yes` or `no`.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from analysis.circuits.model import CircuitModel
from analysis.circuits.shift.effects import Candidate
from analysis.circuits.shift.texts import Labelled
from sae.errors import SaescopeError
from sae.io.files import write_bytes
from sae.io.paths import user_path
from training.model.splice import at_sites
from training.site import Site, SiteRows

FIELDS = ("site", "feature", "effect", "tokens", "spurious")
_ANSWERS = {"yes": True, "no": False}


@torch.no_grad()
def activations(
    circuit: CircuitModel, data: Labelled, candidates: Sequence[Candidate], hook: str
) -> Float[Tensor, "n_candidates n_texts n_ctx"]:
    """|value| of each candidate at each token; 0 at special tokens.

    Args:
        circuit: the model with the candidates' SAEs.
        data: texts.
        candidates: features.
        hook: hook at or after all sites; the run stops there.
    """
    found = torch.zeros(len(candidates), *data.tokens.shape)
    start = 0
    for part in data.batches():
        codes: dict[Site, Tensor] = {}

        def look(site: Site, codes: dict[Site, Tensor] = codes) -> object:
            features = [one.feature for one in candidates if one.site == site]

            def see(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
                codes[site] = _columns(circuit, site, rows.x, features)
                return rows.target

            return see

        sites = {one.site for one in candidates}
        with at_sites(circuit.model, {site: look(site) for site in sites}, part.keep):  # type: ignore[misc]
            circuit.model.activation(part.tokens, hook)
        for site, values in codes.items():
            which = [i for i, one in enumerate(candidates) if one.site == site]
            dense = torch.zeros(len(which), *part.tokens.shape)
            dense[:, part.keep] = values.T
            found[which, start : start + len(part)] = dense
        start += len(part)
    return found


def _columns(
    circuit: CircuitModel, site: Site, x: Float[Tensor, "n_rows d_in"], features: Sequence[int]
) -> Float[Tensor, "n_rows n"]:
    """|value| of the given features in each row."""
    code = circuit.saes[site].encode(x).csr()
    place = torch.full((code.d_sae,), -1, dtype=torch.long)
    place[list(features)] = torch.arange(len(features))
    column = place[code.feature.long()]
    mine = column >= 0
    out = torch.zeros(len(x), len(features))
    out[code.rows()[mine], column[mine]] = code.value[mine].abs().float()
    return out


def giveaway_shares(
    acts: Float[Tensor, "n_candidates n_texts n_ctx"], giveaway: Bool[Tensor, "n_texts n_ctx"]
) -> Float64[Tensor, " n_candidates"]:
    """Share of each feature's activation on giveaway tokens; 0 if it never fires."""
    acts = acts.double()
    return acts[:, giveaway].sum(1) / acts.sum((1, 2)).clamp_min(1e-300)


def top_tokens(
    acts: Float[Tensor, "n_texts n_ctx"], tokens: Int64[Tensor, "n_texts n_ctx"], decode: object, n: int = 8
) -> list[str]:
    """Tokens with the largest summed activation of a feature."""
    mass: Counter[int] = Counter()
    for token, value in zip(tokens[acts > 0].tolist(), acts[acts > 0].tolist(), strict=True):
        mass[token] += value
    return [decode([token]) for token, _ in mass.most_common(n)]  # type: ignore[operator]


def write_sheet(path: Path | str, candidates: Sequence[Candidate], tokens: Sequence[Sequence[str]]) -> None:
    """Write a sheet to fill in.

    Args:
        path: CSV file.
        candidates: features, one row each.
        tokens: tokens each one fires on.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(FIELDS)
    for one, some in zip(candidates, tokens, strict=True):
        table.writerow([one.site.output, one.feature, f"{one.effect:.6g}", " ".join(map(repr, some)), ""])
    write_bytes(user_path(path), out.getvalue().encode())


def read_sheet(path: Path | str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that a sheet marks as spurious.

    Raises:
        SaescopeError: no such file, an invalid row, an answer other than yes or no, or a candidate without an answer.
    """
    path = user_path(path)
    if not path.is_file():
        raise SaescopeError(f"{path}: there is no such sheet.")
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SaescopeError(f"{path}: is not a CSV file ({error}).") from error
    answers: dict[tuple[str, int], bool] = {}
    for number, row in enumerate(rows, 2):
        site, feature, answer = (str(row.get(key) or "").strip() for key in ("site", "feature", "spurious"))
        if not feature.isdecimal() or answer.lower() not in _ANSWERS:
            raise SaescopeError(
                f"{path}, line {number}: needs a site, a feature's number and yes or no under spurious, but has {site!r}, "
                f"{feature!r} and {answer!r}."
            )
        answers[site, int(feature)] = _ANSWERS[answer.lower()]
    lost = [one for one in candidates if (one.site.output, one.feature) not in answers]
    if lost:
        raise SaescopeError(
            f"{path}: has no answer for feature {lost[0].feature} of {lost[0].site.output} and {len(lost) - 1} others."
        )
    return [one for one in candidates if answers[one.site.output, one.feature]]
