"""A language model with named hooks: reading activations with early stopping, and replacing activations.

Created by `training.model.load.load_model`.
"""

import copy
import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.errors import SaescopeError
from training.model.hooks import ModuleLocation, Replace, attach, find_locations, module_of, once, replaced
from training.model.native import NativeNetwork, root_of


class _Stop(Exception):
    """Stops a forward pass after the last requested activation."""


class Model:
    """A language model with named hooks; created by `load_model`.

    BOS policy (`prepend_bos`): True if the tokenizer prepends BOS itself; else the default of the bridge's adapter for the
    architecture (`default_prepend_bos`), provided that there is a BOS token. It is True for SmolLM2 (whose BOS is
    `<|im_start|>`), GPT-2 and Gemma, and False for Qwen and Pythia. This matches the positions that TransformerLens and
    SAELens feed the model. Gemma needs BOS. For SmolLM2 it matters little (on 762 tokens of Python source the cross-entropy
    is 2.47 with and 2.43 without it, and the norm of the first position after block 9 is not an outlier), but the keep-mask
    then drops a special token there and not a word of the text.

    Attributes:
        name: as given to `load_model`.
        identity: JSON-able; identifies the weights by content, and the dtype they are run in.
        tokenizer: the Hugging Face tokenizer, unchanged.
        bridge: the `TransformerBridge` with the same weights (eager attention, all TransformerLens hooks).
        d_vocab: size of the logits.
        n_layers: number of blocks.
        n_ctx_max: maximum sequence length in tokens.
        prepend_bos: whether sequences for this model start with BOS.
        bos_id: the BOS token, if there is one.
        special_ids: all special tokens, including BOS, EOS and padding.
        device: its device.
        dtype: its dtype.
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
        return {name: location.shape for name, location in self._locations.items()}

    def d_hook(self, hook: str) -> int:
        """Width of a hook with its axes flattened, or of a single head (`blocks.3.attn.hook_z[2]`).

        Raises:
            SaescopeError: the model has no such hook, or the hook no such head.
        """
        location, taken = self.location(hook)
        return len(range(*taken.indices(math.prod(location.shape))))

    @torch.no_grad()
    def activations(
        self, tokens: Int[Tensor, "n_seqs n_ctx"], hooks: Sequence[str], *, n_seqs_per_forward: int | None = None
    ) -> dict[str, Float[Tensor, "n_seqs n_ctx _"]]:
        """Raw activations at several hooks from one forward pass, which stops after the last of them.

        Args:
            tokens: `[n_seqs, n_ctx]`, no padding.
            hooks: names from `hooks()`, flattened if they have several axes, or one head as `blocks.3.attn.hook_z[2]`.
            n_seqs_per_forward: run exactly this many sequences at a time, padding the last group. On some CPUs (bf16 with
                AMX) and on GPUs, matmuls round differently for other batch sizes; with this set, a sequence's activations
                don't depend on the batch it is in.

        Returns:
            hook → `[n_seqs, n_ctx, d]` in the model's dtype, on its device.

        Raises:
            SaescopeError: unknown hook.
        """
        locations = {hook: self.location(hook) for hook in hooks}
        if n_seqs_per_forward is None or len(tokens) == 0:
            return self._run(tokens, locations)
        filler = tokens[-1:].expand(-len(tokens) % n_seqs_per_forward, -1)
        groups = torch.cat([tokens, filler]).split(n_seqs_per_forward)
        parts = [self._run(group, locations) for group in groups]
        return {hook: torch.cat([part[hook] for part in parts])[: len(tokens)] for hook in locations}

    def activation(self, tokens: Int[Tensor, "n_seqs n_ctx"], hook: str) -> Float[Tensor, "n_seqs n_ctx _"]:
        """The activation at one hook, after active splices, from a forward pass that stops there; supports autograd.

        Raises:
            SaescopeError: unknown hook.
        """
        return self._run(tokens, {hook: self.location(hook)})[hook]

    def logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs n_ctx d_vocab"]:
        """Next-token logits in the model's dtype. Weights are frozen: gradients exist only if a splice requires them."""
        return _logits(self._forward(tokens))

    def last_logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs 1 d_vocab"]:
        """The logits after the last token only; most networks then skip unembedding the others."""
        options = {"logits_to_keep": 1} if "logits_to_keep" in signature(self._network.forward).parameters else {}
        return _logits(self._forward(tokens, **options))[:, -1:]

    @torch.no_grad()
    def direct_logits(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """The direct effect of residual-stream directions on the logits, through final norm and unembedding.

        The direction alone is passed through final norm and unembedding. Their output for zero input (biases) and the mean
        over the vocabulary, which softmax ignores, are subtracted. In fp32, without soft-capping of logits.

        Raises:
            SaescopeError: the model's final norm or unembedding was not found.
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
        root = root_of(self._network)
        has = {"ln_final", "unembed"} <= {name for name, _ in self.bridge.named_children()}
        norm = module_of(self.bridge, root, "ln_final.hook_in") if has else None
        head = module_of(self.bridge, root, "unembed.hook_in") if has else None
        weight = getattr(head[0], "weight", None) if head else None
        if norm is None or weight is None:
            raise SaescopeError(f"The final norm and the unembedding of {self.name} were not found in its modules.")
        d_model = int(self.bridge.cfg.d_model)
        weight = weight.float() if weight.shape[0] == d_model and weight.shape[1] != d_model else weight.float().t()
        return copy.deepcopy(norm[0]).float(), weight

    @property
    def keeps_past(self) -> bool:
        """Whether `extend` has a KV cache and runs only the new tokens; else it runs the earlier ones again."""
        return not isinstance(self._network, NativeNetwork)

    @torch.no_grad()
    def extend(self, tokens: Int[Tensor, "n_seqs n_new"], past: Any = None) -> tuple[Float[Tensor, "n_seqs d_vocab"], Any]:
        """Append tokens to a text; return the logits after the last one, and the new past.

        Args:
            tokens: the next tokens.
            past: the past returned by the last call; None at the start of a text. The call consumes it.
        """
        if not self.keeps_past:
            tokens = tokens if past is None else torch.cat([past, tokens], dim=1)
            return _logits(self._forward(tokens))[:, -1], tokens
        n_past = past.get_seq_length() if past is not None else 0
        self.check_length(n_past + tokens.shape[1])
        self.check_ids(tokens)
        out = self._network(
            input_ids=tokens.to(self.device, torch.long), past_key_values=past, use_cache=True
        )
        return _logits(out)[:, -1], out.past_key_values

    @contextmanager
    def splice(self, hook: str, fn: Replace) -> Iterator[None]:
        """Context in which `fn` replaces the activation at `hook` in every run of the model.

        At `hook_resid_mid` both the MLP and the skip connection see the replacement (in `bridge`, only the MLP does).
        Splices may be nested; the innermost one sees the output of the others.

        Args:
            hook: a name from `hooks()`, or one head of it; the other heads then pass unchanged.
            fn: `[n_seqs, n_ctx, d_hook]` → the same shape and dtype.

        Raises:
            SaescopeError: unknown hook.
        """
        location, taken = self.location(hook)
        handles = []
        if location.block is None:
            handles.append(attach(location, lambda acts: replaced(acts, taken, fn)))
        else:
            change: list[Tensor] = []

            def into_branch(acts: Tensor) -> Tensor:
                new = replaced(acts, taken, fn)
                change.append(new - acts)
                return new

            handles.append(attach(location, into_branch))
            out_of_block = ModuleLocation(location.block, is_input=False, shape=location.shape, block=None)
            # first: the block's output is incomplete until then, and splices there must see it complete
            handles.append(attach(out_of_block, lambda acts: acts + change.pop(), first=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replayed(self, hooks: Sequence[str]) -> Iterator[None]:
        """Context that caches the output of the blocks before these hooks for the first tokens they are run on.

        For many runs on the same tokens; other tokens are computed as usual. Only blocks before all of the hooks are
        cached, so splices at the hooks or after them work as usual.

        Args:
            hooks: names from `hooks()`; if one is not in a block, nothing is cached.
        """
        numbers = [re.match(r"blocks\.(\d+)\.", hook) for hook in hooks]
        n_before = min((int(found[1]) if found else 0 for found in numbers), default=0)
        blocks = [self.location(f"blocks.{i}.hook_resid_post")[0].module for i in range(n_before)]
        try:
            for block in blocks:
                block.forward = once(block.forward)  # type: ignore[method-assign]
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    def _run(self, tokens: Tensor, locations: dict[str, tuple[ModuleLocation, slice]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def reader(hook: str, taken: slice) -> Callable[[Tensor], None]:
            def read(acts: Tensor) -> None:
                found[hook] = acts[..., taken]
                if len(found) == len(locations):
                    raise _Stop

            return read

        with ExitStack() as stack:
            for hook, (location, taken) in locations.items():
                stack.callback(attach(location, reader(hook, taken)).remove)
            with suppress(_Stop):
                self._forward(tokens)
        return {hook: found[hook] for hook in locations}

    def _forward(self, tokens: Tensor, **options: int) -> Any:
        self.check_length(tokens.shape[1])
        self.check_ids(tokens)
        return self._network(input_ids=tokens.to(self.device, torch.long), use_cache=False, **options)

    def check_length(self, n: int) -> None:
        """Raise an error for sequences longer than the model's context."""
        if n > self.n_ctx_max:
            raise SaescopeError(
                f"A sequence of {n} tokens is longer than the context of {self.name} ({self.n_ctx_max}): lower n_ctx."
            )

    def check_ids(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> None:
        """Raise an error for token ids outside the vocabulary: the tokenizer belongs to another model."""
        # ids on an accelerator were generated by the model itself, and checking them would synchronise
        if tokens.numel() and tokens.device.type == "cpu" and (highest := int(tokens.max())) >= self.d_vocab:
            raise SaescopeError(
                f"The tokenizer of {self.name} produced token {highest}, but the model has {self.d_vocab:,} (0 to "
                f"{self.d_vocab - 1}): tokenizer and model don't match."
            )

    def location(self, hook: str) -> tuple[ModuleLocation, slice]:
        """The location of a hook, and the columns selected: those of one head, or all.

        Raises:
            SaescopeError: unknown hook, or no such head.
        """
        match = re.fullmatch(r"(.+)\[(\d+)\]", hook)
        name, head = (match[1], int(match[2])) if match else (hook, None)
        location = self._locations.get(name)
        if location is None:
            raise SaescopeError(self._unknown(name))
        if head is None:
            return location, slice(None)
        if len(location.shape) != 2 or head >= location.shape[0]:
            has = f"its heads are 0 to {location.shape[0] - 1}" if len(location.shape) == 2 else "it has no head axis"
            raise SaescopeError(f"The hook {name} of {self.name} has no head {head}: {has}.")
        width = location.shape[1]
        return location, slice(head * width, (head + 1) * width)

    def _unknown(self, hook: str) -> str:
        near = difflib.get_close_matches(hook, self._locations, n=3, cutoff=0.0)
        return (
            f"The model {self.name} has no hook {hook!r}; the nearest are {', '.join(near)} "
            f"(it has {self.n_layers} blocks; load_model({self.name!r}).hooks() lists all hooks)."
        )

    @cached_property
    def _locations(self) -> dict[str, ModuleLocation]:
        return find_locations(self.bridge, self._network, self.device)


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _prepends_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits
