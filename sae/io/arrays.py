""".npy files: written atomically and hashed, memory-mapped without unpickling."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np

from sae.io.files import atomic_file


def array_parts(array: np.ndarray) -> list[bytes | memoryview]:
    """The bytes of an array as .npy, in parts: the header and the data, which is not copied."""
    array = np.ascontiguousarray(array)
    return [header_of(array.dtype, array.shape), *([array.reshape(-1).view(np.uint8).data] if array.size else [])]


def header_of(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The .npy header of an array."""
    header = io.BytesIO()
    facts = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def digest_of(parts: Sequence[bytes | memoryview]) -> str:
    """The sha256 of a file made of these parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write_array(path: Path, array: np.ndarray) -> str:
    """Write an array as .npy atomically and return the sha256 of the file."""
    parts = array_parts(array)
    with atomic_file(path) as file:
        for part in parts:
            file.write(part)
    return digest_of(parts)


def map_array(path: Path) -> np.ndarray:
    """Memory-map an array.

    Raises:
        ValueError: not an array that numpy can read, or one of pickled objects.
        OSError: no such file.
    """
    try:
        with warnings.catch_warnings():
            # numpy mistakes damaged headers for those of Python 2 and warns
            warnings.simplefilter("ignore", UserWarning)
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, SyntaxError, TypeError, TokenError) as error:  # numpy parses headers as Python
        raise ValueError(f"its header is damaged: {error}") from None
