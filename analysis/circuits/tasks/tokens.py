"""Tokenise prompt pairs.

Prompts start with BOS if the model uses it, and contain no other special token. An answer is a single token as tokenised
after its prompt, whatever its tokenisation alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from analysis.circuits.tasks.examples import Examples
from analysis.circuits.tasks.task import Pair
from sae.errors import SaescopeError
from training.model.language_model import Model


def tokenise(pairs: Sequence[Pair], model: Model) -> list[Examples]:
    """Tokenise pairs into one group of examples per prompt length, shortest first, keeping the order within each.

    Raises:
        SaescopeError: no pairs; an empty prompt; clean and corrupt differ in length; an answer isn't a single token; an
            answer is both right and wrong; or only some pairs have a counterfactual.
    """
    if not pairs:
        raise SaescopeError("There are no pairs of prompts.")
    check_pairs(pairs)
    found = [_tokens(pair, model) for pair in pairs]
    found.sort(key=lambda one: len(one.clean))
    return [_examples(list(group), model) for _, group in groupby(found, key=lambda one: len(one.clean))]


def one_length(pairs: Sequence[Pair], model: Model, why: str = "nodes have positions") -> Examples:
    """Tokenise pairs whose prompts must all have one length.

    Args:
        why: the reason, to complete "because …" in the error.

    Raises:
        SaescopeError: as `tokenise`, or prompts differ in length.
    """
    groups = tokenise(pairs, model)
    if len(groups) > 1:
        short, long = (_longest_first(pairs, model)[i] for i in (-1, 0))
        raise SaescopeError(
            f"Prompts must have equal length because {why}, but {short[1]!r} has {short[0]} tokens and {long[1]!r} has "
            f"{long[0]}: use prompts of equal length, or sum over positions."
        )
    return groups[0]


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Check everything that doesn't need a model.

    Raises:
        SaescopeError: an empty prompt or answer, an answer that is both right and wrong, or pairs mixed with single
            prompts.
    """
    for pair in pairs:
        for name, text in (("clean", pair.clean), ("corrupt", pair.corrupt)):
            if text is not None and not text.strip():
                raise SaescopeError(f"The {name} prompt of {pair} is empty.")
        both = [answer for answer in pair.right if answer in pair.wrong]
        if both:
            raise SaescopeError(f"The answer {both[0]!r} to {pair.clean!r} is listed as both right and wrong.")
        if not pair.right:
            raise SaescopeError(f"{pair.clean!r} has no right answer.")
        if "" in pair.right + pair.wrong:
            raise SaescopeError(f"An answer to {pair.clean!r} is empty.")
    single = [pair.clean for pair in pairs if pair.corrupt is None]
    if single and len(single) < len(pairs):
        raise SaescopeError(
            f"{single[0]!r} has no corrupt prompt, but {len(pairs) - len(single)} others do: give one for all or none."
        )


def encode(model: Model, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of prompts, with BOS if the model uses it; special tokens spelled out in a text stay plain text."""
    ids = model.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [[model.bos_id, *one] if model.prepend_bos and model.bos_id is not None else list(one) for one in ids]


def answer_tokens(model: Model, prompt: str, answers: Sequence[str]) -> list[int | None]:
    """Token id of each answer after a prompt; None if it isn't a single token."""
    before, *behind = encode(model, [prompt, *(prompt + answer for answer in answers)])
    return [ids[-1] if ids[:-1] == before else None for ids in behind]


def answered(pair: Pair, model: Model) -> Pair:
    """Fill in a single prompt's missing right answer with the model's most likely next token.

    Raises:
        SaescopeError: that token isn't valid text on its own (it may be part of a character).
    """
    if pair.right or pair.corrupt is not None or not pair.clean.strip():
        return pair
    with torch.no_grad():
        best = int(model.logits(torch.tensor(encode(model, [pair.clean])))[0, -1].argmax())
    answer = model.tokenizer.decode([best])
    if answer_tokens(model, pair.clean, [answer]) != [best]:
        raise SaescopeError(
            f"{model.name} continues {pair.clean!r} with token {best}, which isn't valid text by itself: give an answer."
        )
    return replace(pair, right=(answer,))


def pieces(model: Model, text: str) -> list[str]:
    """Text of each token of a string."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [model.tokenizer.decode([i]) for i in ids]


class _Tokens(NamedTuple):
    """A pair's tokens."""

    clean: list[int]
    corrupt: list[int] | None
    right: list[int]
    wrong: list[int]


def _tokens(pair: Pair, model: Model) -> _Tokens:
    clean, *others = encode(model, [pair.clean] if pair.corrupt is None else [pair.clean, pair.corrupt])
    corrupt = others[0] if others else None
    if corrupt is not None and len(corrupt) != len(clean):
        raise SaescopeError(
            f"The prompts of a pair must have equal length: with {model.name}, {pair.clean!r} has {len(clean)} tokens and "
            f"{pair.corrupt!r} has {len(corrupt)}."
        )
    answers = pair.right + pair.wrong
    tokens = _whole(model, pair.clean, answers)
    right, wrong = tokens[: len(pair.right)], tokens[len(pair.right) :]
    both = set(right) & set(wrong)
    if both:
        raise SaescopeError(f"An answer to {pair.clean!r}, token {min(both)}, is listed as both right and wrong.")
    return _Tokens(clean, corrupt, right, wrong)


def _whole(model: Model, prompt: str, answers: Sequence[str]) -> list[int]:
    """Token id of each answer."""
    out = []
    for answer, token in zip(answers, answer_tokens(model, prompt, answers), strict=True):
        if token is None:
            parts = pieces(model, answer)
            raise SaescopeError(
                f"The answer {answer!r} is not a single token of {model.name} after {prompt!r} (on its own it is "
                f"{' + '.join(map(repr, parts))}). Answers must be single tokens; a word usually starts with a space, and "
                "then the prompt must not end with one."
            )
        out.append(token)
    return out


def _examples(found: Sequence[_Tokens], model: Model) -> Examples:
    clean = torch.tensor([one.clean for one in found])
    corrupt = None if found[0].corrupt is None else torch.tensor([one.corrupt for one in found])
    keep = _ordinary(clean, model)
    keep = keep if corrupt is None else keep & _ordinary(corrupt, model)
    return Examples(clean, corrupt, _padded([one.right for one in found]), _padded([one.wrong for one in found]), keep)


def _ordinary(tokens: Int64[Tensor, "n_examples n_ctx"], model: Model) -> Bool[Tensor, "n_examples n_ctx"]:
    return ~torch.isin(tokens, torch.tensor(sorted(model.special_ids), dtype=torch.long))


def _padded(rows: Sequence[Sequence[int]]) -> Int64[Tensor, "n_examples n"]:
    """Pad rows to one length with −1."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.long).view(len(rows), width)


def _longest_first(pairs: Sequence[Pair], model: Model) -> list[tuple[int, str]]:
    lengths = encode(model, [pair.clean for pair in pairs])
    return sorted(((len(ids), pair.clean) for ids, pair in zip(lengths, pairs, strict=True)), reverse=True)
