"""Repair: statistics in the catalog that are not those of the files are computed again, in one fenced commit.

And settle: where DuckLake 1.5.5 would merge a table's statistics wrongly with those of the next file, they are written
so that it does not. It has one mark, no minimum and no maximum, for two things: that no value is known yet, after which
it takes over the next file's bounds, and that the bounds are not known, after which it must not. The second arises from
the first commit to a table, and from the rewriting of files, whenever a file without any value of a column comes before
one with some.

DuckLake changes statistics only along with data, so this writes into the catalog's own tables:

    BEGIN
      read        the latest snapshot, the statistics, the footers of all files
      fence       INSERT the next snapshot: its id is the primary key for which every commit of DuckLake competes
      update      the rows that lie
    COMMIT

A commit of DuckLake that has the same number in mind fails on the key. It then reads the snapshots that came in between
and the statistics again; a table that this one names as altered it no longer writes to at all, so what it has read of
the old statistics goes nowhere. The new snapshot has another ``next_file_id``, by which DuckLake keeps statistics: so
connections that are open read them again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ducklake_flows.errors import CatalogError, CommitConflict
from ducklake_flows.lake import statistics
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.fence import META, claim_snapshot
from ducklake_flows.settings import Settings
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_Planned = tuple[list[tuple[str, list[Any]]], list[int], list["Change"]]
"""Statements with their values, the ids of the tables that they are about, and the same in words."""

RETRIES = 5
"""Transactions begun after another writer was first, within one hold of the gate."""


@dataclass(frozen=True, slots=True)
class Change:
    """One value of the catalog that was put right.

    Args:
        table: Schema and name.
        subject: The column, the file, or both.
        before: What stood there.
        after: What stands there now.
    """

    table: str
    subject: str
    before: str
    after: str


def repair(settings: Settings, only: Set[str] | None = None) -> list[Change]:
    """Put right the statistics that `lake verify` finds wrong. Call it within the gate.

    Args:
        settings: Where the lake is.
        only: Just these tables, by schema and name; None means all.

    Returns:
        What was changed; empty when nothing had to be.

    Raises:
        NotInitialised: there is no lake yet.
        CommitConflict: other writers were first, every time.
        CatalogError: the catalog or a file cannot be read, or the catalog not be written.
    """
    return _committed(settings, lambda con: _plan(con, settings, only))


def settle(settings: Settings, only: Set[str] | None = None) -> list[Change]:
    """Make tables safe to add files to: their statistics say what DuckLake will merge rightly. Call it within the gate.

    Reads one row for each column of a table, and those of its files only where both bounds are missing.

    Args:
        settings: Where the lake is.
        only: Just these tables, by schema and name; None means all.

    Returns:
        What was changed; empty when nothing had to be.

    Raises:
        CommitConflict: other writers were first, every time.
        CatalogError: the catalog cannot be read or written.
    """
    return _committed(settings, lambda con: _unsettled(con, only))


def _committed(settings: Settings, plan: Callable[[DuckDBPyConnection], _Planned]) -> list[Change]:
    """Commit what a plan says; planned again when another writer was first."""
    conflicts = Retrying(
        retry=retry_if_exception_type(CommitConflict),
        stop=stop_after_attempt(RETRIES),
        wait=wait_random_exponential(0.05, max=1.0),
        reraise=True,
    )
    changes: list[Change] = conflicts(_once, settings, str(uuid.uuid4()), plan)
    return changes


def _once(settings: Settings, mark: str, plan: Callable[[DuckDBPyConnection], _Planned]) -> list[Change]:
    """One transaction. What became of one that failed is read from the snapshots."""
    import duckdb

    snapshot: int | None = None
    changes: list[Change] = []
    try:
        with connected(settings) as con:
            con.execute("BEGIN")
            snapshot = _latest(con)
            statements, tables, changes = plan(con)
            if not changes:
                con.execute("ROLLBACK")
                return []
            claim_snapshot(con, snapshot, tables, mark)
            failpoint("after the fence")
            for statement, values in statements:
                con.execute(statement, values)
            failpoint("before COMMIT")
            con.execute("COMMIT")
            failpoint("after COMMIT")
    except duckdb.Error as error:
        text = settings.redact(" ".join(str(error).split())[:400])
        if snapshot is not None:
            with connected(settings, read_only=True) as con:
                if _is_there(con, mark):
                    return changes
                if _latest(con) != snapshot:
                    raise CommitConflict(f"Another writer changed the lake first: {text}", "lake repair") from error
        raise CatalogError(f"The statistics could not be repaired: {text}", "lake verify") from error
    return changes


def _latest(con: DuckDBPyConnection) -> int:
    return int(con.execute(f"SELECT max(snapshot_id) FROM {META}.ducklake_snapshot").fetchall()[0][0])


def _is_there(con: DuckDBPyConnection, mark: str) -> bool:
    """Whether a snapshot carries this mark: its COMMIT came through, though the answer did not."""
    found = con.execute(
        f"SELECT commit_extra_info FROM {META}.ducklake_snapshot_changes WHERE commit_message = 'repair'"
    ).fetchall()
    return any(json.loads(info or "{}").get("repair") == mark for (info,) in found)


def _plan(con: DuckDBPyConnection, settings: Settings, only: Set[str] | None) -> _Planned:
    """What `repair` does. Reads only."""
    statements: list[tuple[str, list[Any]]] = []
    changes: list[Change] = []
    tables: set[int] = set()
    statistics.load(con, only)
    for file in statistics.wrong_files(con, settings, every=True):
        stated, where = "ducklake_data_file", f"data_file_id = {file.file_id}"
        if file.column_id is not None:
            stated, where = "ducklake_file_column_stats", f"{where} AND column_id = {file.column_id}"
        assigned, values = ", ".join(f"{name} = ?" for name in file.right), list(file.right.values())
        statements.append((f"UPDATE {META}.{stated} SET {assigned} WHERE {where}", values))
        # The tables' statistics are computed from what the files' will be.
        read = "live_file" if file.column_id is None else "live_statistics"
        con.execute(f"UPDATE {read} SET {assigned} WHERE {where}", values)
        tables.add(file.table_id)
        subject = f"{file.path} {file.column}".rstrip()
        changes.append(Change(file.table, subject, _text(file.said), _text(file.right)))
    for table in statistics.wrong_rows(con):
        statements.append(
            (
                f"UPDATE {META}.ducklake_table_stats SET record_count = {table.right}, "
                f"next_row_id = greatest(next_row_id, {table.right}) WHERE table_id = {table.table_id}",
                [],
            )
        )
        tables.add(table.table_id)
        changes.append(Change(table.table, "", f"{table.said:,} rows", f"{table.right:,} rows"))
    _add_columns(con, statements, tables, changes)
    return statements, sorted(tables), changes


def _unsettled(con: DuckDBPyConnection, only: Set[str] | None) -> _Planned:
    """What `settle` does. Reads only."""
    statements: list[tuple[str, list[Any]]] = []
    changes: list[Change] = []
    tables: set[int] = set()
    for table_id, name in statistics.bare(con, only):
        statements.append(
            (
                f"INSERT INTO {META}.ducklake_table_stats (table_id, record_count, next_row_id, file_size_bytes) "
                f"VALUES ({table_id}, 0, 0, 0)",
                [],
            )
        )
        column = (
            f"INSERT INTO {META}.ducklake_table_column_stats (table_id, column_id, contains_null) "
            f"VALUES ({table_id}, ?, ?)"
        )
        statements += [(column, [column_id, False]) for column_id in statistics.used_columns(con, table_id)]
        tables.add(table_id)
        changes.append(Change(name, "", "no statistics", "no rows"))
    if unbounded := statistics.unbounded(con, only):
        statistics.load(con, unbounded)
        _add_columns(con, statements, tables, changes)
    return statements, sorted(tables), changes


def _add_columns(
    con: DuckDBPyConnection, statements: list[tuple[str, list[Any]]], tables: set[int], changes: list[Change]
) -> None:
    """Plan to put right what the loaded tables say of their columns."""
    for column in statistics.wrong_columns(con):
        where = f"table_id = {column.table_id} AND column_id = {column.column_id}"
        said, right = column.said, column.right
        if column.valued and right.low is None and right.high is None:
            # Without a row DuckLake keeps no statistics of the column from now on, and reads it.
            statements.append((f"DELETE FROM {META}.ducklake_table_column_stats WHERE {where}", []))
        else:
            statements.append(
                (
                    f"UPDATE {META}.ducklake_table_column_stats "
                    f"SET min_value = ?, max_value = ?, contains_null = ?, contains_nan = ? WHERE {where}",
                    [right.low, right.high, right.nulls, right.nan],
                )
            )
        tables.add(column.table_id)
        changes.append(Change(column.table, column.column, said.text(), right.text()))


def _text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
