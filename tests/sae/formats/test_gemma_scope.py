"""Gemma Scope's archive against its formula, and archives that are not one."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sae
from sae.errors import SaescopeError
from sae.formats import gemma_scope
from tests.training.imported import D, N, dense, gemma_scope_folder, weights


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("d_out", [D, 20])
def test_it_computes_the_formula(tmp_path: Path, d_out: int, skip: bool) -> None:
    w = weights("jumprelu_skip_transcoder" if skip else "jumprelu", d_out)
    arrays = {name: tensor.numpy() for name, tensor in w.items() if name != "W_skip"}
    if skip:
        arrays["affine_skip_connection"] = w["W_skip"].t().numpy()
    read = sae.load(gemma_scope_folder(tmp_path / "sae", **arrays))
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(2))
    assert (read.d_in, read.d_out, read.d_sae) == (D, d_out, N)
    torch.testing.assert_close(read(x).double(), dense("gemma-scope", w, x), atol=1e-5, rtol=1e-4)


def test_half_precision_and_a_scaling_factor_of_one(tmp_path: Path) -> None:
    half = {name: tensor.numpy().astype(np.float16) for name, tensor in weights("jumprelu").items()}
    read = gemma_scope.read(gemma_scope_folder(tmp_path / "sae", **half, scaling_factor=np.ones(N)))
    assert torch.equal(read.W_enc, torch.from_numpy(half["W_enc"]).float())


@pytest.mark.parametrize(("changes", "says"), [
    ({"threshold": None}, "threshold"), ({"extra": np.zeros(3)}, "extra"), ({"b_dec": np.zeros(D + 1)}, "b_dec"),
    ({"W_dec": np.zeros((N + 1, D))}, "W_dec"), ({"W_enc": np.zeros(D)}, "W_enc"), ({"b_enc": np.full(N, np.nan)}, "b_enc"),
    ({"scaling_factor": np.full(N, 2.0)}, "scaling_factor"), ({"b_enc": np.array(["a"] * N)}, "numeric"),
    ({"b_enc": np.array([{}] * N, dtype=object)}, "pickle"),
])
def test_archives_that_do_not_fit(tmp_path: Path, changes: dict, says: str) -> None:
    with pytest.raises(SaescopeError, match=says):
        gemma_scope.read(gemma_scope_folder(tmp_path / "sae", **changes))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"cos\nsystem\n(S'true'\ntR."])
def test_files_that_are_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "params.npz").write_bytes(content)
    with pytest.raises(SaescopeError, match=r"params\.npz"):
        gemma_scope.read(tmp_path)
