"""The statistics that DuckLake answers from: a table's are checked against its files, a file's against its footer.

DuckDB trusts a table's statistics: it uses them to drop filters, to sort and to group, and answers ``min`` and ``max``
from them without reading a file. DuckLake skips files by the files' own statistics. The catalog stores both as text, so
they are compared as values of the column's type.

A table's range from ``min`` to ``max`` must contain those of its files. If DuckLake takes it as exact (no row was ever
deleted: ``record_count`` is the number of rows), the bounds must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.types import quoted
from ducklake_flows.lake.connect import literal, rows
from ducklake_flows.lake.fence import META
from ducklake_flows.settings import LAKE, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set
    from datetime import datetime

    from duckdb import DuckDBPyConnection

BYPASS = "SET disabled_optimizers = 'statistics_propagation,filter_pushdown'"
"""After this, a query reads every row: it uses no statistics of tables, files or row groups."""

PLAIN = "SET disabled_optimizers = 'statistics_propagation'"
"""After this, a query uses no table statistics, but still skips files and row groups by their own statistics."""

USE = "RESET disabled_optimizers"

TYPES = {
    "boolean": "BOOLEAN",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "uint8": "UTINYINT",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamp_us": "TIMESTAMP",
    "timestamp_s": "TIMESTAMP_S",
    "timestamp_ms": "TIMESTAMP_MS",
    "timestamp_ns": "TIMESTAMP_NS",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
    "uuid": "UUID",
    "varchar": "VARCHAR",
    "json": "VARCHAR",
}
"""The types whose min and max DuckLake uses, besides decimals. Statistics of other types are not checked."""

SAMPLE = 16
"""Per table, this many of the newest files and as many others, evenly spread, are checked against their footers."""


SIDES = ("low", "high")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a column's values, in DuckLake's text form.

    Args:
        low: The smallest value; None if unknown.
        high: The largest value; None if unknown.
        nulls: Whether there are nulls; None if unknown.
        nan: Whether there are NaNs; None if unknown.
    """

    low: str | None
    high: str | None
    nulls: bool | None
    nan: bool | None

    def text(self) -> str:
        """The statistics in words; unknown ones are left out."""
        known = {"min": self.low, "max": self.high}
        parts = [f"{name} {value}" for name, value in known.items() if value is not None] or ["no min or max"]
        parts += ["nulls" if self.nulls else "no nulls"] if self.nulls is not None else []
        parts += ["NaN" if self.nan else "no NaN"] if self.nan is not None else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column whose statistics in the table differ from those of its files.

    Args:
        table_id: DuckLake's id.
        column_id: DuckLake's id.
        table: Schema and name.
        column: Name.
        said: The statistics in the catalog.
        right: The correct statistics.
        valued: Whether there is any value: then an unknown minimum does not mean that there is no value.
        faults: What is wrong, one sentence each; empty if answers are right now but the next publish breaks them.
    """

    table_id: int
    column_id: int
    table: str
    column: str
    said: Statistics
    right: Statistics
    valued: bool
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableRows:
    """A table whose row count is below that of its files.

    Args:
        table_id: DuckLake's id.
        table: Schema and name.
        said: The row count in the table's statistics.
        right: The rows in its files, deleted ones included, and in the catalog.
    """

    table_id: int
    table: str
    said: int
    right: int


@dataclass(frozen=True, slots=True)
class FileColumn:
    """A column of a file, or the file's row count, for which the catalog and the file's footer differ.

    Args:
        table_id: DuckLake's id.
        file_id: DuckLake's id.
        column_id: DuckLake's id; None for the row count.
        table: Schema and name.
        path: The file.
        column: Name; "" for the row count.
        said: The values in the catalog, by the catalog's column name.
        right: The correct values, by the same names.
        faults: What is wrong, one sentence each.
    """

    table_id: int
    file_id: int
    column_id: int | None
    table: str
    path: str
    column: str
    said: Mapping[str, Any]
    right: Mapping[str, Any]
    faults: tuple[str, ...]


def duckdb_type(ducklake_type: str) -> str | None:
    """The DuckDB type of a column whose min and max DuckLake uses; None for any other."""
    return ducklake_type.upper() if ducklake_type.startswith("decimal(") else TYPES.get(ducklake_type)


def load(con: DuckDBPyConnection, only: Set[str] | None = None) -> None:
    """Read the catalog's records of the live tables into temporary tables, which the other functions use.

    Each table of the catalog is read once: a SQLite catalog has no index for more selective reads.

    Args:
        con: A connection to the lake.
        only: Only these tables, by schema and name; None means all.
    """
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE live_table AS
            SELECT t.table_id, s.schema_name, t.table_name, s.schema_name || '.' || t.table_name AS name,
                   st.record_count, st.next_row_id
            FROM {META}.ducklake_table t
            JOIN {META}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
            LEFT JOIN {META}.ducklake_table_stats st ON st.table_id = t.table_id
            WHERE t.end_snapshot IS NULL AND {_among(only)}"""
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE said AS
            SELECT s.table_id, s.column_id, s.contains_null::INT AS nulls, s.contains_nan::INT AS nan,
                   s.min_value AS low, s.max_value AS high
            FROM {META}.ducklake_table_column_stats s SEMI JOIN live_table USING (table_id)"""
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE live_column AS
            SELECT c.table_id, c.column_id, c.column_name, c.column_type, c.parent_column IS NULL AS root,
                   c.initial_default IS NOT NULL AS filled, c.column_order
            FROM {META}.ducklake_column c SEMI JOIN live_table USING (table_id)
            WHERE c.end_snapshot IS NULL"""
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE live_file AS
            SELECT f.data_file_id, f.table_id, f.record_count, f.file_size_bytes, f.mapping_id
            FROM {META}.ducklake_data_file f SEMI JOIN live_table USING (table_id)
            WHERE f.end_snapshot IS NULL"""
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE live_statistics AS
            SELECT s.data_file_id, s.table_id, s.column_id, s.value_count, s.null_count, s.min_value, s.max_value,
                   s.contains_nan
            FROM {META}.ducklake_file_column_stats s SEMI JOIN live_file USING (data_file_id)"""
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE live_delete AS
            SELECT f.table_id, sum(d.delete_count)::BIGINT AS rows
            FROM {META}.ducklake_delete_file d JOIN live_file f USING (data_file_id)
            WHERE d.end_snapshot IS NULL GROUP BY ALL"""
    )
    inlined = con.execute(
        f"SELECT table_id, table_name FROM {META}.ducklake_inlined_data_tables SEMI JOIN live_table USING (table_id)"
    ).fetchall()
    counts = (f"SELECT {n}, count(*) FROM {META}.{quoted(name)} WHERE end_snapshot IS NULL" for n, name in inlined)
    con.execute("CREATE OR REPLACE TEMP TABLE live_inlined (table_id BIGINT, rows BIGINT)")
    if inlined:
        con.execute(f"INSERT INTO live_inlined {' UNION ALL '.join(counts)}")


def bare(con: DuckDBPyConnection, only: Set[str] | None = None) -> list[tuple[int, str]]:
    """The live tables, or those in `only`, that never had a row: DuckLake has no statistics of them yet.

    Returns:
        The id, and the schema and name, of each table.
    """
    return con.execute(
        f"SELECT table_id, name FROM ({NAMED}) ANTI JOIN {META}.ducklake_table_stats USING (table_id) "
        f"WHERE {_among(only)} ORDER BY table_id"
    ).fetchall()


def unbounded(con: DuckDBPyConnection, only: Set[str] | None = None) -> set[str]:
    """The live tables, or those in `only`, with a column without minimum and maximum, by schema and name."""
    found = con.execute(
        f"""SELECT DISTINCT name FROM ({NAMED})
            JOIN {META}.ducklake_table_stats t USING (table_id)
            JOIN {META}.ducklake_table_column_stats s USING (table_id)
            WHERE s.min_value IS NULL AND s.max_value IS NULL AND t.record_count > 0 AND {_among(only)}"""
    ).fetchall()
    return {name for (name,) in found}


def used_columns(con: DuckDBPyConnection, table_id: int) -> list[int]:
    """The ids of a table's columns whose min and max DuckLake uses, including nested fields."""
    columns = con.execute(
        f"SELECT column_id, column_type FROM {META}.ducklake_column WHERE table_id = {table_id} "
        "AND end_snapshot IS NULL ORDER BY column_id"
    ).fetchall()
    return [column_id for column_id, kind in columns if duckdb_type(kind)]


def wrong_rows(con: DuckDBPyConnection) -> list[TableRows]:
    """The tables whose row count is below that of their files. Call `load` first."""
    found = con.execute(
        f"""SELECT table_id, name, record_count, held FROM ({_HELD})
            WHERE record_count < held ORDER BY name"""
    ).fetchall()
    return [TableRows(*row) for row in found]


def wrong_columns(con: DuckDBPyConnection) -> list[TableColumn]:
    """The columns whose statistics in the table differ from those of its files, also nested ones. Call `load` first.

    A column that has values but neither minimum nor maximum is included, without a fault: DuckLake takes it for a
    column without values and would set both from the next file alone (ducklake#1308).
    """
    found: list[TableColumn | None] = []
    kinds: dict[str | None, list[str]] = {}
    # A table that never had a row has no statistics.
    types = "SELECT DISTINCT column_type FROM live_column SEMI JOIN said USING (table_id, column_id)"
    for (name,) in con.execute(types).fetchall():
        kinds.setdefault(duckdb_type(name), []).append(name)
    con.execute(
        "CREATE OR REPLACE TEMP TABLE scanned (table_id BIGINT, column_id BIGINT, low VARCHAR, high VARCHAR, "
        "nulls BOOLEAN, nan BOOLEAN, valued BOOLEAN)"
    )
    _scan_inlined(con)
    for kind, names in kinds.items():
        if kind is not None:
            found += [_column(row) for row in rows(con, _columns_sql(kind, names))]
    return sorted((c for c in found if c), key=lambda c: (c.table, c.column_id))


NAMED = f"""
    SELECT t.table_id, s.schema_name || '.' || t.table_name AS name
    FROM {META}.ducklake_table t
    JOIN {META}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
    WHERE t.end_snapshot IS NULL"""
"""The live tables, by schema and name."""


def _among(only: Set[str] | None) -> str:
    return "true" if only is None else f"name IN ({_literals(only) or 'NULL'})"


_HELD = """
    SELECT t.table_id, t.name, t.record_count, coalesce(f.rows, 0) + coalesce(i.rows, 0) AS held,
           coalesce(i.rows, 0) AS inlined, coalesce(d.rows, 0) AS deleted
    FROM live_table t
    LEFT JOIN (SELECT table_id, sum(record_count)::BIGINT AS rows FROM live_file GROUP BY ALL) f USING (table_id)
    LEFT JOIN (SELECT table_id, sum(rows)::BIGINT AS rows FROM live_inlined GROUP BY ALL) i USING (table_id)
    LEFT JOIN live_delete d USING (table_id)"""
"""The row count of each table: in files, deleted ones included, and in the catalog."""


def _columns_sql(kind: str, names: Sequence[str]) -> str:
    """Select the statistics of all columns of a type, from the table and from its files; `_column` interprets them."""
    low, high = (f"TRY_CAST(s.{side}_value AS {kind})" for side in ("min", "max"))
    said_low, said_high = (f"TRY_CAST(said.{side} AS {kind})" for side in SIDES)
    right_low, right_high = (f"TRY_CAST(f.{side} AS {kind})" for side in SIDES)
    return f"""
        WITH col AS (
            SELECT table_id, column_id, column_name, root, filled FROM live_column
            WHERE column_type IN ({_literals(names)})
        ), of_files AS (
            SELECT col.table_id, col.column_id,
                   arg_min(s.min_value, {low}) AS low, arg_max(s.max_value, {high}) AS high,
                   bool_or(s.value_count IS DISTINCT FROM 0 AND {low} IS NULL) AS low_unknown,
                   bool_or(s.value_count IS DISTINCT FROM 0 AND {high} IS NULL) AS high_unknown,
                   bool_or(s.value_count IS DISTINCT FROM 0) AS valued,
                   bool_or(coalesce(s.null_count, 1) > 0) AS nulls,
                   bool_or(s.value_count IS DISTINCT FROM 0 AND coalesce(s.contains_nan::INT, 1) = 1) AS nan,
                   count(*) AS files
            FROM col JOIN live_statistics s USING (table_id, column_id) GROUP BY ALL
            UNION ALL
            SELECT table_id, column_id, low, high, false, false, valued, nulls, nan, NULL
            FROM scanned JOIN col USING (table_id, column_id)
        ), f AS (
            SELECT table_id, column_id, arg_min(low, TRY_CAST(low AS {kind})) AS low,
                   arg_max(high, TRY_CAST(high AS {kind})) AS high, bool_or(low_unknown) AS low_unknown,
                   bool_or(high_unknown) AS high_unknown, bool_or(valued) AS valued, bool_or(nulls) AS nulls,
                   bool_or(nan) AS nan, sum(files) AS files
            FROM of_files GROUP BY ALL
        ), n AS (SELECT table_id, count(*) AS files FROM live_file GROUP BY ALL)
        SELECT t.table_id, t.name, col.column_id, col.column_name, said.low AS said_low,
               said.high AS said_high, said.nulls AS said_nulls, said.nan AS said_nan,
               f.low, f.high, f.low_unknown, f.high_unknown, f.valued, f.nulls,
               -- A file without the column has its default in every row.
               col.root AND n.files > coalesce(f.files, 0) AND NOT col.filled AS lacking,
               col.root AND n.files > coalesce(f.files, 0) AND col.filled AS filled,
               f.nan AND '{kind}' IN ('FLOAT', 'DOUBLE') AS nan,
               '{kind}' NOT IN ('FLOAT', 'DOUBLE') OR said.nan = 0 AS used,
               {said_low} > {right_low} AS low_narrow, {said_high} < {right_high} AS high_narrow,
               h.exact AND {said_low} < {right_low} AS low_wide, h.exact AND {said_high} > {right_high} AS high_wide
        FROM col JOIN live_table t USING (table_id)
        JOIN (SELECT table_id, record_count = held AND deleted = 0 AS exact FROM ({_HELD})) h USING (table_id)
        JOIN said USING (table_id, column_id)
        LEFT JOIN f USING (table_id, column_id)
        LEFT JOIN n USING (table_id)"""


def _column(row: Mapping[str, Any]) -> TableColumn | None:
    """A column's faults; None if it has none and the next publish causes none.

    For floats, DuckLake uses min and max only if it knows that there is no NaN. No staged file records that.
    """
    faults = []
    said = Statistics(row["said_low"], row["said_high"], _flag(row["said_nulls"]), _flag(row["said_nan"]))
    valued, filled = bool(row["valued"] or row["filled"]), bool(row["filled"])
    right = Statistics(
        None if row["low_unknown"] or filled else row["low"],
        None if row["high_unknown"] or filled else row["high"],
        bool(row["nulls"] or row["lacking"]),
        None if said.nan is None else bool(row["nan"]),
    )
    for side, name, word in (("low", "min", "smaller"), ("high", "max", "larger")):
        mine, files = getattr(said, side), getattr(right, side)
        if mine is None or not valued or not row["used"]:
            continue
        if files is None:
            faults.append(f"{name} is {mine}, but a file does not record its own")
        elif row[f"{side}_narrow"]:
            faults.append(f"{name} is {mine}, but a file's is {word}: {files}")
        elif row[f"{side}_wide"]:
            faults.append(f"{name} is {mine} and taken as exact, but the files' is {files}")
    if said.nulls is False and right.nulls:
        faults.append("statistics say no nulls, but a file has some or does not record them")
    if said.nan is False and right.nan:
        faults.append("statistics say no NaN, but a file has some or does not record them")
    if not faults and not (row["used"] and valued and said.low is None and said.high is None):
        return None
    return TableColumn(
        row["table_id"], row["column_id"], row["name"], row["column_name"], said, right, valued, tuple(faults)
    )


def _scan_inlined(con: DuckDBPyConnection) -> None:
    """Compute the statistics of rows in the catalog, which have none, by a scan that uses no statistics."""
    tables = con.execute(
        f"SELECT table_id, schema_name, table_name FROM ({_HELD}) JOIN live_table USING (table_id) WHERE inlined > 0"
    ).fetchall()
    con.execute(BYPASS)
    for table_id, schema, table in tables:
        columns = [
            (column_id, column, duckdb_type(kind))
            for column_id, column, kind in con.execute(
                "SELECT column_id, column_name, column_type FROM live_column WHERE table_id = ? AND root", [table_id]
            ).fetchall()
            if duckdb_type(kind)
        ]
        terms = []
        for _, column, kind in columns:
            c = quoted(column)
            finite = f"CASE WHEN NOT isnan({c}) THEN {c} END" if kind in ("FLOAT", "DOUBLE") else c
            nan = f"coalesce(bool_or(isnan({c})), false)" if kind in ("FLOAT", "DOUBLE") else "false"
            terms.append(
                f"min({finite})::VARCHAR, max({finite})::VARCHAR, count(*) > count({c}), {nan}, count({c}) > 0"
            )
        found = con.execute(f"SELECT {', '.join(terms)} FROM {LAKE}.{quoted(schema)}.{quoted(table)}").fetchall()[0]
        values = [
            value
            for number, (column_id, _, _) in enumerate(columns)
            for value in (table_id, column_id, *found[number * 5 : number * 5 + 5])
        ]
        con.execute(f"INSERT INTO scanned VALUES {', '.join(['(?, ?, ?, ?, ?, ?, ?)'] * len(columns))}", values)
    con.execute(USE)


def wrong_files(
    con: DuckDBPyConnection,
    settings: Settings,
    since: datetime | None = None,
    *,
    every: bool = False,
    lost: Set[str] = frozenset(),
) -> list[FileColumn]:
    """The files for which the catalog and the file's footer differ. Call `load` first.

    Columns of nested types are not checked; row counts always are. Values that a footer lacks are not checked.

    Args:
        con: A connection to the lake.
        settings: Where its files are.
        since: Check all files registered since this moment. None: per table, the `SAMPLE` newest files and as many
            others, evenly spread over the older ones.
        every: Check all files.
        lost: Except for these, by full path: they are missing or unreadable.
    """
    files = [f for f in con.execute(_paths_sql(settings.data_path, since, every=every)).fetchall() if f[1] not in lost]
    if not files:
        return []
    con.execute("CREATE OR REPLACE TEMP TABLE read_file (data_file_id BIGINT, path VARCHAR, mapping_id BIGINT)")
    con.execute(f"INSERT INTO read_file VALUES {', '.join(['(?, ?, ?)'] * len(files))}", [v for f in files for v in f])
    con.execute(_FOOTERS, [[path for _, path, _ in files]])
    con.execute("CREATE OR REPLACE TEMP TABLE field (path VARCHAR, name VARCHAR, field_id BIGINT)")
    if written := [path for _, path, mapping in files if mapping is None]:
        con.execute(
            "INSERT INTO field SELECT file_name, name, field_id FROM parquet_schema(?) WHERE field_id IS NOT NULL",
            [written],
        )
    con.execute(_CHUNKS)
    found = [
        FileColumn(
            table_id,
            file_id,
            None,
            table,
            path,
            "",
            {"record_count": said},
            {"record_count": right},
            (f"row count is {said:,}, but the file's is {right:,}",),
        )
        for table_id, file_id, table, path, said, right in con.execute(
            """SELECT f.table_id, f.data_file_id, t.name, r.path, f.record_count, n.rows
               FROM (SELECT path, sum(rows)::BIGINT AS rows FROM footer WHERE number = 0 GROUP BY ALL) n
               JOIN read_file r USING (path) JOIN live_file f USING (data_file_id) JOIN live_table t USING (table_id)
               WHERE f.record_count <> n.rows ORDER BY ALL"""
        ).fetchall()
    ]
    kinds = [(name, duckdb_type(name)) for (name,) in con.execute("SELECT DISTINCT column_type FROM chunk").fetchall()]
    for name, kind in kinds:
        if kind is not None:
            found += map(_file, rows(con, _files_sql(name, kind)))
    return sorted(found, key=lambda f: (f.table, f.file_id, f.column_id or 0))


def _paths_sql(data_path: str, since: datetime | None, *, every: bool) -> str:
    """Select the files to read: id, full path and mapping."""
    if every:
        chosen = "true"
    elif since is None:
        chosen = f"newest <= {SAMPLE} OR (newest - 1) % greatest(1, files // {SAMPLE}) = 0"
    else:
        moment = literal(since.isoformat())
        chosen = (
            f"(SELECT snapshot_time::TIMESTAMPTZ FROM {META}.ducklake_snapshot WHERE snapshot_id = begun) >= {moment}"
        )
    return f"""
        WITH folder AS ({folders_sql(data_path)}), file AS (
            SELECT f.data_file_id, CASE WHEN f.path_is_relative THEN folder.path ELSE '' END || f.path AS path,
                   f.begin_snapshot AS begun, f.mapping_id,
                   row_number() OVER (PARTITION BY f.table_id ORDER BY f.data_file_id DESC) AS newest,
                   count(*) OVER (PARTITION BY f.table_id) AS files
            FROM {META}.ducklake_data_file f SEMI JOIN live_file l ON f.data_file_id = l.data_file_id
            JOIN folder USING (table_id)
            WHERE f.encryption_key IS NULL OR f.encryption_key = ''
        )
        SELECT data_file_id, path, mapping_id FROM file WHERE {chosen}"""


def folders_sql(data_path: str) -> str:
    """Select the folder of each live table: id and full path. Paths of files are relative to it."""
    return f"""
        SELECT t.table_id, CASE WHEN t.path_is_relative THEN
                   CASE WHEN s.path_is_relative THEN {literal(data_path)} ELSE '' END || s.path
               ELSE '' END || t.path AS path
        FROM {META}.ducklake_table t JOIN {META}.ducklake_schema s USING (schema_id)
        WHERE t.end_snapshot IS NULL AND s.end_snapshot IS NULL"""


_FOOTERS = """
    CREATE OR REPLACE TEMP TABLE footer AS
    SELECT file_name AS path, column_id AS number, row_group_num_rows AS rows, path_in_schema AS name,
           type AS physical, num_values AS values, stats_null_count AS nulls,
           CASE WHEN min_is_exact IS DISTINCT FROM false THEN coalesce(stats_min, stats_min_value) END AS low,
           CASE WHEN max_is_exact IS DISTINCT FROM false THEN coalesce(stats_max, stats_max_value) END AS high
    FROM parquet_metadata(?)"""
"""The footers' statistics of the columns of each row group."""

_CHUNKS = f"""
    CREATE OR REPLACE TEMP TABLE chunk AS
    WITH named AS (
        -- A staged file's columns are found by name, through its mapping; a file that DuckLake wrote has column ids.
        SELECT r.path, m.source_name AS name, m.target_field_id AS column_id
        FROM read_file r JOIN {META}.ducklake_name_mapping m USING (mapping_id)
        WHERE m.parent_column IS NULL
        UNION ALL
        SELECT r.path, field.name, field.field_id FROM read_file r JOIN field USING (path)
    )
    SELECT f.data_file_id, f.table_id, col.column_id, col.column_name, col.column_type, footer.*
    FROM footer JOIN named USING (path, name) JOIN read_file r USING (path) JOIN live_file f USING (data_file_id)
    JOIN live_column col ON col.table_id = f.table_id AND col.column_id = named.column_id AND col.root"""
"""The same statistics, joined with the table's columns."""


def _files_sql(name: str, kind: str) -> str:
    """Select where the catalog's statistics of files differ from the footers', for all columns of a type."""
    # A FLOAT's text differs from that of the DOUBLE with the same value: 0.2 and 0.20000000298023224.
    low, high = (f"CASE physical WHEN 'FLOAT' THEN {side}::FLOAT::{kind} ELSE {side}::{kind} END" for side in SIDES)
    return f"""
        WITH right_of AS (
            SELECT data_file_id, table_id, column_id, column_name, path,
                   CASE WHEN bool_and(low IS NOT NULL OR values = nulls) THEN min({low}) END AS low,
                   CASE WHEN bool_and(high IS NOT NULL OR values = nulls) THEN max({high}) END AS high,
                   CASE WHEN bool_and(nulls IS NOT NULL) THEN sum(nulls)::BIGINT END AS null_count,
                   CASE WHEN bool_and(nulls IS NOT NULL) THEN sum(values - nulls)::BIGINT END AS value_count
            FROM chunk WHERE column_type = {literal(name)} GROUP BY ALL
        )
        SELECT t.table_id, t.name, r.data_file_id, r.column_id, r.column_name, r.path, r.null_count, r.value_count,
               r.low::VARCHAR AS low, r.high::VARCHAR AS high, s.min_value AS said_low, s.max_value AS said_high,
               s.null_count AS said_null_count, s.value_count AS said_value_count,
               TRY_CAST(s.min_value AS {kind}) <> r.low AS low_wrong,
               TRY_CAST(s.max_value AS {kind}) <> r.high AS high_wrong
        FROM right_of r JOIN live_statistics s USING (data_file_id, column_id)
        JOIN live_table t ON t.table_id = r.table_id
        WHERE coalesce(low_wrong, false) OR coalesce(high_wrong, false) OR s.null_count <> r.null_count
           OR s.value_count <> r.value_count"""


def _file(row: Mapping[str, Any]) -> FileColumn:
    faults: list[str] = []
    said: dict[str, Any] = {}
    right: dict[str, Any] = {}
    for side, name in zip(SIDES, ("min", "max"), strict=True):
        if row[f"{side}_wrong"]:
            said[f"{name}_value"], right[f"{name}_value"] = row[f"said_{side}"], row[side]
            faults.append(f"{name} is {row[f'said_{side}']}, but the file's is {row[side]}")
    for name, what in (("null_count", "nulls"), ("value_count", "values")):
        if None not in (row[name], row[f"said_{name}"]) and row[name] != row[f"said_{name}"]:
            said[name], right[name] = row[f"said_{name}"], row[name]
            faults.append(f"number of {what} is {row[f'said_{name}']:,}, but the file's is {row[name]:,}")
    ids = (row["table_id"], row["data_file_id"], row["column_id"])
    return FileColumn(*ids, row["name"], row["path"], row["column_name"], said, right, tuple(faults))


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _literals(texts: Iterable[str]) -> str:
    return ", ".join(literal(text) for text in sorted(texts))
