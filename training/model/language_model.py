"""A language model with named hooks: activations with early stop, and running with activations replaced.

`training.model.load.load_model` makes one.
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
    """Ends a forward once the last activation asked for is in hand."""


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
        return {name: location.shape for name, location in self._locations.items()}

    def d_hook(self, hook: str) -> int:
        """Width of a hook once its axes are flattened, or of the one head taken (`blocks.3.attn.hook_z[2]`).

        Raises:
            SaescopeError: the model has no such hook, or the hook no such head.
        """
        location, taken = self.location(hook)
        return len(range(*taken.indices(math.prod(location.shape))))

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
        locations = {hook: self.location(hook) for hook in hooks}
        if n_seqs_per_forward is None or len(tokens) == 0:
            return self._run(tokens, locations)
        filler = tokens[-1:].expand(-len(tokens) % n_seqs_per_forward, -1)
        groups = torch.cat([tokens, filler]).split(n_seqs_per_forward)
        parts = [self._run(group, locations) for group in groups]
        return {hook: torch.cat([part[hook] for part in parts])[: len(tokens)] for hook in locations}

    def activation(self, tokens: Int[Tensor, "n_seqs n_ctx"], hook: str) -> Float[Tensor, "n_seqs n_ctx _"]:
        """The activation at one hook, behind open splices, from a forward that ends there; under autograd with its graph.

        Raises:
            SaescopeError: unknown hook.
        """
        return self._run(tokens, {hook: self.location(hook)})[hook]

    def logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs n_ctx d_vocab"]:
        """Next-token logits in the model's dtype. Weights are frozen: a graph is kept only if a splice brings one."""
        return _logits(self._forward(tokens))

    def last_logits(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> Float[Tensor, "n_seqs 1 d_vocab"]:
        """`logits` behind the last token alone; most networks then unembed no other."""
        options = {"logits_to_keep": 1} if "logits_to_keep" in signature(self._network.forward).parameters else {}
        return _logits(self._forward(tokens, **options))[:, -1:]

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
        """Whether `extend` runs only the tokens it is given; else it runs the earlier ones again."""
        return not isinstance(self._network, NativeNetwork)

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
        self.check_length(n_past + tokens.shape[1])
        self.check_ids(tokens)
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
            # first: the block's output is not whole before, and splices there are to see it whole
            handles.append(attach(out_of_block, lambda acts: acts + change.pop(), first=True))
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
        """Refuse sequences of more tokens than the model takes."""
        if n > self.n_ctx_max:
            raise SaescopeError(
                f"A sequence of {n} tokens is longer than {self.name} takes ({self.n_ctx_max}): lower n_ctx."
            )

    def check_ids(self, tokens: Int[Tensor, "n_seqs n_ctx"]) -> None:
        """Refuse tokens that the model does not know: its tokenizer is another model's."""
        # those on an accelerator were made there, by the model itself, and to look at them would wait for it
        if tokens.numel() and tokens.device.type == "cpu" and (highest := int(tokens.max())) >= self.d_vocab:
            raise SaescopeError(
                f"The tokenizer of {self.name} gives the token {highest}, but the model knows {self.d_vocab:,} (0 to "
                f"{self.d_vocab - 1}): the two do not belong together."
            )

    def location(self, hook: str) -> tuple[ModuleLocation, slice]:
        """The location of a hook, and the columns of it that are meant: one head's, or all.

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
