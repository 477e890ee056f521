"""The GPU backend: interpreted on the CPU in a process of its own, and on CUDA devices where there are any."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae.errors import SaescopeError
from sae.kernels import Select

REPOSITORY = Path(__file__).parents[3]
FILES = [Path(__file__).with_name(f"gpu_{part}checks.py") for part in ("", "training_")]
CHECKS = re.findall(r"^@check\ndef check_(\w+)", "".join(file.read_text() for file in FILES), re.M)
WORKER = """
from jaxtyping import install_import_hook
install_import_hook("sae", "beartype.beartype")
from tests.sae.kernels import gpu_checks, gpu_training_checks
gpu_checks.main()
"""


@pytest.fixture(scope="module")
def report() -> dict[str, str]:
    """What went wrong in each check, run by a process whose triton interprets."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CHECKS)
def test_interpreted(report: dict[str, str], name: str) -> None:
    assert report[name] == "", report[name]


def test_every_check_was_run(report: dict[str, str]) -> None:
    assert sorted(report) == sorted(CHECKS) and len(CHECKS) > 15


def test_cpu_tensors_are_refused_where_nothing_interprets(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from sae.kernels.gpu.backend import Gpu

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SaescopeError, match="runs on CUDA devices"):
        Gpu("fp32").encode(torch.ones(2, 3), torch.ones(3, 4), torch.ones(4), Select("topk", k=1))


def test_importing_the_backend_does_not_import_triton() -> None:
    code = "import sys, sae.kernels.gpu.backend; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_without_triton_the_error_says_what_to_do() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from sae.kernels.gpu.backend import Gpu\nfrom sae.errors import SaescopeError\n"
        "try:\n    Gpu('fp32')\nexcept SaescopeError as error:\n    sys.exit('saescope[gpu]' not in str(error))\n"
        "sys.exit(2)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_device(name: str) -> None:
    from tests.sae.kernels import gpu_checks, gpu_training_checks

    assert gpu_training_checks.ADAM  # imported for what it adds to the checks
    gpu_checks.CHECKS[name]("cuda")


@pytest.mark.gpu
def test_offsets_beyond_int32() -> None:
    """Weights of more than 2^31 elements: decode and gradients reach their end."""
    from sae.code import SparseCode
    from sae.kernels.gpu import backward as gpu_backward
    from sae.kernels.gpu import products

    d_sae, d = 1 << 20, 2304
    weights = torch.zeros(d_sae, d, dtype=torch.bfloat16, device="cuda")
    weights[-1], weights[0] = 3, -1
    feature = torch.tensor([d_sae - 1, 0], dtype=torch.int32, device="cuda")
    value = torch.tensor([2.0, 1.0], device="cuda")
    bounds = torch.tensor([[0, 1], [1, 2]], device="cuda")
    out = products.decode(feature, value, bounds, weights, None)[0]
    assert (out[0] == 6).all() and (out[1] == -1).all()
    ones = torch.ones(2, d, dtype=torch.bfloat16, device="cuda")
    code = SparseCode(feature, value, 2, d_sae, k=1)
    plan = gpu_backward.plan_by_feature(code)
    grads = gpu_backward.code_grads(gpu_backward.Work(plan, code, ones, ones[None], weights, None, None))
    assert (grads.W_dec[-1] == 2).all() and (grads.W_dec[0] == 1).all() and grads.W_dec[1:-1].count_nonzero() == 0
    assert grads.value.tolist() == [3 * d, -d]


@pytest.mark.gpu
def test_sizes_people_train(device: str = "cuda") -> None:
    """One step at a real size, against dense fp32 on the same device; the same bits twice."""
    from sae.kernels.gpu.backend import Gpu
    from sae.kernels.reference import Reference
    from tests.sae.kernels.gpu_checks import Problem, close

    select = Select("topk", k=32)
    problem = Problem.random(device, 2048, 768, 768, 16384)
    runs = []
    for kernels in (Reference(), Gpu("fp32"), Gpu("fp32")):
        leaves = problem.leaves()
        leaves.loss(kernels, select).backward()
        runs.append(leaves.grads())
    for name, gradient in runs[1].items():
        assert torch.equal(gradient, runs[2][name]), name
        # where two scores tie within rounding the selections differ in a few rows, so errors are summed, not maximal
        error = (gradient - runs[0][name]).norm() / runs[0][name].norm()
        assert error < 1e-2, (name, error)
    close("W_dec", runs[1]["b_dec"], runs[0]["b_dec"], 1e-2)
