"""The files of an index; docs/index-format.md describes them for users.

    runs/NAME/index/CORPUS/manifest.json     its inputs, counts, and the dtype, shape and sha256 of every file
                           *.npy             the arrays named in ARRAYS
                           stats.parquet     one row per feature
                           vocabulary.parquet   bytes and text of every token; absent without a tokenizer

A row is a token, numbered `seq * n_ctx + position`. An index is renamed into place when complete, and never changes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from analysis.vocabulary import Vocabulary
from sae.errors import SaescopeError
from sae.io.arrays import map_array
from sae.io.files import read_json

FORMAT, FORMAT_VERSION = "saescope-index", 2
"""Version 1 encoded the wrong rows at sites with `update: both`."""
MANIFEST, STATS, VOCABULARY = "manifest.json", "stats.parquet", "vocabulary.parquet"
GROUPS = ("top", *(f"q{i}" for i in range(1, 11)), "random", "near")

ARRAYS: dict[str, tuple[type[np.generic], tuple[str, ...]]] = {
    "tokens": (np.int32, ("n_seqs", "n_ctx")),
    "kept": (np.bool_, ("n_seqs", "n_ctx")),
    "unit": (np.int32, ("n_seqs", "n_ctx")),
    "pixels": (np.uint8, ("n_seqs", "height", "width", "channels")),
    "boxes": (np.float32, ("n_ctx", "4")),
    "names": (np.uint8, ("n_seqs", "n_bytes")),
    "row_indptr": (np.int64, ("n_rows_in_all + 1",)),
    "row_feature": (np.int32, ("n_values",)),
    "row_value": (np.float16, ("n_values",)),
    "feature_indptr": (np.int64, ("d_sae + 1",)),
    "feature_position": (np.int32, ("n_values",)),
    "feature_value": (np.float16, ("n_values",)),
    "scale": (np.float32, ("d_sae",)),
    "context_indptr": (np.int64, ("d_sae + 1",)),
    "context_seq": (np.int32, ("n_context_values",)),
    "context_offset": (np.int32, ("n_context_values",)),
    "context_value": (np.float16, ("n_context_values",)),
    "context_norm": (np.float64, ("n_seqs",)),
    "summary": (np.float64, ("d_sae", "n_columns")),
    "histogram_edges": (np.float64, ("n_bins + 1",)),
    "histogram": (np.int64, ("d_sae", "2", "n_bins")),
    "tenth_edges": (np.float32, ("d_sae", "n_sides", "11")),
    "population": (np.int64, ("d_sae", "n_sides", "13")),
    "examples": (np.int32, ("d_sae", "n_sides", "13", "20")),
    "promoted_token": (np.int32, ("d_sae", "20")),
    "promoted_logit": (np.float32, ("d_sae", "20")),
    "decoder_feature": (np.int32, ("d_sae", "32")),
    "decoder_cosine": (np.float32, ("d_sae", "32")),
    "coactive_feature": (np.int32, ("d_sae", "32")),
    "coactive_jaccard": (np.float64, ("d_sae", "32")),
    "coactive_pearson": (np.float64, ("d_sae", "32")),
}
"""Every array with its dtype and axes. Missing tokens, rows and features are −1. `promoted_*` are absent if the model is
not available or the unembedding doesn't read the site; `unit` is absent for rows without text and in older indexes.
`pixels`, `boxes` and `names` exist if contexts are images (`training.corpus.tokens.Images`)."""

OPTIONAL = ("promoted_token", "promoted_logit", "unit", "pixels", "boxes", "names")


class _Counts(BaseModel):
    """Counts in a manifest."""

    n_seqs: PositiveInt
    n_ctx: PositiveInt
    n_rows: NonNegativeInt
    d_sae: PositiveInt
    n_values: NonNegativeInt


class _File(BaseModel):
    """A file's entry in a manifest; tables have no dtype or shape."""

    sha256: str
    dtype: str | None = None
    shape: list[int] | None = None


class _About(BaseModel):
    """Provenance in a manifest."""

    run: str | None = None
    model: str | None = None
    variant: str | None = None
    site: Any = None
    corpus: list[str] = []


class _Manifest(BaseModel):
    """A manifest, apart from its format fields."""

    made_from: dict[str, Any]
    about: _About = _About()
    counts: _Counts
    signed: bool
    fidelity: dict[str, Any] | None = None
    notes: dict[str, Any]
    files: dict[str, _File]



class Writer:
    """Writes the files of an index into its temporary folder."""

    def __init__(self, folder: Path) -> None:
        """Start with an empty `folder`."""
        self.folder = folder
        self.names: list[str] = []

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Create a memory-mapped array to fill."""
        dtype, axes = ARRAYS[name]
        assert len(shape) == len(axes), (name, shape, axes)
        self.names.append(name)
        path = self.folder / f"{name}.npy"
        if 0 in shape:  # an empty file cannot be mapped
            np.save(path, np.zeros(shape, dtype))
            return np.zeros(shape, dtype)
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    def growing(self, name: str) -> "Growing":
        """Create a one-dimensional array of unknown length."""
        self.names.append(name)
        return Growing(self.folder / f"{name}.npy", np.dtype(ARRAYS[name][0]))

    def save(self, name: str, array: np.ndarray) -> None:
        """Write a complete array."""
        assert array.dtype == ARRAYS[name][0], (name, array.dtype)
        target = self.array(name, array.shape)
        target[...] = array
        flush(target)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Dtype, shape and sha256 of every file written."""
        found = {}
        for name in self.names:
            array = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            found[f"{name}.npy"] = {"dtype": str(array.dtype), "shape": list(array.shape)}
        files = sorted(p.name for p in self.folder.iterdir() if p.name != MANIFEST)
        return {name: {**found.get(name, {}), "sha256": digest(self.folder / name)} for name in files}


class Growing:
    """An append-only .npy file; the header is written on close."""

    HEADER_BYTES = 128

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.dtype, self.n = dtype, 0
        self.file = path.open("wb")
        self.file.write(bytes(self.HEADER_BYTES))

    def append(self, array: np.ndarray) -> None:
        """Append to the array."""
        assert array.dtype == self.dtype and array.ndim == 1
        self.file.write(array.tobytes())
        self.n += len(array)

    def close(self) -> None:
        """Write the header (NumPy's format 1.0, padded to a fixed length) and close."""
        text = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': ({self.n},), }}".encode()
        body = text.ljust(self.HEADER_BYTES - 11) + b"\n"
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body)
        self.file.close()


def flush(array: np.ndarray) -> None:
    """Flush a memory-mapped array."""
    if isinstance(array, np.memmap):
        array.flush()


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and validate the manifest of an index.

    Raises:
        SaescopeError: it is missing, has another format or version, or lacks entries.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise SaescopeError(f"{folder} has no {MANIFEST}: it is not a finished index; build it with `{rebuild(folder)}`.")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise SaescopeError(f"{path} is not the manifest of an index; rebuild the index with `{rebuild(folder)}`.")
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        raise SaescopeError(
            f"{path} has format version {version!r}, this code reads {FORMAT_VERSION}; rebuild the index with "
            f"`{rebuild(folder)}`."
        )
    try:
        _Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise SaescopeError(
            f"{path}: {where} is missing or was altered; rebuild the index with `{rebuild(folder)}`.") from None
    return manifest


def rebuild(folder: Path) -> str:
    """The command to rebuild an index; one over another corpus needs its sources again."""
    run, name = folder.parent.parent, folder.name
    return f"sae index {run} --again" + ("" if name == "default" else f" --name {name} corpus.sources=…")


def open_array(folder: Path, manifest: dict[str, Any], name: str) -> np.ndarray:
    """Map an array and check its dtype and shape against the manifest.

    Raises:
        SaescopeError: it is missing, truncated, or doesn't match the manifest.
    """
    path = folder / f"{name}.npy"
    try:
        # still mapped, but as a plain array, because slicing a memmap is slow
        array = np.asarray(map_array(path))
    except (OSError, ValueError) as error:
        raise SaescopeError(f"{path} cannot be read ({error}); rebuild the index with `{rebuild(folder)}`.") from None
    said = manifest["files"].get(path.name, {})
    if [str(array.dtype), list(array.shape)] != [said.get("dtype"), said.get("shape")]:
        raise SaescopeError(f"{path} does not match {MANIFEST}; rebuild the index with `{rebuild(folder)}`.")
    return array


def problems(folder: Path) -> Iterator[str]:
    """Check all checksums of an index; yield a message for each missing or altered file."""
    for name, facts in read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing."
        elif digest(path) != facts["sha256"]:
            yield f"{path} was altered: its checksum does not match the manifest."


@contextmanager
def refusing_altered(path: Path) -> Iterator[None]:
    """Turn errors from a damaged Parquet file into a SaescopeError."""
    try:
        yield
    except (OSError, pa.ArrowInvalid, pa.ArrowTypeError, KeyError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise SaescopeError(
            f"{path} cannot be read ({reason}); rebuild the index with `{rebuild(path.parent)}`."
        ) from None


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the vocabulary of an index.

    Raises:
        SaescopeError: the file is missing or damaged.
    """
    with refusing_altered(path):
        return Vocabulary(pq.read_table(path, columns=["bytes"]).column("bytes").to_pylist())


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write the id, bytes and text of every token; text is null if the bytes alone don't form characters."""
    n = len(vocabulary.tokens)
    table = {"id": pa.array(range(n), pa.int32()), "bytes": pa.array(vocabulary.tokens, pa.binary()),
             "text": pa.array([vocabulary.text(i) for i in range(n)], pa.string())}
    pq.write_table(pa.table(table), path, compression="zstd")
