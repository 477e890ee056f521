"""The captured step on a CUDA device: the bits of the step launch by launch, without waiting."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.base import Transform
from training.activations.calibration import Calibration
from training.config.reading import resolve
from training.cuda_graph import cuda_graphs
from training.schedule import Clock
from training.trainer import Trainer, new_sae

pytestmark = pytest.mark.gpu
D, D_SAE, ROWS, K = 256, 2048, 1024, 16
VARIANTS: list[dict[str, Any]] = [
    {"variant": "topk", "k": K}, {"variant": "abstopk", "k": K}, {"variant": "batchtopk", "k": K},
    {"variant": "matryoshka", "k": K}, {"variant": "matryoshka", "k": K, "base": "topk"},
    {"variant": "relu", "sparsity": {"target_l0": K}},
    {"variant": "gated", "sparsity": {"coefficient": 0.5}, "warmup": "9 steps"},
]
TOPK = VARIANTS[0]


def rows(n: int) -> Tensor:
    draw = torch.Generator(device="cuda").manual_seed(n)
    few = torch.randn(ROWS, 24, device="cuda", generator=draw).relu()
    directions = torch.randn(24, D, device="cuda", generator=torch.Generator(device="cuda").manual_seed(n % 5))
    return few @ directions + 0.1 * torch.randn(ROWS, D, device="cuda", generator=draw)


def trainer(sae: dict[str, Any], *, graph: bool | str, dead: bool = False, said: list[str] | None = None) -> Trainer:
    """With `dead` features too small to be among the largest: dead after 20 steps, unless AuxK revives them."""
    chosen = resolve({
        "name": "x", "model": None, "corpus": "tensors", "site": "acts", "sae": {"d_sae": D_SAE} | sae,
        "data": {"batch_rows": ROWS},
        "train": {"budget": "1000 steps", "device": "cuda", "graph": graph, "dead_window": "20 steps"},
    })[0]
    some = rows(0).cpu()
    same = Transform.identity(D)
    clock = Clock.of(chosen.train.budget, batch_rows=ROWS, epoch_rows=0)
    one = Trainer(
        chosen, new_sae(chosen, Calibration(same, Transform.identity(D), some, some)), clock, torch.device("cuda"),
        say=(said if said is not None else []).append,
    )
    if dead:
        with torch.no_grad():
            one.sae.W_enc[:, :100] *= 1e-3
    return one


def step(one: Trainer, first: int, last: int) -> None:
    for n in range(first, last):
        one.step({"acts": rows(n % 8)})


def same_bits(a: Trainer, b: Trainer) -> bool:
    there, here = a.tensors(), b.tensors()
    return all(torch.equal(tensor, here[name]) for name, tensor in there.items())


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("sae", VARIANTS, ids=lambda sae: f"{sae['variant']}-{sae.get('base', '')}")
def test_it_is_the_step_launch_by_launch_and_nothing_waits(sae: dict[str, Any], dead: bool) -> None:
    said: list[str] = []
    eager, captured = trainer(sae, graph=False, dead=dead), trainer(sae, graph=True, dead=dead, said=said)
    for one in (eager, captured):
        step(one, 0, 70)  # the last look at the dead was at 60
    assert said == [] and same_bits(eager, captured)
    assert captured.dead_bound.n == eager.dead_bound.n and (bool(captured.dead_bound.n) >= dead or "k" not in sae)
    batches = [{"acts": rows(n)} for n in range(5)]
    for one in (eager, captured):
        with no_waiting():
            for batch in batches:
                one.step(batch)
    assert eager.metrics() == captured.metrics()


@pytest.mark.parametrize("sae", VARIANTS[:3], ids=lambda sae: sae["variant"])
def test_it_continues_bit_for_bit(sae: dict[str, Any]) -> None:
    whole, half, other = (trainer(sae, graph=True, dead=True) for _ in range(3))
    step(whole, 0, 90)
    step(half, 0, 47)
    step(other, 0, 5)
    other.load({name: t.clone() for name, t in half.tensors().items()}, json.loads(json.dumps(half.numbers())))
    step(other, 47, 90)
    assert same_bits(whole, other)


def test_several_on_one_device_share_memory_and_nothing_else() -> None:
    alone = trainer(TOPK, graph=True)
    step(alone, 0, 30)
    several = [trainer(sae, graph=True) for sae in VARIANTS[:4]]
    for n in range(30):
        for one in several:
            step(one, n, n + 1)
    assert same_bits(alone, several[0])
    graphs = cuda_graphs(torch.device("cuda")).graphs
    assert len({graph.pool() for graph in graphs}) == 1 and len(graphs) >= 5


@pytest.mark.parametrize("sae", VARIANTS, ids=lambda sae: f"{sae['variant']}-{sae.get('base', '')}")
def test_losses_after_500_steps_are_those_of_the_eager_path(sae: dict[str, Any]) -> None:
    losses = []
    for graph in (False, True):
        one = trainer(sae, graph=graph)
        step(one, 0, 490)
        one.metrics()
        step(one, 490, 500)
        losses.append(one.metrics()["loss/reconstruction"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_step_that_cannot_be_captured_leaves_torch_as_it_was() -> None:
    said: list[str] = []
    failing = trainer(TOPK, graph="auto", said=said)
    plain, count = trainer(TOPK, graph=False), failing._count

    def reads(*arguments: Any) -> None:
        count(*arguments)
        float(failing.window._sums[0])

    failing._count = reads
    for one in (plain, failing):
        step(one, 0, 10)
    assert len(said) == 1 and same_bits(plain, failing)
    torch.randn(3, device="cuda")
    another = trainer(TOPK, graph=True)
    step(another, 0, 10)
    assert same_bits(plain, another)
