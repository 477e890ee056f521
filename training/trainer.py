"""One SAE in training: weights, Adam's averages, counters and controller, advanced one batch at a time."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.base import SAE, Progress, Step
from sae.controller import Controller, Sparsity
from sae.errors import SaescopeError
from sae.init import initialise
from sae.kernels import ParamState, backend
from sae.variants import VARIANTS
from training.activations.calibration import Calibration
from training.config.schema import Config
from training.schedule import Clock, learning_rate


def new_sae(config: Config, calibration: Calibration) -> SAE:
    """The SAE a config describes, with its initial weights."""
    if config.sae.variant not in VARIANTS:
        raise SaescopeError(
            f"sae.variant: {config.sae.variant} is what was read from elsewhere, and has no loss here; train one of "
            f"{', '.join(VARIANTS)}, with init.from to begin from it."
        )
    rows, targets = calibration.rows, calibration.targets
    cross = config.site.cross
    # b_dec lies in the target's space, which is not the input's
    fields = config.sae.model_copy(update={"apply_b_dec_to_input": False}) if cross else config.sae
    sae = VARIANTS[fields.variant][0](
        fields, rows.shape[1], targets.shape[1], input=calibration.input, target=calibration.target
    )
    initialise(sae, targets, rows if cross else None)
    return sae


class Pace(NamedTuple):
    """Steps of this process and the CPU seconds they took its thread: what an SAE costs beside others on one stream."""

    n_steps: int = 0
    seconds: float = 0.0


class Trainer:
    """An SAE with everything that a step changes. `tensors`, `numbers` and `load` carry all of it, bit for bit."""

    def __init__(
        self, config: Config, sae: SAE, clock: Clock, device: torch.device, *,
        reduce_gradients: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        """`sae` is moved to `device`.

        Args:
            config: of the training.
            sae: with its initial weights.
            clock: durations as steps.
            device: where it is trained.
            reduce_gradients: called in every step between backward and optimiser, with the gradients of all parameters
                in the order of their names. It changes them in place: here gradients of several ranks become their mean.
                Counters, thresholds and the controller stay this rank's own.

        Raises:
            SaescopeError: `reduce_gradients` with `train.fused_adam`, which makes no gradients.
        """
        if reduce_gradients is not None and config.train.fused_adam:
            raise SaescopeError("train.fused_adam makes no gradients that could be reduced over ranks; set it to false.")
        self.config, self.clock, self.device, self.reduce_gradients = config, clock, device, reduce_gradients
        # folded, so that keeping rows at unit norm does not change what an SAE taken over by init.from computes
        self.sae = (sae.normalised() if sae.unit_norm_decoder else sae).to(device)
        train = config.train
        self.sae.kernels = backend(device, train.kernels, train.precision, fused_adam=train.fused_adam)
        self.moments = {
            name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.sae.named_parameters()
        }
        self.params = [
            ParamState(
                p, *self.moments[name], unit_rows=name == "W_dec" and self.sae.unit_norm_decoder,
                sparse_axis=self.sae.feature_axis(name) if config.optim.sparse else None,
            )
            for name, p in self.sae.named_parameters()
        ]
        self.n_steps = 0
        self.last_fired = torch.zeros(self.sae.d_sae, dtype=torch.int64, device=device)
        sparsity = getattr(config.sae, "sparsity", Sparsity(coefficient=1.0))
        self.controller = Controller(sparsity, clock.steps(sparsity.approach))
        self.window = Window()
        self.pace = Pace()

    @property
    def rows_seen(self) -> int:
        """Training rows so far."""
        return self.n_steps * self.clock.batch_rows

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Features that have not fired in the last `dead_window` rows."""
        return self.rows_seen - self.last_fired >= self.dead_window

    @property
    def dead_window(self) -> int:
        """The window in training rows."""
        return self.clock.shortest(self.config.train.dead_window)

    @property
    def dead_share(self) -> float | None:
        """The share of dead features; None while training is shorter than the window, when nothing can be dead yet."""
        return float(self.dead().float().mean()) if self.rows_seen >= self.dead_window else None

    def step(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> None:
        """One step of training on raw rows of the site's hooks."""
        began = time.thread_time()
        self._step(acts)
        self.pace = Pace(self.pace.n_steps + 1, self.pace.seconds + time.thread_time() - began)

    def _step(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> None:
        sae = self.sae
        x, target = self._normalised(acts)
        progress = Progress(
            dead=self.dead(), through=lambda d: self.clock.through(d, self.n_steps),
            coefficient=self.controller.coefficient, step=self.n_steps,
        )
        step = sae.step(x, target, progress)
        step.loss.backward()
        self._reduce()
        lr = learning_rate(self.config.optim, self.clock, self.n_steps)
        norm = sae.kernels.optimizer_step(
            self.params, step=self.n_steps + 1, lr=lr, betas=self.config.optim.betas, eps=self.config.optim.eps,
            clip=self.config.sae.grad_clip,
        )
        sae.zero_grad(set_to_none=True)
        self._count(step, target, lr, norm)

    def _reduce(self) -> None:
        if self.reduce_gradients is not None:
            grads = [p.grad for _, p in sorted(self.sae.named_parameters()) if p.grad is not None]
            self.reduce_gradients(grads)
            # collectives may write past autograd's counters, by which kernels know what they have kept of a gradient
            torch.autograd.graph.increment_version(grads)

    def _normalised(self, acts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        site = self.config.site
        x, target = site.rows({hook: acts[hook].to(self.device) for hook in site.hooks})
        normalised = self.sae.input.normalise(x)
        return normalised, self.sae.target.normalise(target) if site.cross else normalised

    @torch.no_grad()
    def _count(self, step: Step, target: Tensor, lr: float, norm: Tensor) -> None:
        """Advance counters, thresholds and the controller: once per step, and nowhere else."""
        self.n_steps += 1
        self.last_fired.masked_fill_(step.code.counts() > 0, self.rows_seen)
        self.sae.observe(step)
        l0 = step.code.n_active / step.code.n_rows
        if self.controller.steers:  # reading a number waits for the device
            self.controller.update(float(l0))
        residual = (target - step.x_hat).square().sum()
        sums = {f"loss/{name}": term.detach() for name, term in step.terms.items()}
        sums["dense_steps"] = torch.tensor(float(self.sae.kernels.last_route == "dense"))
        sums |= {"l0": l0, "residual": residual, "variance": target.square().sum(), "grad_norm": norm}
        self.window.add(sums | {name: torch.tensor(value) for name, value in step.logs.items()}, lr)

    def metrics(self) -> dict[str, float]:
        """Averages since the last call, and the share of dead features now, once a window is behind.

        `dense_steps` is the share of steps with so many active features that they ran through dense products.

        Raises:
            SaescopeError: the loss has become NaN or infinite.
        """
        sums = self.window.means()
        self.window = Window()
        if not all(map(torch.isfinite, map(torch.tensor, sums.values()))):
            raise SaescopeError(
                f"{self.config.name}: the loss is NaN or infinite by step {self.n_steps}; lower optim.lr "
                f"(= {self.config.optim.lr:g}), lengthen optim.warmup, or set train.precision=fp32."
            )
        residual, variance = sums.pop("residual"), sums.pop("variance")
        # of rows that all are the training mean there is none to explain
        fve = {"fve": 1 - residual / variance} if variance else {}
        dead = {} if self.dead_share is None else {"dead": self.dead_share}
        return sums | fve | dead

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by name."""
        out = {f"sae.{name}": tensor for name, tensor in self.sae.tensors()}
        for name, (first, second) in self.moments.items():
            out |= {f"adam.{name}.first": first.contiguous(), f"adam.{name}.second": second.contiguous()}
        return out | {"last_fired": self.last_fired}

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, JSON-able; floats survive JSON exactly."""
        return {"n_steps": self.n_steps, "controller": self.controller.state(), "window": self.window.state()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Continue from a saved state."""
        for name, tensor in self.sae.state_dict().items():
            tensor.copy_(tensors[f"sae.{name}"])
        for name, (first, second) in self.moments.items():
            first.copy_(tensors[f"adam.{name}.first"])
            second.copy_(tensors[f"adam.{name}.second"])
        self.last_fired.copy_(tensors["last_fired"])
        self.n_steps = numbers["n_steps"]
        self.controller.load(numbers["controller"])
        self.window = Window(**numbers["window"])


class Window:
    """Sums of what is logged, between two lines of the log; kept on the device until asked for."""

    def __init__(self, n_steps: int = 0, lr: float = 0.0, sums: dict[str, float] | None = None) -> None:
        self.n_steps, self.lr = n_steps, lr
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in (sums or {}).items()}

    def add(self, values: dict[str, Float[Tensor, ""]], lr: float) -> None:
        """One step's values."""
        self.n_steps, self.lr = self.n_steps + 1, lr
        for name, value in values.items():
            value = value.double() if value.device.type != "mps" else value
            self._sums[name] = self._sums[name].to(value) + value if name in self._sums else value

    def means(self) -> dict[str, float]:
        """Mean per step of each value, and the last learning rate."""
        return {"lr": self.lr} | {name: float(v) / max(1, self.n_steps) for name, v in self._sums.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"n_steps": self.n_steps, "lr": self.lr, "sums": {name: float(v) for name, v in self._sums.items()}}


