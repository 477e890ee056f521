import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.code import SparseCode, from_dense


@given(st.integers(0, 6), st.integers(1, 9), st.integers(0, 10**6))
def test_dense_and_sparse_say_the_same(n_rows: int, d_sae: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n_rows, d_sae, generator=generator) * (torch.rand(n_rows, d_sae, generator=generator) < 0.4)
    code = from_dense(dense)
    assert torch.equal(code.to_dense(), dense)
    assert torch.equal(code.counts(), (dense != 0).sum(0))
    assert torch.equal(code.l0(), (dense != 0).sum(1))
    assert code.n_active == (dense != 0).sum()


def test_fixed_k_drops_its_padding_and_sorts() -> None:
    feature = torch.tensor([4, 1, 0, 2, 2, 0], dtype=torch.int32)
    value = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.0, 0.0])
    code = SparseCode(feature, value, n_rows=2, d_sae=5, k=3)
    csr = code.csr()
    assert csr.indptr is not None and csr.indptr.tolist() == [0, 2, 3]
    assert csr.feature.tolist() == [1, 4, 2] and csr.value.tolist() == [-2.0, 1.0, 3.0]
    assert torch.equal(csr.to_dense(), code.to_dense())
    assert code.counts().tolist() == [0, 1, 1, 0, 1], "signed values count, padding does not"


def test_only_values_carry_gradient() -> None:
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]], requires_grad=True)
    (from_dense(dense).scaled(torch.tensor([10.0, 1.0])).to_dense() ** 2).sum().backward()
    assert dense.grad is not None and dense.grad.tolist() == [[0.0, 4.0], [600.0, 0.0]]
