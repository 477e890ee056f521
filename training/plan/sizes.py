"""Sizes implied by a config: rows and their widths, the language model, the SAEs. No weights are loaded."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from sae.errors import SaescopeError, first_line
from sae.io.paths import user_path
from sae.variants import VARIANTS
from training.config.schema import Config
from training.sweep_shared import all_hooks


class ModelSize(NamedTuple):
    """The sizes of a language model that a plan needs."""

    n_params: int
    n_embedding: int
    """Parameters of embedding and unembedding, which harvesting doesn't compute with."""
    n_layers: int
    shapes: Any
    """Its transformers config, or the loaded model if it is small."""


class Grid(NamedTuple):
    """A grid of ranks: rows × shards."""

    n: int
    """Total ranks."""
    shards: int
    """Ranks that the features are split over."""

    @property
    def rows(self) -> int:
        """Ranks that the rows of a batch are split over."""
        return self.n // self.shards


class SAESizes(NamedTuple):
    """The sizes of an SAE that a plan needs."""

    d_sae: int
    d_in: int
    d_out: int
    own: int
    """Number of parameters that belong to single features."""
    common: int
    """Number of all other parameters."""
    n_prefixes: int
    n_passes: int


class Rows(NamedTuple):
    """The rows of a run."""

    n: int
    """Total, held-out rows included."""
    n_training: int
    widths: dict[str, int]
    model: ModelSize | None
    """The model that computes them, if any."""


def rows_of(members: Sequence[Config], widths: Mapping[str, int] | None = None, n_params: int | None = None) -> Rows:
    """The rows that a run reads.

    Args:
        members: the configs of a sweep, or of one run.
        widths: row width by hook, if the model's config doesn't give it.
        n_params: the model's number of parameters, if its config is unavailable.

    Raises:
        SaescopeError: a missing folder, a hook of unknown width, a model whose config is unavailable.
    """
    first, hooks = members[0], all_hooks(members)
    corpus = first.corpus
    if corpus.synthetic is not None:
        return _split(corpus.n_tokens, corpus.held_out, dict.fromkeys(hooks, corpus.synthetic.d), None)
    if corpus.acts_dir is not None:
        from training.activations.own_rows import open_own_rows

        source, tokens = open_own_rows(first, hooks)
        return Rows(tokens.eligible.size, tokens.n_eligible(), {hook: source.widths[hook] for hook in hooks}, None)
    if first.model is None:
        raise SaescopeError("sae plan cannot be used for rows passed in from Python: their number is unknown.")
    model = model_size(first.model.name, n_params)
    found = {hook: (widths or {}).get(hook) or width(hook, model, first.model.name) for hook in hooks}
    return _split(corpus.n_tokens, corpus.held_out, found, model)


def _split(n: int, held_out: float, widths: dict[str, int], model: ModelSize | None) -> Rows:
    return Rows(n, round(n * (1 - held_out)), widths, model)


def model_size(name: str, n_params: int | None = None) -> ModelSize:
    """Number of parameters and layers, from the model's config.

    Raises:
        SaescopeError: no such model, or its config is unavailable.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from training.model.load import load_model
    from training.model.packaged import PACKAGED, packaged_dir

    kind, _, rest = name.partition(":")
    if kind == "random":
        return model_size(rest.rpartition(":")[0], n_params)
    if kind == "native":
        model = load_model(name)
        n = sum(p.numel() for p in model.bridge.original_model.parameters())
        return ModelSize(n, 0, model.n_layers, model)
    place, _, revision = rest.partition("@")
    if n_params is not None:
        return ModelSize(n_params, 0, 0, None)
    if kind != "hub":
        folder = packaged_dir(name) if name in PACKAGED else user_path(rest)
        if not (folder / "config.json").is_file():
            raise SaescopeError(f"{name}: there is no {folder / 'config.json'}; give --d-in and --model-params.")
        place = str(folder)
    try:
        config = AutoConfig.from_pretrained(place, revision=revision or None, trust_remote_code=False)
        config = config.get_text_config()
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises all kinds of errors for configs it doesn't support
        raise SaescopeError(
            f"{name}: cannot get its config ({first_line(error)}); give --d-in and --model-params."
        ) from None
    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    tables = {id(end.weight): end.weight.numel() for end in ends if end is not None}
    n = sum(p.numel() for p in network.parameters())
    return ModelSize(n, sum(tables.values()), int(config.num_hidden_layers), config)


def width(hook: str, model: ModelSize, name: str) -> int:
    """Row width at a hook.

    Raises:
        SaescopeError: the model's config doesn't determine it.
    """
    shapes = model.shapes
    if hasattr(shapes, "d_hook"):  # a small model, which was loaded
        return int(shapes.d_hook(hook))
    hidden = getattr(shapes, "hidden_size", None)
    if hidden is not None:
        heads = shapes.num_attention_heads
        head = getattr(shapes, "head_dim", None) or hidden // heads
        ends = {
            r"hook_(resid_(pre|mid|post)|mlp_out|attn_out)": hidden,
            r"attn\.hook_z": heads * head, r"attn\.hook_z\[\d+\]": head,
            r"(mlp|ln\d)\.hook_(in|out)": hidden, r"mlp\.hook_post": getattr(shapes, "intermediate_size", None),
        }
        found = next((d for pattern, d in ends.items() if re.fullmatch(rf"blocks\.\d+\.{pattern}", hook)), None)
        if found:
            return int(found)
    raise SaescopeError(f"the row width at {hook} of {name} is not known until the model is loaded; give --d-in.")


def share_run(hooks: Sequence[str], n_layers: int) -> float:
    """The fraction of layers run by a forward pass up to the last of these hooks."""
    found = [re.match(r"blocks\.(\d+)\.(hook_resid_pre)?", hook) for hook in hooks]
    if not n_layers or not all(found):
        return 1.0
    return max(int(m[1]) + (m[2] is None) for m in found if m) / n_layers


def sae_sizes(config: Config, widths: Mapping[str, int]) -> SAESizes:
    """Sizes of the SAE that a config describes, counted on the meta device."""
    fields = config.sae.model_copy(update={"apply_b_dec_to_input": False}) if config.site.cross else config.sae
    x, target = config.site.rows({hook: torch.empty(0, widths[hook]) for hook in config.site.hooks})
    with torch.device("meta"):
        sae = VARIANTS[fields.variant][0](fields, x.shape[1], target.shape[1])
    count = {True: 0, False: 0}
    for name, parameter in sae.named_parameters():
        count[sae.feature_axis(name) is not None] += parameter.numel()
    prefixes = fields.prefixes_at(0) if hasattr(fields, "prefixes_at") else (fields.d_sae,)
    return SAESizes(
        d_sae=fields.d_sae, d_in=sae.d_in, d_out=sae.d_out, own=count[True], common=count[False], n_prefixes=len(prefixes),
        n_passes=2 if fields.variant == "gated" else 1,
    )
