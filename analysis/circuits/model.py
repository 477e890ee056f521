"""A language model with SAEs, for circuits: sites in causal order, their activations decomposed.

    target = Σ_f value_f · W_dec,f + offset + error        offset = bias (+ skip path's output)

The nodes of a site are its features, error and skip path. Every run goes through `training.model.splice.at_sites`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.base import SAE
from sae.code import OffsetCode, SparseCode
from sae.errors import SaescopeError
from training.model.frozen import FrozenModel
from training.model.language_model import Model
from training.model.splice import Forward, Reconstruct, SplicedModel, at_sites
from training.site import Site, SiteRows


@dataclass(frozen=True)
class State:
    """Decomposed activations of a site's kept rows, in the order of the mask: example by example, position by position.

    Attributes:
        target: the activation that the SAE reconstructs.
        code: feature activations.
        offset: bias plus the skip path's output.
        error: target − decoded features − offset.
    """

    target: Float[Tensor, "n_rows d_out"]
    code: SparseCode
    offset: Float[Tensor, "n_rows d_out"]
    error: Float[Tensor, "n_rows d_out"]

    def take(self, rows: Int[Tensor, " n"]) -> "State":
        """Select rows, in any order; repeats are allowed."""
        return State(self.target[rows], take_rows(self.code, rows), self.offset[rows], self.error[rows])


def take_rows(code: SparseCode, rows: Int[Tensor, " n"]) -> SparseCode:
    """Select rows of a CSR code, in any order; repeats are allowed."""
    assert code.indptr is not None
    counts = code.indptr.diff()[rows]
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    entry = torch.arange(int(indptr[-1])) + (code.indptr[rows] - indptr[:-1]).repeat_interleave(counts)
    return SparseCode(code.feature[entry], code.value[entry], len(rows), code.d_sae, indptr=indptr)


class CircuitModel:
    """A language model with SAEs at sites, in causal order.

    Attributes:
        model: the language model.
        sites: sites in causal order: no site depends on a later one.
        saes: SAEs by site, frozen.
    """

    def __init__(self, model: Model, saes: Mapping[Site, SAE]) -> None:
        """Check that the SAEs fit the model, sort the sites, and check that the residual stream adds up.

        Raises:
            SaescopeError: as `SplicedModel`; the model never reaches a site; or a block doesn't add up.
        """
        SplicedModel(model, saes)  # refuses wrong widths and two SAEs that write to one hook
        self.model = model
        self.sites = in_order(model, list(saes))
        self.saes = {site: saes[site].frozen() for site in self.sites}
        self.index = {site: i for i, site in enumerate(self.sites)}
        check_residual_stream(model)

    def run(
        self, tokens: Int[Tensor, "n_seqs n_ctx"], keep: Bool[Tensor, "n_seqs n_ctx"],
        at: Mapping[Site, Reconstruct], forward: Forward | None = None,
    ) -> Float[Tensor, "n_seqs n_logits d_vocab"]:
        """Run with the kept rows of each site's target replaced, and return logits; see `at_sites`.

        The last position, which every metric reads, is always included. Others are left out where possible, because
        unembedding all tokens of a short prompt takes longer than many blocks.

        Args:
            tokens: without padding.
            keep: rows to splice.
            at: site → function of its rows (x, target) and the mask that returns the new target.
            forward: the model, or its `FrozenModel`.
        """
        if isinstance(forward, FrozenModel) or any(not hook.startswith("blocks.") for site in at for hook in site.hooks):
            forward = forward or self.model
            with at_sites(forward, at, keep):
                return forward.logits(tokens)
        with at_sites(self.model, at, keep):
            return self.model.last_logits(tokens)

    @torch.no_grad()
    def states(
        self, tokens: Int[Tensor, "n_seqs n_ctx"], keep: Bool[Tensor, "n_seqs n_ctx"], forward: Forward | None = None
    ) -> tuple[dict[Site, State], Float[Tensor, "n_seqs n_logits d_vocab"]]:
        """Decomposed activations at every site of a clean run, and its logits."""
        found: dict[Site, State] = {}

        def look(site: Site) -> Reconstruct:
            def see(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
                found[site] = self.state(site, rows)
                return rows.target

            return see

        logits = self.run(tokens, keep, {site: look(site) for site in self.sites}, forward)
        return found, logits

    def state(self, site: Site, rows: SiteRows) -> State:
        """Decompose a site's rows; differentiable in x and target (`sae.base.SAE.encode_traced`)."""
        sae = self.saes[site]
        code = sae.encode_traced(rows.x.to(sae.W_dec))
        target = rows.target.to(sae.W_dec)
        offset = sae.centre(code).expand_as(target)
        plain = features_only(code)
        return State(target, plain, offset, target - sae.decode_features(plain) - offset)

    def decode(self, site: Site, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """Decode features without the bias: Σ value · unit decoder row."""
        return self.saes[site].decode_features(code)

    @property
    def n_layers(self) -> int:
        """Number of blocks of the language model."""
        return self.model.n_layers


def features_only(code: SparseCode) -> SparseCode:
    """The code without its decoding offsets."""
    code = code.csr()
    if isinstance(code, OffsetCode):
        return SparseCode(code.feature, code.value, code.n_rows, code.d_sae, indptr=code.indptr)
    return code


def in_order(model: Model, sites: Iterable[Site]) -> tuple[Site, ...]:
    """Sort sites by the order in which a forward pass reaches their outputs.

    Raises:
        SaescopeError: the model never reaches a site.
    """
    sites, reached = list(sites), []

    def note(site: Site) -> Callable[[SiteRows, Tensor], Tensor]:
        def see(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
            reached.append(site)
            return rows.target

        return see

    tokens = torch.arange(4)[None] % model.d_vocab
    with torch.no_grad(), at_sites(model, {site: note(site) for site in sites}):
        model.logits(tokens)
    missing = [site.output for site in sites if site not in reached]
    if missing:
        raise SaescopeError(f"{model.name} never reaches {missing[0]} in a forward pass, so no SAE can be spliced in.")
    return tuple(reached)


@torch.no_grad()
def check_residual_stream(model: Model) -> None:
    """Check that resid_pre + attn_out + mlp_out = resid_post in every block, which edges and errors rely on.

    Raises:
        SaescopeError: a block doesn't add up (its hooks mean something else, such as the value before a post-norm).
    """
    tokens = torch.arange(6)[None] % model.d_vocab
    names = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    blocks = [[f"blocks.{layer}.{name}" for name in names] for layer in range(model.n_layers)]
    blocks = [hooks for hooks in blocks if set(hooks) <= set(model.hooks())]
    acts = model.activations(tokens, sorted({hook for hooks in blocks for hook in hooks}))
    for hooks in blocks:
        before, attn, mlp, after = (acts[hook].double() for hook in hooks)
        gap, norm = float((before + attn + mlp - after).norm()), float(after.norm())
        if not gap <= _TOLERANCE[model.dtype] * norm:
            raise SaescopeError(
                f"{model.name}: resid_pre + attn_out + mlp_out differs from {hooks[-1]} (norm {norm:.3g}) by {gap:.3g}, so "
                "its hooks are not the vectors added to the residual stream."
            )


_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Relative tolerance for rounding; Hugging Face models normalise in fp32 even in fp64."""
