"""The tokens of a cache: written once, before any activations are computed.

    cache/NAME/manifest.json     what it was made from, counts, sha256 of each file below
               tokens.npy        int32 [n_seqs, n_ctx]
               split.npy         bool  [n_seqs]           True: held out
               eligible.npy      bool  [n_seqs, n_ctx]    False: BOS, special, padding, roles not chosen
               segments.npy      int64 [n_segments, 3]    first row, tokens, document; in row order
               documents.jsonl   one line per document: label, held_out, n_tokens
               pixels.npy        uint8 [n_seqs, height, width, channels]   if sequences are images (`Images`), as are
               boxes.npy         fp32  [n_ctx, 4]
               names.npy         uint8 [n_seqs, n_bytes]
               batch_seqs.json   sequences per forward pass, if they were measured (`training.activations.batch_seqs`)
               heldout-N/        the sequences for evaluation, a cache like this one (`training.corpus.heldout`)
"""

import hashlib
import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from sae.errors import SaescopeError
from sae.io.arrays import write_array
from sae.io.files import atomic_dir, code_version, write_bytes, write_json
from sae.io.locks import locked
from sae.io.paths import user_path
from training.config.schema import Config
from training.model.language_model import Model
from training.provenance import first_difference
from training.storage.mirror import fetch_tokens, mirror_of, store_tokens
from training.storage.remote import is_url

FORMAT, FORMAT_VERSION = "saescope-cache", 1


class Units(NamedTuple):
    """The units that are assumed independent: the unit of the held-out split and of the bootstrap intervals."""

    kind: Literal["document", "group", "sequence"]
    """Groups if the split keeps documents together (the pieces of a module); sequences if there is no text."""
    number: Int64[np.ndarray, "n_seqs n_ctx"]
    """The unit of each row."""


@dataclass(frozen=True)
class Images:
    """The images behind the sequences of an image model."""

    pixels: UInt8[np.ndarray, "n_seqs height width channels"]
    boxes: Float32[np.ndarray, "n_ctx 4"]
    """The image patch of each position: top, left, height, width, as fractions of the image."""
    names: UInt8[np.ndarray, "n_seqs n_bytes"]
    """The name of each image, in UTF-8, padded with zeros."""


@dataclass(frozen=True)
class Tokens:
    """The sequences of a corpus; rows of activations are their tokens in order."""

    held_out: Bool[np.ndarray, " n_seqs"]
    eligible: Bool[np.ndarray, "n_seqs n_ctx"]
    tokens: Int32[np.ndarray, "n_seqs n_ctx"] | None
    """None for rows without text: acts:DIR and user modules."""
    made_from: dict[str, Any]
    folder: Path | None = None
    row_documents: Int64[np.ndarray, "n_seqs n_ctx"] | None = None
    """The document of each row, if rows without text have documents."""
    row_held_out: Bool[np.ndarray, "n_seqs n_ctx"] | None = None
    """The held-out rows, if the split of rows without text cuts through sequences; use `side` to get one side."""
    images: Images | None = None
    """The images, if sequences are images."""

    @property
    def n_seqs(self) -> int:
        """Number of sequences."""
        return len(self.held_out)

    @property
    def n_ctx(self) -> int:
        """Tokens per sequence."""
        return self.eligible.shape[1]

    def side(self, *, held_out: bool) -> "Tokens":
        """The sequences as seen from one side of the split: a sequence that is cut by the split belongs to both sides,
        and the other side's rows are not eligible."""
        if self.row_held_out is None:
            return self
        mine = self.row_held_out == held_out
        some = mine.any(axis=1)
        return replace(self, held_out=some == held_out, eligible=self.eligible & mine, row_held_out=None)

    def sequences(self, *, held_out: bool) -> Int64[np.ndarray, " n"]:
        """Indices of the training or held-out sequences, in corpus order."""
        return np.flatnonzero(self.held_out == held_out)

    def sequences_with_rows(self, *, held_out: bool) -> Int64[np.ndarray, " n"]:
        """The same, but only sequences with an eligible row; all, if none has one."""
        seqs = self.sequences(held_out=held_out)
        found = seqs[self.eligible[seqs].any(axis=1)]
        return found if len(found) else seqs

    def n_eligible(self) -> int:
        """Number of eligible training rows: one epoch."""
        return int(self.eligible[~self.held_out].sum())

    def documents(self) -> Int64[np.ndarray, "n_seqs n_ctx"]:
        """The document number of each token; BOS belongs to the document after it.

        Raises:
            SaescopeError: rows without text and without documents.
        """
        if self.row_documents is not None:
            return self.row_documents
        if self.folder is None:
            raise SaescopeError("these rows have no documents; set corpus.documents, or use a corpus of text.")
        segments = np.load(self.folder / "segments.npy")
        ends = segments[:, 0] + segments[:, 1]
        found = np.searchsorted(ends, np.arange(self.eligible.size), side="right").clip(max=len(segments) - 1)
        return segments[found, 2].reshape(self.eligible.shape)

    def units(self) -> Units:
        """The unit of the split that each row belongs to."""
        if self.row_documents is not None:
            return Units("document", self.row_documents)
        if self.folder is None:
            return Units("sequence", np.arange(self.n_seqs).repeat(self.n_ctx).reshape(self.eligible.shape))
        lines = (self.folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()
        groups = [json.loads(line).get("group") for line in lines]
        if not any(groups):
            return Units("document", self.documents())
        _, number = np.unique([group or f"document {i}" for i, group in enumerate(groups)], return_inverse=True)
        return Units("group", number[self.documents()])


def made_from(config: Config, model: Model) -> dict[str, Any]:
    """Everything that determines the content of a cache, except the hooks."""
    from training.corpus.documents import identity

    corpus = config.corpus
    return {
        "model": model.identity,
        "corpus": identity(corpus.sources),
        "packing": {
            "n_ctx": corpus.n_ctx, "n_tokens": corpus.n_tokens, "held_out": corpus.held_out, "seed": corpus.seed,
            "prepend_bos": model.prepend_bos,
        },
        "rows_dtype": config.cache.dtype,
    }


def cache_folder(config: Config, facts: dict[str, Any]) -> Path:
    """The cache's folder: its given name, or one derived from model, corpus and a hash of everything.

    For a cache in an object store, its local mirror (`training.storage.mirror`).
    """
    name = config.cache.name or _name_of(config, facts)
    if is_url(config.cache.dir):
        return mirror_of(f"{config.cache.dir.rstrip('/')}/{name}")
    return user_path(config.cache.dir) / name


def _name_of(config: Config, facts: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    words = [facts["model"]["name"], *(source.source for source in config.corpus.sources)]
    slug = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word.split("/")[-1]).strip("-") for word in words)
    return f"{slug[:80]}-{digest}"


def make_tokens(config: Config, model: Model) -> Tokens:
    """Open the tokens of this config; create them first if they don't exist."""
    facts = made_from(config, model)
    folder = cache_folder(config, facts)
    fetch_tokens(folder)
    if not (folder / "manifest.json").exists():
        with locked(folder, wait=True):
            if not (folder / "manifest.json").exists():
                if folder.exists():  # caches get their name when complete, so this is something else: don't overwrite it
                    raise SaescopeError(
                        f"{folder} exists but is not a cache (it has no manifest.json); remove it, or choose another "
                        f"cache.name."
                    )
                _pack(config, model, facts, folder)
    store_tokens(folder)
    return open_tokens(folder, facts)


def _pack(config: Config, model: Model, facts: dict[str, Any], folder: Path) -> None:
    from training.corpus.documents import documents, finer, only_document
    from training.corpus.packing import pack

    corpus = config.corpus
    if corpus.n_ctx > model.n_ctx_max:
        raise SaescopeError(f"corpus.n_ctx = {corpus.n_ctx}, but {model.name} takes at most {model.n_ctx_max} tokens.")
    if only := only_document(corpus.sources):
        raise SaescopeError(
            f"{only} is a single document, and documents are held out whole, so one side of the split would be empty; "
            f"{finer(corpus.sources)}, or use more files."
        )
    packed = pack(
        documents(corpus.sources, corpus.seed), model.tokenizer, n_ctx=corpus.n_ctx, n_tokens=corpus.n_tokens,
        prepend_bos=model.prepend_bos, bos_id=model.bos_id, special_ids=model.special_ids, held_out=corpus.held_out,
        finer=finer(corpus.sources),
    )
    model.check_ids(torch.from_numpy(packed.tokens))
    write_tokens(folder, packed.tokens, packed.held_out, packed.eligible, packed.segments, packed.labels, facts)


def spread(seqs: Int64[np.ndarray, " n"], n: int) -> Int64[np.ndarray, " n_chosen"]:
    """Choose `n` of these sequences, evenly spaced so that they cover many documents; all, if there are fewer."""
    return seqs if n >= len(seqs) else seqs[(2 * np.arange(n) + 1) * len(seqs) // (2 * n)]


def write_tokens(
    folder: Path, tokens: Int32[np.ndarray, "n_seqs n_ctx"], held_out: Bool[np.ndarray, " n_seqs"],
    eligible: Bool[np.ndarray, "n_seqs n_ctx"], segments: Int64[np.ndarray, "n_segments 3"], labels: list[dict],
    facts: dict[str, Any], *, text: bool = True, images: Images | None = None,
) -> Tokens:
    """Write the tokens of a cache and open them.

    `text`: whether tokens are text tokens rather than input numbers. `images`: the images, if sequences are images.
    """
    with atomic_dir(folder) as part:
        every: dict[str, np.ndarray] = {"tokens": tokens, "split": held_out, "eligible": eligible, "segments": segments}
        every |= vars(images) if images else {}
        digests = {f"{name}.npy": write_array(part / f"{name}.npy", array) for name, array in every.items()}
        lines = "".join(json.dumps(label, sort_keys=True) + "\n" for label in labels).encode()
        write_bytes(part / "documents.jsonl", lines)
        digests["documents.jsonl"] = hashlib.sha256(lines).hexdigest()
        write_json(part / "manifest.json", {
            "format": FORMAT, "format_version": FORMAT_VERSION, "code": code_version(), "made_from": facts,
            "n_seqs": len(tokens), "n_ctx": tokens.shape[1], "n_documents": len(labels),
            "n_held_out_seqs": int(held_out.sum()), "sha256": digests, **({} if text else {"text": False}),
        })
    return open_tokens(folder, facts)


def read_manifest(folder: Path, *entries: str) -> dict[str, Any]:
    """Read and check a manifest: format, version, and that it has all `entries`."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaescopeError(f"{folder} has no manifest.json: it is not a finished cache; build it again.") from None
    except (ValueError, RecursionError):
        raise SaescopeError(f"{path} is not JSON: the file was altered; remove {folder} and build it again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SaescopeError(f"{path} is not the manifest of a Saescope cache; choose another one, or remove {folder}.")
    if lacking := [entry for entry in ("format_version", *entries) if entry not in manifest]:
        raise SaescopeError(f"{path} lacks {lacking[0]!r}: the file was altered; remove {folder} and build it again.")
    if not isinstance(manifest["format_version"], int):
        raise SaescopeError(f"{path}: format_version is not an integer; remove {folder} and build it again.")
    if manifest["format_version"] > FORMAT_VERSION:
        raise SaescopeError(
            f"{path} has format version {manifest['format_version']}, but this Saescope reads up to {FORMAT_VERSION}; "
            f"update Saescope."
        )
    return manifest


def open_tokens(folder: Path, facts: dict[str, Any] | None = None) -> Tokens:
    """Read the tokens of a cache; check that they were made from `facts` and are intact."""
    manifest = read_manifest(folder, "made_from", "sha256")
    if facts is not None:
        check_made_from(folder, manifest["made_from"], facts)
    for name, digest in manifest["sha256"].items():
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise SaescopeError(
                f"{file} is missing or altered (its checksum differs from the manifest's); remove the cache with "
                f"`sae cache rm {folder.name}` and build it again."
            )
    images = None
    if "pixels.npy" in manifest["sha256"]:
        images = Images(*(np.load(folder / f"{one.name}.npy", mmap_mode="r") for one in fields(Images)))
    return Tokens(
        np.load(folder / "split.npy"), np.load(folder / "eligible.npy"),
        np.load(folder / "tokens.npy") if manifest.get("text", True) else None, manifest["made_from"], folder,
        images=images,
    )


def check_made_from(folder: Path, there: Any, asked: Any) -> None:
    """Raise an error if the cache was made from something else, naming the first difference."""
    if (other := first_difference(there, asked)) is not None:
        raise SaescopeError(
            f"cache {folder} was made with {other.path} = {other.was!r}, but this config has {other.now!r}; choose another "
            f"cache.name, or remove it from the config."
        )
