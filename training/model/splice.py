"""Run a model with SAEs, transcoders and update SAEs spliced in: the mechanism behind CE recovered, steering, ablations and
circuits.

At each site the target's activation is decomposed and reassembled, row by row,

    x' = Σ_f value_f · W_dec,f + bias + error          error = target − (Σ_f value_f · W_dec,f + bias)   as found

(the bias includes the skip path; W_dec has unit rows; all in the model's units), and put back into the model through
`Site`. If nothing is edited and errors are kept, x' equals the original. Values may be edited (`Edit`) or given; errors may
be kept, given or dropped. Rows outside the keep-mask pass unchanged. Only active features exist in memory.

Gradients. With gradients enabled, `Run.at[site]` holds graph nodes to use with `torch.autograd.grad`: `x` as read by the
SAE, `code.value` as decoded, and `error`. Weights have no gradients. ∂/∂error equals ∂/∂x', so it also gives the gradients
of inactive features: `sae.feature_gradients(grad_error)`. To explain pre-activations at a later site, use
`sae.frozen().pre_activations(part.x, part.code)`. `upstream` selects how gradients reach earlier layers:

    upstream = "features"   through the values (for active features, via their encoder rows) and the skip path; errors are
                            constant
    upstream = "model"      as if nothing were spliced in: ∂x'/∂target = 1, with values and errors as additional leaves
                            (the pass-through of Sparse Feature Circuits, 2403.19647, App. A)
    upstream = "none"       values and errors are constant; gradients only pass through a skip path, or to the block's input
                            at an update site (direct effects: the edges of attribution graphs)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from sae.base import SAE
from sae.code import OffsetCode, SparseCode
from sae.errors import SaescopeError
from training.model.edits import Edit, difference, empty
from training.model.frozen import FrozenModel
from training.model.language_model import Model
from training.model.module import HookedModule
from training.site import Site, SiteRows

Forward = Model | FrozenModel | HookedModule
"""What can be spliced: the fast or the linear forward of a language model, or a user's module, whose sequences are input
indices."""
Upstream = Literal["features", "model", "none"]
Errors = Literal["kept", "dropped"] | Mapping[Site, Tensor]
Reconstruct = Callable[[SiteRows, Bool[Tensor, "n_seqs n_ctx"]], Tensor]
Keep = Bool[Tensor, "n_seqs n_ctx"] | None


@contextmanager
def at_sites(forward: Forward, targets: Mapping[Site, Reconstruct], keep: Keep = None) -> Iterator[None]:
    """Context in which `fn` replaces the kept rows of each site's target; other rows pass unchanged.

    Args:
        forward: the model.
        targets: site → function of its raw rows `(x [n_kept, d_in], target [n_kept, d_out])`, in fp32 or wider, and of the
            mask, that returns the new target `[n_kept, d_out]` on any device. Returning the same target changes nothing.
        keep: the mask; None keeps all rows.
    """
    with ExitStack() as stack:
        reading: list[tuple[str, Callable[[Tensor], Tensor]]] = []
        for site, fn in targets.items():
            seen: list[Tensor] = []
            stack.enter_context(forward.splice(site.output, partial(_write, site, fn, keep, seen)))
            if len(site.hooks) > 1:
                reading.append((site.input, partial(_look, seen)))
        # readers come last, so that they see other splices at their hook
        for hook, look in reading:
            stack.enter_context(forward.splice(hook, look))
        yield


def _look(seen: list[Tensor], acts: Tensor) -> Tensor:
    seen[:] = [acts]
    return acts


def _write(site: Site, fn: Reconstruct, keep: Keep, seen: list[Tensor], acts: Tensor) -> Tensor:
    mine = torch.ones(acts.shape[:2], dtype=torch.bool, device=acts.device) if keep is None else keep.to(acts.device)
    if mine.shape != acts.shape[:2]:
        raise SaescopeError(f"The mask has shape {list(mine.shape)}, but the tokens have shape {list(acts.shape[:2])}.")
    wide = torch.promote_types(acts.dtype, torch.float32)
    after = acts[mine].to(wide)
    if len(site.hooks) > 1 and not seen:
        raise SaescopeError(f"The model reaches {site.output} before {site.input}: a site's target must follow its input.")
    before = seen.pop()[mine].to(wide) if len(site.hooks) > 1 else after
    both = {site.input: before, site.output: after}
    rows = site.rows(both)
    new = fn(rows, mine)
    if new is rows.target:
        return acts
    out = acts.clone()
    out[mine] = site.activation(new.to(acts.device, wide), both).to(acts.dtype)
    return out


@dataclass(frozen=True)
class Part:
    """The values at one site of a run; rows are the kept ones, in the order of the mask.

    Attributes:
        x: `[n_kept, d_in]`, the SAE's input; its gradient is the part that passes through the SAE, skip path included (none
            with upstream "model", or with "none" and no skip path).
        found: the SAE's code before edits.
        code: the code that was decoded (CSR); empty if it wasn't needed.
        error: `[n_kept, d_out]`, the error that was added.
    """

    x: Float[Tensor, "n_kept d_in"]
    found: SparseCode
    code: SparseCode
    error: Float[Tensor, "n_kept d_out"]


@dataclass(frozen=True)
class Run:
    """One run of a spliced model.

    Attributes:
        logits: `[n_seqs, n_ctx, d_vocab]`.
        at: the values at each site.
        watched: activations at the watched hooks.
        keep: the mask.
    """

    logits: Float[Tensor, "n_seqs n_ctx d_vocab"]
    at: dict[Site, Part]
    keep: Bool[Tensor, "n_seqs n_ctx"]
    watched: dict[str, Tensor] = field(default_factory=dict)

    @property
    def errors(self) -> dict[Site, Tensor]:
        """Each site's error, to pass to another run."""
        return {site: part.error.detach() for site, part in self.at.items()}

    @property
    def codes(self) -> dict[Site, SparseCode]:
        """Each site's code, to pass to another run or to patch from."""
        return {site: part.code.detach() for site, part in self.at.items()}

    @property
    def positions(self) -> Int64[Tensor, "n_kept 2"]:
        """(sequence, position) of each row."""
        return self.keep.nonzero()


class SplicedModel:
    """A language model with SAEs spliced in; see the module docstring."""

    def __init__(self, model: Model | HookedModule, saes: Mapping[Site, SAE]) -> None:
        """Check that SAEs and model fit; the model is only modified during runs.

        Args:
            model: any model, or a user's module.
            saes: site → its SAE, at most one per output hook. Other sites are left unchanged.

        Raises:
            SaescopeError: widths don't match, or two SAEs write to the same hook.
        """
        for site, sae in saes.items():
            widths = (model.d_hook(site.input), model.d_hook(site.output))
            if widths != (sae.d_in, sae.d_out):
                raise SaescopeError(
                    f"The SAE of {site.output} has d_in = {sae.d_in} and d_out = {sae.d_out}, but the model has width "
                    f"{widths[0]} at {site.input} and {widths[1]} at {site.output}."
                )
        outputs = [site.output for site in saes]
        twice = sorted({hook for hook in outputs if outputs.count(hook) > 1})
        if twice:
            raise SaescopeError(f"Two SAEs write to {twice[0]}; only one is allowed per hook.")
        self.model, self.saes = model, dict(saes)
        self._frozen = {site: sae.frozen() for site, sae in saes.items()}

    def run(
        self, tokens: Int[Tensor, "n_seqs n_ctx"], *, keep: Keep = None, edits: Sequence[Edit] = (),
        values: Mapping[Site, SparseCode] | None = None, errors: Errors = "kept", upstream: Upstream = "features",
        freeze: Sequence[str] | FrozenModel | None = None, watch: Sequence[str] = (),
    ) -> Run:
        """Run the spliced model once.

        Args:
            tokens: without padding.
            keep: mask of the rows to splice; None splices all.
            edits: edits of features, applied in order.
            values: codes to use at some sites instead of the encoder's; edits apply to these.
            errors: `kept` uses the errors found in this run before edits: without edits this is the clean pass; with edits
                at an earlier site, the errors here absorb what the features miss of the change, so that all of it passes.
                If given by site (`Run.errors` of the clean pass), later sites respond to an edit only through their
                features; other sites keep theirs. Or `dropped`.
            upstream: how gradients reach earlier layers, see the module docstring.
            freeze: None runs the fast forward. Otherwise the linear one: the parts of `frozen.HELD` to freeze at a clean
                run on these tokens, or an existing `FrozenModel`.
            watch: hooks whose activations to record, after the splices. In the linear forward any hook of the bridge, such
                as `blocks.3.attn.hook_pattern`. With gradients enabled they are graph nodes.

        Raises:
            SaescopeError: an edit at a site without an SAE, a hook that doesn't exist or wasn't reached, or rows that don't
                match.
        """
        keep = torch.ones(tokens.shape, dtype=torch.bool) if keep is None else keep
        forward = self._forward(tokens, freeze)
        watched: dict[str, Tensor] = {}
        with ExitStack() as stack:
            at = stack.enter_context(
                self.spliced(forward, keep=keep, edits=edits, values=values, errors=errors, upstream=upstream)
            )
            for hook in watch:
                stack.enter_context(forward.splice(hook, partial(_watch, watched, hook)))
            logits = forward.logits(tokens)
        silent = [*(hook for hook in watch if hook not in watched), *(s.output for s in self.saes if s not in at)]
        if silent:
            raise SaescopeError(f"This forward pass of {self.model.name} never reaches the hook {silent[0]}.")
        return Run(logits, at, keep, watched)

    def _forward(self, tokens: Tensor, freeze: Sequence[str] | FrozenModel | None) -> Forward:
        if freeze is None:
            return self.model
        if isinstance(self.model, HookedModule):
            raise SaescopeError(f"{self.model.name} has no linear forward; don't set freeze.")
        frozen = freeze if isinstance(freeze, FrozenModel) else FrozenModel.at(self.model, tokens, freeze)
        if frozen.model is not self.model:
            raise SaescopeError(f"The frozen model ({frozen.model.name}) is not the model object that is spliced.")
        return frozen

    @contextmanager
    def spliced(
        self, forward: Forward | None = None, *, keep: Keep = None, edits: Sequence[Edit] = (),
        values: Mapping[Site, SparseCode] | None = None, errors: Errors = "kept", upstream: Upstream = "features",
        record: bool = True,
    ) -> Iterator[dict[Site, Part]]:
        """Context in which runs of the model are spliced; yields the values of the last run by site. Arguments as in `run`.

        `record=False` computes only what the splice needs, without gradients: with errors kept, sites without edits are
        skipped, and no code is computed if all edits add.
        """
        values = values or {}
        for site in [*(edit.site for edit in edits), *values, *(errors if isinstance(errors, Mapping) else ())]:
            if site not in self.saes:
                raise SaescopeError(f"No SAE is spliced in at {site.output}: {site} is not one of the spliced sites.")
        at: dict[Site, Part] = {}
        targets: dict[Site, Reconstruct] = {}
        for site in self.saes:
            mine = [edit for edit in edits if edit.site == site]
            given: Tensor | Literal["kept", "dropped"]
            given = errors.get(site, "kept") if isinstance(errors, Mapping) else errors
            if record or mine or site in values or not isinstance(given, str) or given != "kept":
                job = _Job(self._frozen[site], mine, values.get(site), given, upstream, record)
                targets[site] = partial(_reconstruct, job, site, at)
        with at_sites(forward or self.model, targets, keep):
            yield at


@dataclass(frozen=True)
class _Job:
    """The settings for one site."""

    sae: SAE
    edits: Sequence[Edit]
    values: SparseCode | None
    error: Tensor | Literal["kept", "dropped"]
    upstream: Upstream
    record: bool

    def edited(self, found: SparseCode, mask: Bool[Tensor, "n_seqs n_ctx"]) -> SparseCode:
        """The code to decode: the given one, or the one found, with edits applied."""
        code = found if self.values is None else _with_offset(self.values.csr(), found)
        for edit in self.edits:
            code = edit.apply(code, edit.chosen(mask).to(code.feature.device))
        return code


def _reconstruct(
    job: _Job, site: Site, at: dict[Site, Part], rows: SiteRows, mask: Bool[Tensor, "n_seqs n_ctx"]
) -> Tensor:
    """x' of a site's kept rows, computed on the SAE's device."""
    for what, given in (("values", job.values and job.values.n_rows), ("errors", _length(job.error))):
        if given is not None and given != len(rows.x):
            raise SaescopeError(f"The {what} given for {site.output} have {given} rows, but this run keeps {len(rows.x)}.")
    device = job.sae.W_dec.device
    moved = SiteRows(rows.x.to(device), rows.target.to(device))
    with_nodes = job.record and torch.is_grad_enabled()
    new, part = (_with_nodes if with_nodes else _without_nodes)(job, moved, mask)
    if part is not None:
        at[site] = part
    return rows.target if new is moved.target else new


def _length(error: Tensor | str) -> int | None:
    return len(error) if isinstance(error, Tensor) else None


def _without_nodes(job: _Job, rows: SiteRows, mask: Bool[Tensor, "n_seqs n_ctx"]) -> tuple[Tensor, Part | None]:
    """x' without gradients. With errors kept, x' = target + Σ (value' − value) · W_dec, which avoids rounding errors."""
    sae, x, kept = job.sae, rows.x, isinstance(job.error, str) and job.error == "kept"
    adds_only = kept and job.values is None and all(edit.mode == "add" for edit in job.edits)
    found = empty(len(x), sae.d_sae, sae.W_dec) if adds_only and not job.record else sae.encode(x)
    code = job.edited(found, mask)
    if kept:
        new = rows.target if code is found else rows.target + sae.decode_features(difference(code, found))
        return new, Part(x, found, code, rows.target - sae.decode(found)) if job.record else None
    x_hat = sae.decode(code)
    error = job.error.to(x_hat) if isinstance(job.error, Tensor) else torch.zeros_like(x_hat)
    new = x_hat + error if isinstance(job.error, Tensor) else x_hat
    return new, Part(x, found, code, error) if job.record else None


def _with_nodes(job: _Job, rows: SiteRows, mask: Bool[Tensor, "n_seqs n_ctx"]) -> tuple[Tensor, Part]:
    """x' with gradients: Σ value · W_dec + bias + error, with graph nodes for values, error and x."""
    sae = job.sae
    x = rows.x.view_as(rows.x) if rows.x.requires_grad else rows.x.detach().requires_grad_()
    found = sae.encode_traced(x if job.upstream == "features" else x.detach())
    code = job.edited(found, mask)
    if job.upstream != "features" or not code.value.requires_grad:
        code = replace(code, value=code.value.detach().requires_grad_())
    if isinstance(job.error, Tensor):
        error = job.error.to(sae.W_dec)
        error = error if error.requires_grad else error.detach().requires_grad_()
    elif job.error == "dropped":
        error = torch.zeros_like(rows.target, dtype=sae.W_dec.dtype).requires_grad_()
    else:
        error = (rows.target - sae.decode_traced(found)).detach().requires_grad_()
    part = Part(x, found, code, error)
    if job.upstream == "model":
        x_hat = sae.decode_traced(code) + error
        return rows.target + (x_hat - x_hat.detach()) + (x_hat - rows.target).detach(), part
    if sae.has_offsets and job.upstream == "none":
        code = _with_offset(code, sae.encode_traced(x))
    return sae.decode_traced(code) + error, part


def _with_offset(code: SparseCode, source: SparseCode) -> SparseCode:
    """A code's entries with the offset of another code."""
    offset = source.offset if isinstance(source, OffsetCode) else None
    plain = SparseCode(code.feature, code.value, code.n_rows, code.d_sae, code.indptr, code.k)
    return plain if offset is None else OffsetCode.around(plain, offset)


def _watch(watched: dict[str, Tensor], hook: str, acts: Tensor) -> Tensor:
    if torch.is_grad_enabled() and not acts.requires_grad and acts.is_floating_point():
        acts = acts.detach().requires_grad_()
    watched[hook] = acts
    return acts
