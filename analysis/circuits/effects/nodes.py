"""Node effects on a metric, by any estimator.

    attribution   gradient at the clean run                    2 forwards for the states + 1 forward, 1 backward
    relp          the same with RelP's backward rules           2 + 2 forwards, 1 backward
    ig            mean gradient on the path to the reference    2 + (sites × steps) forwards and backwards
    exact         every node patched in turn                    2 + one forward for each node of each example

An effect is the change of the metric when the node is patched to its reference, so nodes that support the clean answer
have negative effects.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from analysis.circuits.effects.exact import exact_effects
from analysis.circuits.effects.gradients import clean_gradients
from analysis.circuits.effects.ig import integrated_gradients
from analysis.circuits.effects.moves import Entries, moves_of, node_effects_of
from analysis.circuits.effects.reference import Means, Reference, reference_states
from analysis.circuits.effects.relp import RelevanceModel
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import NodeEffects, joined
from analysis.circuits.tasks.examples import Examples, Metric
from training.model.frozen import FrozenModel
from training.model.splice import Forward
from training.site import Site

Method = Literal["attribution", "relp", "ig", "exact"]


def node_effects(
    model: CircuitModel, examples: Examples, metric: Metric, *, reference: Reference = "counterfactual",
    method: Method = "ig", n_steps: int = 10, means: Means | None = None, batch: int = 32,
    freeze: Iterable[str] | None = None, progress: Callable[[int], None] | None = None,
) -> NodeEffects:
    """Effect of every node in every example.

    Nodes are the features active in the clean or the reference run, by position, each site's ERROR, and SKIP if its SAE
    has input-dependent offsets. A node that is equally active in both has effect 0.

    Args:
        reference: what nodes are patched to.
        n_steps: gradients per site, for ig.
        means: mean states (`mean_states`), for the reference `mean`.
        batch: prompts per forward pass.
        freeze: parts frozen at the clean run (`training.model.frozen.HELD`); None freezes nothing. Not for relp.
        progress: called with the number of newly finished (site, example) passes.

    Raises:
        SaescopeError: the metric has no gradient or, for attribution and relp, it is zero at the clean run; single prompts
            have no counterfactual; the model has no hooks inside its MLPs (relp).
    """
    options: dict[str, Any] = {"reference": reference, "method": method, "n_steps": n_steps, "means": means, "batch": batch}
    return joined([
        batch_effects(model, part, metric, freeze=freeze, progress=progress, **options)[0]
        for part in examples.batches(batch)
    ])


def batch_effects(
    model: CircuitModel, examples: Examples, metric: Metric, *, reference: Reference = "counterfactual",
    method: Method = "ig", n_steps: int = 10, means: Means | None = None, batch: int = 32,
    freeze: Iterable[str] | None = None, progress: Callable[[int], None] | None = None,
) -> tuple[NodeEffects, dict[Site, Float[Tensor, "n_rows d_out"]]]:
    """`node_effects` of one batch, and the gradients they were computed from (none for exact ablation)."""
    if method == "exact":
        effects = exact_effects(
            model, examples, metric, reference=reference, means=means, batch=batch, freeze=freeze, progress=progress
        )
        return effects, {}
    clean, _ = model.states(examples.clean, examples.keep)
    to = reference_states(model, examples, reference, means)
    gradients = site_gradients(
        model, examples, metric, clean, to, method=method, n_steps=n_steps, batch=batch, freeze=freeze, progress=progress
    )
    entries = []
    for index, site in enumerate(model.sites):
        moves = moves_of(model, site, clean[site], to[site])
        entries.append(Entries.of(index, examples, 0, moves.row, moves.feature, moves.effects(gradients[site])))
    return node_effects_of(entries, len(examples)), gradients


def site_gradients(
    model: CircuitModel, examples: Examples, metric: Metric, clean: Mapping[Site, State], reference: Mapping[Site, State],
    *, method: Method = "ig", n_steps: int = 10, batch: int = 32, freeze: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[Site, Float[Tensor, "n_rows d_out"]]:
    """An estimator's G = ∂metric/∂target of every site, for one batch. Arguments as in `node_effects`.

    Args:
        clean: states of the clean run; only ig uses them.
        reference: states the sites are patched to; only ig uses them.
    """
    assert method != "exact", "exact effects have no gradient"
    if method == "ig":
        return integrated_gradients(
            model, examples, metric, clean, reference, n_steps=n_steps, batch=batch, freeze=freeze, progress=progress
        )
    assert freeze is None or method == "attribution", "relp says itself what is held"
    forward: Forward | None = None
    if method == "relp":
        forward = RelevanceModel.at(model.model, examples.clean)
    elif freeze is not None:
        forward = FrozenModel.at(model.model, examples.clean, freeze)
    gradients = clean_gradients(model, examples, metric, forward)
    if progress:
        progress(len(examples) * len(model.sites))
    return gradients
