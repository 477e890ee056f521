import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.code import SparseCode, from_dense, sum_by_feature, summed_in_order


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


def test_sums_by_feature_are_the_same_bits_every_time() -> None:
    """Large enough for torch to use several threads, and with a feature in most places; index_put differs here."""
    draw = torch.Generator().manual_seed(0)
    feature = torch.randint(0, 50, (300_000,), generator=draw) * (torch.rand(300_000, generator=draw) < 0.4)
    values = torch.randn(300_000, generator=draw)
    exact = torch.zeros(60, dtype=torch.float64).index_add(0, feature, values.double())
    for function in (sum_by_feature, summed_in_order):
        sums = [function(values, feature.to(torch.int32), 60) for _ in range(4)]
        assert all(torch.equal(sums[0], other) for other in sums[1:])
        torch.testing.assert_close(sums[0].double(), exact, rtol=1e-4, atol=2e-2)
        assert (sums[0][50:] == 0).all()
        assert torch.equal(function(torch.empty(0), torch.empty(0, dtype=torch.int32), 3), torch.zeros(3))


def test_sums_by_feature_pass_gradcheck() -> None:
    values = torch.randn(12, dtype=torch.float64, requires_grad=True)
    feature = torch.tensor([0, 4, 4, 1, 0, 0, 2, 4, 1, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda v: sum_by_feature(v, feature, 6), (values,))
