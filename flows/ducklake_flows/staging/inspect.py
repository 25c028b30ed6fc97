"""Inspect staged files with an in-memory DuckDB: rows, types, fingerprint and audits in one pass.

The fingerprint is the same SQL for a staged file and for the published table, so `lake verify` can compare the lake
with what was staged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.partitions import Grain, in_zone
from ducklake_flows.datasets.types import declared_types, is_nested, quoted
from ducklake_flows.errors import Rejected
from ducklake_flows.scratch import scratch_of_process
from ducklake_flows.staging.receipt import Checked, rows_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from ducklake_flows.datasets.audits import Audit, Newest
    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition

MEMORY = "256MB"
"""DuckDB's memory limit for an inspection. A primary key whose check needs more memory spills to disk."""

ALGORITHM = "h1"
"""Version of the fingerprint. It changes with the fingerprint's SQL and with DuckDB's hash function."""

MARK = "lake partition"
"""The column with the number of a row's partition in its chunk; never published. No column of a source can have this
name: column names contain no spaces."""

_FAMILIES = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"), "BIGINT"),
    **dict.fromkeys(("FLOAT", "DOUBLE"), "DOUBLE"),
}


def fingerprint_sql(columns: Mapping[str, str]) -> str:
    """SQL of the aggregate that digests rows of these columns, independent of the order of rows and columns.

    A null counts as an absent column, and integers and floats are widened first. So adding or widening a column does
    not change the fingerprint of existing rows.

    Args:
        columns: The DuckDB type of each column.
    """
    terms = []
    for name, data_type in sorted(columns.items()):
        column = quoted(name)
        value = f"{column}::{_FAMILIES[data_type]}" if data_type in _FAMILIES else column
        label = name.replace("'", "''")
        terms.append(f"CASE WHEN {column} IS NULL THEN 0::UBIGINT ELSE hash({value}, '{label}') END")
    row = _sum([f"({t})::HUGEINT" for t in terms]) or "0::HUGEINT"
    return f"sum(hash({row})::HUGEINT)"


def _sum(terms: Sequence[str]) -> str:
    """Add terms in pairs, so that thousands of them stay below DuckDB's limit on the depth of an expression."""
    if len(terms) < 3:
        return " + ".join(terms)
    half = len(terms) // 2
    return f"({_sum(terms[:half])}) + ({_sum(terms[half:])})"


def fingerprint_text(rows: int, digest: int | None) -> str:
    """The fingerprint as stored in receipts and the ledger: algorithm, row count and digest."""
    return f"{ALGORITHM}:{rows}:{(digest or 0) & ((1 << 128) - 1):032x}"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one pass over a staged partition found.

    Args:
        rows: Number of rows.
        columns: The DuckDB type of each column.
        fingerprint: See `fingerprint_sql`.
        broken: Failed audits that reject, with counts.
        warnings: Failed audits that warn, with counts.
        aside: Failed audits that set rows aside, with counts.
        checks: The results of the audits, and of the primary key if it failed.
        values: Number of non-null values of each nested column. A file's footer has the numbers of other columns.
    """

    rows: int
    columns: dict[str, str]
    fingerprint: str
    broken: tuple[str, ...]
    warnings: tuple[str, ...]
    values: dict[str, int]
    aside: tuple[str, ...] = ()
    checks: tuple[Checked, ...] = ()


@cache
def _database() -> DuckDBPyConnection:
    """This process's database. Use a cursor of it: a worker extracts in several threads, also while it is warmed up."""
    import duckdb

    return duckdb.connect(
        config={
            # Two threads help only with a large partition: DuckDB parallelises by row group.
            "threads": 2,
            "autoinstall_known_extensions": False,
            # Every file is read only once, so a cache is useless.
            "enable_external_file_cache": False,
            "memory_limit": MEMORY,
            "temp_directory": str(scratch_of_process() / "inspect"),
        }
    )


def inspect(dataset: Dataset, partitions: Sequence[Partition], paths: Sequence[str]) -> list[Inspection]:
    """Inspect the files of several partitions in one pass.

    Args:
        dataset: The dataset whose primary key and audits are checked.
        partitions: The partitions whose rows are in the files, in the order of the mark. A single partition needs no
            mark.
        paths: Local Parquet files, all with the same columns. The result leaves out the mark.

    Returns:
        The inspection of each partition, in the same order.

    Raises:
        Rejected: an audit's condition does not fit the columns.
        duckdb.Error: a file cannot be read, or the memory or the disk is full.
    """
    import duckdb

    try:
        with _database().cursor() as con:
            files = con.read_parquet(list(paths), hive_partitioning=False) if paths else None
            found = _rows_of(files, dataset, partitions) if files is not None else {}
            if len(found) < len(partitions):
                # A partition without rows forms no group. It meets every condition on a row, so only check the others.
                whole = [check for check in _checks(dataset, partitions, "0") if check.of_the_whole]
                empty = _aggregate(_nothing(con, dataset), {}, whole, "0")[0]
                found = {number: found.get(number, empty) for number in range(len(partitions))}
    except (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError) as error:
        raise Rejected(f"an audit cannot be evaluated on the rows: {' '.join(str(error).split())[:300]}") from None
    return [found[number] for number in range(len(partitions))]


def _rows_of(files: DuckDBPyRelation, dataset: Dataset, partitions: Sequence[Partition]) -> dict[int, Inspection]:
    """The inspection of each partition that has rows, by number."""
    types = dict(zip(files.columns, map(str, files.types), strict=True))
    mark = MARK if MARK in types else "0"
    columns = {name: t for name, t in types.items() if name != MARK}
    return _aggregate(files, columns, _checks(dataset, partitions, mark, types), mark)


def _aggregate(
    files: DuckDBPyRelation, columns: dict[str, str], checks: Sequence[_Check], mark: str
) -> dict[int, Inspection]:
    """Inspect a relation in one pass: an inspection for each mark in it."""
    counts = [f"count({quoted(name)})" for name, data_type in columns.items() if is_nested(data_type)]
    selected = ", ".join(
        [
            _as_name(mark),
            "count(*)",
            fingerprint_sql(columns),
            f"[{', '.join(counts)}]::BIGINT[]",
            f"[{', '.join(f'({c.measure})::VARCHAR' if c.measure else 'NULL' for c in checks)}]::VARCHAR[]",
            *(c.sql for c in checks),
        ]
    )
    return {
        row[0]: _inspection(columns, checks, *row[1:])
        for row in files.aggregate(selected, quoted(mark) if mark == MARK else "").fetchall()
    }


def _inspection(
    columns: dict[str, str],
    checks: Sequence[_Check],
    rows: int,
    digest: int | None,
    values: list[int],
    measures: list[str | None],
    *counts: int,
) -> Inspection:
    results = [check.result(count, measure) for check, count, measure in zip(checks, counts, measures, strict=True)]
    broken = [(c.failure(r), c.on_fail) for c, r in zip(checks, results, strict=True) if not r.passed]
    return Inspection(
        rows,
        columns,
        fingerprint_text(rows, digest),
        tuple(text for text, on_fail in broken if on_fail == "reject"),
        tuple(text for text, on_fail in broken if on_fail == "warn"),
        dict(zip((name for name, data_type in columns.items() if is_nested(data_type)), values, strict=True)),
        tuple(text for text, on_fail in broken if on_fail == "quarantine"),
        tuple(r for c, r in zip(checks, results, strict=True) if c.audit or not r.passed),
    )


SAMPLE = 3
"""Rows shown of those that break an audit."""


def breaking(audit: Audit, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Up to `SAMPLE` rows of local Parquet files that break an audit of rows."""
    with _database().cursor() as con:
        files = con.read_parquet(list(paths), hive_partitioning=False)
        rows = files.filter(f"NOT ({audit.condition})").limit(SAMPLE).to_arrow_table().to_pylist()
    return [{name: value for name, value in row.items() if name != MARK} for row in rows]


def broken_rows(dataset: Dataset, path: str) -> pa.Table:
    """Which rows of a local Parquet file break which of the audits that set rows aside.

    Returns:
        A boolean column for each of these audits, in their order, and a row for each row of the file, in its order.
    """
    audits = [audit for audit in dataset.audits if audit.on_fail == "quarantine"]
    selected = ", ".join(f"coalesce(NOT ({a.condition}), false) AS a{number}" for number, a in enumerate(audits))
    with _database().cursor() as con:
        return con.read_parquet(path, hive_partitioning=False).project(selected).to_arrow_table()


def with_keys(keys: pa.Table, paths: Sequence[str]) -> str:
    """The first of these keys that a row of local Parquet files has; "" if none has."""
    if not paths:
        return ""
    shown = ", ".join(f"k.{quoted(name)}" for name in keys.column_names)
    files = "read_parquet($1, hive_partitioning = false)"
    with _database().cursor() as con:
        con.register("given_keys", keys)
        found = con.execute(
            f"SELECT {shown} FROM given_keys AS k SEMI JOIN {files} AS o ON {_same(keys)} LIMIT 1", [list(paths)]
        ).fetchone()
    return ", ".join(f"{name}={value}" for name, value in zip(keys.column_names, found, strict=True)) if found else ""


def matches(keys: pa.Table, others: pa.Table) -> tuple[list[int], list[int]]:
    """Which rows of a table have one of some keys.

    Args:
        keys: Keys, nulls among them.
        others: The keys of other rows, of the same types.

    Returns:
        Numbers of rows of ``others``, in order, and for each the first row of ``keys`` that is the same.
    """
    import pyarrow as pa

    number = quoted(MARK)  # which no key has
    with _database().cursor() as con:
        for name, table in (("given_keys", keys), ("other_rows", others)):
            con.register(name, table.append_column(MARK, pa.array(range(table.num_rows), pa.int64())))
        found = con.execute(
            f"SELECT o.{number}, min(k.{number}) FROM other_rows AS o JOIN given_keys AS k ON {_same(keys)} "
            "GROUP BY 1 ORDER BY 1"
        ).fetchall()
    return [row for row, _ in found], [key for _, key in found]


def _same(keys: pa.Table) -> str:
    return " AND ".join(f"k.{quoted(name)} IS NOT DISTINCT FROM o.{quoted(name)}" for name in keys.column_names)


def _as_name(mark: str) -> str:
    return quoted(mark) if mark == MARK else mark


def _nothing(con: DuckDBPyConnection, dataset: Dataset) -> DuckDBPyRelation:
    """The relation of an empty partition: the declared columns, no rows."""
    columns = declared_types(dataset) | dataset.partition_columns
    selected = ", ".join(f"NULL::{t} AS {quoted(n)}" for n, t in columns.items()) or "NULL AS nothing"
    return con.sql(f"SELECT {selected} WHERE false")


@dataclass(frozen=True, slots=True)
class _Check:
    """An aggregate that counts the rows that break a condition, or returns -1 if the partition as a whole breaks it."""

    name: str
    sql: str
    on_fail: str = "reject"
    of_the_whole: bool = False
    audit: Audit | None = None
    measure: str = ""

    def result(self, count: int, measure: str | None) -> Checked:
        """The result, by what the aggregate and the measure gave."""
        if self.of_the_whole:
            expected = self.audit.expected if self.audit else ""
            return Checked(self.short, self.on_fail, not count, measure or "", expected)
        return Checked(self.short, self.on_fail, not count, rows_text(count), "0 rows", count)

    def failure(self, result: Checked) -> str:
        """What to say about a failure."""
        if result.failed_rows is not None:
            return f"{self.name}: {rows_text(result.failed_rows)}"
        return f"{self.name}: {result.observed}, expected {result.expected}" if result.expected else self.name

    @property
    def short(self) -> str:
        """The name of its result."""
        return self.audit.name if self.audit else self.name


def _is_fresh(newest: Newest, dataset: Dataset, partitions: Sequence[Partition], mark: str, data_type: str) -> str:
    """The condition that a partition's newest value is not old. Values without a zone are in the dataset's."""
    now = datetime.now(UTC).replace(tzinfo=None)
    ends = [now if p.grain is Grain.full else min(p.end, now) for p in partitions]
    if data_type == "TIMESTAMP WITH TIME ZONE":
        texts = [f"'{(end - newest.within).isoformat()}+00'" for end in ends]
    else:
        data_type = "TIMESTAMP"
        texts = [f"'{in_zone(end - newest.within, dataset.timezone).isoformat()}'" for end in ends]
    limit = f"[{', '.join(texts)}][{_as_name(mark)} + 1]::{data_type}"
    return f"coalesce(max({quoted(newest.column)}) >= {limit}, false)"


def _checks(
    dataset: Dataset, partitions: Sequence[Partition], mark: str, types: Mapping[str, str] = MappingProxyType({})
) -> list[_Check]:
    checks = []
    for column, data_type in dataset.partition_columns.items():
        # Neither a day nor a segment contains a quote.
        values = ", ".join(f"'{dataset.partition_values(p)[column]}'" for p in partitions)
        wanted = f"[{values}][{_as_name(mark)} + 1]::{data_type}"
        sql = f"count(*) FILTER ({quoted(column)} IS DISTINCT FROM {wanted})"
        checks.append(_Check(f"{column} differs from the partition", sql))
    if key := dataset.primary_key:
        names = ", ".join(map(quoted, key))
        label = ", ".join(key)
        nulls = " OR ".join(f"{quoted(c)} IS NULL" for c in key)
        checks += [
            _Check(f"null in the primary key ({label})", f"count(*) FILTER ({nulls})"),
            _Check(f"duplicate of the primary key ({label})", f"count(*) - count(DISTINCT row({names}))"),
        ]
    for audit in dataset.audits:
        whole = audit.is_of_the_whole
        condition = audit.condition
        if newest := audit.newest:
            condition = _is_fresh(newest, dataset, partitions, mark, types.get(newest.column, ""))
        sql = f"CASE WHEN {condition} THEN 0 ELSE -1 END"
        if not whole:
            sql = f"count(*) FILTER (NOT ({audit.condition}))"
        elif not audit.aggregate:
            sql = "0"
        checks.append(_Check(f"audit {audit.name!r} failed", sql, audit.on_fail, whole, audit, audit.measure))
    return checks
