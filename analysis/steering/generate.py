"""Generate text with features steered, next to the unsteered baseline.

A feature's direction d is its unit decoder row, and a strength s is a length in the model's units, like the values of
`sae.encode`. *Add* gives x + s·d at the chosen positions. *Clamp* gives x + (s − c)·d, where c is the feature's encoded
value at that position (0 where inactive): the SAE's error and all other features are unchanged, unlike when x is replaced
by an edited reconstruction. Several features are edited at once, each c read from the unedited x. x is what the SAE's site
reads, and the edited activation is what it writes: `training.model.splice` with errors kept.

Both texts are generated in one batch with the same noise (Gumbel-max with one noise vector per step: Maddison et al.
2014), so they diverge only where the edit changes the sampled token; with strength 0 they are identical.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.trained import LOCK, TrainedSAE, open_trained
from sae.errors import SaescopeError
from sae.torch_state import own_torch_state
from training.model import edits as splice
from training.model.splice import SplicedModel

MAX_NEW_TOKENS = 256
MAX_EDITS = 32
N_ALTERNATIVES = 5
"""Number of next tokens whose probabilities are compared."""

Mode = Literal["add", "clamp"]
WHERE = ("all", "prompt", "generated")


@dataclass(frozen=True)
class Edit:
    """An edit of one feature."""

    feature: int
    strength: float
    """Length in the model's units: the amount to add, or the value to hold."""
    mode: Mode = "add"


@dataclass(frozen=True)
class Settings:
    """Generation settings."""

    max_tokens: int = 40
    temperature: float = 0.8
    """0 is greedy decoding."""
    seed: int = 0
    positions: str | Sequence[int] = "all"
    """Where edits apply: `all`, `prompt`, `generated`, or a list of positions (0 is the first token). A new token is
    predicted at the position before it, so `generated` starts at the last prompt token. Special tokens are edited only if
    listed by position."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 1 <= self.max_tokens <= MAX_NEW_TOKENS:
            raise SaescopeError(f"max_tokens = {self.max_tokens}; it must be between 1 and {MAX_NEW_TOKENS}.")
        if not 0 <= self.temperature <= 10:
            raise SaescopeError(f"temperature = {self.temperature:g}; it must be between 0 and 10.")
        if isinstance(self.positions, str) and self.positions not in WHERE:
            raise SaescopeError(f"positions = {self.positions!r}; it must be all, prompt, generated or a list of numbers.")


@dataclass(frozen=True)
class Generated:
    """One continuation."""

    tokens: list[int]
    pieces: list[str]
    text: str
    logprobs: list[float]
    """Log-probability of each token under the (steered) model, in nats, at temperature 1."""
    ended: bool
    """Whether the model generated an end-of-text token."""


@dataclass(frozen=True)
class Alternative:
    """A candidate for the first generated token, with its probability without and with the edits."""

    piece: str
    baseline: float
    steered: float


@dataclass(frozen=True)
class Steered:
    """Continuations of a prompt without and with the edits."""

    prompt: list[str]
    baseline: Generated
    steered: Generated
    edits: Sequence[Edit]
    settings: Settings
    parted: int | None
    """Index of the first generated token that differs; None if there is none."""
    alternatives: list[Alternative] = field(default_factory=list)
    """The most probable next tokens of either."""

    @property
    def baseline_text(self) -> str:
        """The unsteered continuation."""
        return self.baseline.text

    @property
    def steered_text(self) -> str:
        """The steered continuation."""
        return self.steered.text


class Editor:
    """Applies edits to a model's forward passes while text is processed incrementally."""

    def __init__(
        self, loaded: TrainedSAE, edits: Sequence[Edit], settings: Settings, tokens: Int[Tensor, " n_prompt"]
    ) -> None:
        self.settings, self.n_prompt, self.special = settings, len(tokens), loaded.special(tokens)
        self.model = SplicedModel(loaded.model, {loaded.site: loaded.sae})
        modes: dict[Mode, Literal["add", "set"]] = {"add": "add", "clamp": "set"}
        self.edits = [splice.Edit(loaded.site, (e.feature,), e.strength, modes[e.mode]) for e in edits]

    @contextmanager
    def spliced(self, n: int, start: int = 0, n_texts: int = 1) -> Iterator[None]:
        """Context in which the model runs `n` tokens from position `start` on, with the edits applied to the last text."""
        mask = torch.zeros(n_texts, n, dtype=torch.bool)
        mask[-1, self.chosen(start, n)] = True
        with self.model.spliced(keep=mask, edits=self.edits if mask.any() else (), record=False):
            yield

    def chosen(self, start: int, n: int) -> list[int]:
        """Edited positions among the `n` tokens from position `start` on, relative to `start`."""
        at = range(start, start + n)
        where = self.settings.positions
        if not isinstance(where, str):
            wanted = set(where)
            return [i for i, position in enumerate(at) if position in wanted]
        edited = {
            "all": range(start + n), "prompt": range(self.n_prompt), "generated": range(self.n_prompt - 1, start + n),
        }[where]
        return [
            i for i, position in enumerate(at)
            if position in edited and not (position < self.n_prompt and bool(self.special[position]))
        ]


def steer(run: str | Path, prompt: str, edits: Sequence[Edit], settings: Settings | None = None) -> Steered:
    """Continue a prompt without and with edits, using the same noise.

    Args:
        run: the run's folder.
        prompt: the text to continue.
        edits: up to `MAX_EDITS` edits of distinct features.
        settings: generation settings.

    Raises:
        SaescopeError: the edits are invalid, the prompt is empty or too long, or the language model isn't available.
    """
    (last,) = deque(stream(run, prompt, edits, settings), maxlen=1)
    return last


def stream(
    run: str | Path, prompt: str, edits: Sequence[Edit], settings: Settings | None = None
) -> Iterator[Steered]:
    """Streaming `steer`: yield the result so far after each token. The model is free for others between tokens.

    Raises:
        SaescopeError: as `steer`, before the first token.
    """
    settings = settings or Settings()
    with LOCK, own_torch_state():
        loaded = open_trained(run)
        checked(edits, loaded)
        tokens = loaded.tokens(prompt)
        room = loaded.model.n_ctx_max - len(tokens)
        if room < settings.max_tokens:
            raise SaescopeError(
                f"The prompt has {len(tokens):,} tokens and {loaded.model.name} takes {loaded.model.n_ctx_max:,}: only "
                f"{room} more can be generated; lower max_tokens or shorten the prompt."
            )
        both = _Both(loaded, tokens, edits, settings)
    while not both.done:
        with LOCK, own_torch_state():
            both.step()
            so_far = both.so_far(edits)
        yield so_far


class _Text:
    """A continuation being generated."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.ended = False


class _Both:
    """Both continuations in one batch: the first row is the baseline, the last is edited."""

    def __init__(
        self, loaded: TrainedSAE, tokens: Int[Tensor, " n_prompt"], edits: Sequence[Edit], settings: Settings
    ) -> None:
        self.loaded, self.prompt, self.settings = loaded, tokens, settings
        does = [edit for edit in edits if edit.mode == "clamp" or edit.strength]
        self.editor = Editor(loaded, does, settings, tokens)
        # without effective edits use one row for both, so that they can't differ by rounding
        self.texts = [_Text() for _ in range(2 if does else 1)]
        self.noise = gumbel_noise(settings.seed)
        self.first: Tensor | None = None
        self.n_steps, self._past, self._next = 0, None, tokens.expand(len(self.texts), -1)

    @property
    def done(self) -> bool:
        return self.n_steps == self.settings.max_tokens or all(text.ended for text in self.texts)

    @torch.no_grad()
    def step(self) -> None:
        """Generate one more token of each unfinished text."""
        model = self.loaded.model
        done = len(self.prompt) + self.n_steps
        n_run = self._next.shape[1] if model.keeps_past else done
        with self.editor.spliced(n_run, done - n_run, len(self.texts)):
            logits, self._past = model.extend(self._next, self._past)
        logits = logits.float().cpu()
        self.first = logits if self.first is None else self.first
        noise = self.noise(logits.shape[1]) if self.settings.temperature else None
        chosen = [choose(row, self.settings.temperature, noise) for row in logits]
        for text, token, row in zip(self.texts, chosen, logits, strict=True):
            text.ended |= token == model.tokenizer.eos_token_id
            if not text.ended:
                text.tokens.append(token)
                text.logprobs.append(float(row.log_softmax(-1)[token]))
        self._next = torch.tensor(chosen)[:, None]
        self.n_steps += 1

    def so_far(self, edits: Sequence[Edit]) -> Steered:
        """The result so far."""
        assert self.first is not None
        baseline, steered = self._generated(self.texts[0]), self._generated(self.texts[-1])
        pairs = zip(baseline.tokens, steered.tokens, strict=False)
        parted = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if parted is None and len(baseline.tokens) != len(steered.tokens):
            parted = min(len(baseline.tokens), len(steered.tokens))
        return Steered(
            self.loaded.pieces(self.prompt.tolist()), baseline, steered, tuple(edits), self.settings, parted,
            _alternatives(self.loaded, self.first[0], self.first[-1]),
        )

    def _generated(self, text: _Text) -> Generated:
        # a continuation may start inside a character, so decode it together with the prompt
        pieces = self.loaded.pieces([*self.prompt.tolist(), *text.tokens])[len(self.prompt) :]
        return Generated([*text.tokens], pieces, "".join(pieces), [*text.logprobs], text.ended)


def gumbel_noise(seed: int) -> Callable[[int], Float[Tensor, " n"]]:
    """A seeded generator of Gumbel noise vectors."""
    generator = torch.Generator().manual_seed(seed % 2**63)

    def draw(n: int) -> Tensor:
        uniform = torch.rand(n, generator=generator, dtype=torch.float64).clamp_min(1e-300)
        return -(-uniform.log()).log()

    return draw


def choose(logits: Float[Tensor, " d_vocab"], temperature: float, noise: Float[Tensor, " d_vocab"] | None) -> int:
    """Choose the next token: greedy at temperature 0, else sampled with Gumbel-max."""
    if temperature == 0:
        return int(logits.argmax())
    assert noise is not None
    return int((logits.double() / temperature + noise).argmax())


def checked(edits: Sequence[Edit], loaded: TrainedSAE) -> None:
    """Validate edits.

    Raises:
        SaescopeError: too many edits, a repeated or unknown feature, an unknown mode, or an invalid strength.
    """
    if len(edits) > MAX_EDITS:
        raise SaescopeError(f"There are {len(edits)} edits; at most {MAX_EDITS} features can be steered at once.")
    if len({edit.feature for edit in edits}) < len(edits):
        raise SaescopeError("A feature is listed twice; give each feature once.")
    for edit in edits:
        if not 0 <= edit.feature < loaded.sae.d_sae:
            raise SaescopeError(f"There is no feature {edit.feature}; this run has 0 to {loaded.sae.d_sae - 1}.")
        if edit.mode not in ("add", "clamp"):
            raise SaescopeError(f"The mode of feature {edit.feature} is {edit.mode!r}; it must be add or clamp.")
        if abs(edit.strength) > 1e6 or edit.strength != edit.strength:
            raise SaescopeError(f"The strength of feature {edit.feature} is {edit.strength}; it must be within ±1,000,000.")


def _alternatives(loaded: TrainedSAE, before: Tensor, after: Tensor) -> list[Alternative]:
    p, q = before.softmax(-1), after.softmax(-1)
    ids = torch.maximum(p, q).topk(min(N_ALTERNATIVES, len(p))).indices.tolist()
    return [Alternative(loaded.vocabulary.text(i), float(p[i]), float(q[i])) for i in ids]
