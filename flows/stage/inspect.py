"""Look into a staged file with an in-memory DuckDB: rows, types, fingerprint and audits in one pass.

The fingerprint is the same SQL over a staged file and over the published table, so that `lake verify` can compare
what is in the lake with what was staged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from flows.datasets.model import Dataset, Partition
from flows.stage.types import DUCKDB_TYPES, partition_type, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ALGORITHM = "h1"
"""Names the way the fingerprint is computed; it changes with the way, and with DuckDB's hash function."""

_FAMILIES = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"), "BIGINT"),
    **dict.fromkeys(("FLOAT", "DOUBLE"), "DOUBLE"),
}


def fingerprint_sql(columns: Mapping[str, str]) -> str:
    """The aggregate that digests rows of these columns, whatever the order of rows or columns.

    A null counts as an absent column, and integers and floats are widened first: so adding a column or widening
    one does not change the fingerprint of rows that are there already.

    Args:
        columns: Name and DuckDB type.
    """
    terms = []
    for name, data_type in sorted(columns.items()):
        column = quoted(name)
        value = f"{column}::{_FAMILIES[data_type]}" if data_type in _FAMILIES else column
        label = name.replace("'", "''")
        terms.append(f"CASE WHEN {column} IS NULL THEN 0::UBIGINT ELSE hash({value}, '{label}') END")
    row = " + ".join(f"({t})::HUGEINT" for t in terms) or "0::HUGEINT"
    return f"sum(hash({row})::HUGEINT)"


def fingerprint_text(rows: int, digest: int | None) -> str:
    """The fingerprint as it stands in receipts and in the ledger: algorithm, row count and digest."""
    return f"{ALGORITHM}:{rows}:{(digest or 0) & ((1 << 128) - 1):032x}"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one pass over a staged partition found.

    Args:
        rows: How many there are.
        columns: Name and DuckDB type.
        fingerprint: See `fingerprint_sql`.
        broken: Audits that reject, with counts.
        warnings: Audits that warn, with counts.
    """

    rows: int
    columns: dict[str, str]
    fingerprint: str
    broken: tuple[str, ...]
    warnings: tuple[str, ...]


@cache
def _connection() -> DuckDBPyConnection:
    import duckdb

    return duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})


def inspect(dataset: Dataset, partition: Partition, paths: Sequence[str]) -> Inspection:
    """Read a partition's staged files once.

    Args:
        dataset: Whose primary key and audits are checked.
        partition: Whose value the partition column must have.
        paths: Local Parquet files.

    Raises:
        duckdb.Error: an audit's condition does not fit the columns.
    """
    con = _connection()
    if paths:
        files = con.read_parquet(list(paths), hive_partitioning=False)
    else:
        files = con.sql(f"SELECT {_no_rows(dataset)} WHERE false")
    columns = dict(zip(files.columns, (str(t) for t in files.types), strict=True))
    checks = _checks(dataset, partition)
    selected = ["count(*)", fingerprint_sql(columns), *(sql for _, sql, _ in checks)]
    rows, digest, *counts = files.aggregate(", ".join(selected)).fetchall()[0]
    found = [
        (f"{name}: {count:,} row{'s' if count != 1 else ''}" if count > 0 else name, on_fail)
        for (name, _, on_fail), count in zip(checks, counts, strict=True)
        if count
    ]
    return Inspection(
        rows,
        columns,
        fingerprint_text(rows, digest),
        tuple(text for text, on_fail in found if on_fail == "reject"),
        tuple(text for text, on_fail in found if on_fail == "warn"),
    )


def _no_rows(dataset: Dataset) -> str:
    """The select list of an empty partition: the declared columns."""
    columns = {name: DUCKDB_TYPES[t] for name, t in dataset.contract.columns.items()}
    if dataset.partition_column:
        columns[dataset.partition_column] = partition_type(dataset.grain)
    return ", ".join(f"NULL::{t} AS {quoted(n)}" for n, t in columns.items()) or "1 AS no_column"


def _checks(dataset: Dataset, partition: Partition) -> list[tuple[str, str, str]]:
    """Name, aggregate that counts the rows which break it (-1: the whole breaks it), and what then happens."""
    checks = []
    if column := dataset.partition_column:
        checks.append(
            (
                f"{column} is not {partition.value}",
                f"count(*) FILTER ({quoted(column)} IS DISTINCT FROM '{partition.value}')",
                "reject",
            )
        )
    if key := dataset.primary_key:
        names = ", ".join(map(quoted, key))
        label = ", ".join(key)
        nulls = " OR ".join(f"{quoted(c)} IS NULL" for c in key)
        checks += [
            (f"null in the primary key ({label})", f"count(*) FILTER ({nulls})", "reject"),
            (f"duplicate of the primary key ({label})", f"count(*) - count(DISTINCT ({names}))", "reject"),
        ]
    for audit in dataset.audits:
        sql = f"CASE WHEN {audit.condition} THEN 0 ELSE -1 END"
        if not audit.aggregate:
            sql = f"count(*) FILTER (NOT ({audit.condition}))"
        checks.append((f"audit {audit.name!r} failed", sql, audit.on_fail))
    return checks
