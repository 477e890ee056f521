"""Native models that read through other tokenizers: a real one, and one whose tokens are words and two digits."""

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from analysis.circuits.tasks.builtin import words
from training.model.language_model import Model
from training.model.load import load_model
from training.model.packaged import packaged_dir

N_WORDS = 2048


def reading_with(tokenizer: Any, d_vocab: int) -> Model:
    """A random model of one layer with this tokenizer."""
    native = load_model(f"native:n_layers=1,d_model=8,n_heads=2,d_vocab={d_vocab}")
    return Model("random", native.identity, native._network, tokenizer, native.bridge)


def smol_tokens() -> Model:
    return reading_with(AutoTokenizer.from_pretrained(str(packaged_dir("smollm2-135m"))), 49152)


def word_tokens(missing: set[str]) -> Model:
    """Words with their space, two digits and one digit are tokens, as in GPT-2; missing words are spelt out."""
    lists = [value for value in vars(words).values() if isinstance(value, tuple)]
    forms = {form for entries in lists for entry in entries for form in entry} - missing
    frames = ["the", "who", "in", "year", "and", "ended", "began", "went", "to", "came", "stayed", "at", "gave", "handed", "passed", "a", "is", "are", "was", "were", "has", "have"]
    digits = [f"{n:02d}" for n in range(100)] + [str(n) for n in range(10)]
    letters = [chr(i) for i in range(ord("A"), ord("z") + 1)]
    pieces = ["<bos>", "<eos>", "<pad>", "<unk>", "The", "When", "After", "While", ",", "Ġ", *letters, *digits]
    pieces += [f"Ġ{piece}" for piece in (*sorted(forms), *frames, *digits)] + [f"##{letter}" for letter in letters]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?\d\d| ?\d| |."), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
                                   unk_token="<unk>")
    return reading_with(fast, N_WORDS)
