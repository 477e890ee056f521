"""Per-feature results of an evaluation on disk: runs/NAME/evals/EVAL.features.parquet, one row per feature.

The file's metadata records the hash of the weights; each column's metadata its title, unit, direction and formula. Null
means not measured: the feature wasn't in the sample, is never active, or stands for none of the tested concepts.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.evals.common.result import FOLDER, Direction, PerFeature
from sae.errors import SaescopeError, first_line
from sae.io.files import atomic_file

FORMAT, FORMAT_VERSION = b"saescope-feature-figures", b"1"
ENDING = ".features.parquet"
_NAME = re.compile("[a-z][a-z0-9_]*")


def path_of(run: Path, evaluation: str) -> Path:
    """Path of an evaluation's per-feature table."""
    return run / FOLDER / f"{evaluation}{ENDING}"


def tables(run: Path) -> list[Path]:
    """All per-feature tables of a run, by name."""
    return sorted((run / FOLDER).glob(f"*{ENDING}"))


def write(run: Path, evaluation: str, figures: Mapping[str, PerFeature], weights: str | None) -> None:
    """Write an evaluation's per-feature table into its run, atomically; if empty, remove an old one.

    Args:
        run: folder of the run.
        evaluation: name of the evaluation.
        figures: columns by name.
        weights: hash of the run's weights.
    """
    path = path_of(run, evaluation)
    if not figures:
        path.unlink(missing_ok=True)
        return
    columns = {name: column(one) for name, one in figures.items()}
    d_sae = len(next(iter(columns.values())))
    fields = [pa.field("feature", pa.int32())]
    fields += [pa.field(name, columns[name].type, metadata=_about(one)) for name, one in figures.items()]
    about = {b"format": FORMAT, b"format_version": FORMAT_VERSION, b"weights_sha256": (weights or "").encode()}
    table = pa.table([pa.array(range(d_sae), pa.int32()), *columns.values()], pa.schema(fields, about))
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def read(path: Path) -> tuple[dict[str, PerFeature], str]:
    """Read a per-feature table, and the hash of the weights it was measured on.

    Raises:
        SaescopeError: the file can't be read, or has another format or version.
    """
    try:
        table = pq.read_table(path)
        about = table.schema.metadata or {}
        if (about.get(b"format"), about.get(b"format_version")) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {about.get(b'format')!r}, version {about.get(b'format_version')!r}")
        if table["feature"].to_pylist() != list(range(len(table))):
            raise ValueError("its rows are not the features in order")
        figures = {name: _figure(name, table) for name in table.column_names if name != "feature"}
        return figures, about[b"weights_sha256"].decode()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise SaescopeError(
            f"{path} is not a feature table this code can read ({first_line(error)}); remove it, and `sae eval` will "
            "recompute it."
        ) from None


def column(one: PerFeature) -> pa.Array:
    """The values as an Arrow column; NaN becomes null."""
    if isinstance(one.values, tuple):
        return pa.array(one.values, pa.string())
    return pa.array(one.values, pa.float64(), from_pandas=True)


def _about(one: PerFeature) -> dict[str, str]:
    return {"title": one.title, "unit": one.unit, "direction": one.direction, "formula": one.formula}


def _figure(name: str, table: pa.Table) -> PerFeature:
    field, found = table.schema.field(name), table[name]
    about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    if _NAME.fullmatch(name) is None or about["direction"] not in get_args(Direction):
        raise ValueError(f"the column {name!r} is invalid")
    values = tuple(found.to_pylist()) if pa.types.is_string(field.type) else found.cast(pa.float64()).to_numpy()
    return PerFeature(values, about["title"], about["unit"], about["direction"], about["formula"])  # type: ignore[arg-type]
