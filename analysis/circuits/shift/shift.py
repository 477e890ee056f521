"""SHIFT (Marks et al. 2403.19647, §5) and its baselines.

    1  train a probe for the intended label on biased texts, where a spurious label agrees with it
    2  find the features with the largest effects on its logit, on those texts
    3  judge which of them are about the spurious label
    4  zero-ablate these everywhere, keeping errors; optionally retrain the probe on what is left

Baselines: the same number of random active features; the same number of features, and of neurons (coordinates of the same
hooks), with the largest effects on the probe's logit for the spurious label, found on balanced texts (skylines: they see
labels that SHIFT doesn't); giveaway words deleted from every text; a probe trained on balanced texts (oracle).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from analysis.circuits.coordinates import own_coordinates
from analysis.circuits.model import CircuitModel
from analysis.circuits.shift.effects import Candidate, by_site, largest, probe_effects
from analysis.circuits.shift.probe import Accuracy, accuracy, fit, means
from analysis.circuits.shift.texts import Labelled

Judge = Callable[[Sequence[Candidate]], Sequence[Candidate]]
"""Returns the candidates that are about the spurious label."""


@dataclass(frozen=True)
class Sets:
    """Tokenised data sets.

    Attributes:
        biased: training texts of the probe.
        balanced: texts for skylines and the oracle.
        test: texts that accuracies are measured on.
        bare: biased and test texts without giveaway words; None skips that baseline.
    """

    biased: Labelled
    balanced: Labelled
    test: Labelled
    bare: tuple[Labelled, Labelled] | None = None


@dataclass(frozen=True)
class Shifted:
    """Result of SHIFT.

    Attributes:
        rows: name, accuracies and number of ablated features of every method.
        candidates: features of the circuit.
        judged: candidates judged spurious.
    """

    rows: list[dict[str, Any]]
    candidates: list[Candidate]
    judged: list[Candidate]


def shift(
    circuit: CircuitModel, hook: str, sets: Sets, judge: Judge, *, n_candidates: int = 60, n_effect_texts: int = 128,
    n_steps: int = 4, c: float = 1.0, seed: int = 0, progress: Callable[[str], None] | None = None,
) -> Shifted:
    """Run SHIFT and all baselines.

    Args:
        circuit: model with SAEs at or before the probe's hook.
        hook: hook the probe reads.
        sets: data sets.
        judge: picks the spurious candidates.
        n_candidates: number of features in the circuit.
        n_effect_texts: number of texts for estimating effects, from the start of a set.
        n_steps: steps of integrated gradients.
        c: inverse of the probes' L2 penalty.
        seed: seed of the random features.
        progress: called with the name of each step as it starts.
    """
    trial = _Trial(circuit, hook, sets, c, progress or (lambda _: None))
    some = slice(0, n_effect_texts)
    biased, balanced = sets.biased.take(some), sets.balanced.take(some)
    trial.say("effects")
    effects = probe_effects(circuit, trial.probe, biased, biased.intended, n_steps=n_steps)
    candidates = largest(effects, n_candidates)
    judged = list(judge(candidates))
    trial.original()
    trial.without("SHIFT", circuit, judged, retrain=True)
    fire = [Candidate(site, int(f), 0.0) for site, effect in effects.items() for f in effect.nonzero()[:, 0]]
    chosen = np.random.default_rng(seed).choice(len(fire), min(len(judged), len(fire)), replace=False)
    trial.without("random features", circuit, [fire[i] for i in sorted(chosen.tolist())], retrain=True)
    trial.say("skylines")
    for name, model in (("feature skyline", circuit), ("neuron skyline", own_coordinates(circuit))):
        found = probe_effects(model, trial.probe, balanced, balanced.spurious, n_steps=n_steps)
        trial.without(name, model, largest(found, len(judged)), retrain=True)
    trial.deletion()
    trial.oracle()
    return Shifted(trial.rows, candidates, judged)


class _Trial:
    """Measures the methods and collects the table's rows."""

    def __init__(
        self, circuit: CircuitModel, hook: str, sets: Sets, c: float, say: Callable[[str], None]
    ) -> None:
        self.circuit, self.hook, self.sets, self.c, self.say = circuit, hook, sets, c, say
        self.rows: list[dict[str, Any]] = []
        self.train, self.test = (self._means(data) for data in (sets.biased, sets.test))
        self.probe = fit(hook, self.train, sets.biased.intended, c=c)

    def _means(self, data: Labelled) -> Float[Tensor, "n_texts d"]:
        return means(self.circuit.model, self.hook, data)

    def _add(self, name: str, found: Accuracy, n_off: int = 0) -> None:
        self.rows.append({"method": name, **asdict(found), "n_off": n_off})

    def original(self) -> None:
        """The unchanged probe."""
        self._add("original", accuracy(self.probe, self.test, self.sets.test))

    def without(self, name: str, circuit: CircuitModel, off: Sequence[Candidate], *, retrain: bool) -> None:
        """The probe with features ablated, and a probe retrained with them ablated."""
        self.say(name)
        ablated = (circuit, by_site(list(off)))
        test = means(circuit.model, self.hook, self.sets.test, ablated)
        self._add(name, accuracy(self.probe, test, self.sets.test), len(off))
        if retrain:
            train = means(circuit.model, self.hook, self.sets.biased, ablated)
            probe = fit(self.hook, train, self.sets.biased.intended, c=self.c)
            self._add(f"{name}, retrained", accuracy(probe, test, self.sets.test), len(off))

    def deletion(self) -> None:
        """Giveaway words deleted from the test texts, and from the training texts too."""
        if self.sets.bare is None:
            return
        train, test = self.sets.bare
        rows = self._means(test)
        self._add("giveaways deleted", accuracy(self.probe, rows, test))
        probe = fit(self.hook, self._means(train), train.intended, c=self.c)
        self._add("giveaways deleted, retrained", accuracy(probe, rows, test))

    def oracle(self) -> None:
        """A probe trained on balanced texts."""
        probe = fit(self.hook, self._means(self.sets.balanced), self.sets.balanced.intended, c=self.c)
        self._add("oracle", accuracy(probe, self.test, self.sets.test))
