"""Features are dealt out so that every prefix is shared, and a part is the same whoever holds it."""

import pytest
import torch

from sae.init import PIECE, random_directions
from sae.part import Part, round_of
from training.distributed.layout import cut, joined


@pytest.mark.parametrize(("d_sae", "n"), [(96, 1), (96, 2), (96, 3), (96, 32), (4608, 6), (1 << 14, 64), (1000, 8)])
def test_parts_hold_every_feature_once_and_their_share_of_each_prefix(d_sae: int, n: int) -> None:
    parts = [Part(d_sae, i, n) for i in range(n)]
    held = [part.features() for part in parts]
    assert torch.equal(torch.cat(held).sort().values, torch.arange(d_sae))
    for end in (0, 1, 5, 17, d_sae // 3, d_sae - 1, d_sae):
        counts = [part.n_below(end) for part in parts]
        assert counts == [int((features < end).sum()) for features in held]
        assert max(counts) - min(counts) <= round_of(d_sae) // n
    assert all(bool((features.diff() > 0).all()) and len(features) == part.n_features
               for features, part in zip(held, parts, strict=True))


@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_join_to_the_whole(axis: int) -> None:
    whole = torch.randn(96, 5, generator=torch.Generator().manual_seed(0))
    whole = whole.t() if axis else whole
    pieces = [cut(whole, axis, Part(96, i, 4)) for i in range(4)]
    # as a trainer holds it: feature after feature in memory
    lying = [piece.t().contiguous().t() if axis else piece for piece in pieces]
    assert torch.equal(joined(lying, axis, 96), whole)


@pytest.mark.parametrize("d_sae", [960, PIECE, PIECE + 960, 2 * PIECE])
def test_random_directions_do_not_depend_on_who_holds_them(d_sae: int) -> None:
    def draw(part: Part) -> tuple[torch.Tensor, float]:
        generator = torch.Generator().manual_seed(3)
        rows = random_directions(part, 7, generator)
        return rows, float(torch.rand((), generator=generator))

    whole, after = draw(Part(d_sae))
    for i in range(2):
        rows, also = draw(Part(d_sae, i, 2))
        assert torch.equal(rows, whole[Part(d_sae, i, 2).features()]) and also == after
