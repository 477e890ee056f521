"""A linear probe on the mean of a hook's rows, and what its answers say of both labels."""

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
    """Logit = ⟨mean row, w⟩ + b.

    Attributes:
        hook: whose rows are averaged.
        w: `[d]`.
        b: a number.
    """

    hook: str
    w: Float[Tensor, " d"]
    b: float

    def logits(self, means: Float[Tensor, "n_texts d"]) -> Float[Tensor, " n_texts"]:
        """Above 0 means yes."""
        return means.to(self.w) @ self.w + self.b


@dataclass(frozen=True)
class Accuracy:
    """Of a probe's answers.

    Attributes:
        intended: share that is the intended label.
        spurious: share that is the spurious label: 0.5 where it does not matter.
        worst_group: least share of intended answers over the four combinations of labels.
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
    """Each text's mean row at a hook.

    Args:
        model: the language model.
        hook: whose rows.
        data: texts.
        ablated: a circuit model and features of its sites that are 0 everywhere; errors stay as the run has them.
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
    """Answers on texts whose means are given."""
    yes = probe.logits(rows) > 0
    right = yes == data.intended
    groups = [right[(data.intended == a) & (data.spurious == b)] for a in (False, True) for b in (False, True)]
    shares: Sequence[float] = [float(group.double().mean()) for group in groups if len(group)]
    return Accuracy(float(right.double().mean()), float((yes == data.spurious).double().mean()), min(shares))
