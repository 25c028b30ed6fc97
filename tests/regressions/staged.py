"""Helpers: stage partitions from Parquet that DuckDB writes, and read with operators that use table statistics."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.lake.connect import connected
from ducklake_flows.staging.inspect import inspect
from ducklake_flows.staging.layout import new_attempt, staged_path
from ducklake_flows.staging.receipt import Receipt

if TYPE_CHECKING:
    from tests.cases import Case


def staged(case: Case, day: str, query: str) -> Receipt:
    """Stage a query's rows as a day of a dataset; the partition column is added."""
    partition = parse_partition(day, case.dataset.grain)
    attempt = new_attempt()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        duckdb.execute(f"COPY (SELECT *, DATE '{day}' AS day FROM ({query})) TO '{file}' (FORMAT parquet)")
        seen = inspect(case.dataset, [partition], [str(file)])[0]
        path = staged_path(case.dataset, partition, attempt, 0)
        case.lake.data.put(file, path)
        size = file.stat().st_size
    return Receipt(case.dataset.key, day, attempt, (path,), seen.rows, size, seen.columns, seen.fingerprint, "", 0.0, 0)


def publish(case: Case, *days: tuple[str, str]) -> list[str]:
    """Publish days in sequence, each given as key and query. Returns the error of each, "" if it was published."""
    said = []
    for day, query in days:
        result = case.publish([staged(case, day, query)])
        said.append(result.failures[0].error if result.failures else "")
    return said


def check_reads(case: Case, column: str, expected: list[Any]) -> None:
    """Assert that every operator that may use table statistics finds exactly these values in a scalar column."""
    table, there = case.dataset.table, [value for value in expected if value is not None]
    with connected(case.lake.settings, read_only=True) as con:

        def found(query: str) -> list[Any]:
            return con.execute(query).fetchall()

        ordered = found(f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL ORDER BY {column}")
        assert [value for (value,) in ordered] == sorted(there)
        assert found(f"SELECT count(*) FROM {table} WHERE {column} IS NULL") == [(len(expected) - len(there),)]
        extremes = found(f"SELECT min({column}), max({column}), count(*) FROM {table}")
        assert extremes == [(min(there), max(there), len(expected))]
        assert dict(found(f"SELECT {column}, count(*) FROM {table} GROUP BY {column}")) == Counter(expected)
        kind = found(f"SELECT typeof({column}) FROM {table} LIMIT 1")[0][0]
        for value in set(there):
            for operator, wanted in (
                ("=", expected.count(value)),
                (">", sum(other > value for other in there)),
                ("<=", sum(other <= value for other in there)),
            ):
                query = f"SELECT count(*) FROM {table} WHERE {column} {operator} CAST('{value}' AS {kind})"
                assert found(query) == [(wanted,)], (operator, value)
    assert case.damaged() == []
