"""The fastest steps on a GPU, several per turn: the trainer's full step, and the best dense step.

The trainer's step may be captured in a CUDA graph, and so is the dense one here. Such steps take hardly any host time, so a
single step would be measured together with the host's work before it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae.variants import VARIANTS
from training.bench.compared_steps import N_PREFIXES, Contestant, Dense, Taken
from training.bench.setup import CLIP, LR, Setup, Stopwatch
from training.config.reading import resolve
from training.schedule import Clock
from training.trainer import Trainer

N_STEPS = 10
"""Steps per turn."""
WINDOW = 40
"""Dead window in steps, if there are dead features."""
DEAD_BIAS = -100.0


def turn(step: Callable[[int], object], first: int, n_batches: int, device: torch.device) -> float:
    """Mean milliseconds per step, over `N_STEPS` steps."""
    watch = Stopwatch(device)
    for i in range(first, first + N_STEPS):
        step(i % n_batches)
    watch.lap("step")
    return watch.laps()["step"] / N_STEPS


class Trained(Contestant):
    """`Trainer.step` as in `sae train`, including counters, schedule and dead features."""

    n_steps_each = N_STEPS

    def __init__(self, setup: Setup, variant: str, precision: str) -> None:
        """Make dead features unable to fire, and train for more than a dead window."""
        self.name, self.precision, self.setup = f"sae train {variant} {precision}", precision, setup
        shape, share = setup.shape, setup.dead is not None
        fields: dict[str, Any] = {"variant": variant, "d_sae": shape.d_sae, "k": shape.k}
        if variant == "matryoshka":
            fields |= {"base": "topk", "prefixes": [shape.d_sae >> n for n in reversed(range(N_PREFIXES))]}
        config = resolve({
            "name": "bench", "model": None, "corpus": "tensors", "site": "acts", "sae": fields,
            "optim": {"lr": LR, "warmup": "0%", "decay": "0%"},
            "data": {"batch_rows": shape.n_rows, "superblock_rows": shape.n_rows},
            "train": {
                "budget": "100k steps", "dead_window": f"{WINDOW} steps" if share else "100k steps",
                "device": str(setup.device), "precision": precision,
            },
        })[0]
        sae = VARIANTS[variant][0](config.sae, shape.d_in)
        with torch.no_grad():
            sae.W_enc.copy_(setup.W_enc)
            sae.W_dec.copy_(setup.W_dec)
            if setup.dead is not None:
                sae.b_enc[setup.dead.to(sae.b_enc.device)] = DEAD_BIAS
        clock = Clock.of(config.train.budget, batch_rows=shape.n_rows, epoch_rows=shape.n_rows)
        self.trainer = Trainer(config, sae, clock, setup.device)
        for i in range(WINDOW + 2 if share else 0):
            self._one(i % len(setup.batches))

    def _one(self, batch: int) -> None:
        self.trainer.step({"acts": self.setup.batches[batch]})

    def step(self, batch: int) -> Taken:
        """Take one turn; its loss is the reconstruction loss, averaged over steps (and prefixes)."""
        ms = turn(self._one, batch, len(self.setup.batches), self.setup.device)
        return Taken({"step": ms}, self.trainer.metrics()["loss/reconstruction"])


class CapturedDense(Dense):
    """The dense step without launch overhead: captured in a CUDA graph, with its parts compiled if `compiled`."""

    n_steps_each = N_STEPS

    def __init__(self, setup: Setup, precision: str, *, compiled: bool = False) -> None:
        """Capture the step.

        Raises:
            RuntimeError: it cannot be captured.
        """
        super().__init__(setup, precision, compiled=compiled)
        self.name = f"dense {'torch.compile, ' if compiled else ''}captured {precision}"
        self.optimizer = torch.optim.Adam(self.params, lr=LR, fused=True, capturable=setup.device.type == "cuda")
        keep: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
        self.project, self.clip, self.renormalise = keep(_project), keep(_clip), keep(_renormalise)
        self.x = setup.batches[0].clone()
        self.loss = torch.zeros((), device=setup.device)
        self.ones = torch.ones(setup.shape.n_rows * setup.shape.k, dtype=torch.int64, device=setup.device)
        self.replay = self.run if setup.device.type != "cuda" else self._captured()

    def _captured(self) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run()
        return graph.replay

    def run(self) -> None:
        """The whole step, on the rows in `x`."""
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, reconstruction, indices = self.losses(self.x)
        loss.backward()
        with torch.no_grad():
            self.loss.copy_(reconstruction)
            grads = [p.grad for p in self.params]
            self.project(self.W_dec.grad, self.W_dec)
            self.clip(grads)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.renormalise(self.W_dec)
            self.fired.index_add_(0, indices.view(-1), self.ones)

    def step(self, batch: int) -> Taken:
        """Take one turn."""

        def one(i: int) -> None:
            self.x.copy_(self.setup.batches[i])
            self.replay()

        ms = turn(one, batch, len(self.setup.batches), self.setup.device)
        return Taken({"step": ms}, float(self.loss))


def _project(grad: Tensor, weight: Tensor) -> None:
    grad.sub_((grad * weight).sum(1, keepdim=True) * weight)


def _clip(grads: list[Tensor]) -> None:
    norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
    for grad in grads:
        grad.mul_(CLIP / norm.clamp_min(CLIP))


def _renormalise(weight: Tensor) -> None:
    weight.div_(weight.norm(dim=1, keepdim=True))
