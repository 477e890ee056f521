"""From text to a trained autoencoder: models, corpora, activation caches, batches and the training loop."""

__all__ = ["train"]


def __getattr__(name: str):
    """`training.train` without making `import training` pay for torch."""
    if name == "train":
        from training.run import train

        return train
    raise AttributeError(f"module 'training' has no attribute {name!r}")
