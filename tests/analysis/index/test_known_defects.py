"""Mistakes that other generators of feature dashboards make (and what people see of them); none of them is made here."""

import json
from pathlib import Path

import numpy as np

from analysis.index import build
from tests.analysis.index.small_indexes import make_index, random_codes
from tests.helpers import train, write_config


def test_groups_are_of_equal_count_and_never_hold_inactive_tokens(tmp_path: Path) -> None:
    # a: intervals of equal width in value, closed at both ends, the lowest with all the zeros in it
    acts, tokens = random_codes(60, 32, 4, share=0.05)
    made = make_index(tmp_path, acts, tokens)
    groups = made.groups(0)
    n = int((acts[:, :, 0] != 0).sum())
    assert {abs(g.population - n / 10) < 1 for g in groups[1:11]} == {True}
    for group in groups[:12]:
        assert all(e.value > 0 for e in made.examples(0, group.name))


def test_one_context_cannot_fill_the_strongest_examples(tmp_path: Path) -> None:
    # b: the strongest tokens, wherever they are
    acts, tokens = np.zeros((30, 16, 1), np.float32), np.arange(480).reshape(30, 16)
    acts[0, :, 0] = 100 + np.arange(16)
    acts[1:, 3, 0] = np.arange(1, 30)
    found = make_index(tmp_path, acts, tokens).examples(0)
    assert [e.seq for e in found] == [0, *range(29, 10, -1)]
    assert found[0].position == 15 and found[0].value == 115


def test_repetitions_of_one_text_give_way_to_other_texts(tmp_path: Path) -> None:
    acts, tokens = np.zeros((40, 16, 1), np.float32), np.arange(640).reshape(40, 16)
    tokens[:30] = tokens[0]  # a licence, thirty times
    acts[:, 14, 0] = np.arange(40, 0, -1)
    found = make_index(tmp_path, acts, tokens).examples(0)
    others = [e.seq for e in found if e.seq >= 30]
    assert others == list(range(30, 40))
    assert len(found) == 20 and [e.value for e in found] == sorted((e.value for e in found), reverse=True)


def test_a_density_is_not_read_off_a_title(tmp_path: Path) -> None:
    # c: density rounded to 0.001 %, so that rare features have none
    acts, tokens = np.zeros((500, 512, 1), np.float32), np.zeros((500, 512), np.int64)
    acts[7, 9, 0] = 1
    assert make_index(tmp_path, acts, tokens).feature(0).density == 1 / 256_000


def test_coactivation_sees_all_features(tmp_path: Path) -> None:
    # d: only those of the same batch of 128
    acts, tokens = random_codes(20, 16, 300, share=0.02)
    acts[:, :, 299] = 2 * acts[:, :, 1]
    made = make_index(tmp_path, acts, tokens)
    (nearest, *_) = made.neighbours(1, "coactivation")
    assert (nearest.feature, nearest.jaccard) == (299, 1.0) and abs((nearest.pearson or 0) - 1) < 1e-12


def test_values_keep_their_precision_and_examples_their_place(tmp_path: Path) -> None:
    # e: values cut to 4 decimals, positions off by one, random examples that depend on the batches
    acts, tokens = random_codes(20, 16, 3, share=0.5)
    acts *= np.float32(1e-6)
    small = make_index(tmp_path / "a", acts, tokens, budget=16_000_000)
    for e in small.examples(1, "random"):
        assert abs(e.value / acts[e.seq, e.position, 1] - 1) < 2**-11
        assert e.values[e.position - e.start] == e.value
    again = make_index(tmp_path / "b", acts, tokens, budget=10**9)
    assert [e.seq for e in small.examples(1, "random")] == [e.seq for e in again.examples(1, "random")]


def test_tiny_and_huge_values_survive_half_precision(tmp_path: Path) -> None:
    acts = np.zeros((2, 8, 2), np.float32)
    acts[0, :4, 0] = [1e30, 1e-30, -3e4, 7e4]
    acts[1, 0, 1] = 1e-40
    made = make_index(tmp_path, acts, np.zeros((2, 8), np.int64))
    assert np.count_nonzero(made.values(0, 0)) == 4 and made.values(1, 1)[0] > 0
    assert abs(made.values(0, 0)[0] / np.float32(1e30) - 1) < 2**-11
    assert made.feature(0).max == np.float32(1e30)


def test_more_rows_than_a_float_can_count(tmp_path: Path) -> None:
    # f: torch.quantile refuses more than 16.7 million values
    n_seqs, n_ctx = 66_000, 256
    acts = np.zeros((n_seqs, n_ctx, 1), np.float32)
    acts[:, ::2, 0] = 1
    acts[:, ::4, 0] = 2
    made = make_index(tmp_path, acts, np.zeros((n_seqs, n_ctx), np.int64))
    assert made.n_rows == 16_896_000 and made.feature(0).n_active == 8_448_000
    assert made.groups(0)[5].population + made.groups(0)[10].population == 8_448_000


def test_other_weights_are_noticed(tmp_path: Path) -> None:
    # g: what is there is used again, whatever it was made from
    write_config(tmp_path)
    assert train(tmp_path, "--quiet").code == 0
    run = tmp_path / "runs/quick"
    first = build(run, quiet=True)
    labels = run / "labels.sqlite"
    labels.write_bytes(b"not to be touched")
    assert first.stale is None and build(run, quiet=True).manifest == first.manifest
    manifest = json.loads((run / "index/default/manifest.json").read_text())
    (run / "summary.json").unlink()
    for file in (run / "final").iterdir():
        file.unlink()
    (run / "config.yaml").unlink()
    assert train(tmp_path, "--quiet", "sae.seed=1").code == 0
    assert first.stale is not None and "retrained" in first.stale
    second = build(run, quiet=True)
    assert second.stale is None and second.manifest["made_from"] != manifest["made_from"]
    assert labels.read_bytes() == b"not to be touched"
