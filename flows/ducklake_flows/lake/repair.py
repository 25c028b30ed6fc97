"""Repair: recompute statistics in the catalog that differ from those of the files, in one fenced commit.

Drop: take lost files out of the catalog, in a commit of the same kind. DuckLake itself reads a file before it deletes
its rows, so that it cannot replace a partition whose file is gone.

Settle: rewrite a table's statistics where DuckLake 1.5.5 would merge them wrongly with those of the next file. DuckLake
stores "no minimum and no maximum" in two cases that it does not distinguish:

- There is no value yet. DuckLake then takes the bounds of the next file, which is right.
- The bounds are unknown. DuckLake then takes the bounds of the next file, which is wrong.

The second case arises in the first commit to a table and when files are rewritten, if a file without any value of a
column comes before a file with values.

DuckLake changes statistics only along with data, so this module writes into the catalog's own tables:

    BEGIN
      read        the latest snapshot, the statistics, the footers of all files
      fence       INSERT the next snapshot: its id is the primary key for which every commit of DuckLake competes
      update      the wrong rows
    COMMIT

A concurrent commit of DuckLake with the same snapshot id fails on the key. DuckLake then reads the snapshots in between
and the statistics again. It does not write to a table that the repair's snapshot lists as altered, so the old
statistics that it read have no effect. The repair's snapshot has another ``next_file_id``. DuckLake caches statistics
by that id, so open connections read them again.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ducklake_flows.errors import CatalogError, CommitConflict
from ducklake_flows.lake import ledger, statistics
from ducklake_flows.lake.connect import commit_message, connected, literal, rows
from ducklake_flows.lake.faults import explain
from ducklake_flows.lake.fence import META, claim_snapshot, next_token
from ducklake_flows.lake.rows import condition
from ducklake_flows.lake.schema import qualified
from ducklake_flows.settings import LAKE
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence, Set

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings

_Planned = tuple[list[tuple[str, list[Any]]], list[int], list["Change"]]
"""The statements with their values, the ids of the tables that they change, and the changes in words."""

RETRIES = 5
"""Maximum number of transactions tried if another writer is first, within one hold of the gate."""


@dataclass(frozen=True, slots=True)
class Change:
    """One corrected value in the catalog.

    Args:
        table: Schema and name.
        subject: The column, the file, or both.
        before: The old value.
        after: The new value.
    """

    table: str
    subject: str
    before: str
    after: str


def repair(settings: Settings, only: Set[str] | None = None, lost: Set[str] = frozenset()) -> list[Change]:
    """Correct the statistics that `lake verify` finds wrong. Call it within the gate.

    Args:
        settings: Where the lake is.
        only: Only these tables, by schema and name; None means all.
        lost: Do not read these files, by full path: they are missing or unreadable.

    Returns:
        The changes; empty if nothing was wrong.

    Raises:
        NotInitialised: there is no lake yet.
        CommitConflict: other writers were first in every retry.
        CatalogError: the catalog or a file cannot be read, or the catalog cannot be written.
    """
    return _committed(settings, lambda con: _plan(con, settings, only, lost))


def settle(settings: Settings, only: Set[str] | None = None) -> list[Change]:
    """Write statistics that DuckLake merges correctly, so that files can be added to tables. Call it within the gate.

    Reads one row per column of a table. Reads the rows of its files only if both bounds are missing.

    Args:
        settings: Where the lake is.
        only: Only these tables, by schema and name; None means all.

    Returns:
        The changes; empty if nothing had to change.

    Raises:
        CommitConflict: other writers were first in every retry.
        CatalogError: the catalog cannot be read or written.
    """
    return _committed(settings, lambda con: _unsettled(con, only))


def drop(settings: Settings, paths: Sequence[str]) -> list[Change]:
    """Take lost files out of the tables. Call it within the gate, right before their partition is published again.

    Snapshots from before still name the files, and cannot be read.

    Args:
        settings: Where the lake is.
        paths: Full paths of data or delete files. With a delete file, its data file is dropped.

    Returns:
        The changes; empty if no live table has these files.

    Raises:
        CommitConflict: other writers were first in every retry.
        CatalogError: the catalog cannot be read or written.
    """
    return _committed(settings, lambda con: _dropped(con, settings, paths))


def unpartition(settings: Settings, dataset: Dataset) -> None:
    """Let DuckLake forget which partition each file of a raw table belongs to. Call it within the gate.

    DuckLake merges only files of the same partition. Readers are not affected: they find rows by the bounds of columns.

    Raises:
        CommitConflict: other writers were first in every retry.
        CatalogError: the catalog cannot be read or written.
    """
    _committed(settings, lambda con: _unpartitioned(con, dataset))


def remove(settings: Settings, dataset: Dataset, partitions: Collection[str]) -> list[Change]:
    """Delete the rows of partitions that were never published. Call it within the gate.

    The rows stay readable in earlier snapshots until these expire.

    Raises:
        CommitConflict: another writer changed the lake first.
        CatalogError: the catalog cannot be read or written.
    """
    import duckdb

    where = condition(dataset, map(dataset.partition, partitions))
    try:
        with connected(settings) as con:
            con.execute("BEGIN")
            token = next_token(con)
            entries = ledger.latest(con, dataset.key)
            if any(entries[dataset.key, key].attempt_id for key in partitions if (dataset.key, key) in entries):
                raise CommitConflict(f"{dataset.key} was published meanwhile.", "lake repair")
            (count,) = con.execute(f"DELETE FROM {qualified(dataset)} WHERE {where}").fetchall()[0]
            commit_message(con, "repair", token=token)
            con.execute("COMMIT")
    except duckdb.Error as error:
        raise explain(error, settings, committing=True) or error from error
    what = f"{count:,} rows that are not in the ledger"
    return [Change(dataset.table, ", ".join(sorted(partitions)), what, "removed")]


def forget_builds(settings: Settings, paths: Collection[str]) -> None:
    """Let the next transform build the intervals of lost files of models again. Call it within the gate.

    Args:
        settings: Where the lake is.
        paths: The lost files. If one names no day, everything is built again.
    """
    found = [re.findall(r"=(\d{4}-\d{2}-\d{2})", path) for path in paths]
    days = {day for each in found for day in each} if all(found) else set()
    with connected(settings) as con:
        con.execute("BEGIN")
        token = next_token(con)
        built = rows(
            con,
            f"""SELECT environment, dataset, partition, arg_max(project, token) AS project
                FROM {LAKE}.ops.builds WHERE dataset IS NOT NULL GROUP BY ALL""",
        )
        projects = {row["environment"]: ledger.built_project(con, row["environment"]) for row in built}
        common = {"attempt_id": "", "recorded_at": datetime.now(UTC), "token": token}
        ledger.append(
            con,
            "builds",
            [
                {**row, **common, "project": projects[row["environment"]]}
                for row in built
                if not days or any(day.startswith(row["partition"]) or row["partition"].startswith(day) for day in days)
            ],
        )
        commit_message(con, "repair")
        con.execute("COMMIT")


def _committed(settings: Settings, plan: Callable[[DuckDBPyConnection], _Planned]) -> list[Change]:
    """Plan and commit changes; plan again if another writer was first."""
    conflicts = Retrying(
        retry=retry_if_exception_type(CommitConflict),
        stop=stop_after_attempt(RETRIES),
        wait=wait_random_exponential(0.05, max=1.0),
        reraise=True,
    )
    changes: list[Change] = conflicts(_once, settings, str(uuid.uuid4()), plan)
    return changes


def _once(settings: Settings, mark: str, plan: Callable[[DuckDBPyConnection], _Planned]) -> list[Change]:
    """Run one transaction. If it fails, the snapshots show whether it was committed."""
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
            failpoint("repair committed")
    except duckdb.Error as error:
        text = settings.redact(" ".join(str(error).split())[:400])
        if snapshot is not None:
            with connected(settings, read_only=True) as con:
                if _is_there(con, mark):
                    return changes
                if _latest(con) != snapshot:
                    raise CommitConflict(f"Another writer changed the lake first: {text}", "lake repair") from error
        raise CatalogError(f"The catalog could not be repaired: {text}", "lake verify") from error
    return changes


def _latest(con: DuckDBPyConnection) -> int:
    return int(con.execute(f"SELECT max(snapshot_id) FROM {META}.ducklake_snapshot").fetchall()[0][0])


def _is_there(con: DuckDBPyConnection, mark: str) -> bool:
    """Whether a snapshot has this mark: then the COMMIT succeeded, even if its answer was lost."""
    found = con.execute(
        f"SELECT commit_extra_info FROM {META}.ducklake_snapshot_changes WHERE commit_message = 'repair'"
    ).fetchall()
    return any(json.loads(info or "{}").get("repair") == mark for (info,) in found)


def _plan(con: DuckDBPyConnection, settings: Settings, only: Set[str] | None, lost: Set[str]) -> _Planned:
    """Plan the changes of `repair`. Reads only."""
    statements: list[tuple[str, list[Any]]] = []
    changes: list[Change] = []
    tables: set[int] = set()
    statistics.load(con, only)
    for file in statistics.wrong_files(con, settings, every=True, lost=lost):
        stated, where = "ducklake_data_file", f"data_file_id = {file.file_id}"
        if file.column_id is not None:
            stated, where = "ducklake_file_column_stats", f"{where} AND column_id = {file.column_id}"
        assigned, values = ", ".join(f"{name} = ?" for name in file.right), list(file.right.values())
        statements.append((f"UPDATE {META}.{stated} SET {assigned} WHERE {where}", values))
        # The tables' statistics are computed from the corrected statistics of the files.
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
    """Plan the changes of `settle`. Reads only."""
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


def _dropped(con: DuckDBPyConnection, settings: Settings, paths: Sequence[str]) -> _Planned:
    """Plan the changes of `drop`. Reads only."""
    live = con.execute(
        f"""WITH folder AS ({statistics.folders_sql(settings.data_path)}), named AS ({statistics.NAMED})
            SELECT f.table_id, f.data_file_id, t.name, f.record_count,
                   {_full_path("f")} AS path, {_full_path("d")} AS delete_path
            FROM {META}.ducklake_data_file f JOIN folder USING (table_id) JOIN named t USING (table_id)
            LEFT JOIN {META}.ducklake_delete_file d ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL
            WHERE f.end_snapshot IS NULL"""
    ).fetchall()
    lost = [row for row in live if not {row[4], row[5]}.isdisjoint(paths)]
    ids = ", ".join(str(file) for _, file, *_ in lost)
    # The repair's own snapshot, which is in the table by now.
    now = f"(SELECT max(snapshot_id) FROM {META}.ducklake_snapshot)"
    statements: list[tuple[str, list[Any]]] = [
        (f"UPDATE {META}.{table} SET end_snapshot = {now} WHERE data_file_id IN ({ids}) AND end_snapshot IS NULL", [])
        for table in ("ducklake_data_file", "ducklake_delete_file")
    ]
    changes = [Change(name, path, f"{count:,} rows", "lost, dropped") for _, _, name, count, path, _ in lost]
    return statements, sorted({table for table, *_ in lost}), changes


def _unpartitioned(con: DuckDBPyConnection, dataset: Dataset) -> _Planned:
    """Plan the changes of `unpartition`. Reads only."""
    found = con.execute(
        f"""SELECT f.table_id, count(*) FROM {META}.ducklake_data_file f JOIN ({statistics.NAMED}) t USING (table_id)
            WHERE t.name = {literal(dataset.table)} AND f.partition_id IS NOT NULL GROUP BY ALL"""
    ).fetchall()
    statements: list[tuple[str, list[Any]]] = [
        (statement, [])
        for table, _ in found
        for statement in (
            f"UPDATE {META}.ducklake_data_file SET partition_id = NULL WHERE table_id = {table}",
            f"DELETE FROM {META}.ducklake_file_partition_value WHERE table_id = {table}",
        )
    ]
    changes = [Change(dataset.table, f"{count:,} files", "partitioned", "not partitioned") for _, count in found]
    return statements, [table for table, _ in found], changes


def _full_path(file: str) -> str:
    return f"CASE WHEN {file}.path_is_relative THEN folder.path ELSE '' END || {file}.path"


def _add_columns(
    con: DuckDBPyConnection, statements: list[tuple[str, list[Any]]], tables: set[int], changes: list[Change]
) -> None:
    """Plan the corrections of the loaded tables' column statistics."""
    for column in statistics.wrong_columns(con):
        where = f"table_id = {column.table_id} AND column_id = {column.column_id}"
        said, right = column.said, column.right
        if column.valued and right.low is None and right.high is None:
            # Without this row, DuckLake keeps no statistics of the column and always reads its values.
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
