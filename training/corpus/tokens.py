"""The tokens of a cache: made once, before any activation, and the same whatever is then done with them.

    cache/NAME/manifest.json     what it was made from, counts, sha256 of each file below
               tokens.npy        int32 [n_seqs, n_ctx]
               split.npy         bool  [n_seqs]           True: held out
               eligible.npy      bool  [n_seqs, n_ctx]    False: BOS, special, padding, roles not chosen
               segments.npy      int64 [n_segments, 3]    first row, tokens, document; in row order
               documents.jsonl   one line a document: label, held_out, n_tokens
               pixels.npy        uint8 [n_seqs, height, width, channels]   where sequences are images (`Images`), as are
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
    """What rows are taken to be independent of one another by: the unit of the held-out split, and of every interval."""

    kind: Literal["document", "group", "sequence"]
    """Groups where the split keeps documents together (the pieces of a module); sequences where there is no text."""
    number: Int64[np.ndarray, "n_seqs n_ctx"]
    """The unit of each row."""


@dataclass(frozen=True)
class Images:
    """Sequences that are images."""

    pixels: UInt8[np.ndarray, "n_seqs height width channels"]
    boxes: Float32[np.ndarray, "n_ctx 4"]
    """The part that each position stands for: top, left, height, width, as shares of the whole."""
    names: UInt8[np.ndarray, "n_seqs n_bytes"]
    """What each is called, in UTF-8, filled up with zeros."""


@dataclass(frozen=True)
class Tokens:
    """The sequences of a corpus; rows of activations are their tokens in order."""

    held_out: Bool[np.ndarray, " n_seqs"]
    eligible: Bool[np.ndarray, "n_seqs n_ctx"]
    tokens: Int32[np.ndarray, "n_seqs n_ctx"] | None
    """None for acts:DIR and modules of the user's own: rows without text."""
    made_from: dict[str, Any]
    folder: Path | None = None
    row_documents: Int64[np.ndarray, "n_seqs n_ctx"] | None = None
    """The document of each row, where rows without text came with them."""
    row_held_out: Bool[np.ndarray, "n_seqs n_ctx"] | None = None
    """Where the split of rows without text cuts through sequences: the rows held out; `side` gives either side."""
    images: Images | None = None
    """Where sequences are images: those."""

    @property
    def n_seqs(self) -> int:
        """Number of sequences."""
        return len(self.held_out)

    @property
    def n_ctx(self) -> int:
        """Tokens per sequence."""
        return self.eligible.shape[1]

    def side(self, *, held_out: bool) -> "Tokens":
        """The same sequences as one side of the split has them: where it cuts through one, it counts to both, and the
        other side's rows are not eligible."""
        if self.row_held_out is None:
            return self
        mine = self.row_held_out == held_out
        some = mine.any(axis=1)
        return replace(self, held_out=some == held_out, eligible=self.eligible & mine, row_held_out=None)

    def sequences(self, *, held_out: bool) -> Int64[np.ndarray, " n"]:
        """The numbers of the training or of the held-out sequences, in corpus order."""
        return np.flatnonzero(self.held_out == held_out)

    def sequences_with_rows(self, *, held_out: bool) -> Int64[np.ndarray, " n"]:
        """Those of them with an eligible row, which alone tell something; all, if none has one."""
        seqs = self.sequences(held_out=held_out)
        found = seqs[self.eligible[seqs].any(axis=1)]
        return found if len(found) else seqs

    def n_eligible(self) -> int:
        """Training rows that the token mask lets through: one epoch."""
        return int(self.eligible[~self.held_out].sum())

    def documents(self) -> Int64[np.ndarray, "n_seqs n_ctx"]:
        """The number of the document each token is of; BOS counts to what follows it.

        Raises:
            SaescopeError: rows that came without text and without documents.
        """
        if self.row_documents is not None:
            return self.row_documents
        if self.folder is None:
            raise SaescopeError("these rows are of no document; give corpus.documents, or a corpus with a model.")
        segments = np.load(self.folder / "segments.npy")
        ends = segments[:, 0] + segments[:, 1]
        found = np.searchsorted(ends, np.arange(self.eligible.size), side="right").clip(max=len(segments) - 1)
        return segments[found, 2].reshape(self.eligible.shape)

    def units(self) -> Units:
        """The unit of the split that each row is of."""
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
    """All that determines a cache's content, hooks apart."""
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
    """Where this cache lives: its given name, or one made of model, corpus and a hash of everything.

    Of one in a store it is the local folder of what is small (`training.storage.mirror`).
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
    """Open the tokens of this config, making them first if they are not there."""
    facts = made_from(config, model)
    folder = cache_folder(config, facts)
    fetch_tokens(folder)
    if not (folder / "manifest.json").exists():
        with locked(folder, wait=True):
            if not (folder / "manifest.json").exists():
                if folder.exists():  # a cache gets its name when it is whole: this is something else, not to be replaced
                    raise SaescopeError(
                        f"{folder} is there but is no cache (it holds no manifest.json); remove it, or choose another "
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
        raise SaescopeError(f"corpus.n_ctx = {corpus.n_ctx}, but {model.name} sees at most {model.n_ctx_max} tokens.")
    if only := only_document(corpus.sources):
        raise SaescopeError(
            f"{only} is one document, and a document is held out as a whole or not at all, so that one side of the split "
            f"would stay empty; {finer(corpus.sources)}, or give more files."
        )
    packed = pack(
        documents(corpus.sources, corpus.seed), model.tokenizer, n_ctx=corpus.n_ctx, n_tokens=corpus.n_tokens,
        prepend_bos=model.prepend_bos, bos_id=model.bos_id, special_ids=model.special_ids, held_out=corpus.held_out,
        finer=finer(corpus.sources),
    )
    model.check_ids(torch.from_numpy(packed.tokens))
    write_tokens(folder, packed.tokens, packed.held_out, packed.eligible, packed.segments, packed.labels, facts)


def spread(seqs: Int64[np.ndarray, " n"], n: int) -> Int64[np.ndarray, " n_chosen"]:
    """`n` of these sequences at equal distances, which are of many documents; all, if there are fewer."""
    return seqs if n >= len(seqs) else seqs[(2 * np.arange(n) + 1) * len(seqs) // (2 * n)]


def write_tokens(
    folder: Path, tokens: Int32[np.ndarray, "n_seqs n_ctx"], held_out: Bool[np.ndarray, " n_seqs"],
    eligible: Bool[np.ndarray, "n_seqs n_ctx"], segments: Int64[np.ndarray, "n_segments 3"], labels: list[dict],
    facts: dict[str, Any], *, text: bool = True, images: Images | None = None,
) -> Tokens:
    """Write the tokens of a cache and open them.

    `text` is whether tokens are those of a text, not the numbers of inputs; `images` are of sequences that are images.
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
    """A manifest, refused if it is of another format or a later version, or lacks one of `entries`."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaescopeError(f"{folder} holds no manifest.json: it is not a finished cache; make it again.") from None
    except (ValueError, RecursionError):
        raise SaescopeError(f"{path} is not JSON: the file was altered; remove {folder} and make it again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SaescopeError(f"{path} is not the manifest of a Saescope cache; name another one, or remove {folder}.")
    if lacking := [entry for entry in ("format_version", *entries) if entry not in manifest]:
        raise SaescopeError(f"{path} lacks {lacking[0]!r}: the file was altered; remove {folder} and make it again.")
    if not isinstance(manifest["format_version"], int):
        raise SaescopeError(f"{path}: format_version is no number; remove {folder} and make it again.")
    if manifest["format_version"] > FORMAT_VERSION:
        raise SaescopeError(
            f"{path} has format version {manifest['format_version']}, this code reads up to {FORMAT_VERSION}; update it."
        )
    return manifest


def open_tokens(folder: Path, facts: dict[str, Any] | None = None) -> Tokens:
    """Read the tokens of a cache, checked against what the config says they were made from."""
    manifest = read_manifest(folder, "made_from", "sha256")
    if facts is not None:
        check_made_from(folder, manifest["made_from"], facts)
    for name, digest in manifest["sha256"].items():
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise SaescopeError(
                f"{file} is missing or altered (its checksum is not the manifest's); remove the cache with "
                f"`sae cache rm {folder.name}` and make it again."
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
    """Refuse a cache made from something else, naming the first difference."""
    if (other := first_difference(there, asked)) is not None:
        raise SaescopeError(
            f"cache {folder} was made from {other.path} = {other.was!r}, this config asks for {other.now!r}; choose "
            f"another cache.name or leave it out."
        )
