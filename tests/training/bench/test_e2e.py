"""The end-to-end benchmark, at a size that takes a moment: real trainings, ended once they are measured."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sae.errors import SaescopeError
from training.activations.batches import FIRST, Address, Batch
from training.bench import throughput
from training.bench.e2e import PARTS, SIZES, allows, bench_e2e, figures
from training.bench.legs import Size
from training.bench.parts import rate, read_rate, write_rate
from training.bench.tables import e2e_table
from training.bench.throughput import Enough, Watched

TINY = Size(
    d_in=16, d_sae=64, k=4, batch_rows=64, n_layers=1, n_heads=2, d_mlp=32, n_ctx=32, n_tokens=8192, superblock_rows=512
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", TINY)
        folder = tmp_path_factory.mktemp("bench")
        found = bench_e2e(
            ["tiny"], device="cpu", seconds=0.2, folder=folder, quiet=True,
            overrides=["train.dead_window=1k tokens", "model.batch_seqs=8"],
        )
        assert not list(folder.iterdir())
    return json.loads(json.dumps(found))["results"][0]


def test_every_leg_stands_beside_its_parts(result: dict) -> None:
    assert list(result["legs"]) == list(PARTS)
    for leg, found in result["legs"].items():
        parts = found["parts_tokens_per_s"]
        # copies to a device there are none on a CPU
        assert set(parts) == set(PARTS[leg]) - {"to_device", "from_device"}
        assert found["slowest"] == min(parts, key=parts.get)
        assert found["share"] == pytest.approx(found["tokens_per_s"] / found["allowed_tokens_per_s"])
    turns = result["legs"]["stream"]
    model, step = (turns["parts_tokens_per_s"][part] for part in ("model", "step"))
    assert turns["allowed_tokens_per_s"] == pytest.approx(model * step / (model + step))
    table = e2e_table(result)
    assert table.row_count == 4 and "tiny" in table.title


def test_trainings_are_measured_over_whole_superblocks_once_features_can_be_dead(result: dict) -> None:
    assert set(result["stretches"]) == {"cache", "rows", "stream"}
    for stretch in result["stretches"].values():
        assert stretch["n_warmup_rows"] > 0 and stretch["n_rows"] > 0 and stretch["n_rows"] % 64 == 0
        assert stretch["seconds"] >= 0.2
        # on a machine that is busy with other things it may have been cut off
        if stretch["whole_superblocks"]:
            assert stretch["n_warmup_rows"] >= 1000 and stretch["n_rows"] >= 256 and stretch["dead_share"] is not None


class Steady:
    """Superblocks of four batches of two rows each."""

    def stream(self, start: Address = FIRST, *, prefetch: int = 1, rank: int = 0, n_ranks: int = 1) -> Iterator[Batch]:
        buffer = torch.zeros(2, 3)
        for i in range(1000):
            yield Batch(Address(0, i // 4, i % 4), torch.arange(2), {"acts": buffer.fill_(i)})


def test_a_stretch_begins_behind_two_superblocks_and_the_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    for warmup, first in ((0, 2), (17, 3)):
        watch = Watched(Steady(), CPU, seconds=1e-9, warmup_rows=warmup, keep=3)
        monkeypatch.setattr(throughput, "PATIENCE", 1e12)
        seen = 0
        with pytest.raises(Enough):
            for _ in watch.stream():
                seen += 1
        assert watch.n_warmup == first * 8 and watch.facts()["n_rows"] == 8 and watch.whole
        assert seen == 4 * (first + 1)
        assert [int(batch["acts"][0, 0]) for batch in watch.kept] == [0, 1, 2]


def test_a_part_may_have_a_rate_of_its_own_for_a_leg() -> None:
    rates = {"cache": [50.0, 70.0, 60.0], "step cache": [80.0], "step rows": [1.0], "read cache": [100.0, 300.0, 200.0]}
    found = figures("cache", rates)
    assert found["parts_tokens_per_s"] == {"step": 80, "read": 200} and found["share"] == 60 / 80
    assert found["tokens_per_s"] == statistics.median([50, 60, 70]) and found["tokens_per_s_range"] == [50, 70]
    assert allows("stream", {"model": 3.0, "step": 6.0}) == pytest.approx(2.0)


def test_reading_and_writing_count_every_byte(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(bytes(1000))
    calls = []

    def counted() -> int:
        calls.append(1)
        return 10

    assert rate(counted, CPU, 0.01) > 0 and len(calls) > 2
    assert read_rate(files, 2, 0.01) > 0 and write_rate(tmp_path, 1000, 2, 0.01) > 0
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("asked", [{"sizes": ["huge"]}, {"legs": ["sprint"]}])
def test_what_there_is_not_is_named(asked: dict) -> None:
    with pytest.raises(SaescopeError, match=r"huge.*small.*gpt2|sprint.*stream"):
        bench_e2e(**asked)
