"""From text, or from rows of one's own, to a trained autoencoder: models, corpora, caches, batches, the training loop."""

__all__ = ["Feed", "sweep", "train", "train_on"]


def __getattr__(name: str):
    """`training.train` and its like without making `import training` pay for torch."""
    if name in ("train", "sweep"):
        from training import run

        return getattr(run, name)
    if name == "train_on":
        from training.tensors import train_on

        return train_on
    if name == "Feed":
        from training.model.feed import Feed

        return Feed
    raise AttributeError(f"module 'training' has no attribute {name!r}")
