"""Built-in tasks: prompt pairs generated from word lists, filtered to fit a model's tokenizer."""
