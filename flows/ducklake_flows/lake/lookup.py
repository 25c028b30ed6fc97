"""Look-ups in the catalog's own tables by index: their cost does not depend on the size of the lake.

DuckLake reads its tables whole: from SQLite without a condition, from PostgreSQL by page. So a look-up is sent in the
catalog's own SQL, through DuckDB, and reads the same state as the rest of the transaction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.datasets.types import quoted
from ducklake_flows.errors import CommitConflict
from ducklake_flows.lake.connect import literal
from ducklake_flows.lake.fence import META
from ducklake_flows.lake.files import place_in, within
from ducklake_flows.lake.rows import condition
from ducklake_flows.settings import LAKE
from ducklake_flows.staging.layout import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.settings import Settings

_BOTH = {
    "lake_file_path": "ducklake_data_file (table_id, path)",
    # The lower bound's day. A bound may be longer than PostgreSQL takes into an index.
    "lake_file_day": "ducklake_file_column_stats (table_id, column_id, substr(min_value, 1, 10))",
    "lake_file_statistics": "ducklake_file_column_stats (data_file_id, column_id)",
    "lake_file_deletes": "ducklake_delete_file (data_file_id)",
}
_POSTGRES = {
    # Bytewise, so that a range of paths is a range of the index.
    "lake_file_path": 'ducklake_data_file (table_id, path COLLATE "C")',
    # DuckLake's own queries use this one, and `lake_file_day`.
    "lake_file_begun": "ducklake_data_file (table_id, begin_snapshot)",
}

_INDEXED = 100
"""Bytes of an audit's name that are in an index of PostgreSQL. The name may be longer than it takes."""

_INLINED = {"ledger": "partition", "checks": "dataset, {name}, partition, token"}
"""What is indexed in the catalog's tables of the latest rows of ``ops``."""

FEW_FILES = 16
"""Maximum number of files that a look-up opens. DuckLake opens only those that its statistics do not rule out."""

FEW_PARTITIONS = 500
"""Maximum number of partitions that are looked up together. SQLite refuses a condition of 1,000 parts."""

LEDGER = {
    **dict.fromkeys(("dataset", "partition", "attempt_id", "state", "error"), "VARCHAR"),
    **dict.fromkeys(("fingerprint", "source_version", "confirmed_by"), "VARCHAR"),
    **dict.fromkeys(("rows_published", "bytes", "token"), "BIGINT"),
    "seconds": "DOUBLE",
    "recorded_at": "TIMESTAMP WITH TIME ZONE",
}
"""The columns of `ledger_rows`, with their types."""


def create_indexes(con: DuckDBPyConnection, settings: Settings) -> None:
    """Create the indexes of the catalog's tables. DuckLake creates none, and ignores them in SQLite. Safe to repeat.

    DuckLake's developers recommend indexes for large catalogs: https://github.com/duckdb/ducklake/issues/1147
    """
    schema = f"{META}.main" if settings.embedded else META
    wanted = _BOTH | ({} if settings.embedded else _POSTGRES)
    inlined = con.execute(
        f"SELECT i.table_name, t.table_name FROM {META}.ducklake_inlined_data_tables i "
        f"JOIN {META}.ducklake_table t USING (table_id) JOIN {META}.ducklake_schema s USING (schema_id) "
        f"WHERE s.schema_name = 'ops' AND t.table_name IN ('ledger', 'checks')"
    ).fetchall()
    wanted |= {f"lake_{name}": f"{name} ({_INLINED[table].format(name=_indexed(settings))})" for name, table in inlined}
    for name, columns in wanted.items():
        if settings.embedded:
            con.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {schema}.{columns}")
        else:
            con.execute(
                f"CALL postgres_execute('{META}', {literal(f'CREATE INDEX IF NOT EXISTS {name} ON {columns}')})"
            )


def native(settings: Settings, sql: str) -> str:
    """A query in the catalog's own SQL, as a relation for a query in DuckDB's."""
    return f"{'sqlite_query' if settings.embedded else 'postgres_query'}('{META}', {literal(sql)})"


def ledger_rows(con: DuckDBPyConnection, settings: Settings, token: int, partitions: Collection[str]) -> str | None:
    """A relation with the ledger's rows of a few partitions, of all datasets; see `LEDGER` for its columns.

    Args:
        con: A connection with a transaction open.
        settings: Where the lake is.
        token: The token of the transaction.
        partitions: Keys of the partitions.

    Returns:
        None if they are not a few, or the ledger can only be read through DuckLake: it has many files, or rows that
        another release has written.

    Raises:
        CommitConflict: another writer has committed since the transaction began.
    """
    stored_in = _stored(con, settings, token, "ledger") if len(partitions) <= FEW_PARTITIONS else None
    if stored_in is None:
        return None
    table, files = stored_in
    where = f"partition IN ({', '.join(map(literal, partitions))})"
    stored = ", ".join(f"{quoted(name)}" for name in LEDGER)
    # In PostgreSQL, DuckLake stores text as bytes.
    text = "{}" if settings.embedded else "decode({})"
    typed = ", ".join(
        f"{text.format(quoted(name)) if kind == 'VARCHAR' else f'{quoted(name)}::{kind}'} AS {quoted(name)}"
        for name, kind in LEDGER.items()
    )
    inlined = where if settings.embedded else f"partition IN ({', '.join(map(_bytes, partitions))})"
    inlined_rows = f"SELECT {stored} FROM {table} WHERE {inlined} AND end_snapshot IS NULL"
    # A file of an earlier release may lack columns.
    none = ", ".join(f"NULL::{kind} AS {quoted(name)}" for name, kind in LEDGER.items())
    parts = [f"SELECT {none} WHERE false", f"SELECT {typed} FROM {native(settings, inlined_rows)}"]
    if files:
        parts.append(f"SELECT * FROM {_read(files)} WHERE {where}")
    return f"(SELECT {stored} FROM ({' UNION ALL BY NAME '.join(parts)}))"


def results_before(
    con: DuckDBPyConnection, settings: Settings, token: int, dataset: Dataset, name: str, partition: str, last: int
) -> str:
    """A relation with the last results of an audit before a partition: ``partition``, ``observed``, ``token``.

    Results that rejected their partition are left out.

    Args:
        con: A connection with a transaction open.
        settings: Where the lake is.
        token: The token of the transaction.
        dataset: The dataset.
        name: The audit.
        partition: The partition's key: the last result of each of the `last` partitions of its segment before it. Of a
            dataset's only partition, or a segment alone: its own last results.
        last: How many.

    Raises:
        CommitConflict: another writer has committed since the transaction began.
    """
    segment, slash, _ = partition.rpartition("/")
    low, high = f"{segment}{slash}", partition
    is_alone = dataset.grain is Grain.full

    def where(text: Callable[[str], str]) -> str:
        within = (
            f"partition >= {text(low)} AND partition < {text(high)}" if not is_alone else f"partition = {text(high)}"
        )
        return (
            f"dataset = {text(dataset.key)} AND name = {text(name)} AND {within} "
            f"AND (passed OR on_fail <> {text('reject')})"
        )

    columns, order = "partition, observed, token", f"ORDER BY {'token' if is_alone else 'partition'} DESC LIMIT {last}"
    stored = _stored(con, settings, token, "checks")
    if stored is None:
        return f"(SELECT {columns} FROM {LAKE}.ops.checks WHERE {where(literal)})"
    table, files = stored
    text = literal if settings.embedded else _bytes
    begin = "true" if settings.embedded else f"{_indexed(settings)} = {_bytes(name, _INDEXED)}"
    rest = f"FROM {table} WHERE {begin} AND {where(text)} AND end_snapshot IS NULL"
    if is_alone:
        sql = f"SELECT {columns} {rest} {order}"
    elif settings.embedded:
        # The other columns are those of the row with the greatest token.
        sql = f"SELECT partition, observed, max(token) AS token {rest} GROUP BY partition {order}"
    else:
        sql = f"SELECT DISTINCT ON (partition) {columns} {rest} ORDER BY partition DESC, token DESC LIMIT {last}"
    if settings.embedded:
        found = "SELECT partition::VARCHAR AS partition, observed::VARCHAR AS observed, token::BIGINT AS token"
    else:
        found = "SELECT decode(partition) AS partition, decode(observed) AS observed, token"
    parts = [f"{found} FROM {native(settings, sql)}"]
    if files:
        texts = ("dataset", "partition", "name", "on_fail", "observed")
        none = ", ".join([*(f"NULL::VARCHAR AS {column}" for column in texts), "NULL::BOOLEAN AS passed"])
        read = f"SELECT {none}, NULL::BIGINT AS token WHERE false UNION ALL BY NAME SELECT * FROM {_read(files)}"
        parts.append(f"SELECT {columns} FROM ({read}) WHERE {where(literal)}")
    return f"({' UNION ALL '.join(parts)})"


def _indexed(settings: Settings) -> str:
    """What of an audit's name is in the index. SQLite finds no index by an expression whose column is given, too."""
    return "name" if settings.embedded else f"(substr(name, 1, {_INDEXED}))"


def _stored(con: DuckDBPyConnection, settings: Settings, token: int, name: str) -> tuple[str, list[str]] | None:
    """Where the rows of a table of ``ops`` are: the catalog's table of the latest rows, and the files of the others.

    None if there are many files, or rows that another release has written or a DELETE has removed.

    Raises:
        CommitConflict: another writer has committed since the transaction began.
    """
    found = con.execute(
        "FROM "
        + native(
            settings,
            f"""WITH wanted AS ({_table(settings, "ops", name)})
                SELECT 'snapshot' AS kind, CAST(max(snapshot_id) AS VARCHAR) AS name FROM ducklake_snapshot
                UNION ALL SELECT 'inlined', table_name FROM ducklake_inlined_data_tables
                          WHERE table_id = (SELECT table_id FROM wanted)
                UNION ALL SELECT 'file', CASE WHEN path_is_relative THEN (SELECT folder FROM wanted) ELSE '' END || path
                          FROM ducklake_data_file
                          WHERE table_id = (SELECT table_id FROM wanted) AND end_snapshot IS NULL
                UNION ALL SELECT 'delete', path FROM ducklake_delete_file
                          WHERE table_id = (SELECT table_id FROM wanted) AND end_snapshot IS NULL""",
        )
    ).fetchall()
    of: dict[str, list[str]] = {"inlined": [], "file": [], "delete": []}
    for kind, text in found:
        if kind != "snapshot":
            of[kind].append(text)
        elif int(text) != token - 1:
            raise CommitConflict("Another writer changed the lake first.", "run the same command again")
    if len(of["inlined"]) != 1 or len(of["file"]) > FEW_FILES or of["delete"]:
        return None
    return of["inlined"][0], of["file"]


def _read(files: Sequence[str]) -> str:
    """The rows of Parquet files; one of an earlier release may lack columns."""
    return f"read_parquet([{', '.join(map(literal, files))}], union_by_name => true, hive_partitioning => false)"


@dataclass(frozen=True, slots=True)
class Held:
    """What a raw table holds of some partitions.

    Args:
        partitions: Those of which it may hold rows.
        rows: Rows of the merged files that a DELETE of them reads.
        deleted: How many of these are deleted: the DELETE reads and writes a list of them.
    """

    partitions: Sequence[Partition]
    rows: int = 0
    deleted: int = 0


def held(con: DuckDBPyConnection, settings: Settings, dataset: Dataset, partitions: Sequence[Partition]) -> Held:
    """Those of some partitions of which the raw table may hold rows: the others need no DELETE.

    A partition is left out if no file's path names it, and no merged file has a row of it, deleted or not.

    Args:
        con: A connection with a transaction open.
        settings: Where the lake is.
        dataset: The dataset, whose table has a partition column.
        partitions: Partitions of the dataset.

    Raises:
        duckdb.Error: a merged file cannot be read.
    """
    column = dataset.partition_column or dataset.segment_column
    if column is None or len(partitions) > FEW_PARTITIONS:
        return Held(partitions)
    first = next(iter(dataset.partition_columns))
    path = "f.path" if settings.embedded else 'f.path COLLATE "C"'
    folders = sorted({_common(dataset, partition) for partition in partitions})
    named = " OR ".join(f"({path} >= {literal(name)} AND {path} < {literal(_after(name))})" for name in folders)
    bounds = sorted({dataset.partition_values(partition)[column][:10] for partition in partitions})
    # Files of chunks and partitions hold one partition: their path or their bounds name it.
    other = " OR ".join(
        f"({path} {condition})" for condition in _outside((CHUNK, _after(CHUNK)), (f"{first}=", _after(f"{first}=")))
    )
    found = con.execute(
        "FROM "
        + native(
            settings,
            f"""WITH raw AS ({_table(settings, "raw", dataset.key)}),
                col AS (
                    SELECT column_id FROM ducklake_column
                    WHERE table_id = (SELECT table_id FROM raw) AND column_name = {literal(column)}
                      AND parent_column IS NULL AND end_snapshot IS NULL)
                SELECT 'file' AS kind, CASE WHEN f.path_is_relative THEN (SELECT folder FROM raw) ELSE '' END || f.path
                       AS name, NULL AS low, NULL AS high, CAST(NULL AS BIGINT) AS rows_in, CAST(NULL AS BIGINT) AS gone
                FROM ducklake_data_file f
                WHERE f.table_id = (SELECT table_id FROM raw) AND f.end_snapshot IS NULL AND ({named})
                UNION
                SELECT 'file', CASE WHEN f.path_is_relative THEN (SELECT folder FROM raw) ELSE '' END || f.path,
                       NULL, NULL, NULL, NULL
                FROM ducklake_file_column_stats b JOIN ducklake_data_file f ON f.data_file_id = b.data_file_id
                WHERE b.table_id = (SELECT table_id FROM raw) AND b.column_id = (SELECT column_id FROM col)
                  AND substr(b.min_value, 1, 10) IN ({", ".join(map(literal, bounds))}) AND f.end_snapshot IS NULL
                UNION ALL
                SELECT 'other', CASE WHEN f.path_is_relative THEN (SELECT folder FROM raw) ELSE '' END || f.path,
                       b.min_value, b.max_value, f.record_count, coalesce(d.delete_count, 0)
                FROM ducklake_data_file f
                LEFT JOIN ducklake_file_column_stats b
                     ON b.data_file_id = f.data_file_id AND b.column_id = (SELECT column_id FROM col)
                LEFT JOIN ducklake_delete_file d ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL
                WHERE f.table_id = (SELECT table_id FROM raw) AND f.end_snapshot IS NULL AND ({other})
                UNION ALL
                SELECT 'inlined', table_name, NULL, NULL, NULL, NULL FROM ducklake_inlined_data_tables
                WHERE table_id = (SELECT table_id FROM raw)""",
        )
    ).fetchall()
    others = {name for kind, name, *_ in found if kind == "other"}
    places = {place_in(dataset, name) for kind, name, *_ in found if kind == "file" and name not in others}
    if None in places or any(kind == "inlined" and _has_rows(con, settings, name) for kind, name, *_ in found):
        return Held(partitions)
    asked = [partition for partition in partitions if partition.place not in places]
    is_time = column == dataset.partition_column
    merged: dict[str, tuple[int, int]] = {}
    for kind, name, low, high, *counts in found:
        between = (_moment(low), _moment(high)) if is_time else (low, high)
        if kind == "other" and any(within(between[0], partition.place[is_time], between[1]) for partition in asked):
            merged[name] = (int(counts[0]), int(counts[1]))
    if len(merged) > FEW_FILES or not all(name.rpartition("/")[2].startswith("ducklake-") for name in merged):
        return Held(partitions)
    if not merged:
        return Held([partition for partition in partitions if partition.place in places])
    files = ", ".join(map(literal, sorted(merged)))
    segment = quoted(dataset.segment_column) if dataset.segment_column else "''"
    low = f"{quoted(dataset.partition_column)}::TIMESTAMP" if dataset.partition_column else "NULL"
    rows = con.execute(
        f"SELECT DISTINCT {segment}, {low} FROM read_parquet([{files}], hive_partitioning => false) "
        f"WHERE {condition(dataset, asked)}"
    ).fetchall()
    places |= {(segment, low or datetime.min) for segment, low in rows}
    total, deleted = (sum(counts) for counts in zip(*merged.values(), strict=True)) if rows else (0, 0)
    return Held([partition for partition in partitions if partition.place in places], total, deleted)


def _common(dataset: Dataset, partition: Partition) -> str:
    """The begin of the paths below the table's folder that DuckLake and this pipeline may give a partition's files.

    They may write the rest of an hour after its day, and some characters of a segment, in another way.
    """
    folder = ""
    for column, value in dataset.partition_values(partition).items():
        plain = value[:10] if column == dataset.partition_column else re.match(r"[A-Za-z0-9_-]*", value)[0]  # type: ignore[index]
        folder += f"{column}={plain}"
        if plain != value:
            return folder
        folder += "/"
    return folder


def _after(prefix: str) -> str:
    """The first text, bytewise, that comes after all texts with this prefix."""
    return f"{prefix[:-1]}{chr(ord(prefix[-1]) + 1)}"


def _outside(*ranges: tuple[str, str]) -> list[str]:
    """The conditions, one of which is true for a text outside of these ranges of texts."""
    first, second = sorted(ranges)
    return [
        f"< {literal(first[0])}",
        f"BETWEEN {literal(first[1])} AND {literal(second[0])}",
        f">= {literal(second[1])}",
    ]


def _table(settings: Settings, schema: str, name: str) -> str:
    """Select the id of a live table and the full path of its folder, in the catalog's SQL."""
    return f"""
        SELECT t.table_id, CASE WHEN t.path_is_relative THEN
                   CASE WHEN s.path_is_relative THEN {literal(settings.data_path)} ELSE '' END || s.path
               ELSE '' END || t.path AS folder
        FROM ducklake_table t JOIN ducklake_schema s ON s.schema_id = t.schema_id
        WHERE s.schema_name = {literal(schema)} AND t.table_name = {literal(name)}
          AND t.end_snapshot IS NULL AND s.end_snapshot IS NULL"""


def _has_rows(con: DuckDBPyConnection, settings: Settings, inlined: str) -> bool:
    """Whether a table of inlined rows has any."""
    rows = native(settings, f"SELECT 1 AS one FROM {inlined} WHERE end_snapshot IS NULL LIMIT 1")
    return bool(con.execute(f"FROM {rows}").fetchall())


def _bytes(text: str, most: int | None = None) -> str:
    """A literal of bytes in PostgreSQL: the text's, or the first of them."""
    return f"'\\x{text.encode()[:most].hex()}'::bytea"


def _moment(text: str | None) -> datetime | None:
    """A bound of the partition column; None if the catalog has none that can be read."""
    try:
        return datetime.fromisoformat(text) if text is not None else None
    except ValueError:
        return None
