"""The training steps compared in the kernel benchmark: ours, dense ones, and those of other libraries in subprocesses.

One step is forward, loss, backward, clipping, Adam, normalising decoder rows if the method does, and firing counts.
"""

import json
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae.errors import SaescopeError
from sae.kernels import Backend, ParamState, Revival, Select, backend
from training.bench.setup import BETAS, CLIP, EPS, LR, Setup, Stopwatch

WORKER = Path(__file__).with_name("peers.py")
N_PREFIXES = 5


class Taken(NamedTuple):
    """Result of one step."""

    laps: dict[str, float]
    """Milliseconds of its parts; they add up to the step."""
    loss: float
    """Squared reconstruction error, mean over rows."""

    @property
    def ms(self) -> float:
        """Milliseconds of the step."""
        return sum(self.laps.values())


class Contestant(ABC):
    """An implementation of a training step."""

    name: str
    precision: str = "fp32"
    n_steps_each: int = 1
    """Number of training steps per call of `step`."""

    @abstractmethod
    def step(self, batch: int) -> Taken:
        """Take one step on the batch with this index."""

    def close(self) -> None:  # noqa: B027  (most have no process)
        """Stop subprocesses, if any."""


class Ours(Contestant):
    """The trainer's step, with one of the kernel backends."""

    def __init__(
        self, setup: Setup, variant: str, precision: str, kernels: Backend, *, keep_setup: bool = True
    ) -> None:
        self.name, self.precision = f"saescope {variant} {precision}", precision
        self.setup, self.variant, self.kernels = setup, variant, kernels
        self.select = Select(
            "batch_topk" if variant == "batchtopk" else "topk", k=setup.shape.k, absolute=variant == "abstopk"
        )
        d_sae, device = setup.shape.d_sae, setup.device
        self.prefixes = tuple(d_sae >> n for n in reversed(range(N_PREFIXES))) if variant == "matryoshka" else None
        weights = setup.W_enc, setup.W_dec
        if keep_setup:
            weights = weights[0].t().clone().t(), weights[1].clone()
        self.W_enc, self.W_dec = (w.requires_grad_() for w in weights)
        self.b_enc = torch.zeros(d_sae, device=device, requires_grad=True)
        self.b_dec = torch.zeros(setup.shape.d_in, device=device, requires_grad=True)
        self.params = [
            ParamState(p, torch.zeros_like(p), torch.zeros_like(p), unit_rows=p is self.W_dec)
            for p in (self.W_enc, self.W_dec, self.b_enc, self.b_dec)
        ]
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.revival = None if setup.dead is None else Revival(setup.dead, setup.shape.d_in // 2)
        self.n_steps = 0

    def step(self, batch: int) -> Taken:
        """Forward, loss, backward, optimiser, counts."""
        x = self.setup.batches[batch]
        watch = Stopwatch(x.device)
        self.n_steps += 1
        out = self.kernels.autoencode(
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.select, b_pre=self.b_dec, prefixes=self.prefixes,
            auxk=self.revival,
        )
        target = x.expand_as(out.x_hat)
        # mse_loss takes one pass for the loss and one for its gradient; written out, x_hat is read and written five times
        loss = F.mse_loss(out.x_hat, target, reduction="sum") / (len(target) * len(x))
        if out.aux_hat is not None:
            loss = loss + ((x - out.x_hat[-1]).detach() - out.aux_hat).square().sum() / len(x) / 32
        watch.lap("forward")
        loss.backward()
        watch.lap("backward")
        self.kernels.optimizer_step(
            self.params, step=self.n_steps, lr=LR, betas=BETAS, eps=EPS, clip=CLIP
        )
        for p in self.params:
            p.param.grad = None
        watch.lap("optimiser")
        self.fired += out.code.counts()
        watch.lap("counts")
        return Taken(watch.laps(), float((x - out.x_hat[-1].detach()).square().sum() / len(x)))


class Dense(Contestant):
    """An optimised dense step in torch: one matmul for encoder and decoder each, foreach clipping, fused Adam.

    Args:
        precision: `bf16` runs forward and backward under autocast.
        compiled: use torch.compile for forward and backward; the first step then includes compilation.
    """

    def __init__(self, setup: Setup, precision: str = "fp32", *, compiled: bool = False) -> None:
        self.name = f"dense {'torch.compile' if compiled else 'eager'} {precision}"
        self.setup, self.precision, self.compiled = setup, precision, compiled
        device = setup.device
        self.weight = setup.W_enc.t().clone().requires_grad_()
        self.W_dec = setup.W_dec.clone().requires_grad_()
        self.b_enc = torch.zeros(setup.shape.d_sae, device=device, requires_grad=True)
        self.b_dec = torch.zeros(setup.shape.d_in, device=device, requires_grad=True)
        self.params = [self.weight, self.W_dec, self.b_enc, self.b_dec]
        self.optimizer = torch.optim.Adam(self.params, lr=LR, betas=BETAS, eps=EPS, fused=True)
        self.fired = torch.zeros(setup.shape.d_sae, dtype=torch.int64, device=device)
        self.dead_ids = None if setup.dead is None else setup.dead.nonzero().squeeze(-1)
        self.losses = torch.compile(self.forward) if compiled else self.forward

    def step(self, batch: int) -> Taken:
        """Forward, loss, backward, optimiser, counts."""
        x = self.setup.batches[batch]
        watch = Stopwatch(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, reconstruction, indices = self.losses(x)
        watch.lap("forward")
        loss.backward()
        watch.lap("backward")
        with torch.no_grad():
            grad = self.W_dec.grad
            assert grad is not None
            grad.sub_((grad * self.W_dec).sum(1, keepdim=True) * self.W_dec)
            torch.nn.utils.clip_grad_norm_(self.params, CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
            watch.lap("optimiser")
            self.fired += torch.bincount(indices.view(-1), minlength=len(self.fired))
            watch.lap("counts")
        return Taken(watch.laps(), float(reconstruction.detach()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, its reconstruction term, and the active features."""
        top = F.linear(x - self.b_dec, self.weight, self.b_enc).relu().topk(self.setup.shape.k, dim=1, sorted=False)
        acts = torch.zeros(len(x), len(self.weight), dtype=top.values.dtype, device=x.device)
        residual = x - (acts.scatter(1, top.indices, top.values) @ self.W_dec + self.b_dec)
        reconstruction = residual.float().square().sum() / len(x)
        loss = reconstruction if self.dead_ids is None else reconstruction + self.auxk(x, residual)
        return loss, reconstruction, top.indices

    def auxk(self, x: Tensor, residual: Tensor) -> Tensor:
        """The auxiliary loss, over the dead features only."""
        ids = self.dead_ids
        assert ids is not None
        pre = F.linear(x - self.b_dec, self.weight[ids], self.b_enc[ids]).relu()
        top = pre.topk(min(x.shape[1] // 2, len(ids)), dim=1, sorted=False)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        return (residual.detach() - acts @ self.W_dec[ids]).float().square().sum() / len(x) / 32


class Peer(Contestant):
    """Another library's step, in a subprocess."""

    def __init__(self, name: str, setup_file: Path, python: Path, precision: str = "fp32") -> None:
        self.name, self.precision = name, precision
        self.process = subprocess.Popen(
            [str(python), "-P", str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer = self.ask(start=name, setup=str(setup_file), precision=precision)
        if "missing" not in self.answer:
            self.name = f"{name} {self.answer['version']} {precision}"

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SaescopeError(f"bench: the process of {self.name} exited; see its message above.")
        return json.loads(line)

    def step(self, batch: int) -> Taken:
        """Take one step, timed in the subprocess."""
        answer = self.ask(step=batch)
        return Taken({"step": answer["ms"]}, answer["loss"])

    def close(self) -> None:
        """Stop the subprocess."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def ours(
    setup: Setup, variant: str, precision: str, *, keep_setup: bool = True, fused_adam: bool = False
) -> Ours:
    """Our step with the sparse backend for the setup's device."""
    name = {"cpu": "cpu", "cuda": "gpu"}.get(setup.device.type)
    if name is None:
        raise SaescopeError(f"bench: sparse kernels exist for cpu and cuda, not for {setup.device}.")
    kernels = backend(setup.device, name, precision, fused_adam=fused_adam)
    contestant = Ours(setup, variant, precision, kernels, keep_setup=keep_setup)
    contestant.name += " fused Adam" if fused_adam else ""
    return contestant
