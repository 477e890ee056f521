"""circuit-tracer's check of edges, and that it fails where it must."""

import pytest
import torch

from analysis.circuits.model import CircuitModel
from analysis.circuits.selftest.doubling import doubling, doubling_cases, random_transcoders
from training.model.load import load_model
from training.site import Site


@pytest.mark.parametrize(("dtype", "layers", "gap"), [("float32", (2, 16), 1e-3), ("float64", (2,), 1e-9)])
def test_doubled_vectors_move_everything_by_their_edges(dtype: str, layers: tuple[int, ...], gap: float) -> None:
    found = doubling_cases(dtype, layers=layers, n_each=5)
    names = ["no skip paths", "skip paths: node", "skip paths: linear"]
    assert [case.name for case in found[:3]] == [f"2 layers, {name}" for name in names]
    for case in found:
        assert case.gap < gap and case.point < gap and 0.1 < case.largest < 100, case
        assert case.n_sources == {"token": 5, "feature": 5, "error": 5} | ({"skip": 5} if "node" in case.name else {})
    assert found[-1].n_targets == {"pre-activation": 5 * layers[-1], "logit": 5}


@pytest.mark.parametrize("freeze", [("norms", "mlps"), ("attention", "norms")])
def test_it_fails_where_something_is_not_held(freeze: tuple[str, ...]) -> None:
    """Also an MLP that has no transcoder, unless it is held."""
    model = load_model("native:n_layers=3", dtype="float64")
    saes = random_transcoders(model, skip=True)
    tokens = torch.randint(3, 259, (1, 8), generator=torch.Generator().manual_seed(0))
    del saes[Site(input="blocks.1.mlp.hook_in", target="blocks.1.hook_mlp_out")]
    circuit = CircuitModel(model, saes)
    assert doubling(circuit, tokens, n_each=8, freeze=freeze).gap > 1e-3
    assert doubling(circuit, tokens, n_each=8).gap < 1e-9
