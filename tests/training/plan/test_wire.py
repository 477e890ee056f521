"""Bytes between ranks, against rings and numbers counted by hand."""

import pytest

from training.plan.wire import HISTOGRAMS, Grid, SAESizes, bytes_per_step

D, F, K, B = 8, 960, 4, 16
TOPK = SAESizes(d_sae=F, d_in=D, d_out=D, own=F * (2 * D + 1), common=D, mode="topk", k=K)


def ring_sum(n_bytes: int, n: int) -> int:
    """What a rank sends when a vector is cut into n chunks: n − 1 rounds of adding up, n − 1 of passing on."""
    return sum(n_bytes // n for _ in range(n - 1)) + sum(n_bytes // n for _ in range(n - 1))


@pytest.mark.parametrize("n", [2, 4, 8])
def test_data_parallel_sends_gradients_and_when_features_fired(n: int) -> None:
    sent = bytes_per_step(TOPK, Grid(n, 1), B)
    assert sent == {
        "gradients": ring_sum(4 * F * 17, n) + ring_sum(4 * D, n), "candidates": 0, "reconstructions": 0,
        "dead": ring_sum(8 * F, n), "revival": 0,
    }


def test_shared_features_send_candidates_and_one_reconstruction() -> None:
    sent = bytes_per_step(TOPK, Grid(4, 4), B)
    # the gradient of b_dec alone is of no feature
    assert sent["gradients"] == ring_sum(4 * D, 4) and sent["dead"] == 0
    assert sent["candidates"] == 3 * B * K * 4
    assert sent["reconstructions"] == ring_sum(B * D * 4, 4)


def test_a_grid_sends_both_of_less() -> None:
    sent = bytes_per_step(TOPK._replace(subtracts_b_dec=True, k_aux=3), Grid(4, 2), B)
    own, row = F * 17 // 2, B // 2
    assert sent["gradients"] == ring_sum(4 * own, 2) + ring_sum(4 * D, 4) + ring_sum(4 * D, 2)
    assert sent["candidates"] == row * K * 4 and sent["reconstructions"] == ring_sum(row * D * 4, 2)
    assert sent["dead"] == ring_sum(8 * F // 2, 2)
    assert sent["revival"] == row * 3 * 4 + ring_sum(row * D * 4, 2)


@pytest.mark.parametrize(("mode", "expected"), [("batch_topk", ring_sum(HISTOGRAMS, 4) + 3 * 8), ("threshold", 0)])
def test_what_is_not_chosen_by_row(mode: str, expected: int) -> None:
    sent = bytes_per_step(TOPK._replace(mode=mode, n_prefixes=5), Grid(4, 4), B)
    assert sent["candidates"] == expected
    assert sent["reconstructions"] == 5 * ring_sum(B * D * 4, 4)


def test_one_rank_sends_nothing() -> None:
    assert not any(bytes_per_step(TOPK._replace(subtracts_b_dec=True, k_aux=3), Grid(1, 1), B).values())
