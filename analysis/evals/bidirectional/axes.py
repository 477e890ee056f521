"""Axes of labelled opposites: word pairs that differ in one attribute, in sentences without other cues to it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from analysis.circuits.tasks.builtin.agreement import BEGIN
from analysis.circuits.tasks.builtin.template import single_tokens
from analysis.circuits.tasks.builtin.words import PEOPLE, PLACES_AND_THINGS
from analysis.circuits.tasks.tokens import answer_tokens, encode
from sae.errors import SaescopeError
from training.model.language_model import Model

LEAST_PAIRS = 8
"""Minimum number of word pairs per axis that are single tokens of the model."""


@dataclass(frozen=True)
class Axis:
    """An attribute with two opposite ends.

    Attributes:
        name: name of the axis.
        pairs: words at end A and at end B.
        frames: sentences with `{}` for the word; nothing after the word is needed.
        answers: continuations of the last frame for A and for B, or None.
    """

    name: str
    pairs: tuple[tuple[str, ...], ...]
    frames: tuple[str, ...]
    answers: tuple[str, str] | None = None


def _pairs(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(pair.split("/")) for pair in text.split())


AXES = (
    Axis("number", (*PEOPLE, *PLACES_AND_THINGS), ("I saw the {}", f"{BEGIN} {{}}"), (" is", " are")),
    Axis(
        "gender",
        _pairs("king/queen man/woman boy/girl father/mother son/daughter brother/sister husband/wife uncle/aunt "
               "prince/princess actor/actress gentleman/lady nephew/niece monk/nun groom/bride grandfather/grandmother "
               "duke/duchess lord/lady waiter/waitress hero/heroine grandson/granddaughter boyfriend/girlfriend "
               "John/Mary David/Sarah Peter/Anna Michael/Laura Robert/Alice Paul/Helen James/Emma Thomas/Susan"),
        ("I met the {}", "Yesterday the {} told me that"), (" he", " she"),
    ),
    Axis(
        "sentiment",
        _pairs("good/bad great/terrible excellent/awful wonderful/horrible happy/sad beautiful/ugly nice/nasty "
               "pleasant/unpleasant kind/cruel brilliant/stupid friendly/hostile safe/dangerous strong/weak clean/dirty "
               "healthy/sick honest/corrupt fresh/rotten fair/unfair useful/useless perfect/poor positive/negative "
               "delightful/dreadful successful/unsuccessful impressive/disappointing"),
        ("It was a very {}", "I think that it is {}"),
    ),
    Axis(
        "tense",
        _pairs("walk/walked play/played work/worked call/called help/helped look/looked open/opened close/closed "
               "start/started stop/stopped want/wanted need/needed use/used live/lived move/moved turn/turned "
               "ask/asked like/liked follow/followed carry/carried watch/watched wait/waited go/went come/came "
               "see/saw take/took give/gave know/knew find/found think/thought say/said make/made"),
        ("I know that they {}", "The people there {}"),
    ),
    Axis(
        "degree",
        _pairs("small/smaller large/larger tall/taller old/older young/younger fast/faster slow/slower strong/stronger "
               "weak/weaker high/higher low/lower long/longer short/shorter cheap/cheaper wide/wider deep/deeper "
               "rich/richer poor/poorer hard/harder easy/easier light/lighter dark/darker great/greater big/bigger"),
        ("It is {}", "This one looks {}"),
    ),
    Axis("capital", tuple((w[0], w[0].capitalize()) for w in (*PEOPLE, *PLACES_AND_THINGS)), ("I saw {}", "We read of {}")),
)
"""End A is the first of each pair."""


@dataclass(frozen=True)
class Prompts:
    """Sentences of one axis, right-padded.

    Attributes:
        axis: the axis.
        tokens: token ids of each sentence.
        word, last: positions of the word and of the last token.
        frame, pair: indices of the frame and of the word pair.
        is_a: whether the word is at end A.
        answers: answer tokens for A and for B; None if the axis has no answers.
    """

    axis: Axis
    tokens: Int64[Tensor, "n n_ctx"]
    word: Int64[np.ndarray, " n"]
    last: Int64[np.ndarray, " n"]
    frame: Int64[np.ndarray, " n"]
    pair: Int64[np.ndarray, " n"]
    is_a: Bool[np.ndarray, " n"]
    answers: tuple[int, int] | None

    @property
    def fitted(self) -> Bool[np.ndarray, " n"]:
        """Mask of sentences used for choosing features and directions: every second pair."""
        return self.pair % 2 == 0


def prompts(model: Model, axis: Axis, most: int) -> Prompts | None:
    """Sentences of an axis, with at most `most` pairs; None if too few of its words are single tokens of the model."""
    pairs = [tuple(p) for p in single_tokens(axis.pairs, model)][:most]
    if len(pairs) < LEAST_PAIRS:
        return None
    rows = [
        (frame, number, word, end == 0)
        for frame in range(len(axis.frames)) for number, pair in enumerate(pairs) for end, word in enumerate(pair)
    ]
    texts = [axis.frames[frame].format(word) for frame, _, word, _ in rows]
    ids = encode(model, texts)
    before = [len(one) for one in encode(model, [axis.frames[frame].partition(" {}")[0] for frame, *_ in rows])]
    length = max(map(len, ids))
    answers = None
    if axis.answers is not None:
        found = answer_tokens(model, texts[-1], axis.answers)
        answers = (found[0], found[1]) if found[0] is not None and found[1] is not None else None
    return Prompts(
        axis, torch.tensor([one + one[-1:] * (length - len(one)) for one in ids]), np.array(before),
        np.array([len(one) - 1 for one in ids]), np.array([row[0] for row in rows]), np.array([row[1] for row in rows]),
        np.array([row[3] for row in rows]), answers,
    )


def all_prompts(model: Model, most: int) -> list[Prompts]:
    """Sentences of every axis that the model has words for.

    Raises:
        SaescopeError: there is no such axis.
    """
    found = [one for one in (prompts(model, axis, most) for axis in AXES) if one is not None]
    if not found:
        raise SaescopeError(
            f"The tokenizer of {model.name} has too few of the opposites' words as single tokens: measure bidirectionality "
            "with a model whose tokens are words."
        )
    return found
