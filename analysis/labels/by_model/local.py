"""Chat with a local language model (any that `load_model` supports), using its chat template and greedy decoding."""

from typing import Any

import torch

from analysis.labels.by_model.chat import Answer, Chat, Question, Refused
from sae.errors import SaescopeError, first_line
from sae.torch_state import own_torch_state
from training.model.load import load_model


class LocalModel(Chat):
    """A loaded chat model."""

    n_parallel = 1

    def __init__(self, name: str, *, device: str = "auto", dtype: str = "auto") -> None:
        """Load the model.

        Args:
            name, device, dtype: as for `load_model`.

        Raises:
            SaescopeError: as `load_model`.
        """
        self.model = load_model(name, device=device, dtype=dtype)
        self.source, self.counted = name, f"by the tokenizer of {name}"

    def count(self, text: str) -> int:
        """Number of tokens in a text, without the chat template."""
        return len(self.model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    @own_torch_state()
    def ask(self, question: Question, max_tokens: int) -> Answer:
        """Decode greedily from the answer's forced start to its stop string or `max_tokens`.

        Raises:
            Refused: the prompt is too long for the model.
        """
        tokens, made, text = self._tokens(question), [], ""
        if (n := len(tokens)) + max_tokens > self.model.n_ctx_max:
            raise Refused(
                f"A prompt of {n:,} tokens and an answer of up to {max_tokens} exceed the context of {self.model.name} "
                f"({self.model.n_ctx_max:,}); show fewer examples, or use another model.")
        new, past = torch.tensor([tokens]), None
        for _ in range(max_tokens):
            logits, past = self.model.extend(new, past)
            token = int(logits[0].argmax())
            made.append(token)
            text = str(self.model.tokenizer.decode(made, skip_special_tokens=True))
            if token == self.model.tokenizer.eos_token_id or (question.end and question.end in text.lstrip()):
                break
            new = torch.tensor([[token]])
        return Answer(question.begin + text, n, len(made))

    def stop(self) -> None:
        """Do nothing: there are no retries."""

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def _tokens(self, question: Question) -> list[int]:
        """Tokenise a question with the chat template; special tokens spelt out in the prompt are broken up."""
        tokenizer: Any = self.model.tokenizer
        prompt = question.text
        for special in tokenizer.all_special_tokens:
            prompt = prompt.replace(special, f"{special[:1]} {special[1:]}")
        if not getattr(tokenizer, "chat_template", None):
            return list(tokenizer(f"{prompt}\n\n{question.begin}", verbose=False).input_ids)
        from jinja2 import TemplateError

        message = {"role": "user", "content": prompt}
        try:
            text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise SaescopeError(
                f"The chat template of {self.model.name} failed ({first_line(error)}).") from None
        return list(tokenizer(text + question.begin, add_special_tokens=False, verbose=False).input_ids)
