"""The inputs of a user's module as sequences, with split, documents and images, in a cache folder.

Each input is a sequence with one row per position of the hooks; its number is stored in place of tokens.
"""

from typing import Any

import numpy as np

from sae.errors import SaescopeError
from sae.io.locks import locked
from training.activations.row_sequences import check_sides
from training.config.schema import Config
from training.corpus.packing import is_held_out
from training.corpus.tokens import Images, Tokens, cache_folder, open_tokens, write_tokens
from training.model.module import HookedModule, digest, load_module


def open_module(config: Config, device: Any) -> HookedModule:
    """Load the module of a config's source, with as many of the feed's inputs as `corpus.n_tokens` allows.

    Raises:
        SaescopeError: as `training.model.module.load_module`.
    """
    source, n = config.corpus.module, config.corpus.n_tokens // config.corpus.n_ctx
    assert source is not None
    if not n:
        raise SaescopeError(
            f"corpus.n_tokens = {config.corpus.n_tokens:,} is less than one input of {config.corpus.n_ctx} rows; raise it."
        )
    return load_module(source, device=device, n_inputs=n)


def module_tokens(config: Config, module: HookedModule, hooks: tuple[str, ...]) -> Tokens:
    """Open the sequences of a module's inputs; create them first if they don't exist.

    Raises:
        SaescopeError: missing hooks, or hooks whose number of positions isn't `corpus.n_ctx`; a split with an empty side;
            invalid images.
    """
    n_ctx = config.corpus.n_ctx
    for hook in hooks:
        if (found := module.place(hook).n_positions) != n_ctx:
            raise SaescopeError(
                f"{module.name} has {found} positions per input at {hook}, but corpus.n_ctx is {n_ctx}; set "
                f"corpus.n_ctx={found}, and use only hooks with that many positions."
            )
    feed, n = module.feed, module.inputs.n
    numbers = np.arange(n) if feed.documents is None else np.asarray(list(feed.documents)[:n])
    if numbers.dtype.kind not in "iu":
        raise SaescopeError(f"{module.name}: Feed.documents is {numbers.dtype}; it needs one integer per input.")
    names = [f"input {i}" for i in range(n)] if feed.names is None else [str(name) for name in list(feed.names)[:n]]
    images = _images(module, hooks[0], names)
    facts = {
        "model": module.identity,
        "corpus": {"documents": digest(numbers), "images": digest(vars(images) if images else {})},
        "packing": {"n_ctx": n_ctx, "held_out": config.corpus.held_out}, "rows_dtype": config.cache.dtype,
    }
    folder = cache_folder(config, facts)
    if not (folder / "manifest.json").exists():
        with locked(folder):
            if not (folder / "manifest.json").exists():
                _write(config, folder, facts, numbers, names, images)
    return open_tokens(folder, facts)


def _images(module: HookedModule, hook: str, names: list[str]) -> Images | None:
    """The inputs as images with the patch of each position, if the feed has images."""
    pixels = module.images()
    if pixels is None:
        return None
    spelt = [name.encode("utf-8", "replace") for name in names]
    width = max(map(len, spelt))
    letters = np.stack([np.frombuffer(one.ljust(width, b"\0"), np.uint8) for one in spelt])
    return Images(pixels, module.boxes(hook), letters)


def _write(
    config: Config, folder: Any, facts: dict[str, Any], numbers: np.ndarray, names: list[str], images: Images | None,
) -> None:
    n_ctx, share, n = config.corpus.n_ctx, config.corpus.held_out, len(numbers)
    documents, of = np.unique(numbers, return_inverse=True)
    chosen = np.fromiter((is_held_out(f"document {number}", share) for number in documents), bool, len(documents))
    held_out = chosen[of]
    check_sides(held_out, str(config.corpus.module), f"{n:,} inputs of {len(documents):,} documents", n * n_ctx, share)
    first, counts = np.unique(of, return_index=True)[1], np.bincount(of)
    labels = [
        {"label": names[first[i]], "held_out": bool(chosen[i]), "n_tokens": int(counts[i]) * n_ctx}
        for i in range(len(documents))
    ]
    rows = np.arange(n)
    segments = np.stack([rows * n_ctx, np.full(n, n_ctx), of], axis=1).astype(np.int64)
    ids = np.repeat(rows[:, None], n_ctx, axis=1).astype(np.int32)
    write_tokens(folder, ids, held_out, np.ones((n, n_ctx), bool), segments, labels, facts, text=False, images=images)
