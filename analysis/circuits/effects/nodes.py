"""What each node does to a metric, by any estimator.

    attribution   gradient at the clean run                    2 forwards for the states + 1 forward, 1 backward
    relp          the same with RelP's backward rules           2 + 2 forwards, 1 backward
    ig            mean gradient on the way to the reference     2 + (sites × steps) forwards and backwards
    exact         every node moved in turn                      2 + one forward for each node of each example

An effect is the change of the metric when the node moves to its reference: what supports the clean answer is negative.
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
    """The effect of every node of every example.

    Nodes are the features that are active in the clean or the reference run, by position, with each site's ERROR, and
    SKIP where its SAE has offsets that depend on the input. One that is as active in both has effect 0.

    Args:
        reference: what nodes are moved to.
        n_steps: of ig, gradients per site.
        means: for the reference `mean` (`mean_states`).
        batch: prompts per forward pass.
        freeze: parts that are held at the clean run (`training.model.frozen.HELD`); None is the model itself. Not for relp.
        progress: told of every site of an example that is done.

    Raises:
        SaescopeError: a metric without a gradient, or, for attribution and relp, none at the clean run; single prompts
            without a counterfactual; a model that shows no activations within its MLPs (relp).
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
    """`node_effects` of one batch, and the gradients that they were read from; none for exact ablation."""
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
    """G = ∂metric/∂target of every site as an estimator has it; one batch. Arguments as in `node_effects`.

    Args:
        clean: states of the clean run; ig alone reads them.
        reference: states that the sites are moved to; likewise.
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
