"""ICFL: iterative codebook feature learning, without an encoder (Donhauser et al. 2412.16247).

    r = x − b_dec
    J rounds:   Γ = the L features of largest ⟨w_f, r⟩ > 0        w_f: row f of W_dec, of unit norm
                z_Γ = argmin ‖r − Σ_Γ z_f w_f‖²                     least squares
                r ← r − Σ_Γ z_f w_f
    acts = Σ over rounds of z        x̂ = acts W_dec + b_dec        loss = ‖x − x̂‖², acts held constant

Only W_dec and b_dec learn. With one round the gradient is the whole one, acts held constant or not: at the minimum of the
least squares the error does not change with acts. A feature may be chosen again in a later round, so that at most J · L are
active; values may be below zero, for least squares share out what correlated features explain together. Every
`redraw_every` steps, of each pair of features with a cosine above `duplicate_cosine` the later one is drawn anew on the
sphere: near-duplicates are chosen together and share one direction between them.

The paper has J = 20, L = 5, 40M tokens in batches of 8,192, and a learning rate of 5e-5; rows are whitened on control data
and of unit norm (`sae.transform`).

Where the paper is silent: b_dec is subtracted first (`apply_b_dec_to_input`), as by the other variants; features whose
⟨w_f, r⟩ is not positive are not chosen; the least squares have a ridge of `RIDGE`, for features of a round may be nearly
parallel; Adam's averages of a feature that is drawn anew go on.

W_enc and b_enc are no parameters here. W_enc is the dictionary as the encoder reads it, W_decᵀ in normalised units, in the
saved form, whose W_dec is in the model's.
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
"""Numbers of chosen dictionary rows that are gathered at a time."""
_COSINES = 1024
"""Features whose cosines with all others are taken at a time."""


class ICFLConfig(SAEConfig):
    """Config of ICFL."""

    variant: Literal["icfl"] = "icfl"
    rounds: Count = Field(default=20, gt=0)
    """J: how often features are chosen for what is left of a row."""
    per_round: Count = Field(default=5, gt=0)
    """L: features chosen together. At most rounds · per_round are active in a row."""
    duplicate_cosine: float = Field(default=0.9, gt=0, le=1)
    """Of two features with a larger cosine the later one is drawn anew; 1 leaves all as they are."""
    redraw_every: Count = Field(default=100, gt=0)
    """Steps between looks for duplicates."""

    @property
    def k(self) -> int:
        """The most features that are active in a row."""
        return self.rounds * self.per_round

    @model_validator(mode="after")
    def _k_fits(self) -> "ICFLConfig":
        if self.k > self.d_sae:
            raise ValueError(
                f"rounds · per_round = {self.k} exceeds d_sae = {self.d_sae}; a row has at most d_sae active features"
            )
        return self

    def unfit_for_transcoders(self) -> str | None:
        """It has no encoder."""
        return "icfl finds features with the decoder's own directions, so that it can only reconstruct what it reads"


@final
class ICFL(SAE):
    """Features found by several rounds of selection and least squares over the decoder's directions."""

    config: ICFLConfig
    linear_encoder = False
    n_steps: Tensor
    redrawn: Tensor

    def add_tensors(self) -> None:
        """The encoder becomes buffers; how many steps were taken, and how many features drawn anew.

        Raises:
            SaescopeError: target and input are of different widths.
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
        """Unit rows in normalised units."""
        return self.W_dec if self.decodes_to_input else self.W_enc.t()

    def select(self) -> Select:
        """What comes nearest: at most k features of a row, of either sign."""
        return Select("topk", k=self.config.k, absolute=True)

    # -- the code -----------------------------------------------------------------------------------------------------

    def pursue(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """The CSR code of normalised rows less b_dec. Under autograd values carry gradient to x and to the dictionary.

        Which features are chosen is held as it is found.
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
        """Features and values of all rounds; a value of zero is none."""
        W, L = self.dictionary, self.config.per_round
        nothing = torch.zeros_like(self.b_enc)
        ridge = RIDGE * torch.eye(L, dtype=W.dtype, device=W.device)
        features, values = [], []
        for _ in range(self.config.rounds):
            found = self.kernels.encode(residual.detach(), W.detach().t(), nothing, Select("topk", k=L))
            assert found.k == L, "as many entries in each row"
            feature, chosen = found.feature.long().view(-1, L), found.active.view(-1, L)
            # what is not chosen is a direction of its own, which nothing points to
            rows = W[feature] * chosen[..., None]
            gram = rows @ rows.transpose(1, 2) + torch.diag_embed((~chosen).to(W.dtype)) + ridge
            right = rows @ residual[..., None]
            value = torch.cholesky_solve(right, torch.linalg.cholesky(gram))[..., 0]
            residual = residual - (value[:, None] @ rows)[:, 0]
            features.append(feature)
            values.append(value * chosen)
        return torch.cat(features, 1), torch.cat(values, 1)

    def active(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """`encode_traced`, of the features alone, and of rows whose spread is 1; derived as least squares are."""
        return self.pursue(self._before_encoder(x)).scaled(self.lengths())

    def pre_activations(self, x: Float[Tensor, "n_rows d_in"], where: SparseCode) -> Float[Tensor, " nnz"]:
        """Values at the entries of a CSR code, all of which are active.

        Raises:
            SaescopeError: one is not: what a feature would be where it is not chosen is not defined.
        """
        code = self.encode_traced(x)
        have, asked = (c.rows() * self.d_sae + c.feature.long() for c in (code, where))
        at = torch.searchsorted(have, asked).clamp_max(max(0, len(have) - 1))
        if len(asked) and not (len(have) and bool((have[at] == asked).all())):
            raise SaescopeError(
                "a feature of an icfl was asked for in a row where it is not active, and there it has no value: which ones "
                "are chosen next to it decides that."
            )
        return code.value[at]

    # -- training -----------------------------------------------------------------------------------------------------

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Reconstruction, by a code that is held constant."""
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
        """Every so often, draw duplicates anew."""
        del step
        self.n_steps += 1
        n_steps = int(self.n_steps)
        if n_steps % self.config.redraw_every or self.config.duplicate_cosine == 1 or not self.W_dec.requires_grad:
            return
        twice = duplicates(self.W_dec, self.config.duplicate_cosine)
        # a pure function of seed and step, so that resuming draws the same
        generator = torch.Generator().manual_seed((self.config.seed * 0x9E3779B97F4A7C15 + n_steps) % 2**63)
        self.W_dec[twice] = random_directions(ALONE.part(len(twice)), self.d_out, generator).to(self.W_dec)
        self.redrawn += len(twice)

    # -- weights ------------------------------------------------------------------------------------------------------

    def folded(self) -> SAE:
        """W_enc becomes the dictionary, before W_dec may become something else."""
        self.W_enc.copy_(self.dictionary.detach().t())
        return super().folded()

    def take_thresholds(self, threshold: Float[Tensor, " d_sae"]) -> None:
        """It has none, nor a bias to take them off."""
        del threshold
        self.b_enc.zero_()


def duplicates(W: Float[Tensor, "d_sae d"], cosine: float) -> Int64[Tensor, " n"]:
    """Features whose cosine with one before them is above a limit, by unit rows."""
    found = []
    for start in range(0, len(W), _COSINES):
        part = W[start : start + _COSINES]
        close = part @ W[: start + len(part)].t() > cosine
        found.append(close.tril(start - 1).any(1).nonzero()[:, 0] + start)
    return torch.cat(found)
