"""Base class of all variants: parameters, the input transform, encode and decode in the model's own units.

A variant is a small final subclass of `SAE` with a frozen subclass of `SAEConfig`. It defines which pre-activations become
active (`select`) and the loss terms (`losses`). An SAE has `d_in = d_out` and one transform. A transcoder (Dunefsky et al.
2406.11944) reads one hook and reconstructs another, so it has two of each, and may have a linear skip path beside the
features (Paulo et al. 2501.18823):

    x̂ = acts W_dec + b_dec + x W_skipᵀ        in normalised units; W_skip starts at zero
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from sae import products
from sae.code import OffsetCode, SparseCode
from sae.errors import SaescopeError
from sae.init import InitConfig
from sae.kernels import Autoencoded, Backend, Revival, Select, backend
from sae.masking import masked
from sae.ranks import ALONE, Ranks
from sae.refine import refine as refined
from sae.section import Section
from sae.transform import Transform, TransformConfig
from sae.units import Count, Duration, Seed


class SAEConfig(Section):
    """Config fields of every variant."""

    variant: str
    d_sae: Count = Field(gt=0)
    """Number of features."""
    seed: Seed = 0
    """Seed of the initial weights; data order has its own seed (data.seed)."""
    apply_b_dec_to_input: bool = True
    """Encode x − b_dec rather than x. SAEs only; transcoders always encode x."""
    skip: bool = False
    """Add a linear skip connection from input to target. Transcoders only."""
    transform: TransformConfig = TransformConfig()
    """Whitening and per-row normalisation."""
    init: InitConfig = InitConfig()
    """Weight initialisation."""
    hide: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of each row's entries hidden from the encoder in training; the reconstruction loss is then on these entries
    only (the masked objective, 2302.12715). 0: the plain objective. SAEs only: input and target must be the same."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Clip the global gradient norm to this; null: no clipping. Losses are sums over d_in, so norms stay above 3 and 1.0
    clips every step: Adam is invariant to a constant gradient scale, so clipping gives all steps the same weight in its
    averages. It adds 0.0095 FVE at 9,216 features, with 1.8 % silent features instead of 0.1 %
    (docs/results/dead-window.csv)."""

    def unfit_for_transcoders(self) -> str | None:
        """Why this variant cannot be a transcoder, or None if it can."""
        if self.transform.unit_rows:
            return "sae.transform.unit_rows divides a row by its own norm, which is unknown for the target's row"
        return None


@dataclass(frozen=True)
class Progress:
    """Training state that losses may depend on."""

    dead: Bool[Tensor, " d_sae"]
    """Features that have not fired within the dead window."""
    through: Callable[[Duration], float] = lambda _: 1.0
    """Fraction (0 to 1) of a duration, counted from the start of training, that has passed."""
    coefficient: float | Float[Tensor, ""] = 0.0
    """The current sparsity coefficient: fixed, or a device tensor from the controller."""
    step: int = 0
    """Steps taken so far. Seeds the random draws of a step, so that a resumed run draws the same."""
    n_rows: int = 0
    """Rows per step; 0: unknown."""
    room: int | None = None
    """Upper bound on the number of dead features, to avoid a device sync for the exact count; None: unknown."""
    weight: Float[Tensor, "n_rows d_out"] | None = None
    """Weight of each entry's squared error in the masked objective (`sae.masking`); None: all 1."""


@dataclass(frozen=True)
class Step:
    """Result of a training forward pass: weighted loss terms (the loss is their sum), the code, and values to log."""

    terms: dict[str, Float[Tensor, ""]]
    code: SparseCode
    x_hat: Float[Tensor, "n_rows d_out"]
    logs: dict[str, float | Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The sum of the terms."""
        first, *rest = self.terms.values()
        return sum(rest, first)


class SAE(nn.Module, ABC):
    """A dictionary of `d_sae` features over one site. Abstract; each variant is a final subclass."""

    config: SAEConfig
    unit_norm_decoder: ClassVar[bool] = True
    """Keep decoder rows at unit norm in training, and remove the radial part of their gradient."""
    linear_encoder: ClassVar[bool] = True
    """Pre-activations are x W + b, with W and b from `encoder`."""
    gain: Tensor | None
    """Per-feature scale of the values, beside the norm of the decoder row; set only if `folded` could not fold it."""
    b_in: Tensor | None
    """Subtracted from the input before encoding, if b_dec is in another space."""

    def __init__(
        self, config: SAEConfig, d_in: int, d_out: int | None = None,
        *, input: Transform | None = None, target: Transform | None = None, ranks: Ranks = ALONE,
    ) -> None:
        """`ranks`: the ranks that train it; the SAE holds this rank's shard of the config's features."""
        super().__init__()
        d_out = d_in if d_out is None else d_out
        self.config, self.d_in, self.d_out, self.ranks = config, d_in, d_out, ranks
        self.d_sae = ranks.part(config.d_sae).n_features
        self.input = input or Transform.identity(d_in)
        if target is None:
            target = self.input.twin() if d_in == d_out else Transform.identity(d_out)
        self.target = target
        # feature-major in memory: see sae.kernels
        self.W_enc = nn.Parameter(torch.zeros(self.d_sae, d_in).t())
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(self.d_sae, d_out))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(d_out, d_in))
        self.register_buffer("gain", None)
        self.register_buffer("b_in", None)
        self.kernels: Backend = ranks.kernels(backend("cpu", "reference"))
        self.provenance: dict[str, Any] = {}
        self.add_tensors()

    # -- defined by variants ------------------------------------------------------------------------------------------

    def add_tensors(self) -> None:
        """Add the variant's own parameters and buffers, if any. `self.config` and the sizes are already set."""

    @abstractmethod
    def select(self) -> Select:
        """Which pre-activations are active at inference."""

    @abstractmethod
    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Training forward pass, in normalised units. Pure: `observe` updates counters and thresholds."""

    def step(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """`losses` with the masked objective and the skip path, if the config has them.

        With `hide` the encoder sees some entries of x and the loss is on the others (`sae.masking`); the returned code is
        still that of whole rows. With `skip` the features reconstruct the residual of the skip path:
        ‖target − x W_skipᵀ − x̂‖² is the loss of x̂ + x W_skipᵀ for any variant, and trains both.
        """
        if self.config.hide:
            assert x.shape == target.shape, "the masked objective needs input and target to be the same"
            seen, weight = masked(x, self.config.hide, self.config.seed, progress.step)
            step = self.losses(seen, target, replace(progress, weight=weight))
            return replace(step, code=self.counted(x, progress))
        if not self.config.skip:
            return self.losses(x, target, progress)
        beside = x @ self.W_skip.t()
        step = self.losses(x, target - beside, progress)
        return replace(step, x_hat=step.x_hat + beside)

    @torch.no_grad()
    def counted(self, x: Float[Tensor, "n_rows d_in"], progress: Progress) -> SparseCode:
        """The code of normalised rows under the training selection, used by counters, thresholds and controllers."""
        x = x if self.b_pre is None else x - self.b_pre
        return self.kernels.encode(x, *self.encoder(), self.select_at(progress))

    def select_at(self, progress: Progress) -> Select:
        """Which pre-activations are active at this point in training."""
        del progress
        return self.select()

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], select: Select, *, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """Training forward pass with this SAE's weights: see `sae.kernels.Backend.autoencode`."""
        return self.kernels.autoencode(
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, select, b_pre=self.b_pre, prefixes=prefixes, auxk=auxk
        )

    def launches(self, progress: Progress) -> Hashable | None:
        """Cache key for CUDA graphs: steps with equal keys launch the same kernels.

        None: the launches depend on the data, so the step cannot be captured. If a variant returns a key, nothing else
        that its step reads from `progress` on the host may vary between steps.
        """
        del progress
        return None

    def observe(self, step: Step) -> None:
        """Update the variant's running estimates (an inference threshold, say). Called once per step."""

    # -- the model's own units ----------------------------------------------------------------------------------------

    def encoder(self) -> tuple[Float[Tensor, "d_in d_sae"], Float[Tensor, " d_sae"]]:
        """Weights and biases of the pre-activations that `select` chooses from at inference."""
        return self.W_enc, self.b_enc

    @property
    def decodes_to_input(self) -> bool:
        """Encoder and decoder are in the same space, whitened or not."""
        return self.d_in == self.d_out and (self.input.whiten is None) == (self.target.whiten is None)

    @property
    def subtracts_b_dec(self) -> bool:
        """The encoder reads x − b_dec."""
        return self.config.apply_b_dec_to_input and self.decodes_to_input

    @property
    def b_pre(self) -> Tensor | None:
        """Vector subtracted from the input before encoding."""
        return self.b_dec if self.subtracts_b_dec else self.b_in

    def decoder(self) -> Float[Tensor, "d_sae d_out"]:
        """W_dec in the model's axes; differs from W_dec only while training on whitened rows."""
        return self.target.unwhitened(self.W_dec)

    def lengths(self) -> Float[Tensor, " d_sae"]:
        """Norm of one unit of each feature in the model's units: ‖W_dec[f]‖ / scale, without whitening."""
        lengths = self.decoder().norm(dim=1) / self.target.scale
        return lengths if self.gain is None else lengths * self.gain

    @property
    def has_offsets(self) -> bool:
        """Rows are decoded around an input-dependent offset, which `encode` stores in the code."""
        return self.config.skip or self.input.unit_rows

    @torch.no_grad()
    def encode(self, x: Tensor | np.ndarray, *, refine: int = 0) -> SparseCode:
        """Encode raw activations. A feature's value is the norm of what it adds, in the model's units.

        With a skip path or per-row normalisation, the code carries the offsets that `decode` needs.

        Args:
            x: `[..., d_in]`, a tensor or array on any device. Leading axes are flattened into the rows of the code.
            refine: pursuit steps from the encoder's code: lower error with the same number of features (`sae.refine`).

        Raises:
            SaescopeError: x has another width or is not floating-point; `refine` is negative or not an integer; or codes
                of this SAE cannot be refined (`unrefinable`).
        """
        rows = self.rows_of(x)
        code = self.encode_traced(rows)
        if isinstance(refine, bool) or not isinstance(refine, int) or refine < 0:
            raise SaescopeError(f"refine = {refine!r} is not a whole number ≥ 0; use 0 for the encoder's code, or 3 steps.")
        if refine == 0:
            return code
        if reason := self.unrefinable():
            raise SaescopeError(f"refine = {refine}: {reason}")
        target = rows.to(self.W_dec.dtype) - self.centre(code)
        return refined(code, target, self._unit_rows(), self.kernels, refine, signed=self.select().absolute)

    def unrefinable(self) -> str | None:
        """Why codes cannot be refined, or None if they can. Refining needs the reconstruction target."""
        site = self.provenance.get("site") or {}
        same = self.input is self.target or all(map(torch.equal, self.input.buffers(), self.target.buffers()))
        cross = site.get("target") not in (None, site.get("input")) and site.get("update") != "both"
        if self.d_in == self.d_out and same and not self.config.skip and not cross:
            return None
        return (
            "refining a code needs the activation that it reconstructs, and a transcoder reads a different one. Use its "
            "encoder's codes (refine = 0)."
        )

    def rows_of(self, x: Tensor | np.ndarray) -> Float[Tensor, "n_rows d_in"]:
        """Flatten activations `[..., d_in]` to rows on this SAE's device. Raises like `encode`."""
        if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.dtype.itemsize <= 8:
            # torch supports neither foreign byte order nor read-only memory
            x = torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("="), order="C"))
        if not isinstance(x, Tensor) or not x.is_floating_point():
            held = getattr(x, "dtype", None)
            what = type(x).__name__ if held is None else f"{type(x).__name__} of {str(held).removeprefix('torch.')}"
            raise SaescopeError(f"expected floating-point activations [..., {self.d_in}], got a {what}.")
        if x.ndim == 0 or x.shape[-1] != self.d_in:
            raise SaescopeError(
                f"activations have shape {list(x.shape)}; this SAE expects a last axis of size {self.d_in}."
            )
        return x.reshape(-1, self.d_in).to(self.W_dec.device)

    def encode_traced(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """`encode` under autograd: values and offsets have gradients to x, and to parameters that require them.

        The set of active features is held constant. An active value is its pre-activation, so its derivative is the
        feature's encoder row. Inactive features get no gradient (see `feature_gradients`).
        """
        code, spread = self.active(x), self.input.spread(x)
        if spread is not None:
            code = replace(code, value=code.value * spread[code.rows(), 0])
            return OffsetCode.around(code, (self.bias() - self.target.mean) * spread + self.target.mean)
        return OffsetCode.around(code, self.bias() + self.bypass(x)) if self.has_offsets else code

    def active(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """`encode_traced` without offsets and without rescaling by each row's spread."""
        x = self._before_encoder(x)
        weights, biases = self.encoder()
        code = self.kernels.encode(x, weights, biases, self.select()).csr()
        if torch.is_grad_enabled():
            code = replace(code, value=products.read(x, weights.t(), code) + biases[code.feature.long()])
        return code.scaled(self.lengths())

    def pre_activations(self, x: Float[Tensor, "n_rows d_in"], where: SparseCode) -> Float[Tensor, " nnz"]:
        """Pre-activations of raw activations at the entries of a CSR code, active or not, in the model's units.

        Differentiable in x.
        """
        spread, x, feature = self.input.spread(x), self._before_encoder(x), where.feature.long()
        weights, biases = self.encoder()
        found = (products.read(x, weights.t(), where) + biases[feature]) * self.lengths()[feature]
        return found if spread is None else found * spread[where.rows(), 0]

    def _before_encoder(self, x: Float[Tensor, "n_rows d_in"]) -> Float[Tensor, "n_rows d_in"]:
        x = self.input.normalise(x)
        return x if self.b_pre is None else x - self.b_pre

    def bypass(self, x: Float[Tensor, "n_rows d_in"]) -> Float[Tensor, "n_rows d_out"]:
        """Output of the skip path for raw activations, in the model's units."""
        return self.input.normalise(x) @ self.W_skip.t() / self.target.scale

    def bias(self) -> Float[Tensor, " d_out"]:
        """Reconstruction with no active feature and no skip path, in the model's units."""
        return self.target.restore(self.b_dec[None])[0]

    def _unit_rows(self) -> Float[Tensor, "d_sae d_out"]:
        directions = self.decoder()
        return directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """Reconstruct raw activations from a code, in the model's units.

        Raises:
            SaescopeError: the code has another number of features, or lacks its rows' offsets (`has_offsets`).
        """
        if code.d_sae != self.d_sae:
            raise SaescopeError(f"the code has {code.d_sae} features, this SAE has {self.d_sae}: use a code from this SAE.")
        directions, centre = self._unit_rows(), self.centre(code)
        if centre.ndim == 1:
            return self.kernels.decode(code, directions, centre)
        return self.kernels.decode(code, directions, torch.zeros_like(self.b_dec)) + centre

    def decode_traced(self, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """`decode` of a CSR code under autograd: gradients to values and offsets, and to parameters that require them.

        Raises:
            SaescopeError: like `decode`.
        """
        return self.decode_features(code) + self.centre(code)

    def decode_features(self, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """Σ value · unit decoder row of a CSR code, without biases; differentiable in the values."""
        used, which = code.feature.long().unique(return_inverse=True)
        rows = self.decoder()
        norms = rows[used].norm(dim=1).clamp_min(1e-12)
        return products.mix(replace(code, value=code.value / norms[which]), rows)

    def feature_gradients(
        self, grad: Float[Tensor, "n_rows d_out"], features: Int[Tensor, " n"] | slice = slice(None)
    ) -> Float[Tensor, "n_rows n"]:
        """Gradient with respect to feature values, active or not, from that of the reconstruction: ⟨grad, unit row⟩.

        How much a metric changes per unit of each feature. The result is dense: pass `features`, or few rows.
        """
        rows = self.decoder().detach()[features]
        return grad @ (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).t()

    def centre(self, code: SparseCode) -> Float[Tensor, " d_out"] | Float[Tensor, "n_rows d_out"]:
        """The offset added when a code is decoded: the bias, or an offset per row.

        Raises:
            SaescopeError: rows have offsets (`has_offsets`) and this code lacks them.
        """
        if not self.has_offsets:
            return self.bias()
        if not isinstance(code, OffsetCode) or code.offset is None:
            raise SaescopeError(
                f"This {self.config.variant} adds an input-dependent offset to each row (a skip path or per-row "
                "normalisation), which this code does not carry; pass the code that encode(x) returned."
            )
        return code.offset

    def frozen(self) -> "SAE":
        """A view of this SAE that shares its memory and whose weights need no gradient."""
        twin = copy.copy(self)
        twin._parameters = {name: p if p is None else p.detach() for name, p in self._parameters.items()}  # type: ignore[misc]
        return twin

    def forward(self, x: Tensor | np.ndarray) -> Float[Tensor, "*rows d_out"]:
        """Reconstruct raw activations `[..., d_in]`. Raises like `encode`."""
        return self.decode(self.encode(x)).reshape(*x.shape[:-1], self.d_out)

    def feature_axis(self, name: str) -> int | None:
        """The feature axis of a parameter or buffer; None if it is not per feature."""
        if name == "W_enc":
            return 1
        if name in ("b_dec", "W_skip") or "." in name:  # a transform is a module of its own
            return None
        return 0 if getattr(self, name).shape[:1] == (self.d_sae,) else None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by name, contiguous, as saved."""
        for name, tensor in self.state_dict().items():
            yield name, tensor.detach().contiguous()

    @torch.no_grad()
    def normalised(self) -> "SAE":
        """Fold decoder norms into the encoder, in place: rows of W_dec get unit norm, reconstructions stay the same.

        Idempotent: rows that are unit up to rounding are left alone. A feature with a zero row is switched off. Variants
        with other per-feature parameters in activation units override `fold_norms`.
        """
        norms = self.W_dec.norm(dim=1)
        norms = torch.where((norms - 1).abs() <= 8 * torch.finfo(norms.dtype).eps, 1, norms)
        self.W_dec.div_(norms.clamp_min(1e-12)[:, None])
        self.W_enc.mul_(norms)
        self.b_enc.mul_(norms)
        self.fold_norms(norms)
        return self

    @torch.no_grad()
    def folded(self) -> "SAE":
        """Fold whitening into the weights, in place: rows of W_dec become directions in the model's space.

        x A W = x (A W): a linear encoder absorbs the whitening of its input, unless rows are normalised in between; then
        the input transform keeps it. Decoder rows no longer have unit norm afterwards: `normalised` folds their norms,
        unless that would change which features are active; then they are kept in `gain`.
        """
        folds = self.linear_encoder and not self.input.unit_rows
        if self.target.whiten is not None:
            if not folds and self.b_pre is not None:
                self.b_in = self.b_pre.detach().clone()
            self.W_dec.copy_(self.decoder())
            self.b_dec.copy_(self.target.unwhitened(self.b_dec[None])[0])
            self.target.whiten = None
            if self.compares_values:
                self.gain = self.W_dec.norm(dim=1)
                self.W_dec.div_(self.gain.clamp_min(1e-12)[:, None])
        if self.input.whiten is not None and folds:
            self.W_enc.copy_(self.input.whiten @ self.W_enc)
            if self.config.skip:
                self.W_skip.copy_(self.W_skip @ self.input.whiten.t())
            self.input.whiten = None
        return self

    @property
    def compares_values(self) -> bool:
        """Whether selection compares values across features, so that no single feature can be rescaled."""
        select = self.select()
        scalar = not isinstance(select.threshold, Tensor) or select.threshold.ndim == 0
        return select.mode != "threshold" or (scalar and float(select.threshold) != 0)

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Scale the variant's other parameters in activation units."""

    def unfit_as_start(self) -> str | None:
        """Why training cannot start from these weights (init.from), or None if it can."""
        if self.gain is not None or self.input.whiten is not None or self.input.unit_rows:
            return "its weights only work on whitened or per-row normalised activations"
        return None

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """Take over the thresholds of an existing SAE, so that the same features are active.

        Called when W_enc and b_enc hold the old SAE's `encoder()`, re-expressed under this SAE's input transform. This
        default, for variants without thresholds, subtracts them from b_enc: the same features are active in every row,
        and each value is smaller by its feature's threshold.
        """
        self.b_enc.sub_(threshold)

    def take_extras(self, old: "SAE", gain: Float[Tensor, ""]) -> None:
        """Copy other learnt state of an existing SAE, after `take_thresholds`; `gain` rescales activations."""
