"""Every evaluation of the registry can be had by its name, and says what it is."""

import json

import pytest

from analysis.evals.registry import EVALUATIONS, evaluation


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_is_what_the_registry_calls_it(name: str) -> None:
    found = evaluation(name)
    assert found.name == name and found.title and found.version >= 1
    quick, full = (json.loads(json.dumps(found.plain_settings(suite))) for suite in ("quick", "full"))
    assert set(quick) == set(full)
