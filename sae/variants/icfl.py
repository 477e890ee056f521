"""ICFL: iterative codebook feature learning, which has no encoder (Donhauser et al. 2412.16247).

    r = x − b_dec
    J rounds:   Γ = the L features with largest ⟨w_f, r⟩ > 0      w_f: row f of W_dec, unit norm
                z_Γ = argmin ‖r − Σ_Γ z_f w_f‖²                     least squares
                r ← r − Σ_Γ z_f w_f
    acts = Σ over rounds of z        x̂ = acts W_dec + b_dec        loss = ‖x − x̂‖², acts detached

Only W_dec and b_dec are trained. With one round, detaching acts does not change the gradient: at the least-squares optimum
the error is stationary in acts. A feature may be chosen again in a later round, so at most J · L are active. Values may be
negative, because least squares splits what correlated features explain together. Every `redraw_every` steps, the later
feature of each pair with a cosine above `duplicate_cosine` is redrawn on the sphere: near-duplicates are chosen together
and share one direction.

The paper uses J = 20, L = 5, 40M tokens in batches of 8,192, and a learning rate of 5e-5; rows are whitened on control
data and have unit norm (`sae.transform`).

Details not in the paper: b_dec is subtracted first (`apply_b_dec_to_input`), as in the other variants; features whose
⟨w_f, r⟩ is not positive are not chosen; the least squares use a ridge of `RIDGE`, because features of a round may be
nearly parallel; Adam's moments of a redrawn feature are kept.

W_enc and b_enc are buffers here, not parameters. In the saved form W_dec is in the model's units, and W_enc is the
dictionary that encoding uses: W_decᵀ in normalised units.
"""

from typing import Literal, final

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from sae import losses, products
from sae.base import SAE, Progress, SAEConfig, Step
from sae.code import SparseCode, from_pairs, sum_by_feature
from sae.errors import SaescopeError
from sae.init import random_directions
from sae.kernels import Select
from sae.ranks import ALONE
from sae.units import Count

RIDGE = 1e-6
"""Added to the squared norm of each feature (1) in the least squares."""
_CHUNK = 1 << 24
"""Elements of chosen dictionary rows gathered at a time."""
_COSINES = 1024
"""Features whose cosines with all others are computed at a time."""


class ICFLConfig(SAEConfig):
    """Config of ICFL."""

    variant: Literal["icfl"] = "icfl"
    rounds: Count = Field(default=20, gt=0)
    """J: number of selection rounds, each on the residual of the previous ones."""
    per_round: Count = Field(default=5, gt=0)
    """L: features chosen per round. At most rounds · per_round features per row are active."""
    duplicate_cosine: float = Field(default=0.9, gt=0, le=1)
    """Redraw the later of two features whose cosine exceeds this; 1: never."""
    redraw_every: Count = Field(default=100, gt=0)
    """Steps between checks for duplicates."""

    @property
    def k(self) -> int:
        """Maximum number of active features per row."""
        return self.rounds * self.per_round

    @model_validator(mode="after")
    def _k_fits(self) -> "ICFLConfig":
        if self.k > self.d_sae:
            raise ValueError(
                f"rounds · per_round = {self.k} exceeds d_sae = {self.d_sae}; a row has at most d_sae active features"
            )
        return self

    def unfit_for_transcoders(self) -> str | None:
        """Always: it has no encoder."""
        return "icfl encodes with the decoder's directions, so it can only reconstruct its own input"


@final
class ICFL(SAE):
    """Encode by several rounds of selection and least squares over the decoder directions."""

    config: ICFLConfig
    linear_encoder = False
    n_steps: Tensor
    redrawn: Tensor

    def add_tensors(self) -> None:
        """Turn the encoder into buffers; add counters of steps and of redrawn features.

        Raises:
            SaescopeError: target and input have different widths.
        """
        if self.d_in != self.d_out:
            raise SaescopeError(f"{self.config.unfit_for_transcoders()}: d_in = {self.d_in}, d_out = {self.d_out}.")
        for name in ("W_enc", "b_enc"):
            held = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, held)
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("redrawn", torch.zeros((), dtype=torch.int64))

    @property
    def dictionary(self) -> Float[Tensor, "d_sae d_in"]:
        """Unit-norm dictionary rows, in normalised units."""
        return self.W_dec if self.decodes_to_input else self.W_enc.t()

    def select(self) -> Select:
        """The nearest equivalent: at most k features per row, of either sign."""
        return Select("topk", k=self.config.k, absolute=True)

    # -- the code -----------------------------------------------------------------------------------------------------

    def pursue(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """The CSR code of normalised rows minus b_dec. Under autograd, values have gradients to x and to the dictionary.

        The choice of features is held constant.
        """
        size = max(1, _CHUNK // (self.config.per_round * self.d_in))
        parts = [self._rounds(rows) for rows in x.split(size)] or [self._rounds(x)]
        feature, value = (torch.cat(some) for some in zip(*parts, strict=True))
        entry = torch.arange(len(x), device=x.device).repeat_interleave(feature.shape[1]) * self.d_sae + feature.flatten()
        kept = value.detach().flatten() != 0
        places, which = entry[kept].unique(return_inverse=True)
        total = sum_by_feature(value.flatten()[kept], which, len(places))
        there = total.detach() != 0
        places, total = places[there], total[there]
        return from_pairs(places // self.d_sae, places % self.d_sae, total, len(x), self.d_sae)

    def _rounds(
        self, residual: Float[Tensor, "n_rows d_in"]
    ) -> tuple[Int64[Tensor, "n_rows k"], Float[Tensor, "n_rows k"]]:
        """Features and values of all rounds; zeros are padding."""
        W, L = self.dictionary, self.config.per_round
        nothing = torch.zeros_like(self.b_enc)
        ridge = RIDGE * torch.eye(L, dtype=W.dtype, device=W.device)
        features, values = [], []
        for _ in range(self.config.rounds):
            found = self.kernels.encode(residual.detach(), W.detach().t(), nothing, Select("topk", k=L))
            assert found.k == L, "a fixed-k code"
            feature, chosen = found.feature.long().view(-1, L), found.active.view(-1, L)
            # replace unchosen entries by an orthogonal direction, with a right-hand side of 0
            rows = W[feature] * chosen[..., None]
            gram = rows @ rows.transpose(1, 2) + torch.diag_embed((~chosen).to(W.dtype)) + ridge
            right = rows @ residual[..., None]
            value = torch.cholesky_solve(right, torch.linalg.cholesky(gram))[..., 0]
            residual = residual - (value[:, None] @ rows)[:, 0]
            features.append(feature)
            values.append(value * chosen)
        return torch.cat(features, 1), torch.cat(values, 1)

    def active(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """As in the base class; gradients go through the least squares."""
        return self.pursue(self._before_encoder(x)).scaled(self.lengths())

    def pre_activations(self, x: Float[Tensor, "n_rows d_in"], where: SparseCode) -> Float[Tensor, " nnz"]:
        """Values at the entries of a CSR code, all of which must be active.

        Raises:
            SaescopeError: an entry is not active; the value of an unchosen feature is undefined.
        """
        code = self.encode_traced(x)
        have, asked = (c.rows() * self.d_sae + c.feature.long() for c in (code, where))
        at = torch.searchsorted(have, asked).clamp_max(max(0, len(have) - 1))
        if len(asked) and not (len(have) and bool((have[at] == asked).all())):
            raise SaescopeError(
                "icfl: pre-activations were requested for a feature in a row where it is not active; its value there is "
                "undefined, because it depends on which features are chosen with it."
            )
        return code.value[at]

    # -- training -----------------------------------------------------------------------------------------------------

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction from a detached code."""
        with torch.no_grad():
            code = self.pursue(x if self.b_pre is None else x - self.b_pre)
        x_hat = products.mix(code, self.W_dec) + self.b_dec
        terms = {"reconstruction": losses.reconstruction(target, x_hat, progress.weight)}
        return Step(terms, code, x_hat, {"redrawn": self.redrawn})

    @torch.no_grad()
    def counted(self, x: Float[Tensor, "n_rows d_in"], progress: Progress) -> SparseCode:
        """The code of normalised rows."""
        del progress
        return self.pursue(x if self.b_pre is None else x - self.b_pre)

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Redraw duplicates every `redraw_every` steps."""
        del step
        self.n_steps += 1
        n_steps = int(self.n_steps)
        if n_steps % self.config.redraw_every or self.config.duplicate_cosine == 1 or not self.W_dec.requires_grad:
            return
        twice = duplicates(self.W_dec, self.config.duplicate_cosine)
        # a pure function of seed and step, so that a resumed run draws the same
        generator = torch.Generator().manual_seed((self.config.seed * 0x9E3779B97F4A7C15 + n_steps) % 2**63)
        self.W_dec[twice] = random_directions(ALONE.part(len(twice)), self.d_out, generator).to(self.W_dec)
        self.redrawn += len(twice)

    # -- weights ------------------------------------------------------------------------------------------------------

    def folded(self) -> SAE:
        """Copy the dictionary to W_enc, before folding may change W_dec."""
        self.W_enc.copy_(self.dictionary.detach().t())
        return super().folded()

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """Ignored: there are no thresholds and no encoder bias."""
        del threshold
        self.b_enc.zero_()


def duplicates(W: Float[Tensor, "d_sae d"], cosine: float) -> Int64[Tensor, " n"]:
    """Features whose cosine with an earlier feature exceeds `cosine`; W has unit rows."""
    found = []
    for start in range(0, len(W), _COSINES):
        part = W[start : start + _COSINES]
        close = part @ W[: start + len(part)].t() > cosine
        found.append(close.tril(start - 1).any(1).nonzero()[:, 0] + start)
    return torch.cat(found)
