"""Language models by name.

Every model is loaded through transformer_lens' `TransformerBridge`, which knows for each architecture what
`blocks.9.hook_resid_post` or `blocks.3.attn.hook_z` is. The bridge is built over a twin of the module tree that shares
its weights, and serves as the map from hook name to module; the forward itself is the untouched Hugging Face one, read
and written by torch hooks on those modules. So the numerics are exactly those of the Hugging Face forward, with its
fused attention, which in bf16 on a CPU is more than twice as fast as the eager attention that the bridge has to use.
A hook is offered only if a probe finds the module's value equal to the bridge's own.

This is the only file that imports transformer_lens.
"""

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sae.devices import resolve_device
from sae.errors import SaescopeError, first_line
from sae.io.paths import user_path
from sae.torch_state import own_torch_state
from training.model.devices import fast_dtype, torch_dtype
from training.model.language_model import Model
from training.model.native import NativeNetwork, byte_tokenizer, native_spec, show_scores
from training.model.packaged import PACKAGED, packaged_dir, quiet_transformers, source_of
from training.model.random_weights import base_and_seed, redrawn
from training.model.weights import OFFLINE_MODELS, from_hub, from_local, from_packaged

_CPU = torch.device("cpu")


@own_torch_state()
def load_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> Model:
    """Load a language model.

    Args:
        name: `smollm2-135m`, `gemma3-270m` (from the package index, kept in the user cache), `hub:org/name` or
            `hub:org/name@revision`, `local:DIR` (a transformers directory), `native:tiny` (random weights, for tests)
            or `native:d_model=32,n_layers=2,n_heads=4,d_vocab=512,n_ctx=128,seed=0` with any of these left out. And
            `random:NAME:SEED`: the model of any of these names with weights drawn by a seed, a control.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best there is.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or `auto` for what the device is fast at: weights and
            computation. In `float64` some Hugging Face models still normalise in fp32 (RMSNorm); native ones do not.

    Raises:
        SaescopeError: unknown name, device or dtype, or weights that cannot be had.
    """
    torch_device = resolve_device(device)
    dtype = fast_dtype(torch_device) if dtype == "auto" else dtype
    number = torch_dtype(dtype)
    kind, _, rest = name.partition(":")
    base, seed = base_and_seed(name, rest) if kind == "random" else (name, None)
    with quiet_transformers():
        if base.startswith("native:") and base != "native:":
            return _load_native(name, base.partition(":")[2], torch_device, number, seed)
        identity, network, tokenizer = _pretrained(base, number)
        if seed is not None:
            identity, network = {"name": "random", "of": identity, "seed": seed}, redrawn(network, seed)
        return bridged(name, {**identity, "dtype": dtype}, network.to(torch_device), tokenizer)


def _pretrained(name: str, dtype: torch.dtype) -> tuple[dict[str, Any], nn.Module, Any]:
    """Identity, network and tokenizer of a model that somebody trained."""
    kind, _, rest = name.partition(":")
    if kind == "hub" and rest:
        return from_hub(name, rest, dtype)
    if kind == "local" and rest:
        return from_local(user_path(rest), dtype)
    if name not in PACKAGED:
        raise SaescopeError(_unknown_model(name))
    directory = packaged_dir(name)
    return {"name": name, "sha256": source_of(directory)["weights_sha256"]}, *from_packaged(directory, dtype)


def official_name(name: str) -> str:
    """The hub's name of a model that TransformerLens knows by an alias (`gpt2-small`: `gpt2`); other names as they are."""
    from transformer_lens.supported_models import get_official_model_name

    try:
        return str(get_official_model_name(name))
    except ValueError:
        return name


def _unknown_model(name: str) -> str:
    near = difflib.get_close_matches(name, PACKAGED, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"There is no model {name!r}: {hint}Known are {', '.join(OFFLINE_MODELS)} and, with a hub, hub:org/name."


def _load_native(name: str, text: str, device: torch.device, dtype: torch.dtype, seed: int | None) -> Model:
    """A small TransformerLens model with random weights, a function of its spec alone; with `seed` other ones."""
    spec = native_spec(text)
    spec = spec if seed is None else {**spec, "seed": spec["seed"] + 1 + seed}
    identity = {"name": "native", **spec, "dtype": str(dtype).removeprefix("torch.")}
    sizes = {"d_head": spec["d_model"] // spec["n_heads"], "d_mlp": 4 * spec["d_model"], "act_fn": "gelu",
             "normalization_type": "LN"}
    return native_model(name, identity, {**spec, **sizes}, device=device, dtype=dtype)


def native_model(
    name: str, identity: dict[str, Any], sizes: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None, *,
    device: torch.device = _CPU, dtype: torch.dtype = torch.float32,
) -> Model:
    """A small TransformerLens model that reads bytes.

    The steps of `TransformerBridge.boot_native`, taken one by one to keep the network free of bridge components.

    Args:
        name, identity: of the `Model`.
        sizes: fields of `TransformerBridgeConfig`, by which the network and, with `seed`, its random weights are made.
        weights: by name in the network (`layers.0.attn.q.weight`); what is not named is zero. None is random weights.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.native import NativeModel, initialize_native_model

    cfg = TransformerBridgeConfig.from_dict(dict(sizes))
    with torch.random.fork_rng(devices=[]):
        network = NativeModel(cfg)
    initialize_native_model(network, cfg)
    network = network.to(device, dtype).eval().requires_grad_(False)
    if weights is not None:
        network.load_state_dict({**{key: torch.zeros_like(old) for key, old in network.state_dict().items()}, **weights})
    twin, paths = _twin(network)
    tokenizer = byte_tokenizer(cfg.d_vocab, cfg.n_ctx)
    bridge = build_bridge_from_module(
        twin,
        architecture="TransformerLensNative",
        tl_config=cfg,
        tokenizer=_for_bridge(tokenizer),
        dtype=dtype,
        device=device,
    )
    for block in bridge.blocks:
        show_scores(block.attn)
    _mark_paths(bridge, paths)
    return Model(name, identity, NativeNetwork(network), tokenizer, bridge)


def bridged(name: str, identity: dict[str, Any], network: nn.Module, tokenizer: Any) -> Model:
    """Boot a bridge over a twin of `network`."""
    from transformer_lens.model_bridge import TransformerBridge

    network.requires_grad_(False)
    first = next(network.parameters())
    twin, paths = _twin(network)
    try:
        bridge = TransformerBridge.boot_transformers(
            name.partition(":")[2] or name,
            hf_model=twin,
            tokenizer=_for_bridge(tokenizer),
            device=first.device,
            dtype=first.dtype,
        )
    except Exception as error:  # a network that it does not know fails anywhere in it
        raise SaescopeError(f"TransformerLens cannot host the model {name} ({first_line(error)}).") from None
    for block in bridge.blocks:
        _show_rotated(getattr(block, "attn", None))
    _mark_paths(bridge, paths)
    return Model(name, identity, network, tokenizer, bridge)


def _show_rotated(attention: Any) -> None:
    """Fire `hook_rot_q` and `hook_rot_k` in fused attention (GPT-NeoX), where TransformerLens has them and never does."""
    rotate = getattr(attention, "_apply_rotary_pos_emb", None)
    if rotate is None or not hasattr(attention, "hook_rot_q"):
        return

    def shown(*args: Any) -> tuple[Tensor, Tensor]:
        q, k = rotate(*args)
        return attention.hook_rot_q(q), attention.hook_rot_k(k)

    object.__setattr__(attention, "_apply_rotary_pos_emb", shown)


def _for_bridge(tokenizer: Any) -> Any:
    """A copy that the bridge takes as it is: left unmarked, it would load the tokenizer anew, maybe from the hub."""
    taken = copy.deepcopy(tokenizer)
    taken.init_kwargs.update(add_bos_token=True, name_or_path=tokenizer.name_or_path)
    return taken


def _twin(network: nn.Module) -> tuple[nn.Module, dict[int, str]]:
    """A second module tree over the same tensors, and the path of each module in it by its id."""
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    twin: nn.Module = copy.deepcopy(network, shared)
    return twin, {id(module): path for path, module in twin.named_modules()}


def _mark_paths(bridge: Any, paths: dict[int, str]) -> None:
    """Keep on the bridge which module of the network stands behind each of its components."""
    bridge.saescope_paths = paths
