"""npy files: written atomically with the sha256 of their bytes, mapped without ever unpickling."""

import hashlib
import io
import warnings
from pathlib import Path
from tokenize import TokenError

import numpy as np

from sae.io.files import atomic_file


def write_array(path: Path, array: np.ndarray) -> str:
    """Write an array as .npy beside its final name, rename it, and return the sha256 of the file."""
    header = io.BytesIO()
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    digest = hashlib.sha256(header.getvalue())
    with atomic_file(path) as file:
        file.write(header.getvalue())
        if array.size:
            data = array.reshape(-1).view(np.uint8).data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def map_array(path: Path) -> np.ndarray:
    """An array as it lies on disk; nothing of it is read before it is asked for.

    Raises:
        ValueError: no array that numpy can read, or one of pickled objects.
        OSError: no such file.
    """
    try:
        with warnings.catch_warnings():
            # of Python 2, whose headers numpy reads, and takes damaged ones for
            warnings.simplefilter("ignore", UserWarning)
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, SyntaxError, TypeError, TokenError) as error:  # numpy parses headers as Python
        raise ValueError(f"its header is damaged: {error}") from None
