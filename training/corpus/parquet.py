"""Read rows of Parquet files: only the needed columns, file by file, so that the files' schemas may otherwise differ."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sae.errors import SaescopeError, first_line
from training.config.text_source import TextSource
from training.corpus.files import opened
from training.corpus.rows import Row

BATCH_ROWS = 1024
"""Rows decoded at a time."""


def parquet_rows(files: Sequence[Path], source: TextSource) -> Iterator[Row]:
    """The rows of some files in order, numbered over all of them from 0.

    Raises:
        SaescopeError: a file cannot be read, or lacks a column.
    """
    names = [name for name in (source.field, source.label_field) if name is not None]
    number = 0
    for path in files:
        for i, fields in enumerate(_rows(path, names)):
            yield Row(fields, f"{path}, row {i}", f"row {number}")
            number += 1


def _rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with opened(path) as opened_file:
        try:
            file = ParquetFile(opened_file)
            there = file.schema_arrow.names
            # dots reach into nested fields, unless the whole string is a column
            columns = [name if name in there else name.partition(".")[0] for name in fields]
            if lacking := [name for name, column in zip(fields, columns, strict=True) if column not in there]:
                raise SaescopeError(f"{path}: no field {lacking[0]!r}; it has {', '.join(there) or 'none'}.")
            for batch in file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                yield from batch.to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise SaescopeError(f"{path} cannot be read as Parquet ({first_line(error)}); check the file.") from None
