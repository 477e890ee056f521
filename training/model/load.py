"""Load language models by name.

Every model is loaded with the `TransformerBridge` of transformer_lens, which knows what `blocks.9.hook_resid_post` or
`blocks.3.attn.hook_z` is in each architecture. The bridge is built on a twin of the module tree that shares its weights,
and only maps hook names to modules. The forward pass is the unmodified Hugging Face one, with torch hooks on those modules.
So the numerics are exactly those of Hugging Face, with its fused attention, which in bf16 on a CPU is more than twice as
fast as the bridge's eager attention. A hook is available only if a probe finds that the module's value equals the bridge's.

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
            or `native:d_model=32,n_layers=2,n_heads=4,d_vocab=512,n_ctx=128,seed=0`, where each key is optional. Or
            `random:NAME:SEED`: any of these models with random weights, as a control.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best available.
        dtype: dtype of weights and computation: `float32`, `bfloat16`, `float16`, `float64`, or `auto` for a fast one on
            this device. In `float64` some Hugging Face models still normalise in fp32 (RMSNorm); native ones don't.

    Raises:
        SaescopeError: unknown name, device or dtype, or weights that cannot be loaded.
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
    """Identity, network and tokenizer of a pretrained model."""
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
    """Resolve TransformerLens aliases to hub names (`gpt2-small` → `gpt2`); other names are returned unchanged."""
    from transformer_lens.supported_models import get_official_model_name

    try:
        return str(get_official_model_name(name))
    except ValueError:
        return name


def _unknown_model(name: str) -> str:
    near = difflib.get_close_matches(name, PACKAGED, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"There is no model {name!r}: {hint}Available: {', '.join(OFFLINE_MODELS)} and, with a hub, hub:org/name."


def _load_native(name: str, text: str, device: torch.device, dtype: torch.dtype, seed: int | None) -> Model:
    """A small TransformerLens model with random weights, determined by its spec; `seed` redraws them (`random:`)."""
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
    """Build a small byte-level TransformerLens model.

    Does the same as `TransformerBridge.boot_native`, step by step to keep bridge components out of the network.

    Args:
        name, identity: attributes of the `Model`.
        sizes: fields of `TransformerBridgeConfig`, including the `seed` of random weights.
        weights: by name in the network (`layers.0.attn.q.weight`); others are zero. None means random weights.
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
    """Build a bridge on a twin of `network`."""
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
    except Exception as error:  # an unsupported network can fail anywhere
        raise SaescopeError(f"TransformerLens doesn't support the model {name} ({first_line(error)}).") from None
    for block in bridge.blocks:
        _show_rotated(getattr(block, "attn", None))
    _mark_paths(bridge, paths)
    return Model(name, identity, network, tokenizer, bridge)


def _show_rotated(attention: Any) -> None:
    """Fire `hook_rot_q` and `hook_rot_k` in fused attention (GPT-NeoX); TransformerLens defines but never fires them."""
    rotate = getattr(attention, "_apply_rotary_pos_emb", None)
    if rotate is None or not hasattr(attention, "hook_rot_q"):
        return

    def shown(*args: Any) -> tuple[Tensor, Tensor]:
        q, k = rotate(*args)
        return attention.hook_rot_q(q), attention.hook_rot_k(k)

    object.__setattr__(attention, "_apply_rotary_pos_emb", shown)


def _for_bridge(tokenizer: Any) -> Any:
    """A copy marked so that the bridge uses it as is, instead of reloading the tokenizer, possibly from the hub."""
    taken = copy.deepcopy(tokenizer)
    taken.init_kwargs.update(add_bos_token=True, name_or_path=tokenizer.name_or_path)
    return taken


def _twin(network: nn.Module) -> tuple[nn.Module, dict[int, str]]:
    """A second module tree sharing the same tensors, and the path of each of its modules by id."""
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    twin: nn.Module = copy.deepcopy(network, shared)
    return twin, {id(module): path for path, module in twin.named_modules()}


def _mark_paths(bridge: Any, paths: dict[int, str]) -> None:
    """Store on the bridge which network module each of its components wraps."""
    bridge.saescope_paths = paths
