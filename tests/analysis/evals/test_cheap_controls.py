"""Controls without a training: as sparse as the SAE they stand beside, and what they are said to be."""

import numpy as np
import pytest
import torch

from analysis.evals.controls.cheap import cheap_controls, random_sae
from sae.base import SAE
from sae.variants import VARIANTS
from tests.analysis.evals.rows import made_sae, rows_of

X = torch.randn(800, 8, generator=torch.Generator().manual_seed(1)) @ torch.randn(8, 8) + 3
SOME = ["topk", "abstopk", "batchtopk", "absbatchtopk", "relu", "gated", "jumprelu", "matryoshka", "mdl"]


def l0(sae: SAE) -> float:
    return float(sae.encode(X).n_active) / len(X)


@pytest.mark.parametrize("variant", SOME)
def test_each_is_as_sparse_and_as_wide_and_signed_alike(variant: str) -> None:
    sae = made_sae(variant)
    made = cheap_controls(sae, rows_of(X), 0)
    assert list(made) == ["random", "pca", "channels"]
    assert made["random"].d_sae == sae.d_sae and l0(made["random"]) == pytest.approx(l0(sae), rel=0.01)
    assert bool((made["random"].encode(X).value < 0).any()) == sae.select().absolute
    for name in ("pca", "channels"):
        assert made[name].d_sae == 8 and l0(made[name]) == min(8, round(l0(sae)))
        assert bool((made[name].encode(X).value < 0).any())


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    pca = cheap_controls(made_sae(), rows_of(X), 0)["pca"]
    centred = (X - X.mean(0)).double().numpy()
    components = np.linalg.svd(centred, full_matrices=False)[2]
    projected = centred @ components.T
    kept = np.where(np.abs(projected) >= np.sort(np.abs(projected), axis=1)[:, -3:-2], projected, 0)
    np.testing.assert_allclose(pca.decode(pca.encode(X)).numpy() - X.mean(0).numpy(), kept @ components, atol=1e-4)


def test_channels_are_the_largest_coordinates_about_the_mean() -> None:
    channels = cheap_controls(made_sae(), rows_of(X), 0)["channels"]
    centred = (X - X.mean(0)).numpy()
    kept = np.where(np.abs(centred) >= np.sort(np.abs(centred), axis=1)[:, -3:-2], centred, 0)
    np.testing.assert_allclose(channels.decode(channels.encode(X)).numpy() - X.mean(0).numpy(), kept, atol=1e-4)


def test_with_all_of_them_components_reconstruct_everything_and_a_transcoder_its_linear_part() -> None:
    sae = made_sae(k=8)
    pca = cheap_controls(sae, rows_of(X), 0)["pca"]
    assert torch.allclose(pca.decode(pca.encode(X)), X, atol=1e-3)
    cls, config = VARIANTS["topk"]
    transcoder = cls(config.model_validate({"d_sae": 24, "k": 8}), 8, 5)
    torch.nn.init.normal_(transcoder.W_enc)
    torch.nn.init.normal_(transcoder.W_dec)
    torch.nn.init.constant_(transcoder.b_enc, 100)  # so that k are active in every row
    through = torch.randn(8, 5)
    target = X @ through + 1
    for name in ("pca", "channels"):
        made = cheap_controls(transcoder, rows_of(X, target), 0)[name]
        assert made.d_out == 5 and torch.allclose(made.decode(made.encode(X)), target, atol=1e-2)


def test_the_gain_of_random_directions_is_the_best_there_is() -> None:
    sae = made_sae()
    made = random_sae(sae, X, X, 3.0, seed=0)
    x_hat, wanted = made.decode(made.encode(X)) - X.mean(0), X - X.mean(0)
    at = [float((g * x_hat - wanted).square().sum()) for g in (0.95, 1.0, 1.05)]
    assert at[1] < at[0] and at[1] < at[2]
    assert torch.equal(made.W_dec, random_sae(sae, X, X, 3.0, seed=0).W_dec)
    assert not torch.equal(made.W_dec, random_sae(sae, X, X, 3.0, seed=1).W_dec)
