"""Language models: names, hooks, activations with early stop, and running with activations replaced.

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
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.errors import SaescopeError
from sae.kernels.cpu import bf16_is_fast
from training.packaged import PACKAGED, packaged_dir, quiet_transformers, sha256_of, source_of

OFFLINE_MODELS: tuple[str, ...] = (*PACKAGED, "native:tiny", "local:DIR")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TINY = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_vocab": 512, "n_ctx": 128, "seed": 0}
_N_SPECIAL, _N_BYTES, _MIN_CTX = 3, 256, 16
_HUB_TIMEOUT_S = 10.0
_PROBE_SEQS = 2
# Two correct attention kernels in bf16 differ by far less than this, two different tensors by far more.
_PROBE_TOLERANCE = 0.1

Replace = Callable[[Tensor], Tensor]


class _Stop(Exception):
    """Ends a forward once the last activation asked for is in hand."""


@dataclass(frozen=True)
class _Site:
    """Where a hook lives in the Hugging Face module tree.

    Attributes:
        module: the module whose input or output it is.
        is_input: the input, else the output.
        shape: of one token's feature axes as TransformerLens shows them, (576,) or (9, 64).
        block: for `hook_resid_mid` the block, whose skip connection carries the same tensor past the module.
    """

    module: nn.Module
    is_input: bool
    shape: tuple[int, ...]
    block: nn.Module | None


class Model:
    """A language model with named hooks; made by `load_model`.

    BOS policy (`prepend_bos`): True if the tokenizer itself prepends BOS, else what the bridge's adapter says of the
    architecture (`default_prepend_bos`), provided that there is a BOS token. SmolLM2 (whose BOS is `<|im_start|>`),
    GPT-2 and Gemma come out True, Qwen and Pythia False. The reason is comparability: these are the positions that
    TransformerLens and SAELens show the model. For Gemma BOS is indispensable; for SmolLM2 it decides little (on 762
    tokens of Python source the cross-entropy is 2.47 with and 2.43 without it, and the first position's norm after
    block 9 is an ordinary one), but the keep-mask then drops a special token there and not a word of the text.

    Attributes:
        name: as given to `load_model`.
        identity: JSON-able, names the weights by content, and the dtype they are run in.
        tokenizer: the Hugging Face tokenizer, unchanged.
        bridge: the `TransformerBridge` over the same weights (eager attention, every TransformerLens hook).
        d_vocab: rows of the logits.
        n_layers: number of blocks.
        n_ctx_max: longest sequence the model takes, in tokens.
        prepend_bos: whether a sequence of this model begins with BOS.
        bos_id: the BOS token, if there is one.
        special_ids: all special tokens, BOS, EOS and padding included.
        device: where it runs.
        dtype: what it computes in.
    """

    def __init__(self, name: str, identity: dict[str, Any], network: nn.Module, tokenizer: Any, bridge: Any) -> None:
        self.name = name
        self.identity = identity
        self.tokenizer = tokenizer
        self.bridge = bridge
        self._network = network
        first = next(network.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.d_vocab = int(bridge.cfg.d_vocab)
        self.n_layers = int(bridge.cfg.n_layers)
        self.n_ctx_max = int(bridge.cfg.n_ctx)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.special_ids = _special_ids(tokenizer)
        self.prepend_bos = self.bos_id is not None and (
            _prepends_bos(tokenizer) or bool(bridge.cfg.default_prepend_bos)
        )

    def hooks(self) -> dict[str, tuple[int, ...]]:
        """Every hook name and the shape of one token there: (576,), or (9, 64) for `hook_z`."""
        return {name: site.shape for name, site in self._sites.items()}

    def d_hook(self, hook: str) -> int:
        """Width of a hook once its axes are flattened, or of the one head taken (`blocks.3.attn.hook_z[2]`).

        Raises:
            SaescopeError: the model has no such hook, or the hook no such head.
        """
        site, taken = self._resolve(hook)
        return len(range(*taken.indices(math.prod(site.shape))))

    @torch.no_grad()
    def activations(
        self, tokens: Int[Tensor, "n_seqs n_ctx"], hooks: Sequence[str], *, n_seqs_per_forward: int | None = None
    ) -> dict[str, Float[Tensor, "n_seqs n_ctx _"]]:
        """Raw activations at several hooks from one forward, which ends as soon as the last is known.

        Args:
            tokens: `[n_seqs, n_ctx]`, no padding.
            hooks: names from `hooks()`, several axes flattened, or one head as `blocks.3.attn.hook_z[2]`.
            n_seqs_per_forward: run exactly so many sequences at a time, the last group filled up. Matrix products on
                some CPUs (bf16 with AMX) and on GPUs round differently for other batch sizes; with this set, a
                sequence's activations do not depend on what it is batched with.

        Returns:
            hook → `[n_seqs, n_ctx, d]` in the model's dtype, on its device.

        Raises:
            SaescopeError: unknown hook.
        """
        sites = {hook: self._resolve(hook) for hook in hooks}
        if n_seqs_per_forward is None or len(tokens) == 0:
            return self._run(tokens, sites)
        filler = tokens[-1:].expand(-len(tokens) % n_seqs_per_forward, -1)
        groups = torch.cat([tokens, filler]).split(n_seqs_per_forward)
        parts = [self._run(group, sites) for group in groups]
        return {hook: torch.cat([part[hook] for part in parts])[: len(tokens)] for hook in sites}

    def logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs n_ctx d_vocab"]:
        """Next-token logits in the model's dtype. Weights are frozen: a graph is kept only if a splice brings one."""
        return _logits(self._forward(tokens))

    @torch.no_grad()
    def direct_logits(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """What a direction of the residual stream adds to the logits if nothing but the unembedding reads it.

        The direction alone passes the final norm and the unembedding; what these give for nothing (biases) is taken
        off, and so is the mean over the vocabulary, which no softmax sees. In fp32; soft caps on logits are left out.

        Raises:
            SaescopeError: the model has no final norm or unembedding that is known.
        """
        norm, unembed = self._readout
        directions = directions.to(self.device, torch.float32)
        nothing = torch.zeros_like(directions[:1])
        through = norm(directions) - norm(nothing)
        logits = through @ unembed
        return logits - logits.mean(dim=1, keepdim=True)

    @cached_property
    def _readout(self) -> tuple[nn.Module, Float[Tensor, "d_model d_vocab"]]:
        """The final norm and the unembedding, in fp32."""
        root = self._network.network if isinstance(self._network, _NativeNetwork) else self._network
        has = {"ln_final", "unembed"} <= {name for name, _ in self.bridge.named_children()}
        norm = _module_of(self.bridge, root, "ln_final.hook_in") if has else None
        head = _module_of(self.bridge, root, "unembed.hook_in") if has else None
        weight = getattr(head[0], "weight", None) if head else None
        if norm is None or weight is None:
            raise SaescopeError(f"The final norm and the unembedding of {self.name} were not found in its modules.")
        d_model = int(self.bridge.cfg.d_model)
        weight = weight.float() if weight.shape[0] == d_model and weight.shape[1] != d_model else weight.float().t()
        return copy.deepcopy(norm[0]).float(), weight

    @property
    def keeps_past(self) -> bool:
        """Whether `extend` runs only the tokens it is given; else it runs the earlier ones again."""
        return not isinstance(self._network, _NativeNetwork)

    @torch.no_grad()
    def extend(self, tokens: Int[Tensor, "n_seqs n_new"], past: Any = None) -> tuple[Float[Tensor, "n_seqs d_vocab"], Any]:
        """The logits after the last of these tokens, which follow those that `past` stands for, and the new past.

        Args:
            tokens: the next tokens.
            past: what the last call returned; None at the beginning of a text. It is used up by the call.
        """
        if not self.keeps_past:
            tokens = tokens if past is None else torch.cat([past, tokens], dim=1)
            return _logits(self._forward(tokens))[:, -1], tokens
        n_past = past.get_seq_length() if past is not None else 0
        self._check_length(n_past + tokens.shape[1])
        out = self._network(
            input_ids=tokens.to(self.device, torch.long), past_key_values=past, use_cache=True
        )
        return _logits(out)[:, -1], out.past_key_values

    @contextmanager
    def splice(self, hook: str, fn: Replace) -> Iterator[None]:
        """While open, the activation at `hook` is replaced by `fn` of it in every run of the model.

        At `hook_resid_mid` both readers of the residual stream see the replacement, the MLP and the skip connection
        (`bridge` replaces only what the MLP reads). Splices may be nested; the last opened sees what the others wrote.

        Args:
            hook: a name from `hooks()`, or one head of it, the other heads then pass unchanged.
            fn: `[n_seqs, n_ctx, d_hook]` → the same shape and dtype.

        Raises:
            SaescopeError: unknown hook.
        """
        site, taken = self._resolve(hook)
        handles = []
        if site.block is None:
            handles.append(_attach(site, lambda acts: _replaced(acts, taken, fn)))
        else:
            change: list[Tensor] = []

            def into_branch(acts: Tensor) -> Tensor:
                new = _replaced(acts, taken, fn)
                change.append(new - acts)
                return new

            handles.append(_attach(site, into_branch))
            out_of_block = _Site(site.block, is_input=False, shape=site.shape, block=None)
            handles.append(_attach(out_of_block, lambda acts: acts + change.pop()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replayed(self, hooks: Sequence[str]) -> Iterator[None]:
        """While open, the blocks before these hooks run once on the first tokens they meet, and give the same again.

        For many runs of the same tokens; others run as ever. Only what lies before every hook is replayed, so splices
        at them, and behind them, mean what they always do.

        Args:
            hooks: names from `hooks()`; where one lies in no block nothing is replayed.
        """
        numbers = [re.match(r"blocks\.(\d+)\.", hook) for hook in hooks]
        n_before = min((int(found[1]) if found else 0 for found in numbers), default=0)
        blocks = [self._resolve(f"blocks.{i}.hook_resid_post")[0].module for i in range(n_before)]
        try:
            for block in blocks:
                block.forward = _once(block.forward)  # type: ignore[method-assign]
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    def _run(self, tokens: Tensor, sites: dict[str, tuple[_Site, slice]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def reader(hook: str, taken: slice) -> Callable[[Tensor], None]:
            def read(acts: Tensor) -> None:
                found[hook] = acts[..., taken]
                if len(found) == len(sites):
                    raise _Stop

            return read

        with ExitStack() as stack:
            for hook, (site, taken) in sites.items():
                stack.callback(_attach(site, reader(hook, taken)).remove)
            with suppress(_Stop):
                self._forward(tokens)
        return {hook: found[hook] for hook in sites}

    def _forward(self, tokens: Tensor) -> Any:
        self._check_length(tokens.shape[1])
        return self._network(input_ids=tokens.to(self.device, torch.long), use_cache=False)

    def _check_length(self, n: int) -> None:
        if n > self.n_ctx_max:
            raise SaescopeError(
                f"A sequence of {n} tokens is longer than {self.name} takes ({self.n_ctx_max}): lower n_ctx."
            )

    def _resolve(self, hook: str) -> tuple[_Site, slice]:
        """The site of a hook and the columns of it that are meant."""
        match = re.fullmatch(r"(.+)\[(\d+)\]", hook)
        name, head = (match[1], int(match[2])) if match else (hook, None)
        site = self._sites.get(name)
        if site is None:
            raise SaescopeError(self._unknown(name))
        if head is None:
            return site, slice(None)
        if len(site.shape) != 2 or head >= site.shape[0]:
            has = f"its heads are 0 to {site.shape[0] - 1}" if len(site.shape) == 2 else "it has no head axis"
            raise SaescopeError(f"The hook {name} of {self.name} has no head {head}: {has}.")
        width = site.shape[1]
        return site, slice(head * width, (head + 1) * width)

    def _unknown(self, hook: str) -> str:
        near = difflib.get_close_matches(hook, self._sites, n=3, cutoff=0.0)
        return (
            f"The model {self.name} has no hook {hook!r}; the nearest are {', '.join(near)} "
            f"(it has {self.n_layers} blocks; load_model({self.name!r}).hooks() lists all hooks)."
        )

    @cached_property
    def _sites(self) -> dict[str, _Site]:
        return _find_sites(self.bridge, self._network, self.device)


def load_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> Model:
    """Load a language model.

    Args:
        name: `smollm2-135m`, `gemma3-270m` (from the package index, kept in the user cache), `hub:org/name` or
            `hub:org/name@revision`, `local:DIR` (a transformers directory), `native:tiny` (random weights, for tests)
            or `native:d_model=32,n_layers=2,n_heads=4,d_vocab=512,n_ctx=128,seed=0` with any of these left out.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best there is.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for what the device is fast at: weights and computation.

    Raises:
        SaescopeError: unknown name, device or dtype, or weights that cannot be had.
    """
    torch_device = resolve_device(device)
    dtype = fast_dtype(torch_device) if dtype == "auto" else dtype
    torch_dtype = _dtype(dtype)
    kind, _, rest = name.partition(":")
    with quiet_transformers():
        if kind == "native" and rest:
            return _load_native(name, rest, torch_device, torch_dtype)
        if kind == "hub" and rest:
            identity, network, tokenizer = _from_hub(name, rest, torch_dtype)
        elif kind == "local" and rest:
            identity, network, tokenizer = _from_local(Path(rest).expanduser(), torch_dtype)
        elif name in PACKAGED:
            directory = packaged_dir(name)
            identity = {"name": name, "sha256": source_of(directory)["weights_sha256"]}
            network, tokenizer = _from_pretrained(str(directory), torch_dtype, local_files_only=True)
        else:
            raise SaescopeError(_unknown_model(name))
        return _bridged(name, {**identity, "dtype": dtype}, network.to(torch_device), tokenizer)


def _unknown_model(name: str) -> str:
    near = difflib.get_close_matches(name, PACKAGED, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"There is no model {name!r}: {hint}Known are {', '.join(OFFLINE_MODELS)} and, with a hub, hub:org/name."


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; `auto` is the best there is.

    Raises:
        SaescopeError: torch cannot use it here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # torch says "not compiled with CUDA" by assertion
        raise SaescopeError(
            f"The device {name!r} is not available to torch here: use cpu, cuda, mps or auto."
        ) from None


def fast_dtype(device: torch.device) -> str:
    """`bfloat16` where the device multiplies it in hardware; elsewhere it would be emulated, ten times slower."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device.type == "cpu" and bf16_is_fast() else "float32"


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise SaescopeError(f"The model dtype {name!r} is not known: use auto or one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def _from_pretrained(source: str, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, Any]:
    """Network and tokenizer with Hugging Face's own choice of attention, except where it would be another model.

    Gemma 2 caps its attention scores, which the fused kernels leave out.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(source, **options)
    attention = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    network = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **attention, **options)
    return network.eval(), AutoTokenizer.from_pretrained(source, **options)


def _from_local(directory: Path, dtype: torch.dtype) -> tuple[dict[str, Any], nn.Module, Any]:
    if not (directory / "config.json").is_file():
        raise SaescopeError(
            f"There is no model in {directory} (no config.json there): local: takes a transformers directory with "
            "config.json, weights and tokenizer."
        )
    weights = sorted([*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")])
    stamp = tuple((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in weights)
    try:
        network, tokenizer = _from_pretrained(str(directory), dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = _first_line(error)
        raise SaescopeError(f"transformers cannot load a language model from {directory} ({reason}).") from None
    return {"name": "local", "sha256": _sha256_cached(stamp)}, network, tokenizer


@lru_cache(maxsize=16)
def _sha256_cached(stamp: tuple[tuple[str, int, int], ...]) -> str:
    """The sha256 of weight files, read once per process while path, size and time stay the same."""
    return sha256_of([Path(path) for path, _, _ in stamp])


def _from_hub(name: str, repo: str, dtype: torch.dtype) -> tuple[dict[str, Any], nn.Module, Any]:
    """Ask the hub once, with a short limit, for the commit; without an answer use what is in the hub's local cache."""
    repo, _, revision = repo.partition("@")
    commit, reason = _hub_commit(repo, revision or None)
    wanted = commit or revision or "main"
    try:
        network, tokenizer = _from_pretrained(repo, dtype, revision=wanted, local_files_only=commit is None)
    except (OSError, ValueError, KeyError) as error:
        raise SaescopeError(
            f"The model {name} cannot be loaded from the Hugging Face hub ({reason or _first_line(error)}); "
            f"models that need no hub: {', '.join(OFFLINE_MODELS)}."
        ) from None
    return {"name": f"hub:{repo}", "revision": commit or _cached_commit(repo, wanted)}, network, tokenizer


def _cached_commit(repo: str, revision: str) -> str:
    """The commit hash of a revision in the hub's local cache: the name of its snapshot directory."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    assert isinstance(config, str)
    return Path(config).parent.name


def _hub_commit(repo: str, revision: str | None) -> tuple[str | None, str]:
    """The commit hash of a hub repository, or None and why."""
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import HFValidationError

    try:
        return HfApi().model_info(repo, revision=revision, timeout=_HUB_TIMEOUT_S).sha, ""
    except errors.GatedRepoError:
        return None, "it is gated: accept its terms on the hub and log in with `hf auth login`"
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, HFValidationError):
        return None, "the hub has no such repository or revision"
    except errors.OfflineModeIsEnabled:
        return None, "HF_HUB_OFFLINE is set and the model is not in the local cache"
    except _transport_errors() as error:
        return None, f"the hub does not answer: {_first_line(error)}"


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub client raises for an unreachable or refusing host: its HTTP library differs between versions."""
    from huggingface_hub import errors

    http_error = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return http_error, OSError


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _load_native(name: str, text: str, device: torch.device, dtype: torch.dtype) -> Model:
    """A small TransformerLens model with random weights, a function of its spec alone.

    The steps of `TransformerBridge.boot_native`, taken one by one to keep the network free of bridge components.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.native import NativeModel, initialize_native_model

    spec = _native_spec(text)
    cfg = TransformerBridgeConfig.from_dict(
        {
            **{key: spec[key] for key in ("d_model", "n_layers", "n_heads", "d_vocab", "n_ctx", "seed")},
            "d_head": spec["d_model"] // spec["n_heads"],
            "d_mlp": 4 * spec["d_model"],
            "act_fn": "gelu",
            "normalization_type": "LN",
        }
    )
    with torch.random.fork_rng(devices=[]):
        network = NativeModel(cfg)
    initialize_native_model(network, cfg)
    network = network.to(device, dtype).eval().requires_grad_(False)
    twin, paths = _twin(network)
    tokenizer = _byte_tokenizer(spec["d_vocab"], spec["n_ctx"])
    bridge = build_bridge_from_module(
        twin,
        architecture="TransformerLensNative",
        tl_config=cfg,
        tokenizer=_for_bridge(tokenizer),
        dtype=dtype,
        device=device,
    )
    _mark_paths(bridge, paths)
    dtype_name = str(dtype).removeprefix("torch.")
    identity = {"name": "native", **spec, "dtype": dtype_name}
    return Model(name, identity, _NativeNetwork(network), tokenizer, bridge)


class _NativeNetwork(nn.Module):
    """A native model called as Hugging Face models are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        """Logits; `use_cache` has no meaning here and must be off."""
        assert not use_cache
        return self.network(input_ids)


def _native_spec(text: str) -> dict[str, int]:
    spec = dict(_TINY)
    for item in [] if text == "tiny" else text.split(","):
        key, _, value = item.partition("=")
        if key not in spec or not value.isdecimal():
            raise SaescopeError(
                f"native:{text} is not understood at {item!r}: write native:tiny, or whole numbers for any of "
                f"{', '.join(f'{k}={v}' for k, v in _TINY.items())}."
            )
        spec[key] = int(value)
    least = {"d_vocab": _N_SPECIAL + _N_BYTES, "n_ctx": _MIN_CTX, "n_layers": 1, "n_heads": 1, "d_model": 1, "seed": 0}
    low = [key for key, value in least.items() if spec[key] < value]
    if low or spec["d_model"] % spec["n_heads"]:
        why = f"{low[0]} is at least {least[low[0]]}" if low else "d_model is a multiple of n_heads"
        raise SaescopeError(f"native:{text} cannot be built: {why}.")
    return spec


def _byte_tokenizer(d_vocab: int, n_ctx: int) -> Any:
    """A tokenizer made in memory: one token per byte, BOS, EOS and padding before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == _N_BYTES and len(special) == _N_SPECIAL
    vocab = {piece: i for i, piece in enumerate([*special, *alphabet])}
    assert len(vocab) <= d_vocab
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=n_ctx
    )


def _for_bridge(tokenizer: Any) -> Any:
    """A copy that the bridge takes as it is: left unmarked, it would load the tokenizer anew, maybe from the hub."""
    taken = copy.deepcopy(tokenizer)
    taken.init_kwargs.update(add_bos_token=True, name_or_path=tokenizer.name_or_path)
    return taken


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _prepends_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)


def _bridged(name: str, identity: dict[str, Any], network: nn.Module, tokenizer: Any) -> Model:
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
    except (ValueError, NotImplementedError) as error:
        raise SaescopeError(f"TransformerLens cannot host the model {name} ({_first_line(error)}).") from None
    _mark_paths(bridge, paths)
    return Model(name, identity, network, tokenizer, bridge)


def _twin(network: nn.Module) -> tuple[nn.Module, dict[int, str]]:
    """A second module tree over the same tensors, and the path of each module in it by its id."""
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    twin: nn.Module = copy.deepcopy(network, shared)
    return twin, {id(module): path for path, module in twin.named_modules()}


def _mark_paths(bridge: Any, paths: dict[int, str]) -> None:
    """Keep on the bridge which module of the network stands behind each of its components."""
    bridge.saescope_paths = paths


def _find_sites(bridge: Any, network: nn.Module, device: torch.device) -> dict[str, _Site]:
    """Every hook of the bridge that is the input or output of a module of `network`, checked by value.

    One short forward through each; a hook stays if the module's value equals the bridge's up to rounding.
    """
    root = network.network if isinstance(network, _NativeNetwork) else network
    n_ctx = _probe_length(bridge.cfg)
    tokens = (torch.arange(_PROBE_SEQS * n_ctx, device=device) % bridge.cfg.d_vocab).view(_PROBE_SEQS, n_ctx)
    points = {id(point): name for name, point in bridge.hook_dict.items() if point.name == name}
    places = {name: place for name in points.values() if (place := _module_of(bridge, root, name)) is not None}
    expected = _read_bridge(bridge, list(places), tokens)
    sites = {name: _Site(*places[name], shape=tuple(expected[name].shape[2:]), block=None) for name in expected}
    found = _read_network(network, sites, tokens)
    sites = {n: site for n, site in sites.items() if n in found and _agree(found[n], expected[n])}
    named: dict[str, _Site] = {}
    for name, point in bridge.hook_dict.items():
        site = sites.get(points.get(id(point), ""))
        if site is not None:
            named[name] = _with_skip(name, site, bridge, root)
    return named


def _probe_length(cfg: Any) -> int:
    """A sequence length unlike any number of heads or sequences, so that shapes tell the axes apart."""
    taken = {_PROBE_SEQS, cfg.n_heads, getattr(cfg, "n_key_value_heads", None), cfg.d_head}
    return next(n for n in range(5, 16) if n not in taken)


def _module_of(bridge: Any, root: nn.Module, hook: str) -> tuple[nn.Module, bool] | None:
    """The module of the network whose input (True) or output (False) a canonical hook name means."""
    owner, _, end = hook.rpartition(".")
    if end not in ("hook_in", "hook_out") or not owner:
        return None
    component = bridge.get_submodule(owner)
    path = bridge.saescope_paths.get(id(getattr(component, "original_component", None)))
    return None if path is None else (root.get_submodule(path), end == "hook_in")


@torch.no_grad()
def _read_bridge(bridge: Any, names: list[str], tokens: Tensor) -> dict[str, Tensor]:
    """The floating point values `[n_seqs, n_ctx, ...]` that the bridge shows at its hooks."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def read(value: Any, hook: Any) -> None:  # noqa: ARG001 (the bridge passes it by name)
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:2] == tokens.shape:
                found.setdefault(name, value.detach().clone())

        return read

    with warnings.catch_warnings(), bridge.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        warnings.simplefilter("ignore")
        bridge(tokens, return_type=None)
    return {name: value for name, value in found.items() if value.ndim in (3, 4)}


@torch.no_grad()
def _read_network(network: nn.Module, sites: dict[str, _Site], tokens: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda acts: found.__setitem__(name, acts.clone())

    with ExitStack() as stack:
        for name, site in sites.items():
            stack.callback(_attach(site, keep(name)).remove)
        network(input_ids=tokens, use_cache=False)
    return found


def _agree(found: Tensor, expected: Tensor) -> bool:
    if found.numel() != expected.numel():
        return False
    found, expected = found.float().flatten(), expected.float().flatten()
    # NaN weights must not make hooks vanish: whoever reads the activations is told
    finite = found.isfinite() & expected.isfinite()
    found, expected = found[finite], expected[finite]
    return bool((found - expected).norm() <= _PROBE_TOLERANCE * expected.norm())


def _with_skip(name: str, site: _Site, bridge: Any, root: nn.Module) -> _Site:
    """`hook_resid_mid` is read by the MLP branch and by the skip connection: name the block that adds the latter."""
    if not name.endswith(".hook_resid_mid"):
        return site
    place = _module_of(bridge, root, name.removesuffix("hook_resid_mid") + "hook_out")
    assert place is not None
    return _Site(site.module, site.is_input, site.shape, block=place[0])


def _once(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward pass that gives its first result again for the first input; another input runs as ever."""
    kept: list[Any] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        hidden = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point())
        if not kept:
            kept.extend((hidden, forward(*args, **kwargs)))
        elif hidden.shape != kept[0].shape or not torch.equal(hidden, kept[0]):
            return forward(*args, **kwargs)
        return kept[1]

    return run


def _attach(site: _Site, fn: Callable[[Tensor], Tensor | None]) -> Any:
    """Call `fn` with the flattened activation of a site in each forward; a tensor it returns replaces it."""

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        if args and isinstance(args[0], Tensor):
            new = fn(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        key = next(k for k in ("hidden_states", "input", "x", "inputs_embeds") if isinstance(kwargs.get(k), Tensor))
        new = fn(kwargs[key])
        return None if new is None else (args, {**kwargs, key: new})

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001
        first = output[0] if isinstance(output, tuple) else output
        new = fn(first)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if site.is_input:
        return site.module.register_forward_pre_hook(on_input, with_kwargs=True)
    return site.module.register_forward_hook(on_output)


def _replaced(acts: Tensor, taken: slice, fn: Replace) -> Tensor:
    """`acts` with its columns `taken` replaced by `fn` of them."""
    new = fn(acts[..., taken])
    if taken == slice(None):
        return new
    return torch.cat([acts[..., : taken.start], new, acts[..., taken.stop :]], dim=-1)


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits
