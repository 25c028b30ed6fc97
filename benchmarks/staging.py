"""Stages partitions with one COPY and creates their receipts, for benchmarks that measure only publishing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ducklake_flows.datasets.types import declared_types, quoted
from ducklake_flows.lake.connect import connected
from ducklake_flows.staging.inspect import fingerprint_sql, fingerprint_text
from ducklake_flows.staging.layout import new_attempt, new_chunk
from ducklake_flows.staging.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.settings import Settings


def stage(
    settings: Settings,
    dataset: Dataset,
    partitions: Sequence[Partition],
    query: str,
    con: DuckDBPyConnection | None = None,
) -> list[Receipt]:
    """Write one Parquet file per partition, several into a chunk's folder, as a worker does.

    Args:
        settings: Where the lake is; its data path is a folder or in S3.
        dataset: The dataset of the partitions.
        partitions: The partitions to stage. The query must return rows for each of them.
        query: Returns the rows, with the partition column.
        con: A connection that can write to the data path; a new one if None.
    """
    column, base = quoted(dataset.partition_column or ""), f"{settings.data_path}raw/{dataset.key}"
    base += f"/{new_chunk()}" if len(partitions) > 1 else ""
    if not settings.data_path.startswith("s3://"):
        Path(base).mkdir(parents=True, exist_ok=True)
    columns: Mapping[str, str] = declared_types(dataset)
    with connected(settings) if con is None else contextlib.nullcontext(con) as using:
        # Materialised, so that files and fingerprints are computed from the same rows.
        using.execute(f"CREATE OR REPLACE TEMP TABLE rows AS {query}")
        written = using.execute(
            f"COPY rows TO '{base}' (FORMAT parquet, PARTITION_BY ({column}), WRITE_PARTITION_COLUMNS, "
            "FILENAME_PATTERN '{uuid}', APPEND, RETURN_FILES)"
        ).fetchall()[0][1]
        found = using.execute(
            f"SELECT {column}, count(*), {fingerprint_sql(columns)} FROM rows GROUP BY ALL"
        ).fetchall()
    files = {path.rpartition(f"/{dataset.partition_column}=")[2].partition("/")[0]: path for path in written}
    digests = {
        dataset.scheme.holding(value).key: (count, fingerprint_text(count, digest)) for value, count, digest in found
    }
    receipts = []
    for partition in partitions:
        path = files[quote(partition.value, safe="-")].removeprefix(settings.data_path)
        rows, fingerprint = digests[partition.key]
        receipts.append(
            Receipt(dataset.key, partition.key, new_attempt(), (path,), rows, 0, dict(columns), fingerprint, "", 0.0, 0)
        )
    return receipts
