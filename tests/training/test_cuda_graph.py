"""A captured step: what it costs the host, when it is captured anew, and that it is the same step."""

import json
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sae.errors import SaescopeError
from sae.variants import VARIANTS
from tests.training.test_loop import ROWS, batches, config, trainer
from training.cuda_graph import AHEAD, N_WARM, Moment
from training.dead_bound import LEAST, PATIENCE, DeadBound
from training.schedule import Clock
from training.trainer import Trainer

TOPK = {"variant": "topk", "d_sae": 16, "k": 3}


class Again:
    """Records by running again what was run: a graph's launches are the host's own here, with the same addresses."""

    def __init__(self, fails: int = 0) -> None:
        self.log: list[str] = []
        self.fails = fails

    def run(self, step: Callable[[], None]) -> None:
        self.log.append("run")
        step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.log.append("record")
        if self.fails:
            raise RuntimeError("CUDA driver error: operation not supported\nmore")

        def replay() -> None:
            self.log.append("replay")
            step()

        return replay


def train(**sections: Any) -> dict[str, Any]:
    usual = {"budget": "20 steps", "kernels": "reference", "device": "cpu", "dead_window": "3 steps"}
    return {"sae": TOPK | sections.pop("sae", {}), "train": usual | sections.pop("train", {})} | sections


def recorded(recorder: Again, **sections: Any) -> Trainer:
    one = trainer(**train(**sections))
    one._captured = one.captured(recorder)
    return one


def step(one: Trainer, n: int, first: int = 0) -> None:
    for batch in batches(first + n)[first:]:
        one.step(batch)


def differences(a: Trainer, b: Trainer) -> dict[str, float]:
    there, here = a.tensors(), b.tensors()
    return {name: float((there[name].double() - here[name].double()).abs().max()) for name in there}


@pytest.mark.parametrize("sae", [{}, {"variant": "batchtopk"}, {"variant": "matryoshka", "base": "topk"}])
def test_a_replayed_step_is_the_step_with_the_numbers_of_its_time(sae: dict[str, Any]) -> None:
    """Learning rate, bias corrections and rows seen move on; two numbers are rounded to fp32 on their way."""
    recorder = Again()
    plain, replayed = trainer(**train(sae=sae)), recorded(recorder, sae=sae)
    for one in (plain, replayed):
        step(one, 12)
    assert recorder.log == ["run"] * N_WARM + ["record"] + ["replay"] * (12 - N_WARM)
    assert max(differences(plain, replayed).values()) < 1e-6
    assert torch.equal(plain.last_fired, replayed.last_fired) and replayed.last_fired.max() == 12 * ROWS
    there, here = plain.metrics(), replayed.metrics()
    assert there == pytest.approx(here, rel=1e-4) and there["lr"] == here["lr"]


def test_numbers_of_later_steps_follow_when_those_put_there_are_used_up() -> None:
    with mock.patch("training.cuda_graph.AHEAD", 4):
        replayed = recorded(Again())
        step(replayed, 13)
    plain = trainer(**train())
    step(plain, 13)
    assert AHEAD > 4 and max(differences(plain, replayed).values()) < 1e-6


def test_it_is_captured_anew_when_k_or_a_weight_has_changed() -> None:
    recorder = Again()
    one = recorded(recorder, sae={"k_anneal": {"start": 4, "over": "5 steps"}})
    step(one, 12)
    # k: 4 at the first step, rounded down to 3 from the fourth
    assert recorder.log == ["run", "run", "record", "replay", "run", "run", "record", *["replay"] * 7]
    recorder.log.clear()
    with torch.no_grad():
        one.sae.W_enc.mul_(1.0)
    step(one, 3)
    assert recorder.log == ["run", "run", "record", "replay"]
    recorder.log.clear()
    for batch in batches(4):
        one.step({"acts": batch["acts"].double()})
    assert recorder.log == ["run", "run", "record", "replay", "replay"], "rows of another kind lie elsewhere"


def test_it_continues_bit_for_bit_from_the_state_in_the_middle() -> None:
    whole, half = recorded(Again()), recorded(Again())
    step(whole, 14)
    step(half, 7)
    other = recorded(Again())
    step(other, 3)  # has replayed something else already
    other.load({name: t.clone() for name, t in half.tensors().items()}, json.loads(json.dumps(half.numbers())))
    step(other, 7, first=7)
    assert set(differences(whole, other).values()) == {0.0}
    assert whole.numbers() == other.numbers()


def test_where_nothing_can_be_recorded_training_goes_on_and_says_why_once() -> None:
    said: list[str] = []
    failing, plain = recorded(Again(fails=1)), trainer(**train())
    failing._say = said.append
    for one in (failing, plain):
        step(one, 8)
    assert len(said) == 1 and "not supported" in said[0] and "more" not in said[0]
    assert max(differences(plain, failing).values()) < 1e-6


def test_an_error_of_a_step_itself_is_no_failed_recording() -> None:
    one = recorded(Again())
    step(one, 4)
    with pytest.raises(RuntimeError):
        one.step({"acts": torch.zeros(ROWS, 5)})


def test_a_graph_that_is_asked_for_and_cannot_be_is_refused_with_the_reason() -> None:
    with pytest.raises(SaescopeError, match="cpu"):
        trainer(**train(train={"graph": True}))
    assert trainer(**train(train={"graph": False}))._captured is None


def test_room_for_the_dead_comes_in_few_sizes_and_goes_slowly() -> None:
    one = DeadBound(4096, every=32)
    for n_dead, n in ((0, 0), (1, LEAST), (129, 256), (3000, 4096)):
        one.found(n_dead)
        assert one.n == n
    for i in range(PATIENCE - 1):
        one.found(600 - i)
    assert one.n == 4096
    one.found(2049)  # needs more than half of it
    assert one.n == 4096
    other = DeadBound(4096, every=32)
    for i in range(PATIENCE):
        other.load(json.loads(json.dumps(one.state())))
        assert other.n == 4096
        for each in (one, other):
            each.found(i)
    assert one.n == other.n == LEAST
    narrow = DeadBound(96, every=32)
    narrow.found(90)
    assert narrow.n == 96
    exact = DeadBound(4096, every=1)
    exact.found(7)
    assert exact.n == 7


def test_a_look_finds_all_that_can_be_dead_until_the_next() -> None:
    """Features fall silent between two looks, and there was room before."""
    one = trainer(**train(train={"budget": "60 steps", "dead_window": "6 steps"}))
    one.dead_bound, looks = DeadBound(16, every=6), []
    one.dead_bound.found = lambda n: (looks.append(n), setattr(one.dead_bound, "n", n))
    rooms, dead = [], []
    for n in range(40):
        one.n_steps = n
        one._make_room()
        rooms.append(one.dead_bound.n)
        dead.append(int(one.dead().sum()))
        one.last_fired[: max(2, 16 - n)] = (n + 1) * ROWS  # the others fall silent one by one
    assert all(r >= d for r, d in zip(rooms, dead, strict=True))
    assert dead[-1] == 14 and len(looks) == 7 and len(set(dead)) > 10


class HostReads(TorchDispatchMode):
    """Copies between a device and the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        to = kwargs.get("device")
        crosses = (name == "_to_copy" and to is not None and torch.device(to).type != args[0].device.type) or (
            name == "copy_" and args[0].device.type != args[1].device.type
        )
        if crosses or name == "_local_scalar_dense":
            self.seen.append(name)
        return func(*args, **kwargs)


class HostNumbers(TorchFunctionMode):
    """Tensors made of numbers of the host, which a device would have to be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy) and not isinstance(args[0], Tensor):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


FIXED: list[dict[str, Any]] = [
    {"variant": "topk", "k": 3}, {"variant": "topk", "k": 40}, {"variant": "abstopk", "k": 3},
    {"variant": "batchtopk", "k": 3}, {"variant": "absbatchtopk", "k": 3}, {"variant": "matryoshka", "k": 3},
    {"variant": "matryoshka", "k": 3, "base": "topk"}, {"variant": "relu"}, {"variant": "gated"},
]


def on_no_device(sae: dict[str, Any], **fields: Any) -> Trainer:
    """A trainer whose tensors hold nothing: whatever would look at a number fails."""
    usual = {"budget": "20 steps", "kernels": "gpu", "device": "cpu", "precision": "bf16"}
    chosen = config(sae={"d_sae": 1024} | sae, train=usual | fields)
    with torch.device("meta"):
        empty = VARIANTS[chosen.sae.variant][0](chosen.sae, 16)
        clock = Clock.of(chosen.train.budget, batch_rows=ROWS, epoch_rows=0)
        return Trainer(chosen, empty, clock, torch.device("meta"))


@pytest.mark.parametrize("dead", [0, 256])
@pytest.mark.parametrize("sae", FIXED, ids=lambda sae: f"{sae['variant']}-{sae.get('k', '')}-{sae.get('base', '')}")
def test_a_step_asks_the_device_nothing(sae: dict[str, Any], dead: int) -> None:
    """On a device without numbers, with launches that are recorded rather than run, and both ways of counting steps."""
    pytest.importorskip("triton")
    from sae.kernels.gpu import launch

    def fresh(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}), launch.recorded():
        one = on_no_device(sae)
        one.dead_bound.n, one.n_steps = dead, 5
        acts = {"acts": fresh(ROWS, 16, dtype=torch.bfloat16)}
        one._advance(acts, Moment(5 * ROWS, None))  # makes what outlives a step
        assert one._launches() is not None
        with HostReads() as reads, HostNumbers() as numbers:
            one._advance(acts, Moment(5 * ROWS, None))
            one._advance(acts, Moment(fresh(dtype=torch.int64), fresh(2)))
    assert reads.seen == numbers.seen == []


def test_the_device_without_numbers_finds_a_read() -> None:
    """A threshold's code has as many entries as its data says."""
    pytest.importorskip("triton")
    from sae.kernels.gpu import launch

    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}), launch.recorded():
        one = on_no_device({"variant": "jumprelu"})
        with pytest.raises((RuntimeError, NotImplementedError)):
            one._advance({"acts": torch.empty(ROWS, 16, device="meta")}, Moment(0, None))
    with HostReads() as reads, HostNumbers() as numbers:
        torch.ones(2).to("meta")
        torch.tensor(1.0, device="meta")
    assert (reads.seen, numbers.seen) == (["_to_copy"], ["tensor"])
