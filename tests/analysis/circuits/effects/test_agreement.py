"""The comparison of estimators with exact ablation, and the choice that follows from it."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.circuits.effects.agreement import ESTIMATORS, Agreement, cheapest, cheapest_by_site, compare_estimators
from analysis.circuits.effects.exact import exact_effects
from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.model import CircuitModel
from tests.analysis.circuits.effects.cases import SIGNED, difference, pairs, saes
from tests.training.model.dense import CODER, PLAIN
from training.model.load import load_model


def test_the_table_says_what_numpy_says() -> None:
    model = CircuitModel(
        load_model("native:n_layers=3", dtype="float64"),
        {site: sae for site, sae in saes().items() if site in (PLAIN, SIGNED, CODER)},
    )
    found = compare_estimators(model, pairs(), difference, n_largest=6, n_random=8)
    assert [(line.site, line.estimator) for line in found.table] == [
        (site, name) for site in range(3) for name in ("attribution", "relp", "ig-5", "ig-10")
    ]
    every = exact_effects(model, pairs(), difference)
    ig = node_effects(model, pairs(), difference, n_steps=10)
    for line in found.table:
        mine = found.exact.nodes.at(line.site)
        assert 6 + 8 <= line.n_nodes == len(mine) <= 4 * 6 + 8
        place = {triple: i for i, triple in enumerate(every.nodes.triples)}
        columns = [place[triple] for triple in mine.triples]
        exact = every.values.toarray()[:, columns]
        np.testing.assert_allclose(
            found.exact.values.toarray()[:, found.exact.nodes.site == line.site], exact, rtol=1e-9, atol=1e-12
        )
        if line.estimator == "ig-10":
            ours = ig.values.toarray()[:, columns]
            assert line.pearson == pytest.approx(np.corrcoef(ours.mean(0), exact.mean(0))[0, 1])
            assert line.pearson_by_example == pytest.approx(np.corrcoef(ours.ravel(), exact.ravel())[0, 1])
            assert line.slope == pytest.approx(np.polyfit(exact.mean(0), ours.mean(0), 1)[0])
            assert line.completeness < 0.02 and line.passes == 30
            largest = ig.take(ig.nodes.site == line.site).largest(6).nodes
            assert set(largest.triples) <= set(mine.triples)
    assert list(found.rows[0])[:4] == ["site", "hook", "estimator", "pearson"]


def line(site: int, estimator: str, pearson: float) -> Agreement:
    return Agreement(site, "hook", estimator, pearson, pearson, 1.0, 10, 0.0, 1, 1.0)


def test_the_cheapest_that_is_good_at_every_site() -> None:
    table = [
        line(0, "attribution", 0.99), line(0, "relp", 0.96), line(0, "ig-5", 0.97),
        line(1, "attribution", 0.5), line(1, "relp", 0.95), line(1, "ig-5", 0.99),
    ]
    assert cheapest(table) == "relp" and cheapest(table, 0.97) == "ig-5" and cheapest(table, 0.999) is None
    assert cheapest_by_site(table) == {0: "attribution", 1: "relp"}
    # a site at which nothing has an effect says nothing; one at which only an estimator is constant counts against no other
    idle = [*table, *(line(2, name, float("nan")) for name in ("attribution", "relp", "ig-5"))]
    assert cheapest(idle) == "relp" and cheapest_by_site(idle)[2] is None
    assert cheapest([replace(row, pearson=float("nan")) for row in table]) is None
    assert [str(e) for e in ESTIMATORS] == ["attribution", "relp", "ig-5", "ig-10"]
