"""A linear probe on a hook's mean activation, and its accuracy on both labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analysis.circuits.model import CircuitModel
from analysis.circuits.shift.texts import Labelled
from training.model.edits import Edit
from training.model.language_model import Model
from training.model.splice import SplicedModel
from training.site import Site


@dataclass(frozen=True)
class Probe:
    """Linear probe: logit = ⟨mean row, w⟩ + b.

    Attributes:
        hook: hook whose rows are averaged.
        w: weights `[d]`.
        b: bias.
    """

    hook: str
    w: Float[Tensor, " d"]
    b: float

    def logits(self, means: Float[Tensor, "n_texts d"]) -> Float[Tensor, " n_texts"]:
        """Logits; positive means yes."""
        return means.to(self.w) @ self.w + self.b


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a probe.

    Attributes:
        intended: accuracy on the intended label.
        spurious: accuracy on the spurious label; 0.5 if the probe ignores it.
        worst_group: lowest accuracy on the intended label over the four combinations of labels.
    """

    intended: float
    spurious: float
    worst_group: float


def fit(hook: str, means: Float[Tensor, "n_texts d"], labels: Bool[Tensor, " n_texts"], *, c: float = 1.0) -> Probe:
    """Logistic regression on standardised means (scikit-learn, L2 penalty 1/c)."""
    from sklearn.linear_model import LogisticRegression

    x = means.double()
    centre, scale = x.mean(0), x.std(0).clamp_min(1e-8)
    found = LogisticRegression(C=c, max_iter=2000).fit(((x - centre) / scale).numpy(), labels.numpy())
    w = torch.from_numpy(found.coef_[0]) / scale
    return Probe(hook, w, float(found.intercept_[0]) - float(centre @ w))


@torch.no_grad()
def means(
    model: Model, hook: str, data: Labelled, ablated: tuple[CircuitModel, dict[Site, list[int]]] | None = None
) -> Float[Tensor, "n_texts d"]:
    """Mean row of each text at a hook.

    Args:
        model: the language model.
        hook: the hook.
        data: texts.
        ablated: a circuit model and, by site, features to zero-ablate everywhere; errors are kept.
    """
    found = []
    for part in data.batches():
        if ablated is None:
            rows = model.activation(part.tokens, hook)
        else:
            circuit, features = ablated
            edits = [Edit(site, some, 0.0) for site, some in features.items() if some]
            with SplicedModel(model, circuit.saes).spliced(keep=part.keep, edits=edits, record=False):
                rows = model.activation(part.tokens, hook)
        found.append(part.mean(rows.double().cpu()))
    return torch.cat(found)


def accuracy(probe: Probe, rows: Float[Tensor, "n_texts d"], data: Labelled) -> Accuracy:
    """Accuracy on texts, from their mean rows."""
    yes = probe.logits(rows) > 0
    right = yes == data.intended
    groups = [right[(data.intended == a) & (data.spurious == b)] for a in (False, True) for b in (False, True)]
    shares: Sequence[float] = [float(group.double().mean()) for group in groups if len(group)]
    return Accuracy(float(right.double().mean()), float((yes == data.spurious).double().mean()), min(shares))
