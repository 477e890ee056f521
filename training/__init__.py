"""Training SAEs on text or on your own activations: models, corpora, caches, batches, the training loop."""

__all__ = ["Feed", "sweep", "train", "train_on"]


def __getattr__(name: str):
    """Load `training.train` and the others on first use, so that `import training` doesn't import torch."""
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
