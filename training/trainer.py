"""The trainer of one SAE: weights, Adam moments, counters and sparsity controller, updated one batch at a time."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.base import SAE, Progress, Step
from sae.controller import Controller, Sparsity
from sae.errors import SaescopeError
from sae.init import initialise
from sae.kernels import ParamState, backend
from sae.ranks import ALONE, Ranks
from sae.variants import VARIANTS
from training import dead_bound
from training.activations.calibration import Calibration
from training.config.schema import Config
from training.cuda_graph import Captured, Line, Moment, Recorder, cuda_graphs
from training.dead_bound import DeadBound
from training.metric_window import Window
from training.schedule import Clock, learning_rate


def new_sae(config: Config, calibration: Calibration, ranks: Ranks = ALONE) -> SAE:
    """Create the SAE of a config, or this rank's shard of it, with initial weights.

    Raises:
        SaescopeError: a variant that cannot be trained, or that doesn't fit the rows or `init`.
    """
    if config.sae.variant not in VARIANTS:
        raise SaescopeError(
            f"sae.variant: {config.sae.variant} is only for imported SAEs and cannot be trained; train one of "
            f"{', '.join(VARIANTS)}, with init.from to start from the imported weights."
        )
    cross = config.site.cross
    calibration = calibration.under(config.sae.transform, cross=cross)
    rows, targets = calibration.rows, calibration.targets
    # b_dec is in the target's space, so a transcoder cannot subtract it from the input
    fields = config.sae.model_copy(update={"apply_b_dec_to_input": False}) if cross else config.sae
    sae = VARIANTS[fields.variant][0](
        fields, rows.shape[1], targets.shape[1], input=calibration.input, target=calibration.target, ranks=ranks
    )
    initialise(sae, targets, rows if cross else None)
    return sae


class Pace(NamedTuple):
    """Steps taken by this process and their CPU seconds: the cost of one SAE among several on a stream."""

    n_steps: int = 0
    seconds: float = 0.0


class Trainer:
    """Training state of an SAE: weights, Adam moments, counters; saved by `tensors` and `numbers`, restored by `load`."""

    def __init__(
        self, config: Config, sae: SAE, clock: Clock, device: torch.device, *,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Move `sae` to `device` and set up the training state.

        With several ranks, gradients are reduced between backward pass and optimiser step; counters, thresholds, the
        controller and logged metrics are computed over all ranks.

        Args:
            config: the run's config.
            sae: the SAE with its initial weights.
            clock: converts durations to steps.
            device: device to train on.
            say: prints, once, why steps on a CUDA device are not captured in a CUDA graph (`train.graph`).

        Raises:
            SaescopeError: `train.fused_adam`, which keeps no gradients, with several ranks or `optim.frozen`; or
                `train.graph` is true and steps cannot be captured.
        """
        if sae.ranks.n > 1 and config.train.fused_adam:
            raise SaescopeError("train.fused_adam keeps no gradients to reduce over ranks; set it to false.")
        self.config, self.clock, self.device, self.ranks = config, clock, device, sae.ranks
        if config.optim.frozen and config.train.fused_adam:
            raise SaescopeError("optim.frozen cannot be used with train.fused_adam; set it to false.")
        # fold decoder norms into the encoder first, so that an SAE from init.from computes the same with unit-norm rows
        self.sae = (sae.normalised() if sae.unit_norm_decoder else sae).to(device)
        self._choose_kernels()
        self.moments = {
            name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.sae.named_parameters()
        }
        for name in config.optim.frozen:
            if name not in self.moments:
                raise SaescopeError(f"optim.frozen: {config.sae.variant} has no trainable weight {name}; remove it.")
            self.sae.get_parameter(name).requires_grad_(False)
        self.params = [
            ParamState(
                p, *self.moments[name], unit_rows=name == "W_dec" and self.sae.unit_norm_decoder,
                sparse_axis=self.sae.feature_axis(name) if config.optim.sparse else None,
                common=self.sae.feature_axis(name) is None,
            )
            for name, p in self.sae.named_parameters() if p.requires_grad
        ]
        self.n_steps = 0
        self.last_fired = torch.zeros(self.sae.d_sae, dtype=torch.int64, device=device)
        self._nobody = torch.zeros(self.sae.d_sae, dtype=torch.bool, device=device)
        every = 1 if device.type == "cpu" else min(dead_bound.EVERY, max(1, self.dead_window // clock.batch_rows))
        self.dead_bound = DeadBound(self.sae.d_sae, every)
        sparsity = getattr(config.sae, "sparsity", Sparsity(coefficient=1.0))
        self.controller = Controller(sparsity, clock.steps(sparsity.approach), device)
        self.window = Window(device)
        self.pace = Pace()
        self._say = say
        self._captured = self._to_be_captured()

    def _choose_kernels(self) -> None:
        train = self.config.train
        local = backend(self.device, train.kernels, train.precision, fused_adam=train.fused_adam)
        self.sae.kernels = self.ranks.kernels(local)

    def _to_be_captured(self) -> Captured | None:
        """The step to capture in a CUDA graph, or None if it isn't captured."""
        asked = self.config.train.graph
        if asked is False:
            return None
        reason = self._uncapturable()
        if reason is None:
            return self.captured(cuda_graphs(self.device))
        if asked is True:
            raise SaescopeError(f"train.graph is true, but {reason}; set it to auto.")
        if self.device.type == "cuda":
            self._say_launched(reason)
        return None

    def _say_launched(self, reason: str) -> None:
        self._say(f"{self.config.name}: steps run without a CUDA graph: {reason}")

    def _uncapturable(self) -> str | None:
        """Why steps cannot be captured, or None if they can."""
        if self.device.type != "cuda":
            return f"{self.device} has no CUDA graphs"
        if self.sae.kernels.name != "gpu":
            return f"steps with kernels={self.sae.kernels.name} synchronise with the device"
        if self.ranks.n > 1:
            return "ranks synchronise within a step"
        if self._launches() is None:
            return f"tensor sizes in a step of this {self.config.sae.variant} depend on the data or on random draws"
        return None

    def captured(self, recorder: Recorder) -> Captured:
        """The training step, wrapped for capture and replay."""
        moments = [m for pair in self.moments.values() for m in pair]
        state = [*self.sae.parameters(), *self.sae.buffers(), *moments, self.last_fired]
        return Captured(self._advance, self._line, self.device, recorder, state)

    def _line(self, n_steps: int) -> Line:
        """The per-step numbers of the step after `n_steps`."""
        first, second = (1 - beta ** (n_steps + 1) for beta in self.config.optim.betas)
        return Line(n_steps * self.clock.batch_rows, self._lr(n_steps) / first, 1 / second)

    def _lr(self, n_steps: int) -> float:
        return learning_rate(self.config.optim, self.clock, n_steps)

    @property
    def rows_seen(self) -> int:
        """Training rows so far."""
        return self.n_steps * self.clock.batch_rows

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Features that haven't fired in the last `dead_window` training rows."""
        return self.rows_seen - self.last_fired >= self.dead_window

    @property
    def dead_window(self) -> int:
        """The dead window in training rows."""
        return self.clock.shortest(self.config.train.dead_window)

    @property
    def dead_share(self) -> float | None:
        """The fraction of dead features; None until a whole dead window has passed."""
        if self.rows_seen < self.dead_window:
            return None
        return float(self.ranks.over_features(self.dead().float().mean())) / self.ranks.n_shards

    @property
    def n_dead(self) -> int:
        """Number of dead features; meaningful once a whole dead window has passed."""
        return int(self.ranks.over_features(self.dead().sum()))

    def step(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> None:
        """Take one training step on raw rows of the site's hooks."""
        began = time.thread_time()
        self._make_room()
        acts = {hook: acts[hook] for hook in self.config.site.hooks}
        if not self._replayed(acts):
            there = {hook: rows.to(self.device, non_blocking=True) for hook, rows in acts.items()}
            self._advance(there, Moment(self.rows_seen, None))
        self.window.count(self._lr(self.n_steps))
        self.n_steps += 1
        self.pace = Pace(self.pace.n_steps + 1, self.pace.seconds + time.thread_time() - began)

    def _replayed(self, acts: Mapping[str, Tensor]) -> bool:
        """Take a step by replaying the CUDA graph, or while capturing it; False if there is none."""
        if self._captured is None:
            return False
        try:
            self._captured.step(acts, self.n_steps, self._launches())
        except RuntimeError as error:  # includes torch's out-of-memory and driver errors
            if not self._captured.recording:
                raise
            self._captured = None
            cause = error.__context__ or error  # a failed capture raises again when it ends; show the first error
            self._say_launched(f"capturing one failed ({str(cause).strip().splitlines()[0]})")
            self.sae.zero_grad(set_to_none=True)
            self._choose_kernels()  # new kernels, without pending gradients
            return False
        return True

    def _advance(self, acts: Mapping[str, Float[Tensor, "n_rows _"]], moment: Moment) -> None:
        """The whole step on the device; host-side values stay the same between steps, except those in `launches`."""
        sae = self.sae
        x, target = self._normalised(acts)
        coefficient = self.controller.coefficient
        if isinstance(coefficient, Tensor):
            coefficient = coefficient.to(x.dtype)
        dead = moment.rows_seen - self.last_fired >= self.dead_window
        step = sae.step(x, target, self._progress(dead, coefficient))
        step.loss.backward()
        self._reduce()
        norm = sae.kernels.optimizer_step(
            self.params, step=self.n_steps + 1, lr=self._lr(self.n_steps), betas=self.config.optim.betas,
            eps=self.config.optim.eps, clip=self.config.sae.grad_clip, rates=moment.rates,
        )
        sae.zero_grad(set_to_none=True)
        self._count(step, target, acts, norm, moment.rows_seen + self.clock.batch_rows)

    def _launches(self) -> Hashable | None:
        if self.config.sae.hide:  # masks come from a generator that a graph would not reseed
            return None
        return self.sae.launches(self._progress(self._nobody, 0.0))

    def _progress(self, dead: Bool[Tensor, " d_sae"], coefficient: float | Float[Tensor, ""]) -> Progress:
        clock = self.clock
        return Progress(
            dead, lambda d: clock.through(d, self.n_steps), coefficient, self.n_steps, clock.batch_rows, self.dead_bound.n
        )

    def _make_room(self) -> None:
        """Update the upper bound on dead features if AuxK needs it and it is due."""
        auxk = getattr(self.config.sae, "auxk", None)
        if auxk is not None and auxk.coefficient and self.dead_bound.is_due(self.n_steps):
            until = self.dead_bound.last(self.n_steps) * self.clock.batch_rows
            self.dead_bound.found(int(self.ranks.most((until - self.last_fired >= self.dead_window).sum())))

    def _reduce(self) -> None:
        if self.ranks.n > 1:
            found = [(n, p.grad) for n, p in sorted(self.sae.named_parameters()) if p.grad is not None]
            common = [grad for name, grad in found if self.sae.feature_axis(name) is None]
            self.ranks.reduce_gradients([g for n, g in found if self.sae.feature_axis(n) is not None], common)
            # collectives may write without updating tensor versions, which kernels use to validate what they cached
            torch.autograd.graph.increment_version([grad for _, grad in found])

    def _normalised(self, acts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        site = self.config.site
        x, target = site.rows(acts)
        normalised = self.sae.input.normalise(x)
        return normalised, self.sae.target.normalise(target) if site.cross else normalised

    @torch.no_grad()
    def _count(
        self, step: Step, target: Tensor, acts: Mapping[str, Tensor], norm: Tensor, rows_seen: int | Int64[Tensor, ""]
    ) -> None:
        """Update counters, thresholds and the controller; called exactly once per step."""
        code = step.code
        self.last_fired.copy_(self.ranks.latest(code.last(rows_seen, self.last_fired)))
        self.sae.observe(step)
        l0 = self.ranks.over_rows(self.ranks.over_features(code.n_active / code.n_rows))
        self.controller.update(l0)
        # row by row: one fp32 norm would sum too many numbers to be exact
        residual, variance = (self._lengths(t, acts).square().sum() for t in (target - step.x_hat, target))
        sums: dict[str, float | Tensor] = {f"loss/{name}": term.detach() for name, term in step.terms.items()}
        sums["dense_steps"] = float(self.sae.kernels.last_route == "dense")
        sums |= {"l0": l0, "residual": residual, "variance": variance, "grad_norm": norm}
        self.window.add(self.ranks.averaged(sums | step.logs))

    def _lengths(self, differences: Float[Tensor, "n_rows d_out"], acts: Mapping[str, Tensor]) -> Float[Tensor, " n_rows"]:
        """Lengths of differences between normalised targets, in the model's units up to the scale that all rows share."""
        transform = self.sae.target
        lengths = transform.unwhitened(differences).norm(dim=1)
        if not transform.unit_rows:
            return lengths
        spread = transform.spread(self.config.site.rows(acts).target)
        assert spread is not None
        return lengths * spread[:, 0]

    def metrics(self) -> dict[str, float]:
        """Averages since the last call, and the current fraction of dead features once a dead window has passed.

        `dense_steps` is the fraction of steps that used dense products because too many features were active.

        Raises:
            SaescopeError: the loss is NaN or infinite.
        """
        sums, n_dead = self.window.means(self.ranks.over_features(self.dead().sum()))
        self.window.clear()
        if not all(map(math.isfinite, sums.values())):
            raise SaescopeError(
                f"{self.config.name}: the loss is NaN or infinite by step {self.n_steps}; lower optim.lr "
                f"(= {self.config.optim.lr:g}), lengthen optim.warmup, or set train.precision=fp32."
            )
        residual, variance = sums.pop("residual"), sums.pop("variance")
        # if all rows equal the training mean there is no variance to explain
        fve = {"fve": 1 - residual / variance} if variance else {}
        dead = {"dead": n_dead / self.config.sae.d_sae} if self.rows_seen >= self.dead_window else {}
        return sums | fve | dead

    def tensors(self) -> dict[str, Tensor]:
        """All state tensors by name, without copying."""
        out = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, (first, second) in self.moments.items():
            out |= {f"adam.{name}.first": first, f"adam.{name}.second": second}
        return out | {"last_fired": self.last_fired}

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, as JSON-able values; floats round-trip exactly."""
        return {
            "n_steps": self.n_steps, "controller": self.controller.state(), "window": self.window.state(),
            "dead_bound": self.dead_bound.state(),
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Restore a saved state."""
        for name, tensor in self.sae.state_dict().items():
            tensor.copy_(tensors[f"sae.{name}"])
        for name, (first, second) in self.moments.items():
            first.copy_(tensors[f"adam.{name}.first"])
            second.copy_(tensors[f"adam.{name}.second"])
        self.last_fired.copy_(tensors["last_fired"])
        self.n_steps = numbers["n_steps"]
        self.controller.load(numbers["controller"])
        self.window.load(**numbers["window"])
        self.dead_bound.load(numbers.get("dead_bound"))
