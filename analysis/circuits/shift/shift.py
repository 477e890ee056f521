"""SHIFT (Marks et al. 2403.19647, §5), and what it is measured against.

    1  a probe learns the intended label on biased texts, in which a spurious label goes with it
    2  the features with the largest effects on its logit are found on those texts
    3  someone judges which of them are about the spurious label
    4  these are switched off wherever they fire, errors kept; the probe may be trained again on what is left

Baselines: as many random features of those that fire; as many features, and neurons (coordinates of the same hooks), with
the largest effects on the probe's logit by the spurious label, found on balanced texts (skylines: they see labels that
SHIFT does not); giveaway words deleted from every text; a probe trained on balanced texts (oracle).
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
"""Which of the candidates are about the spurious label."""


@dataclass(frozen=True)
class Sets:
    """Texts as tokens.

    Attributes:
        biased: what the probe learns from.
        balanced: what skylines and the oracle see.
        test: what everything is measured on.
        bare: biased and test without their giveaway words; None leaves that baseline out.
    """

    biased: Labelled
    balanced: Labelled
    test: Labelled
    bare: tuple[Labelled, Labelled] | None = None


@dataclass(frozen=True)
class Shifted:
    """What came of it.

    Attributes:
        rows: name, accuracies and the number of features that are off, of every method.
        candidates: the circuit.
        judged: those that are called spurious.
    """

    rows: list[dict[str, Any]]
    candidates: list[Candidate]
    judged: list[Candidate]


def shift(
    circuit: CircuitModel, hook: str, sets: Sets, judge: Judge, *, n_candidates: int = 60, n_effect_texts: int = 128,
    n_steps: int = 4, c: float = 1.0, seed: int = 0, progress: Callable[[str], None] | None = None,
) -> Shifted:
    """SHIFT and all baselines.

    Args:
        circuit: SAEs at or before the probe's hook.
        hook: what the probe reads.
        sets: texts.
        judge: of the candidates.
        n_candidates: features of the circuit.
        n_effect_texts: how many texts effects are found on, the first ones of a set.
        n_steps: of integrated gradients.
        c: inverse of the probes' L2 penalty.
        seed: of the random features.
        progress: told what begins.
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
    """Rows of the table as they are measured."""

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
        """The probe as it is."""
        self._add("original", accuracy(self.probe, self.test, self.sets.test))

    def without(self, name: str, circuit: CircuitModel, off: Sequence[Candidate], *, retrain: bool) -> None:
        """The probe with features off, and one that is trained on what they leave."""
        self.say(name)
        ablated = (circuit, by_site(list(off)))
        test = means(circuit.model, self.hook, self.sets.test, ablated)
        self._add(name, accuracy(self.probe, test, self.sets.test), len(off))
        if retrain:
            train = means(circuit.model, self.hook, self.sets.biased, ablated)
            probe = fit(self.hook, train, self.sets.biased.intended, c=self.c)
            self._add(f"{name}, retrained", accuracy(probe, test, self.sets.test), len(off))

    def deletion(self) -> None:
        """Giveaway words deleted from the texts that are tested, and from those that train as well."""
        if self.sets.bare is None:
            return
        train, test = self.sets.bare
        rows = self._means(test)
        self._add("giveaways deleted", accuracy(self.probe, rows, test))
        probe = fit(self.hook, self._means(train), train.intended, c=self.c)
        self._add("giveaways deleted, retrained", accuracy(probe, rows, test))

    def oracle(self) -> None:
        """A probe from balanced texts."""
        probe = fit(self.hook, self._means(self.sets.balanced), self.sets.balanced.intended, c=self.c)
        self._add("oracle", accuracy(probe, self.test, self.sets.test))
