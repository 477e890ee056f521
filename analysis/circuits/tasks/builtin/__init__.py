"""Built-in behaviours: pairs of prompts put together from words, as many as asked for, that fit a model's tokenizer."""
