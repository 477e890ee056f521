"""Small real tokenizers for tests: a byte-level BPE made in memory, with merges learnt from a sentence."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% if messages and messages[0].role != 'system' %}<bos>system\nBe kind.<eos>\n{% endif %}"
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content | trim }}<eos>\n{% endfor %}"
)
SENTENCE = "the cat sat on the mat and the dog sat on the log while the user asked the assistant about the system"


def make_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<bos>", "<eos>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([SENTENCE] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = chat_template
    return fast
