"""Effects of features on a probe: integrated gradients from the texts to zero features, summed over positions.

    effect(f) = mean over texts of ± Σ_rows (0 − value) ⟨G, unit W_dec_f⟩        ± 1 by the label: support is negative

G is the mean of ∂logit/∂target at midpoints of the path on which all features of the site go to 0 (Marks et al. 2403.19647,
eq. 4 and §5). The error is kept, as it is when features are ablated; without it the path would end near the zero vector,
which norms blow up. At the hook the probe reads, the logit is linear in the target, so effects are exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from analysis.circuits.model import CircuitModel, State
from analysis.circuits.shift.probe import Probe
from analysis.circuits.shift.texts import Labelled
from sae import products
from training.model.splice import at_sites
from training.site import Site, SiteRows

Effects = dict[Site, Float64[Tensor, " d_sae"]]
"""Effect of every feature, by site."""


def probe_effects(
    circuit: CircuitModel, probe: Probe, data: Labelled, labels: Bool[Tensor, " n_texts"], *, n_steps: int = 4,
    progress: Callable[[int], None] | None = None,
) -> Effects:
    """Effects of all features on a probe's logit, signed by label.

    Args:
        circuit: model with SAEs at or before the probe's hook.
        probe: the probe.
        data: texts.
        labels: labels that set the sign: intended or spurious.
        n_steps: steps of integrated gradients.
        progress: called with the number of newly finished texts, once per site.
    """
    total: Effects = {
        site: torch.zeros(sae.d_sae, dtype=torch.float64) for site, sae in circuit.saes.items()
    }
    start = 0
    for part in data.batches(32):
        sign = torch.where(labels[start : start + len(part)], 1.0, -1.0).double()
        states = _states(circuit, part, probe.hook)
        for site in circuit.sites:
            grad = _gradient(circuit, probe, part, site, states[site], sign, n_steps)
            total[site] += _by_feature(circuit, site, states[site], grad)
            if progress is not None:
                progress(len(part))
        start += len(part)
    return {site: effect / max(len(data), 1) for site, effect in total.items()}


@torch.no_grad()
def _states(circuit: CircuitModel, part: Labelled, hook: str) -> dict[Site, State]:
    found: dict[Site, State] = {}

    def look(site: Site) -> Callable[[SiteRows, Tensor], Tensor]:
        def see(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
            found[site] = circuit.state(site, rows)
            return rows.target

        return see

    with at_sites(circuit.model, {site: look(site) for site in circuit.sites}, part.keep):
        circuit.model.activation(part.tokens, hook)
    return found


def _gradient(
    circuit: CircuitModel, probe: Probe, part: Labelled, site: Site, state: State, sign: Float[Tensor, " n_texts"],
    n_steps: int,
) -> Float[Tensor, "n_rows d_out"]:
    """Mean gradient of Σ ± logit at the site's target, along the path to zero features."""
    total, features = torch.zeros_like(state.target), circuit.decode(site, state.code)
    for step in range(n_steps):
        share = (step + 0.5) / n_steps
        leaf = (state.target - share * features).detach().requires_grad_()
        with torch.enable_grad(), at_sites(circuit.model, {site: partial(_instead, leaf)}, part.keep):
            rows = circuit.model.activation(part.tokens, probe.hook)
            logits = probe.logits(part.mean(rows.double()))
            (grad,) = torch.autograd.grad((logits * sign).sum(), leaf)
        total += grad / n_steps
    return total


def _instead(leaf: Tensor, rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
    return leaf


def _by_feature(
    circuit: CircuitModel, site: Site, state: State, grad: Float[Tensor, "n_rows d_out"]
) -> Float64[Tensor, " d_sae"]:
    sae, code = circuit.saes[site], state.code
    norms = sae.W_dec[code.feature.long()].norm(dim=1).clamp_min(1e-12)
    parts = -code.value * products.read(grad.to(sae.W_dec), sae.W_dec, code) / norms
    return torch.zeros(sae.d_sae, dtype=torch.float64).index_add_(0, code.feature.long(), parts.double())


@dataclass(frozen=True)
class Candidate:
    """A feature of the probe's circuit and its effect."""

    site: Site
    feature: int
    effect: float


def largest(effects: Effects, n: int) -> list[Candidate]:
    """The n features with the largest absolute effects, over all sites."""
    flat = [(site, effect) for site, effect in effects.items()]
    sizes = torch.cat([effect for _, effect in flat])
    order = sizes.abs().argsort(descending=True, stable=True)[:n].tolist()
    starts = torch.tensor([0, *(len(effect) for _, effect in flat)]).cumsum(0).tolist()
    found = []
    for i in order:
        which = next(k for k in range(len(flat)) if i < starts[k + 1])
        if sizes[i] != 0:
            found.append(Candidate(flat[which][0], i - starts[which], float(sizes[i])))
    return found


def by_site(candidates: list[Candidate]) -> dict[Site, list[int]]:
    """The candidates' features, by site."""
    found: dict[Site, list[int]] = {}
    for one in candidates:
        found.setdefault(one.site, []).append(one.feature)
    return found
