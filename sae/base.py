"""What all variants share: parameters, the input transform, encode and decode in the model's own units.

A variant is one small final class below `SAE` with one frozen config below `SAEConfig`; it says which pre-activations
become active (`select`) and which terms its loss has (`losses`). Sites: `d_in = d_out` and one transform for an SAE; a
transcoder (Dunefsky et al. 2406.11944) reads one hook and writes another, so it has two of each, and may have a skip
path, linear and beside the features (Paulo et al. 2501.18823):

    x̂ = acts W_dec + b_dec + x W_skipᵀ        in normalised units; W_skip begins at zero
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
    """What every variant has in its config."""

    variant: str
    d_sae: Count = Field(gt=0)
    """Number of features."""
    seed: Seed = 0
    """Seed of the initial weights; the order of the data has its own (data.seed)."""
    apply_b_dec_to_input: bool = True
    """Encode x − b_dec rather than x. SAEs only; transcoders always encode x."""
    skip: bool = False
    """A linear path from input to target beside the features. Transcoders only."""
    transform: TransformConfig = TransformConfig()
    """Whitening and rows of one length."""
    init: InitConfig = InitConfig()
    """How the weights begin."""
    hide: float = Field(default=0.0, ge=0, lt=1)
    """Share of the entries of each row that training hides from the encoder; the reconstruction loss is then on these alone
    (the masked objective, 2302.12715). 0: the plain objective. SAEs only: of another target nobody knows which to hide."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Global gradient norm above which a step's gradient is scaled down; null switches clipping off. Losses are sums over
    d_in, so that norms stay above 3 and 1.0 acts at every step: Adam, which no common scale moves, then gives all steps of
    its averages the same weight. It brings 0.0095 of FVE at 9,216 features, and 1.8 % silent ones instead of 0.1 %
    (docs/results/dead-window.csv)."""

    def unfit_for_transcoders(self) -> str | None:
        """Why such an SAE cannot reconstruct something else than it reads, if it cannot."""
        if self.transform.unit_rows:
            return "sae.transform.unit_rows divides a row by its own length, which says nothing of another hook's row"
        return None


@dataclass(frozen=True)
class Progress:
    """Where a training stands, as far as a loss may know it."""

    dead: Bool[Tensor, " d_sae"]
    """Features that have not fired within the dead window."""
    through: Callable[[Duration], float] = lambda _: 1.0
    """The share, 0 to 1, of a stretch counted from the start of training that has passed."""
    coefficient: float | Float[Tensor, ""] = 0.0
    """The sparsity coefficient in force: fixed, or from the controller, whose lies on the device."""
    step: int = 0
    """Steps taken so far: what a random draw of a step is seeded by, so that resuming draws the same."""
    n_rows: int = 0
    """Rows of a step; 0: not known."""
    room: int | None = None
    """At least as many as there are dead features, so that nobody waits for a device to count them; None: not known."""
    weight: Float[Tensor, "n_rows d_out"] | None = None
    """What the squared error of each entry counts by in the masked objective (`sae.masking`); None: 1 each."""


@dataclass(frozen=True)
class Step:
    """One forward pass of training: weighted loss terms (their sum is the loss), and what to log and count."""

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
    """Decoder rows are kept at unit norm while training, their gradient without its radial part."""
    linear_encoder: ClassVar[bool] = True
    """Pre-activations are x W + b; `encoder` has the two."""
    gain: Tensor | None
    """How long a feature's value is that the kernels give as 1, beside its row's norm: where `folded` had to leave that."""
    b_in: Tensor | None
    """What is taken from the input before encoding, where the space of b_dec is another."""

    def __init__(
        self, config: SAEConfig, d_in: int, d_out: int | None = None,
        *, input: Transform | None = None, target: Transform | None = None, ranks: Ranks = ALONE,
    ) -> None:
        """`ranks`: those it is trained on; it holds its part of the config's features."""
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

    # -- what a variant says ------------------------------------------------------------------------------------------

    def add_tensors(self) -> None:
        """Add the variant's own parameters and buffers, if it has any; config and sizes are known."""

    @abstractmethod
    def select(self) -> Select:
        """Which pre-activations are active at inference."""

    @abstractmethod
    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """The training forward pass, in normalised units. Pure: counters and thresholds are advanced by `observe`."""

    def step(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """`losses` of the objective that the config asks for; with the skip path, features reconstruct what it leaves.

        With `hide` the encoder sees a part of x, and the loss is on the rest (`sae.masking`); the code of the step is that
        of whole rows all the same. ‖target − x W_skipᵀ − x̂‖² is the loss of x̂ + x W_skipᵀ, whatever the variant, and
        trains both.
        """
        if self.config.hide:
            assert x.shape == target.shape, "what is hidden of the input is predicted in the target"
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
        """The code of normalised rows as training selects it: what counters, thresholds and controllers go by."""
        x = x if self.b_pre is None else x - self.b_pre
        return self.kernels.encode(x, *self.encoder(), self.select_at(progress))

    def select_at(self, progress: Progress) -> Select:
        """Which pre-activations are active at this point of the training."""
        del progress
        return self.select()

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], select: Select, *, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """The training pass through this SAE's weights: see `sae.kernels.Backend.autoencode`."""
        return self.kernels.autoencode(
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, select, b_pre=self.b_pre, prefixes=prefixes, auxk=auxk
        )

    def launches(self, progress: Progress) -> Hashable | None:
        """What a step on the host decides which launches it consists of: where two are equal, so are the steps' launches.

        None: the sizes of a step depend on its data, and only the step itself can tell. A variant that says more has
        nothing else of `progress` on the host that differs from step to step.
        """
        del progress
        return None

    def observe(self, step: Step) -> None:
        """Advance what the variant estimates while training (an inference threshold, say). Called once per step."""

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
        """What is taken from the input before encoding."""
        return self.b_dec if self.subtracts_b_dec else self.b_in

    def decoder(self) -> Float[Tensor, "d_sae d_out"]:
        """W_dec in the axes of the model: another one only while it is trained on whitened rows."""
        return self.target.unwhitened(self.W_dec)

    def lengths(self) -> Float[Tensor, " d_sae"]:
        """How long one unit of each feature's value is in the model's units: ‖W_dec[f]‖ / scale, without whitening."""
        lengths = self.decoder().norm(dim=1) / self.target.scale
        return lengths if self.gain is None else lengths * self.gain

    @property
    def has_offsets(self) -> bool:
        """Rows are decoded around points that depend on their input, which `encode` puts into the code."""
        return self.config.skip or self.input.unit_rows

    @torch.no_grad()
    def encode(self, x: Tensor | np.ndarray, *, refine: int = 0) -> SparseCode:
        """The features of raw activations; a value is the length the feature adds in the model's units.

        With a skip path, or rows that are normalised one by one, the code carries to `decode` what that adds.

        Args:
            x: `[..., d_in]`, a tensor or an array on any device; row r of the code is its r-th, the last axis apart.
            refine: steps of pursuit from the encoder's code, which explain more by as many features (`sae.refine`).

        Raises:
            SaescopeError: rows of another width, or no floating-point numbers; or `refine` is negative or no integer; or x
                is not what this SAE reconstructs (`unrefinable`).
        """
        rows = self.rows_of(x)
        code = self.encode_traced(rows)
        if isinstance(refine, bool) or not isinstance(refine, int) or refine < 0:
            raise SaescopeError(f"refine = {refine!r} is no whole number; give 0 for the encoder's own code, or 3 steps.")
        if refine == 0:
            return code
        if reason := self.unrefinable():
            raise SaescopeError(f"refine = {refine}: {reason}")
        target = rows.to(self.W_dec.dtype) - self.centre(code)
        return refined(code, target, self._unit_rows(), self.kernels, refine, signed=self.select().absolute)

    def unrefinable(self) -> str | None:
        """Why codes cannot be refined, if they cannot: that takes what they should reconstruct."""
        site = self.provenance.get("site") or {}
        same = self.input is self.target or all(map(torch.equal, self.input.buffers(), self.target.buffers()))
        cross = site.get("target") not in (None, site.get("input")) and site.get("update") != "both"
        if self.d_in == self.d_out and same and not self.config.skip and not cross:
            return None
        return (
            "codes are refined towards what they reconstruct, which a transcoder does not see: it reads one activation and "
            "reconstructs another. Use its encoder's codes (refine = 0)."
        )

    def rows_of(self, x: Tensor | np.ndarray) -> Float[Tensor, "n_rows d_in"]:
        """Activations `[..., d_in]` as rows on this SAE's device. Raises as `encode`."""
        if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.dtype.itemsize <= 8:
            # torch knows no foreign byte order, and shares no memory that may not be written
            x = torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("="), order="C"))
        if not isinstance(x, Tensor) or not x.is_floating_point():
            held = getattr(x, "dtype", None)
            what = type(x).__name__ if held is None else f"{type(x).__name__} of {str(held).removeprefix('torch.')}"
            raise SaescopeError(f"a {what} was given where floating-point activations [..., {self.d_in}] were expected.")
        if x.ndim == 0 or x.shape[-1] != self.d_in:
            raise SaescopeError(
                f"activations of shape {list(x.shape)} were given; this SAE reads rows of width {self.d_in}, the last axis."
            )
        return x.reshape(-1, self.d_in).to(self.W_dec.device)

    def encode_traced(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """`encode` under autograd: values and offsets carry gradient to x, and to the parameters that require it.

        Which features are active is held as it is found; an active value is its pre-activation, so that its derivative
        is the feature's encoder row. What falls below a threshold has no gradient (`feature_gradients` has those).
        """
        code, spread = self.active(x), self.input.spread(x)
        if spread is not None:
            code = replace(code, value=code.value * spread[code.rows(), 0])
            return OffsetCode.around(code, (self.bias() - self.target.mean) * spread + self.target.mean)
        return OffsetCode.around(code, self.bias() + self.bypass(x)) if self.has_offsets else code

    def active(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """`encode_traced`, of the features alone, and of rows whose spread is 1."""
        x = self._before_encoder(x)
        weights, biases = self.encoder()
        code = self.kernels.encode(x, weights, biases, self.select()).csr()
        if torch.is_grad_enabled():
            code = replace(code, value=products.read(x, weights.t(), code) + biases[code.feature.long()])
        return code.scaled(self.lengths())

    def pre_activations(self, x: Float[Tensor, "n_rows d_in"], where: SparseCode) -> Float[Tensor, " nnz"]:
        """Pre-activations of raw activations at the entries of a CSR code, active or not, in the model's units.

        Under autograd they carry gradient to x.
        """
        spread, x, feature = self.input.spread(x), self._before_encoder(x), where.feature.long()
        weights, biases = self.encoder()
        found = (products.read(x, weights.t(), where) + biases[feature]) * self.lengths()[feature]
        return found if spread is None else found * spread[where.rows(), 0]

    def _before_encoder(self, x: Float[Tensor, "n_rows d_in"]) -> Float[Tensor, "n_rows d_in"]:
        x = self.input.normalise(x)
        return x if self.b_pre is None else x - self.b_pre

    def bypass(self, x: Float[Tensor, "n_rows d_in"]) -> Float[Tensor, "n_rows d_out"]:
        """What the skip path adds for raw activations, in the model's units."""
        return self.input.normalise(x) @ self.W_skip.t() / self.target.scale

    def bias(self) -> Float[Tensor, " d_out"]:
        """What is reconstructed where no feature is active, without the skip path, in the model's units."""
        return self.target.restore(self.b_dec[None])[0]

    def _unit_rows(self) -> Float[Tensor, "d_sae d_out"]:
        directions = self.decoder()
        return directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """The raw reconstruction of a code in the model's units.

        Raises:
            SaescopeError: a code of another SAE, or one that does not carry the offsets that rows have (`has_offsets`).
        """
        if code.d_sae != self.d_sae:
            raise SaescopeError(f"the code is over {code.d_sae} features, this SAE has {self.d_sae}: take its own.")
        directions, centre = self._unit_rows(), self.centre(code)
        if centre.ndim == 1:
            return self.kernels.decode(code, directions, centre)
        return self.kernels.decode(code, directions, torch.zeros_like(self.b_dec)) + centre

    def decode_traced(self, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """`decode` of a CSR code under autograd: gradients to values and offsets, and to parameters that require it.

        Raises:
            SaescopeError: as `decode`.
        """
        return self.decode_features(code) + self.centre(code)

    def decode_features(self, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """Σ value · unit decoder row, without any bias: what a CSR code's features add, differentiable in its values."""
        used, which = code.feature.long().unique(return_inverse=True)
        rows = self.decoder()
        norms = rows[used].norm(dim=1).clamp_min(1e-12)
        return products.mix(replace(code, value=code.value / norms[which]), rows)

    def feature_gradients(
        self, grad: Float[Tensor, "n_rows d_out"], features: Int[Tensor, " n"] | slice = slice(None)
    ) -> Float[Tensor, "n_rows n"]:
        """The gradient of feature values, active or not, from the gradient of the reconstruction: ⟨grad, unit row⟩.

        What a metric would gain per unit that a feature were to add. Dense: give features, or few rows.
        """
        rows = self.decoder().detach()[features]
        return grad @ (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).t()

    def centre(self, code: SparseCode) -> Float[Tensor, " d_out"] | Float[Tensor, "n_rows d_out"]:
        """The point around which a code is decoded: the bias, or each row's own offset.

        Raises:
            SaescopeError: rows have offsets (`has_offsets`) and this code does not carry them.
        """
        if not self.has_offsets:
            return self.bias()
        if not isinstance(code, OffsetCode) or code.offset is None:
            raise SaescopeError(
                f"This {self.config.variant} decodes each row around a point that depends on its input (a skip path, or "
                "rows normalised one by one), which this code does not carry; pass on the code that encode(x) returned."
            )
        return code.offset

    def frozen(self) -> "SAE":
        """The same SAE over the same memory, whose weights take no gradient."""
        twin = copy.copy(self)
        twin._parameters = {name: p if p is None else p.detach() for name, p in self._parameters.items()}  # type: ignore[misc]
        return twin

    def forward(self, x: Tensor | np.ndarray) -> Float[Tensor, "*rows d_out"]:
        """Raw activations `[..., d_in]` to their raw reconstruction. Raises as `encode`."""
        return self.decode(self.encode(x)).reshape(*x.shape[:-1], self.d_out)

    def feature_axis(self, name: str) -> int | None:
        """Along which axis of a parameter or buffer the features lie; None for those that are no feature's own."""
        if name == "W_enc":
            return 1
        if name in ("b_dec", "W_skip") or "." in name:  # a transform is a module of its own
            return None
        return 0 if getattr(self, name).shape[:1] == (self.d_sae,) else None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by name, contiguous, as they are saved."""
        for name, tensor in self.state_dict().items():
            yield name, tensor.detach().contiguous()

    @torch.no_grad()
    def normalised(self) -> "SAE":
        """Fold decoder norms into the encoder, in place: rows of W_dec get unit norm, no reconstruction changes.

        Rows that are unit to rounding stay as they are, so that doing it twice changes nothing; a feature whose row
        is zero adds nothing, so it is switched off. Variants with further per-feature parameters in activation units
        override `fold_norms`.
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
        """Take whitening out of the weights, in place: rows of W_dec become directions of the model; nothing else changes.

        x A W = x (A W): a linear encoder takes up the whitening of its input, unless rows are scaled one by one between the
        two. Else the input stays whitened. Decoder rows, of unit norm among whitened ones, become of other lengths: they
        are left to `normalised`, or where that would change which features are active, kept in `gain`.
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
        """Which features are active depends on how their values compare, so that no feature's can be scaled alone."""
        select = self.select()
        scalar = not isinstance(select.threshold, Tensor) or select.threshold.ndim == 0
        return select.mode != "threshold" or (scalar and float(select.threshold) != 0)

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Scale what else lives in units of a feature's activation."""

    def unfit_as_start(self) -> str | None:
        """Why a training cannot begin from these weights (init.from), if it cannot."""
        if self.gain is not None or self.input.whiten is not None or self.input.unit_rows:
            return "it reads rows that are whitened or of one length, and its weights fit those alone"
        return None

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """Begin with the support of an existing SAE: features whose pre-activation exceeds these thresholds.

        W_enc and b_enc hold the old SAE's `encoder()` by then, re-expressed under this one's input transform. A variant
        without thresholds of its own takes them off b_enc, as here: exactly the same features are active in every row,
        and each value is shorter by its feature's threshold.
        """
        self.b_enc.sub_(threshold)

    def take_extras(self, old: "SAE", gain: Float[Tensor, ""]) -> None:
        """Take over what else an existing SAE has learnt, times `gain` where it is an activation; after the thresholds."""
