"""Training on one's own tensors from Python: the figures of the same rows through `acts:`, and bad rows refused."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sae
from analysis import runs as found_runs
from sae.errors import SaescopeError
from tests.helpers import tree
from tests.training.test_train import lines, weights, without_speed
from training import train, train_on
from training.activations.loader import row_keys
from training.commands import _dead
from training.config import reading as configs

D, N_TRUE, N_ROWS = 16, 24, 20_000
SAE = {"variant": "topk", "d_sae": 48, "k": 4}
SECTIONS: dict[str, Any] = {
    "corpus": {"n_ctx": 32, "held_out": 0.1}, "data": {"batch_rows": 250, "n_calib": 16}, "optim": {"lr": 3e-3},
    "train": {"budget": "3 epochs", "device": "cpu", "kernels": "reference"}, "eval": {"n_rows": 2000},
}


def made(n_rows: int = N_ROWS, seed: int = 0) -> np.ndarray:
    """Sums of a few of `N_TRUE` directions, each with a length of its own."""
    rng = np.random.default_rng(seed)
    code = rng.random((n_rows, N_TRUE)) * (rng.random((n_rows, N_TRUE)) < 0.1)
    directions = np.random.default_rng(99).normal(size=(N_TRUE, D))
    return (code @ directions + 0.01 * rng.normal(size=(n_rows, D))).astype(np.float32)


def on(rows: Any, config: dict[str, Any] = SAE, **changes: Any) -> Any:
    """`train_on`, quiet, in these sections, single keys of which may be changed."""
    sections = {name: SECTIONS[name] | changes.pop(name, {}) for name in SECTIONS}
    return train_on(rows, config, quiet=True, **sections, **changes)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return made()


@pytest.fixture(scope="module")
def through_acts(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of the same rows through a folder and a config."""
    folder = tmp_path_factory.mktemp("acts")
    np.save(folder / "0.npy", rows)
    corpus = SECTIONS["corpus"] | {"sources": f"acts:{folder}"}
    fields = {"name": "acts", "model": None, "site": "acts", "sae": SAE} | SECTIONS | {"corpus": corpus}
    return train(fields, runs=folder / "runs", quiet=True).summary


def test_what_is_dead_is_not_known_before_a_window_has_passed(rows: np.ndarray) -> None:
    short = on(rows, train={"budget": "5 steps", "dead_window": "6 steps"}).summary["dead"]
    assert short == {"share": None, "n": None, "window_rows": 6 * 250}
    assert _dead(short) == "not measured"
    whole = on(rows, train={"budget": "5 steps", "dead_window": "5 steps"}).summary["dead"]
    assert 0 <= whole["n"] == whole["share"] * 48


def test_ten_lines_from_an_array(rows: np.ndarray, through_acts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = train_on(
            rows, {"variant": "topk", "d_sae": 48, "k": 4}, quiet=True,
            train={"budget": "3 epochs", "device": "cpu", "kernels": "reference"},
            corpus={"n_ctx": 32, "held_out": 0.1}, data={"batch_rows": 250, "n_calib": 16}, optim={"lr": 3e-3},
            eval={"n_rows": 2000},
        )
    assert result.summary["weights_sha256"] == through_acts["weights_sha256"], "byte for byte"
    assert result.summary["heldout"] == through_acts["heldout"]
    assert result.summary["dead"] == through_acts["dead"] and result.summary["mask"] == through_acts["mask"]
    assert result.summary["heldout"]["fve"] > 0.85
    assert result.folder is None and not tree(tmp_path), "nothing was written"
    x = torch.from_numpy(rows[:100])
    assert float((result.sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()) < 0.15
    assert result.sae.encode(x).n_active <= 400


@pytest.mark.parametrize("shuffle", [True, False])
def test_ten_lines_from_a_data_loader(shuffle: bool, rows: np.ndarray, through_acts: dict[str, Any]) -> None:
    """Another order of the same rows, and other rows held out: FVE within 0.02 of that through a folder."""
    dataset = TensorDataset(torch.from_numpy(rows))
    loader = DataLoader(dataset, batch_size=250, shuffle=shuffle, generator=torch.Generator().manual_seed(0))
    result = on(loader)
    assert result.summary["heldout"]["fve"] == pytest.approx(through_acts["heldout"]["fve"], abs=0.02)
    assert result.summary["heldout"]["l0"] == pytest.approx(through_acts["heldout"]["l0"], abs=0.1)
    assert result.summary["n_steps"] == pytest.approx(through_acts["n_steps"], rel=0.02)
    if not shuffle:  # the whole of it is its first stretch, and so split like an array
        assert result.summary["heldout"]["n_rows"] == through_acts["heldout"]["n_rows"]


@pytest.mark.parametrize("form", ["float64", "torch", "sequences", "dict", "turned", "memory-mapped"])
def test_every_form_of_the_same_rows_trains_the_same_weights(
    form: str, rows: np.ndarray, through_acts: dict[str, Any], tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", rows)
    forms = {
        "float64": rows.astype(np.float64), "torch": torch.from_numpy(rows).requires_grad_(), "dict": {"acts": rows},
        "sequences": rows.reshape(-1, 32, D), "turned": np.asfortranarray(rows),
        "memory-mapped": np.load(tmp_path / "rows.npy", mmap_mode="r"),
    }
    assert on(forms[form]).summary["weights_sha256"] == through_acts["weights_sha256"]


def test_sequences_bring_their_own_length() -> None:
    result = train_on(made(6000).reshape(-1, 20, D), SAE, quiet=True, train={"budget": "5 steps", "device": "cpu"},
                      data={"batch_rows": 100})
    assert result.sae.provenance["context_size"] == 20
    assert result.sae.provenance["config"]["data"]["block_rows"] == 4


def test_low_precision_rows_are_trained_on_as_they_are(rows: np.ndarray, through_acts: dict[str, Any]) -> None:
    for lower in (torch.from_numpy(rows).bfloat16(), rows.astype(np.float16)):
        found = on(lower).summary
        assert found["heldout"]["fve"] == pytest.approx(through_acts["heldout"]["fve"], abs=0.01)
        assert found["weights_sha256"] != through_acts["weights_sha256"]


def test_a_transcoder_from_a_pair_from_a_dict_and_from_batches_of_pairs() -> None:
    x = made(6000)
    y = np.maximum(x @ np.random.default_rng(3).normal(size=(D, 12)), 0).astype(np.float32)
    short = {"train": {"budget": "2 epochs"}}
    pair = on((x, y), **short)
    assert (pair.sae.d_in, pair.sae.d_out) == (D, 12) and pair.summary["heldout"]["fve"] > 0.2
    named = on({"mlp_in": x, "mlp_out": y, "unused": x}, site={"input": "mlp_in", "target": "mlp_out"}, **short)
    assert named.summary["weights_sha256"] == pair.summary["weights_sha256"]
    assert named.sae.provenance["hook_name"] == "mlp_in" and named.sae.provenance["hook_name_out"] == "mlp_out"
    both = on(DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=250), **short)
    assert both.summary["heldout"]["fve"] == pytest.approx(pair.summary["heldout"]["fve"], abs=0.05)


def test_a_generator_is_read_once_and_in_order() -> None:
    x, taken = made(30_000), []

    def given() -> Iterator[torch.Tensor]:
        buffer = torch.empty(500, D)
        for start in range(0, len(x), 500):
            taken.append(start)
            yield buffer.copy_(torch.from_numpy(x[start : start + 500]))

    small = {"corpus": {"held_out": 0.2}, "eval": {"n_rows": 500}}
    result = on(given(), train={"budget": "40 steps"}, **small)
    assert result.summary["n_steps"] == 40
    assert taken[-1] == 500 * (len(taken) - 1) and 10_000 <= taken[-1] < 12_500, "no further than the budget asks"
    # a list of the same batches, none of them in one buffer, is the same training
    listed = on([x[i : i + 500] for i in range(0, len(x), 500)], train={"budget": "40 steps"}, **small)
    assert listed.summary["weights_sha256"] == result.summary["weights_sha256"]


def test_held_out_rows_are_never_trained_on_in_whatever_order_they_come(
    rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.trainer import Trainer

    seen, step = [], Trainer.step

    def look(self: Trainer, acts: dict[str, torch.Tensor]) -> None:
        seen.append(acts["acts"].clone())
        step(self, acts)

    monkeypatch.setattr(Trainer, "step", look)
    held = []
    from training.evaluate import HeldOut

    measure = HeldOut.measure
    monkeypatch.setattr(HeldOut, "measure", lambda self, *a: held.append(self.acts["acts"]) or measure(self, *a))
    loader = DataLoader(torch.from_numpy(rows), batch_size=250, shuffle=True,  # type: ignore[arg-type]
                        generator=torch.Generator().manual_seed(1))
    on(loader, train={"budget": "2 epochs"}, eval={"n_rows": 300}, corpus={"held_out": 0.1})
    trained, kept = ({tuple(row) for row in torch.cat(part).tolist()} for part in (seen, held))
    assert len(kept) > 200 and not trained & kept
    assert len(trained) > 0.95 * (N_ROWS - 500), "and little else is left out"
    counts: dict[tuple[float, ...], int] = {}
    for row in torch.cat(seen).tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert sum(n > 2 for n in counts.values()) <= 250, "once in a pass; the third begins for want of two remainders"


def test_row_keys_tell_rows_apart_that_differ_in_one_bit() -> None:
    x = torch.from_numpy(made(5000))
    assert len(row_keys({"a": x}, ["a"]).unique()) == len(x)
    near = x[:100].clone().view(torch.int32)
    near[torch.arange(100), torch.arange(100) % D] ^= 1 << (torch.arange(100) % 32).int()
    assert not torch.isin(row_keys({"a": near.view(torch.float32)}, ["a"]), row_keys({"a": x[:100]}, ["a"])).any()
    assert torch.equal(row_keys({"a": x[:, :9], "b": x[:, 9:]}, ["a", "b"]), row_keys({"a": x}, ["a"]))


def test_a_name_makes_a_run_that_resumes_and_reads_like_any_other(rows: np.ndarray, tmp_path: Path) -> None:
    train_fields = {"budget": "2 epochs", "checkpoint_every": "20%"}
    whole = on(rows, name="own", runs=tmp_path / "whole", train=train_fields)
    folder = tmp_path / "whole" / "own"
    assert whole.folder == folder
    assert {"config.yaml", "metrics.jsonl", "summary.json", "cfg.json", "final/sae.json"} <= set(tree(folder))
    x = torch.from_numpy(rows[:50])
    torch.testing.assert_close(sae.load(folder)(x), whole.sae(x))
    (run,) = found_runs.find(tmp_path / "whole")
    assert (run.name, run.finished, run.problems) == ("own", True, ())
    assert run.config["model"] is None and run.config["corpus"]["sources"][0]["source"] == "tensors"
    for part in sorted((folder / "checkpoints").glob("step-*"))[-1].iterdir():
        part.unlink()
    sorted((folder / "checkpoints").glob("step-*"))[-1].rmdir()
    before, logged = weights(folder), without_speed(lines(folder))
    (folder / "summary.json").unlink()
    on(rows, name="own", runs=tmp_path / "whole", train=train_fields, resume=True)
    assert weights(folder) == before and without_speed(lines(folder)) == logged
    with pytest.raises(SaescopeError, match="own exists"):
        on(rows, name="own", runs=tmp_path / "whole", train=train_fields)
    (folder / "summary.json").unlink()
    other = rows.copy()
    other[7, 3] += 1
    with pytest.raises(SaescopeError, match="was trained on other data"):
        on(other, name="own", runs=tmp_path / "whole", train=train_fields, resume=True)
    with pytest.raises(SaescopeError, match=r"from Python.*acts:FOLDER"):
        train(folder / "config.yaml", runs=tmp_path / "elsewhere", quiet=True)


def test_an_interrupted_training_on_a_loader_goes_on_where_it_stopped(rows: np.ndarray, tmp_path: Path) -> None:
    def loader() -> DataLoader:
        return DataLoader(torch.from_numpy(rows), batch_size=250, shuffle=True,  # type: ignore[arg-type]
                          generator=torch.Generator().manual_seed(5))

    sections = {"train": {"budget": "3 epochs", "checkpoint_every": "20%"}, "runs": tmp_path, "name": "own"}
    on(loader(), **sections)
    folder = tmp_path / "own"
    before = weights(folder)
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    for part in last.iterdir():
        part.unlink()
    last.rmdir()
    (folder / "summary.json").unlink()
    on(loader(), resume=True, **sections)
    assert weights(folder) == before
    (folder / "summary.json").unlink()
    unlike = DataLoader(torch.from_numpy(rows), batch_size=250)  # type: ignore[arg-type]
    with pytest.raises(SaescopeError, match="was trained on other data"):
        on(unlike, resume=True, **sections)


def damaged(value: float) -> np.ndarray:
    out = made(4000)
    out[3333, 5] = value
    return out


def in_batches(rows: np.ndarray, n: int = 250) -> list[np.ndarray]:
    return [rows[i : i + n] for i in range(0, len(rows), n)]


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (lambda: made(4000)[0], r"\[16\].*\[n_rows, d\]"),
        (lambda: made(4096).reshape(8, 8, 64, D), r"\[8, 8, 64, 16\]"),
        (lambda: np.zeros((4000, 0), dtype=np.float32), r"\[4000, 0\]"),
        (lambda: np.arange(64_000).reshape(4000, 16), r"int64; rows must be float16"),
        (lambda: torch.ones(4000, 16, dtype=torch.int32), r"int32; rows must be float16"),
        (lambda: made(4000).astype(np.complex64), "complex64"),
        (lambda: damaged(np.nan), "NaN, infinite.*row 3333"),
        (lambda: damaged(np.inf).reshape(-1, 32, D), "sequence 104, position 5.*row 3333"),
        (lambda: made(40), "40 rows, 1 sequences of n_ctx = 32"),
        (lambda: made(0), "0 rows"),
        (lambda: (made(4000), made(3000)), "input 4,000, target 3,000"),
        (lambda: (made(4000),) * 3, "3 arrays.*1 hook"),
        (lambda: {"a": made(4000), "b": made(4000)}, r"several hooks \(a, b\).*site="),
        (dict, "hook"),
        (lambda: 5, "not int"),
        (lambda: "rows.npy", "not str"),
        (lambda: np.ones((4000, D), dtype=np.float32), "targets are the same"),
        # batches
        (list, "no batches"),
        (lambda: iter(()), "no batches.*generator"),
        (lambda: [made(0), made(0)], "no rows"),
        (lambda: [[1.0, 2.0]], "batch 0.*2 arrays.*1 hook|batch 0.*float"),
        (lambda: [made(4000)[0]], r"batch 0 .*\[16\]"),
        (lambda: [*in_batches(made(4000)), made(250)[:, :9]], "batch 16 .*width 9.* of 16"),
        (lambda: [*in_batches(made(4000)), made(250).astype(np.int64)], "batch 16 .*int64"),
        (lambda: in_batches(damaged(np.nan)), "NaN or infinite.*batch 13 .*row 83"),
        (lambda: [*in_batches(made(4000)), (made(250), made(250))], "batch 16 .*2 arrays.*1 hook"),
        (lambda: in_batches(made(40)), "40 rows, 1 sequences"),
        (lambda: (batch for batch in in_batches(made(40_000))), "no length.*tokens or steps"),
    ],
)
def test_rows_that_cannot_be_trained_on(given: Any, facts: str) -> None:
    small = {"corpus": {"held_out": 0.2}, "eval": {"n_rows": 500}, "train": {"budget": "1 epochs"}}
    with pytest.raises(SaescopeError, match=facts) as refused:
        on(given(), **small)
    assert str(refused.value).rstrip().endswith(".") and "\n" not in str(refused.value)


def test_what_comes_late_in_a_stream_is_looked_at_too() -> None:
    bad = in_batches(made(30_000))
    bad[110] = bad[110] * np.nan
    small = {"corpus": {"held_out": 0.2}, "eval": {"n_rows": 500}}
    with pytest.raises(SaescopeError, match=r"NaN or infinite.*batch 110 "):
        on(bad, train={"budget": "1 epochs"}, **small)


@pytest.mark.parametrize(("budget", "facts"), [
    ("2 epochs", "budget = 2 epochs is .* rows, but the generator"), ("1M tokens", "the generator yields"),
])
def test_a_generator_that_the_budget_asks_too_much_of(budget: str, facts: str) -> None:
    with pytest.raises(SaescopeError, match=facts):
        on((batch for batch in in_batches(made(4000))), train={"budget": budget}, data={"n_calib": 200})


def test_a_generator_that_ends_before_its_budget_of_steps() -> None:
    small = {"corpus": {"held_out": 0.2}, "eval": {"n_rows": 500}}
    with pytest.raises(SaescopeError, match=r"ended after [0-9]+ batches.*train\.budget"):
        on((batch for batch in in_batches(made(10_000))), train={"budget": "400 steps"}, **small)


@pytest.mark.parametrize(("changes", "facts"), [
    ({"optm": {"lr": 1}}, "unknown key 'optm'; did you mean 'optim'"), ({"resume": True}, "give a name"),
    ({"train": {"wandb": "project"}}, "give a name"),
    ({"data": {"batch_rows": 200_000, "superblock_rows": 200_000}}, "200000"),
    ({"site": {"input": "a", "tarqet": "b"}}, "did you mean 'target'"),
    ({"site": {"input": "a", "target": "b"}}, "1 array, but the site has 2 hooks"),
])
def test_settings_that_do_not_fit(changes: dict[str, Any], facts: str, rows: np.ndarray) -> None:
    with pytest.raises(SaescopeError, match=facts):
        on(rows, **changes)


def test_a_section_that_is_none(rows: np.ndarray) -> None:
    with pytest.raises(SaescopeError, match="train should be a mapping"):
        train_on(rows, SAE, train="4 epochs", quiet=True)  # type: ignore[arg-type]


@contextmanager
def set_globally(change: Callable[[], object], back: Callable[[], object]) -> Iterator[None]:
    change()
    try:
        yield
    finally:
        back()


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": torch.no_grad, "inference": torch.inference_mode,
    "no gradients from now on": lambda: set_globally(
        lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
    "fp64": lambda: set_globally(
        lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16), "another device": lambda: torch.device("meta"),
}


SHORT: dict[str, Any] = {"train": {"budget": "8 steps"}, "eval": {"n_rows": 200}}


@pytest.fixture(scope="module")
def short(rows: np.ndarray) -> str:
    """The weights of a short training, with nothing set."""
    digest: str = on(rows[:3000], **SHORT).summary["weights_sha256"]
    return digest


@pytest.mark.parametrize("state", STATES)
def test_what_is_set_for_torch_as_a_whole_changes_nothing(
    state: str, rows: np.ndarray, short: str, tmp_path: Path
) -> None:
    with STATES[state]():
        before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = on(rows[:3000], name="run", runs=tmp_path, **SHORT)
        given = on(torch.as_tensor(rows[:3000], device="cpu").clone(), **SHORT)
        loaded = sae.load(result.run)
        assert before == (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert result.summary["weights_sha256"] == given.summary["weights_sha256"] == short
    assert not loaded.W_dec.is_inference() and loaded.W_dec.dtype == torch.float32


def test_outliers_may_all_be_kept(tmp_path: Path) -> None:
    spiked = made(3000)
    spiked[::100] *= 100
    result = on(spiked, name="all", runs=tmp_path, data={"outlier_multiple": float("inf")}, **SHORT)
    assert result.summary["mask"]["dropped_beyond_first"] == 0
    assert configs.read(result.run / "config.yaml")[0].data.outlier_multiple is None
    assert result.sae.provenance["mask"] == {"limits": {}}


def test_steps_whose_every_row_is_the_mean_are_logged(tmp_path: Path) -> None:
    """There is no variance to explain between two lines of the log."""
    some = torch.from_numpy(made(1000))
    batches = [torch.stack([some, -some], dim=1).view(-1, D), *[torch.zeros(250, D)] * 16]
    few = {"train": {"budget": "12 steps", "log_every": "1 steps"}, "eval": {"n_rows": 64}}
    result = on(batches, name="still", runs=tmp_path, **few)
    logged = [line for line in lines(result.run) if "lr" in line]
    assert len(logged) == 12 and any("fve" not in line for line in logged) and any("fve" in line for line in logged)
