import pytest
import torch

from sae.init import geometric_median, initialise
from sae.variants.topk import TopK, TopKConfig


def test_geometric_median_is_not_the_mean() -> None:
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1], [1000.0, 0.0]])
    median = geometric_median(points)
    assert median.norm() < 0.1 < points.mean(0).norm()


def test_geometric_median_of_a_triangle_sees_every_side_at_120_degrees() -> None:
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    towards = corners - geometric_median(corners, tolerance=1e-12, max_iterations=5000)
    unit = towards / towards.norm(dim=1, keepdim=True)
    cosines = [float(unit[i] @ unit[j]) for i, j in ((0, 1), (1, 2), (0, 2))]
    assert cosines == pytest.approx([-0.5] * 3, abs=1e-5)


def test_geometric_median_on_a_data_point() -> None:
    """Plain Weiszfeld divides by zero where the iterate meets a point; here the mean is one."""
    cross = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert torch.equal(geometric_median(cross), torch.zeros(2))
    assert geometric_median(torch.full((7, 3), 2.5)).tolist() == [2.5, 2.5, 2.5]


@pytest.mark.parametrize("b_dec", ["zero", "mean", "geometric_median"])
@pytest.mark.parametrize("encoder", ["transpose", "random"])
def test_initial_weights(b_dec: str, encoder: str) -> None:
    targets = torch.randn(200, 8).exp()
    config = TopKConfig.model_validate({"d_sae": 32, "k": 4, "init": {"b_dec": b_dec, "encoder": encoder}})
    sae = TopK(config, 8)
    initialise(sae, targets)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    assert torch.equal(sae.W_enc, sae.W_dec.t()) == (encoder == "transpose")
    expected = {"zero": torch.zeros(8), "mean": targets.mean(0), "geometric_median": geometric_median(targets)}
    torch.testing.assert_close(sae.b_dec.detach(), expected[b_dec])
    again = TopK(config, 8)
    initialise(again, targets)
    assert torch.equal(again.W_dec, sae.W_dec)
