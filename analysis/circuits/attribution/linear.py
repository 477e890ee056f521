"""One prompt in the linear forward: every vector written to the residual stream, and its direct effect on every reader.

With attention patterns and norm scales frozen at the prompt's own, a pre-activation or a logit is a sum over the vectors
written by earlier sites, along paths that meet no site in between (Ameisen et al. 2025):

    target = Σ_s ⟨∂target/∂row of s, vector of s⟩ + constant      vector = value · W_dec of a feature; or an error, a token

One backward pass gives a target's terms for all s. MLPs without a dictionary are handled in one of two ways:

    held      each output is an error node, which isn't explained further (attribution graphs of transcoders)
    neurons   act(z) = (act(z)/z) · z with a constant ratio; in gated MLPs each factor gets half: the linear map of the
              active neurons (2402.12201, approximate direct contributions; RelP's rules)

A skip path is either one more linear path from a transcoder's input to its target, or a node of its own. The constant is
the sum of all biases, of the dictionaries and of the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from analysis.circuits.attribution.sites import TOKENS, graph_sites
from analysis.circuits.effects.paths import CutRun, cut_run
from analysis.circuits.effects.relp import RelevanceModel
from analysis.circuits.graph import SiteInfo, layer_of, name_of
from analysis.circuits.model import CircuitModel, State, in_order
from analysis.circuits.nodes import ERROR, SKIP, Nodes
from sae.code import SparseCode, from_pairs
from sae.errors import SaescopeError
from training.model.frozen import FrozenModel
from training.site import Site

Mlps = Literal["held", "neurons"]
Skips = Literal["linear", "node"]
_MLP_OUT = ("hook_mlp_out", "mlp.hook_out")


@dataclass(frozen=True)
class Target:
    """A target to explain: a feature's pre-activation, or a logit minus the mean of all logits.

    Attributes:
        site: index into `LinearPrompt.sites`; `len(sites)` means the logits.
        position: token position.
        column: feature index, or token id.
    """

    site: int
    position: int
    column: int


@dataclass(frozen=True)
class _Vectors:
    """Vectors of a site's nodes, in their order."""

    position: Int[Tensor, " n"]
    vector: Float[Tensor, "n d"]

    def read(self, grad: Float[Tensor, "n_targets n_ctx d"]) -> Float[Tensor, "n_targets n"]:
        """Direct effect of each vector on each target."""
        return torch.einsum("tnd,nd->tn", grad[:, self.position], self.vector)


class LinearPrompt:
    """A prompt decomposed in the linear forward.

    Attributes:
        circuit: the model with its SAEs.
        tokens: token ids.
        sites: where vectors are written, in causal order: TOKENS, SAE sites and, if MLPs are held, MLPs without an SAE.
        infos: records of the same sites and of the logits, as in a circuit.
        mlps, skips: see the module docstring.
        nodes: the node of each vector, by site, position, feature; at TOKENS the feature is the token id.
        value: a feature's activation; the norm of any other node's vector.
        logits: the model's own logits at the last position.
    """

    def __init__(
        self, circuit: CircuitModel, tokens: Int[Tensor, " n_ctx"], *, mlps: Mlps | None = None,
        skips: Skips = "linear", keep: Bool[Tensor, " n_ctx"] | None = None, infos: Sequence[SiteInfo] = (),
        copies: int = 16,
    ) -> None:
        """Run the prompt, then run it in the linear forward.

        Args:
            circuit: the model with its SAEs.
            tokens: one prompt.
            mlps: None means `held` if any SAE is an MLP transcoder, else `neurons`.
            skips: how skip paths are handled.
            keep: rows that SAEs were trained on; elsewhere the whole target is an error. None: all but special tokens.
            infos: records of the SAEs' sites.
            copies: targets per backward pass, each in its own copy of the prompt.

        Raises:
            SaescopeError: an SAE sits on the token embeddings, or MLPs have no hooks on their neurons (`neurons`).
        """
        _check_sites(circuit)
        self.circuit, self.tokens, self.skips, self.copies = circuit, tokens, skips, copies
        self.mlps: Mlps = mlps or ("held" if any(_is_transcoder(site) for site in circuit.sites) else "neurons")
        self.keep = ~torch.isin(tokens, torch.tensor(sorted(circuit.model.special_ids))) if keep is None else keep
        self.forward = (
            FrozenModel.at(circuit.model, tokens[None]) if self.mlps == "held"
            else RelevanceModel.at(circuit.model, tokens[None])
        )
        self.sites = (TOKENS, *in_order(circuit.model, [*circuit.sites, *self._bare_mlps()]))
        self.infos = graph_sites(self.sites[1:], circuit.saes, infos)
        self.all_rows = torch.ones(1, len(tokens), dtype=torch.bool)
        states, logits = circuit.states(tokens[None], self.all_rows, self.forward)
        self.states = {site: self._without_special(site, state) for site, state in states.items()}
        self.logits = logits[0, -1].double()
        self.leaves = self._leaves()
        parts = [self._site_nodes(i, site) for i, site in enumerate(self.sites)]
        columns = np.concatenate([nodes for nodes, _, _ in parts])
        self.nodes = Nodes(columns[:, 0], columns[:, 1], columns[:, 2])
        self.value = np.concatenate([value for _, value, _ in parts])
        self._vectors = {site: vectors for site, (_, _, vectors) in zip(self.sites, parts, strict=True)}

    # -- the parts -------------------------------------------------------------------------------------------------------

    def _bare_mlps(self) -> list[Site]:
        """Outputs of MLPs without a dictionary, if these are held."""
        if self.mlps != "held":
            return []
        taken = {layer_of(site) for site in self.circuit.sites if site.output.endswith(_MLP_OUT)}
        layers = [layer for layer in range(self.circuit.n_layers) if layer not in taken]
        return [Site(input=f"blocks.{layer}.hook_mlp_out") for layer in layers]

    def _without_special(self, site: Site, state: State) -> State:
        """Drop the features of rows that SAEs weren't trained on, and add them to the error."""
        code = state.code
        stays = self.keep[code.rows()]
        plain = from_pairs(code.rows()[stays], code.feature[stays], code.value[stays], code.n_rows, code.d_sae)
        features = self.circuit.decode(site, code) - self.circuit.decode(site, plain)
        return State(state.target, plain, state.offset, state.error + features)

    def passes(self, site: Site) -> bool:
        """Whether a site has a skip path that is part of the linear forward."""
        return self.skips == "linear" and site in self.circuit.saes and self.circuit.saes[site].has_offsets

    def _leaves(self) -> dict[Site, Float[Tensor, "n_ctx _"]]:
        hooks = [site.output for site in self.sites if site not in self.states]
        acts = self.circuit.model.activations(self.tokens[None], hooks)
        leaves: dict[Site, Tensor] = {}
        for site in self.sites:
            state = self.states.get(site)
            if state is None:
                leaves[site] = acts[site.output][0]
            else:
                leaves[site] = state.target - state.offset if self.passes(site) else state.target
        return leaves

    def _site_nodes(
        self, index: int, site: Site
    ) -> tuple[Int[np.ndarray, "n 3"], Float64[np.ndarray, " n"], _Vectors]:
        """Nodes of a site by position and feature, their values, and their vectors."""
        n, state = len(self.tokens), self.states.get(site)
        whole = torch.arange(n)
        if state is None:
            feature = self.tokens if index == 0 else torch.full_like(self.tokens, ERROR)
            parts = [(whole, feature, self.leaves[site], self.leaves[site].norm(dim=1))]
        else:
            parts = [(whole, torch.full_like(whole, ERROR), state.error, state.error.norm(dim=1))]
            if self.circuit.saes[site].has_offsets and not self.passes(site):
                skip = state.offset - self.circuit.saes[site].bias()
                parts.append((whole, torch.full_like(whole, SKIP), skip, skip.norm(dim=1)))
            parts.append(self._features(site, state.code))
        position, feature, vector, value = (torch.cat(list(column)) for column in zip(*parts, strict=True))
        order = torch.from_numpy(np.lexsort((feature.numpy(), position.numpy())))
        position, feature = position[order], feature[order].long()
        nodes = torch.stack([torch.full_like(position, index), position, feature], dim=1)
        return nodes.numpy(), value[order].double().numpy(), _Vectors(position, vector[order])

    def _features(self, site: Site, code: SparseCode) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        feature = code.feature.long()
        rows = self.circuit.saes[site].W_dec[feature]
        units = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return code.rows(), feature, units * code.value[:, None], code.value

    # -- the linear forward ----------------------------------------------------------------------------------------------

    @cached_property
    def run(self) -> CutRun:
        """Copies of the prompt, with every site cut; keeps the autograd graph."""
        return self.run_of({site: leaf.expand(self.copies, -1, -1) for site, leaf in self.leaves.items()})

    def run_of(self, leaves: Mapping[Site, Float[Tensor, "n_copies n_ctx _"]]) -> CutRun:
        """Run copies of the prompt with these vectors at the sites."""
        n = len(leaves[TOKENS])
        flat = {site: leaves[site].flatten(0, 1) for site in self.sites}
        return cut_run(
            self.circuit, self.tokens.expand(n, -1), self.all_rows.expand(n, -1), flat, self.forward,
            skips_pass=self.skips == "linear", watch=self._watched,
        )

    @cached_property
    def _watched(self) -> list[str]:
        """The attention hooks that the model has."""
        names = ("attn.hook_z", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_q", "attn.hook_k",
                 "attn.hook_attn_scores", "attn.hook_pattern", "hook_resid_pre")
        hooks = [f"blocks.{layer}.{name}" for layer in range(self.circuit.n_layers) for name in names]
        return [hook for hook in hooks if hook in self.circuit.model.bridge.hook_dict]

    def values(self, run: CutRun, targets: Sequence[Target], copies: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Value of each target in its copy of the prompt."""
        out: list[Tensor] = []
        order: list[int] = []
        for index in sorted({target.site for target in targets}):
            mine = [i for i, target in enumerate(targets) if target.site == index]
            at = torch.tensor([targets[i].position for i in mine])
            column = torch.tensor([targets[i].column for i in mine])
            which = copies[torch.tensor(mine)]
            out.append(self._logits(run, which, column) if index == len(self.sites)
                       else self._pre(run, self.sites[index], which * len(self.tokens) + at, column))
            order += mine
        return torch.cat(out)[torch.argsort(torch.tensor(order))]

    def _logits(self, run: CutRun, copies: Int[Tensor, " n"], column: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        last = run.logits[copies, -1]
        return last.gather(1, column[:, None])[:, 0] - last.mean(dim=1)

    def _pre(self, run: CutRun, site: Site, row: Int[Tensor, " n"], feature: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        sae, x = self.circuit.saes[site], run.rows[site].x
        order = torch.argsort(row * sae.d_sae + feature)
        where = from_pairs(row[order], feature[order], x.new_zeros(len(row)), len(x), sae.d_sae)
        return sae.pre_activations(x.to(sae.W_dec), where)[torch.argsort(order)]

    def gradients(self, total: Float[Tensor, ""]) -> dict[Site, Float[Tensor, "n_copies n_ctx _"]]:
        """Gradients of a scalar of `run` at every site."""
        leaves = [self.run.leaves[site] for site in self.sites]
        if not total.requires_grad:  # an SAE that reads only frozen values has no inputs
            found = tuple(torch.zeros_like(leaf) for leaf in leaves)
        else:
            found = torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)
        return {site: grad.unflatten(0, (self.copies, -1)) for site, grad in zip(self.sites, found, strict=True)}

    def read(self, grads: Mapping[Site, Float[Tensor, "n_copies n_ctx _"]], n: int) -> Float64[np.ndarray, "n n_nodes"]:
        """Direct effect of every node, in the first n copies, on targets with these gradients."""
        return torch.cat([self._vectors[site].read(grads[site][:n]).double() for site in self.sites], dim=1).numpy()

    def edges(
        self, targets: Sequence[Target]
    ) -> tuple[Float64[np.ndarray, "n_targets n_nodes"], Float64[np.ndarray, " n_targets"]]:
        """Direct effect of every node on each target, and the targets' values; the constant is the difference."""
        rows, values = [], []
        for part in self.chunks(targets):
            found = self.values(self.run, part, torch.arange(len(part)))
            rows.append(self.read(self.gradients(found.sum()), len(part)))
            values.append(found.detach().double().numpy())
        none = np.zeros((0, len(self.nodes)))
        return np.concatenate([none, *rows]), np.concatenate([np.zeros(0), *values])

    def chunks(self, targets: Sequence[Target]) -> Iterator[Sequence[Target]]:
        """Split targets into chunks of `copies`."""
        return (targets[start : start + self.copies] for start in range(0, len(targets), self.copies))

    @cached_property
    def names(self) -> list[str]:
        """Node names, as in a circuit."""
        return [name_of(self.infos, *triple) for triple in self.nodes.triples]

    def name(self, target: Target) -> str:
        """Name of a target, as in a circuit."""
        return name_of(self.infos, target.site, target.position, target.column)

    def target(self, node: int) -> Target:
        """A feature node as a target."""
        assert self.nodes.feature[node] >= 0 and self.nodes.site[node] > 0, "a feature"
        return Target(int(self.nodes.site[node]), int(self.nodes.position[node]), int(self.nodes.feature[node]))

    def logit(self, token: int) -> Target:
        """The last position's logit of a token, as a target."""
        return Target(len(self.sites), len(self.tokens) - 1, token)


def _is_transcoder(site: Site) -> bool:
    return site.cross and site.output.endswith(_MLP_OUT)


def _check_sites(circuit: CircuitModel) -> None:
    for site in circuit.sites:
        if site.output in (TOKENS.output, "hook_embed"):
            raise SaescopeError(
                f"There is an SAE at {site.output}, the token embeddings: leave it out, since tokens are nodes already."
            )
