"""The cpu backend beside itself: threads, processes, copies, and no place for machine code."""

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from sae.kernels import Select, backend
from sae.kernels.cpu.runtime import jit, run
from tests.sae.kernels.problem import Weights, losses_and_grads, optimise, rows, states, threads

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_threads_at_once_neither_crash_nor_differ() -> None:
    kernels, shared = backend("cpu", "cpu", "bf16"), Weights.random(64, 2000, 64)
    cases = [(rows(100, 64, seed), Select(mode, k=8, threshold=2.5)) for seed, mode in
             enumerate(("topk", "batch_topk", "threshold", "topk"))]
    dead = torch.arange(2000) % 50 == 0

    def everything(i: int) -> dict[str, Tensor]:
        """What each operation gives for case i."""
        x, select = cases[i]
        out, grads = losses_and_grads(kernels, x, shared, select, dead=dead, prefixes=(500, 2000) if i % 2 else None)
        code, stepped = kernels.encode(x, shared.W_enc, shared.b_enc, select), shared.leaves()
        for name, leaf in stepped.named().items():
            leaf.grad = grads[name].clone(memory_format=torch.preserve_format)
        norm, decoded = optimise(kernels, states(stepped)), kernels.decode(code, shared.W_dec, shared.b_dec)
        found = {"x_hat": out.x_hat, "value": code.value, "decoded": decoded, "norm": norm}
        return found | grads | {f"stepped {name}": leaf for name, leaf in stepped.named().items()}

    expected = [everything(i) for i in range(len(cases))]
    failures: list[str] = []

    def work(order: list[int]) -> None:
        for i in order * 3:
            failures.extend(f"{n} of {i}" for n, t in everything(i).items() if not torch.equal(t, expected[i][n]))

    workers = [threading.Thread(target=work, args=(order,)) for order in ([0, 1, 2, 3], [3, 2, 1, 0])]
    with threads(2):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_no_threading_layer_of_numba_is_needed(layer: str) -> None:
    """Under `workqueue` two threads that ran numba's own parallel loops would abort the process."""
    program = "import tests.sae.kernels.test_threads as t; t.test_two_threads_at_once_neither_crash_nor_differ()"
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def in_a_worker(connection: object) -> None:
    """Run by a spawned process."""
    w = Weights.random(24, 600, 24)
    out, _ = losses_and_grads(backend("cpu", "cpu", "fp32"), rows(33, 24), w, Select("topk", k=3))
    connection.send(out.x_hat.detach().numpy())


def test_a_spawned_worker_works_after_a_kernel_ran() -> None:
    w = Weights.random(24, 600, 24)
    here, _ = losses_and_grads(backend("cpu", "cpu", "fp32"), rows(33, 24), w, Select("topk", k=3))
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=in_a_worker, args=(theirs,))
    worker.start()
    try:
        assert ours.poll(120), "the worker gave no answer"
        assert torch.equal(torch.from_numpy(ours.recv()), here.x_hat.detach())
    finally:
        worker.join(10)
    assert worker.exitcode == 0


def test_copies_and_pickles_of_a_backend_work() -> None:
    w, x, kernels = Weights.random(24, 600, 24), rows(33, 24), backend("cpu", "cpu", "fp32")
    code = kernels.encode(x, w.W_enc, w.b_enc, Select("topk", k=3))
    for other in (copy.deepcopy(kernels), pickle.loads(pickle.dumps(kernels))):
        assert torch.equal(other.encode(x, w.W_enc, w.b_enc, Select("topk", k=3)).value, code.value)


def test_a_loop_without_a_place_for_its_machine_code_still_runs() -> None:
    names: dict = {}
    exec("def double(lo, hi, a):\n    return a[lo:hi].sum() * 2\n", names)  # no file, so no cache
    parts = run(jit(names["double"]), [0, 2, 4], torch.ones(4).numpy())
    assert parts == [4.0, 4.0]
