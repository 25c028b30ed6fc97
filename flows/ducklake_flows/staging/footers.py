"""Complete statistics of Parquet files, also for very long values.

Arrow writes no min and max for a column with a text or binary value of more than 4 KiB. DuckLake 1.5.5 then uses the
min and max of the other files for the whole table, and ``WHERE v = ...`` finds none of the file's rows. DuckDB writes a
shortened min and max instead, so such a file is rewritten with DuckDB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from ducklake_flows.datasets.types import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def complete(file: Path, json_columns: Iterable[str]) -> Path:
    """Return a file with the same rows in which every column with values has a min and a max.

    Args:
        file: A local Parquet file.
        json_columns: The file's columns whose text is JSON.

    Returns:
        The file itself if nothing is missing, otherwise a new file in the same folder.
    """
    footer = pq.read_metadata(file)
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    if all(_is_complete(group.column(number)) for group in groups for number in range(group.num_columns)):
        return file
    import duckdb

    target = file.with_name(f"{file.stem}-complete.parquet")
    typed = ", ".join(f"{name}::JSON AS {name}" for name in map(quoted, json_columns))
    with duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False}) as con:
        rows = con.read_parquet(str(file), hive_partitioning=False)
        rows = rows.project(f"* REPLACE ({typed})") if typed else rows
        rows.write_parquet(str(target), row_group_size=max(group.num_rows for group in groups))
    return target


def _is_complete(column: pq.ColumnChunkMetaData) -> bool:
    if column.physical_type != "BYTE_ARRAY" or not column.is_stats_set:
        return True
    statistics = column.statistics
    return bool(statistics.has_min_max or statistics.null_count == column.num_values)
