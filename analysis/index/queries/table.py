"""Sort and filter stats.parquet with DuckDB. The only file that imports duckdb."""

import math
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.index.store import refusing_altered
from sae.errors import SaescopeError


class Stats:
    """Statistics of all features, in memory."""

    def __init__(self, table: pa.Table) -> None:
        """`table` has one row per feature, in order, with its number in column `feature`."""
        self.table = table
        self._lock = Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None

    @classmethod
    def read(cls, path: Path) -> "Stats":
        """Read the statistics of an index.

        Raises:
            SaescopeError: the file is missing or damaged.
        """
        with refusing_altered(path):
            return cls(pq.read_table(path))

    def row(self, i: int) -> dict[str, Any]:
        """One feature's statistics; None where unknown."""
        columns = zip(self.table.column_names, self.table.columns, strict=True)
        return {name: _plain(column[i].as_py()) for name, column in columns}

    def top(
        self, sort: str, descending: bool, where: str | None, limit: int, offset: int, columns: Sequence[str] | None
    ) -> pa.Table:
        """See `Index.top`."""
        for name in (sort, *(columns or ())):
            if name not in self.table.column_names:
                raise SaescopeError(f"there is no column {name!r}; the columns are {', '.join(self.table.column_names)}.")
        if limit < 0 or offset < 0:
            raise SaescopeError(f"limit ({limit}) and offset ({offset}) must not be negative.")
        chosen = ", ".join(f'"{name}"' for name in columns) if columns else "*"
        condition = f"WHERE ({where})" if where and where.strip() else ""
        direction = "DESC" if descending else "ASC"
        query = (
            f'SELECT {chosen} FROM stats {condition} ORDER BY "{sort}" {direction} NULLS LAST, feature '
            f"LIMIT {int(limit)} OFFSET {int(offset)}"
        )
        try:
            cursor = self._cursor()
            if len(cursor.extract_statements(query)) != 1:
                raise SaescopeError(f"{where!r} is more than one condition.")
            return cursor.sql(query).to_arrow_table()
        except duckdb.Error as error:
            reason = " ".join(str(error).split())
            raise SaescopeError(
                f"{where!r} is not a valid condition ({reason}); the columns are "
                f"{', '.join(self.table.column_names)}."
            ) from None

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        """A new cursor for each call; it can read only the table, no files."""
        with self._lock:
            if self._connection is None:
                connection = duckdb.connect(config={"threads": 2})
                connection.register("incoming", self.table)
                connection.execute("CREATE TABLE stats AS SELECT * FROM incoming")
                connection.unregister("incoming")
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
                self._connection = connection
            return self._connection.cursor()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
