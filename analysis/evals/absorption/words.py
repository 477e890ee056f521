"""Single-token words in a first-letter spelling task.

    hat: H            each sequence lists words with their first letters in this form; activations are read at a word,
    stone: S          after at least two others that demonstrate the task (causal models can't see what follows)

SAEBench repeats up to ten examples before every word; here the preceding words serve as examples, at a tenth of the cost.
"""

from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sae.errors import SaescopeError
from training.model.language_model import Model
from training.model.token_bytes import token_bytes

SHOWN, MEASURED = 2, 14
"""Words per sequence that only demonstrate the task, and words that are measured."""
LEAST_WORDS = 260
_LEAST_LETTERS = 3


@dataclass(frozen=True)
class Words:
    """Words and their positions.

    Attributes:
        token: token id of each word.
        letter: first letter, 0 to 25.
        sequences: token sequences that list the words.
        seq, position: sequence and position of each word.
    """

    token: Int64[np.ndarray, " n"]
    letter: Int64[np.ndarray, " n"]
    sequences: Int64[Tensor, "n_seqs n_ctx"]
    seq: Int64[np.ndarray, " n"]
    position: Int64[np.ndarray, " n"]


def word_tokens(model: Model) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Tokens that consist of a space and at least three ASCII letters, and the first letter of each."""
    pieces = token_bytes(model.tokenizer)[: model.d_vocab]
    long = {i: p[1:] for i, p in enumerate(pieces) if p[:1] == b" " and len(p) > _LEAST_LETTERS}
    words = {i: p.decode() for i, p in long.items() if p.isalpha()}
    token = np.array(list(words), dtype=np.int64)
    return token, np.array([ascii_lowercase.index(w[0].lower()) for w in words.values()], dtype=np.int64)


def list_words(model: Model, n_words: int, seed: int) -> Words:
    """A random sample of the model's words, in sequences of equal length.

    Raises:
        SaescopeError: the model has too few single-token words.
    """
    token, letter = word_tokens(model)
    if len(token) < LEAST_WORDS:
        raise SaescopeError(
            f"The tokenizer of {model.name} has {len(token)} single-token words of three or more letters, and the "
            f"first-letter task needs {LEAST_WORDS}: measure absorption with a model whose tokens are words."
        )
    rng = np.random.default_rng(seed)
    n_seqs = min(n_words, len(token)) // MEASURED
    drawn = rng.permutation(len(token))[: n_seqs * MEASURED]
    plain = {part: model.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (":", "\n")}
    answers = [model.tokenizer(f" {one.upper()}", add_special_tokens=False)["input_ids"] for one in ascii_lowercase]
    sequences, positions = [], []
    for mine in drawn.reshape(n_seqs, MEASURED):
        ids = [model.bos_id] if model.prepend_bos and model.bos_id is not None else []
        places = []
        for i in [*rng.choice(len(token), SHOWN, replace=False), *mine]:
            places.append(len(ids))
            ids += [int(token[i]), *plain[":"], *answers[letter[i]], *plain["\n"]]
        positions.append(places[SHOWN:])
        sequences.append(ids[: places[-1] + 1])
    length = max(map(len, sequences))
    # right padding: nothing reads it
    padded = [ids + ids[-1:] * (length - len(ids)) for ids in sequences]
    seq = np.arange(n_seqs).repeat(MEASURED)
    return Words(token[drawn], letter[drawn], torch.tensor(padded), seq, np.concatenate(positions).astype(np.int64))
