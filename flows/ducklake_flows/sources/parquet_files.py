"""Parquet files as Arrow tables, with their values exactly as written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ducklake_flows.sources.values import Unfit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NANOSECONDS = np.uint64(1000)
"""Nanoseconds per microsecond."""


class ParquetFile:
    """One Parquet file.

    INT96 timestamps, as Spark writes them, consist of days and nanoseconds. Arrow reads them as nanoseconds by default,
    and silently changes those before 1677 or after 2262. Here they are read in microseconds, and refused if they have
    more digits.

    Args:
        source: An open file that Arrow can read.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._file = pq.ParquetFile(source, coerce_int96_timestamp_unit="us")

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return list(self._file.schema_arrow.names)

    def read(self, columns: Mapping[str, str]) -> Iterator[pa.Table]:
        """Stream the file's rows.

        Args:
            columns: The lake's name of every column by its name in the file, in order.

        Raises:
            Unfit: a column's type or a value cannot be read exactly. The row is counted from the table's first.
        """
        old = []
        for number in range(len(self._file.schema)):
            leaf = self._file.schema.column(number)
            name = columns.get(leaf.path, columns.get(leaf.path.partition(".")[0], leaf.path))
            if leaf.converted_type == "INTERVAL":  # Arrow reads it as 12 bytes
                raise Unfit(name, "the type INTERVAL cannot be stored")
            if leaf.physical_type == "INT96":
                if leaf.path not in columns:
                    raise Unfit(name, "INT96 timestamps within lists or structs cannot be read exactly")
                old.append(leaf.path)
        exact = pq.ParquetFile(self._source).iter_batches(columns=old) if old else None
        for batch in self._file.iter_batches():
            table = pa.table(batch.columns, names=list(columns.values()))
            if exact is not None:
                nanoseconds = next(exact)
                for path in old:
                    _check(table.column(columns[path]).combine_chunks(), nanoseconds.column(path), columns[path])
            yield table


def _check(microseconds: pa.Array, nanoseconds: pa.Array, name: str) -> None:
    """Refuse timestamps with digits below the microsecond. Numbers are modulo 2^64, so any year can be compared."""
    whole, all_digits = (
        array.cast(pa.int64()).fill_null(0).to_numpy().view(np.uint64) for array in (microseconds, nanoseconds)
    )
    lost = np.flatnonzero(whole * NANOSECONDS != all_digits)
    if len(lost):
        raise Unfit(name, "a timestamp has digits below the microsecond", int(lost[0]))
