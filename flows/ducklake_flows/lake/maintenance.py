"""Maintenance: partition, flush, merge, rewrite, expire, clean up. The caller gates each step.

No step touches a file in flight. Files that no snapshot names are deleted only after `ORPHAN_AGE`. The same holds for
files of expired snapshots: a reader may still use them.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ducklake_flows.errors import CommitConflict
from ducklake_flows.lake.connect import commit_message, connected
from ducklake_flows.lake.fence import META
from ducklake_flows.lake.repair import settle, unpartition
from ducklake_flows.lake.schema import ORPHAN_AGE, SHADOW, partition
from ducklake_flows.lake.statistics import NAMED
from ducklake_flows.project import all_tables
from ducklake_flows.settings import LAKE, Settings
from ducklake_flows.staging.layout import CHUNK, is_older
from ducklake_flows.storage import open_storage
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset

SMALL = 64 << 20
"""Files smaller than this, in bytes, are merged with others, in a partitioned table with those of their partition."""

DELETED, MANY_DELETED = 0.1, 20_000
"""A file is rewritten if more than this share of its rows, or more than this number of rows, is deleted: each query on
the file reads the list of its deleted rows, some 0.2 ms per 1,000."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of maintenance.

    Args:
        name: The kind of step: partition, flush, merge, rewrite, expire, clean up, orphans, folders.
        subject: The table, or the lake.
        todo: The amount of work, in `unit`; 0 means that there is nothing to do.
        unit: Rows, files, snapshots or folders.
        run: Does the work and returns the amount done. Call it within the gate. Raises `CommitConflict` if another
            writer was first.
    """

    name: str
    subject: str
    todo: int
    unit: str
    run: Callable[[], int]


def figures(settings: Settings) -> dict[str, int]:
    """Counts of the lake: snapshots, files, bytes, rows in the catalog, files to clean up, orphans."""
    with connected(settings) as con:  # DuckLake lists orphans only on a writable connection
        files, size, deletes = con.execute(
            f"SELECT coalesce(sum(file_count), 0), coalesce(sum(file_size_bytes), 0), "
            f"coalesce(sum(delete_file_count), 0) FROM ducklake_table_info('{LAKE}')"
        ).fetchall()[0]
        return {
            "snapshots": con.execute(f"SELECT count(*) FROM {LAKE}.snapshots()").fetchall()[0][0],
            "files": int(files),
            "bytes": int(size),
            "delete files": int(deletes),
            "rows in the catalog": sum(count for _, _, count in _inlined(con)),
            "files to clean up": _count(con, "cleanup_old_files", "cleanup_all => true"),
            "stored files": len(open_storage(settings.data_path, settings).list()),
            "orphans": _count(con, "delete_orphaned_files", "cleanup_all => true"),
        }


def steps(settings: Settings, retention: timedelta, now: datetime | None = None) -> Iterator[Step]:
    """Yield the steps in order; each is planned after the ones before it are done. Planning only reads.

    Args:
        settings: Where the lake is.
        retention: Snapshots older than this are expired; rollback and time travel cannot go back further.
        now: The moment from which ages are counted; None means the present. Tests set it.
    """
    now = now or datetime.now(UTC)
    for find in (_partition, _flush, _merge, _rewrite):
        with connected(settings, read_only=True) as con:
            found = list(find(con, settings))
        yield from found
    before = f"older_than => TIMESTAMPTZ '{(now - retention).isoformat()}'"
    let_go = f"older_than => TIMESTAMPTZ '{(now - _age()).isoformat()}'"
    for name, function, bound, unit in (
        ("expire", "expire_snapshots", before, "snapshots"),
        ("clean up", "cleanup_old_files", let_go, "files"),
        ("orphans", "delete_orphaned_files", let_go, "files"),
    ):
        with connected(settings) as con:
            todo = _count(con, function, bound)
        yield Step(name, "the lake", todo, unit, lambda f=function, b=bound: _call(settings, f, b))  # type: ignore[misc]
    yield _folders(settings, now - _age())


def _age() -> timedelta:
    number, unit = ORPHAN_AGE.split()
    return timedelta(**{f"{unit.rstrip('s')}s": int(number)})


def _inlined(con: DuckDBPyConnection) -> list[tuple[str, str, int]]:
    """The tables with rows in the catalog instead of in files: schema, table, rows."""
    tables = con.execute(
        f"""SELECT s.schema_name, t.table_name, i.table_name
            FROM {META}.ducklake_inlined_data_tables i
            JOIN {META}.ducklake_table t ON t.table_id = i.table_id AND t.end_snapshot IS NULL
            JOIN {META}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL"""
    ).fetchall()
    counts: dict[tuple[str, str], int] = {}
    for schema, table, inlined in tables:
        rows = con.execute(f'SELECT count(*) FROM {META}."{inlined}" WHERE end_snapshot IS NULL').fetchall()[0][0]
        counts[schema, table] = counts.get((schema, table), 0) + rows
    return [(schema, table, count) for (schema, table), count in counts.items()]


def merge(settings: Settings, dataset: Dataset) -> int:
    """Merge the small files of a raw table. Call it within the gate. Returns the number of files.

    Raises:
        CommitConflict: another writer was first.
    """
    with connected(settings, read_only=True) as con:
        found = [step for step in _merge(con, settings) if step.subject == dataset.table]
    return sum(step.run() for step in found)


def rewrite(settings: Settings, dataset: Dataset) -> int:
    """Rewrite the files of a raw table of which some percent are deleted. Call it within the gate; see `merge`.

    Returns:
        The number of files.

    Raises:
        CommitConflict: another writer was first.
    """
    with connected(settings, read_only=True) as con:
        found = [step for step in _rewrite(con, settings, 0.02) if step.subject == dataset.table]
    return sum(step.run() for step in found)


def _partition(con: DuckDBPyConnection, settings: Settings) -> Iterator[Step]:
    """Partition the raw tables as their datasets ask for: these have changed, or an earlier release made the lake."""
    found = con.execute(
        f"""SELECT name, coalesce(keys, 0) > 0, coalesce(files, 0) FROM ({NAMED})
            LEFT JOIN (SELECT i.table_id, count(*) AS keys FROM {META}.ducklake_partition_info i
                       JOIN {META}.ducklake_partition_column USING (partition_id)
                       WHERE i.end_snapshot IS NULL GROUP BY ALL) USING (table_id)
            LEFT JOIN (SELECT table_id, count(*) AS files FROM {META}.ducklake_data_file
                       WHERE partition_id IS NOT NULL GROUP BY ALL) USING (table_id)"""
    ).fetchall()
    datasets = {d.table: d for d in all_tables() if d.partition_columns}
    for table, partitioned, files in found:
        dataset = datasets.get(table)
        if dataset is not None and (partitioned != dataset.partitioned or (files and not dataset.partitioned)):
            todo = max(files, 1)
            run = functools.partial(_as_asked, settings, dataset, todo, alter=partitioned != dataset.partitioned)
            yield Step("partition", table, todo, "files", run)


def _as_asked(settings: Settings, dataset: Dataset, todo: int, *, alter: bool) -> int:
    """Partition a raw table, or stop that and let its files belong to no partition. If killed, repeat it."""
    if alter:
        with _refusals(), connected(settings) as con:
            con.execute("BEGIN")
            partition(con, dataset)
            commit_message(con, "maintain")
            con.execute("COMMIT")
        failpoint("mid compaction")
    if not dataset.partitioned:
        unpartition(settings, dataset)
    return todo


def _flush(con: DuckDBPyConnection, settings: Settings) -> Iterator[Step]:
    """Write rows that are inlined in the catalog to Parquet files."""
    for schema, table, count in _inlined(con):
        if count:
            call = f"FROM ducklake_flush_inlined_data('{LAKE}', schema_name => '{schema}', table_name => '{table}')"
            name = f"{schema}.{table}"
            yield Step("flush", name, count, "rows", _transaction(settings, name, call, "rows_flushed"))


def _merge(con: DuckDBPyConnection, settings: Settings) -> Iterator[Step]:
    """Merge small files into one. Time travel still works. DuckLake merges no file with deleted rows."""
    small = f"f.file_size_bytes < {SMALL} AND d.data_file_id IS NULL"
    for schema, table, count, _ in _files(con, small, "count(*) > 1"):
        call = (
            f"FROM ducklake_merge_adjacent_files('{LAKE}', '{table}', schema => '{schema}', max_file_size => {SMALL})"
        )
        name = f"{schema}.{table}"
        run = _transaction(settings, name, call, "files_processed", merging=True)
        yield Step("merge", name, count, "files", run)


def _rewrite(con: DuckDBPyConnection, settings: Settings, more_than: float = DELETED) -> Iterator[Step]:
    """Rewrite files with many deleted rows without those rows."""
    # DuckLake takes a share only: that of the file with the smallest one.
    share = "d.delete_count / f.record_count::DOUBLE"
    deleted = f"({share} > {more_than} OR d.delete_count > {MANY_DELETED})"
    for schema, table, count, least in _files(con, deleted, "true", f"min({share})"):
        named = f"'{LAKE}', '{table}', schema => '{schema}'"
        call = f"FROM ducklake_rewrite_data_files({named}, delete_threshold => {least})"
        name = f"{schema}.{table}"
        yield Step("rewrite", name, count, "files", _transaction(settings, name, call, "files_processed"))


def _files(
    con: DuckDBPyConnection, where: str, having: str, least: str = "NULL"
) -> list[tuple[str, str, int, float | None]]:
    """The number of matching data files per table, and the least value of an aggregate: schema, table, files, value.

    `having` applies to each group that DuckLake would merge: files of one partition and one version of the table.
    """
    return con.execute(
        f"""SELECT schema_name, table_name, sum(files)::BIGINT, min(least) FROM (
                SELECT s.schema_name, t.table_name, count(*) AS files, {least} AS least
                FROM {META}.ducklake_data_file f
                JOIN {META}.ducklake_table t ON t.table_id = f.table_id AND t.end_snapshot IS NULL
                JOIN {META}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
                ASOF LEFT JOIN {META}.ducklake_schema_versions v
                       ON v.table_id = f.table_id AND f.begin_snapshot >= v.begin_snapshot
                LEFT JOIN {META}.ducklake_delete_file d
                       ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL
                LEFT JOIN (SELECT data_file_id, string_agg(partition_value, '/' ORDER BY partition_key_index) AS part
                           FROM {META}.ducklake_file_partition_value GROUP BY ALL) p
                       ON p.data_file_id = f.data_file_id
                WHERE f.end_snapshot IS NULL AND NOT ends_with(t.table_name, '{SHADOW}') AND {where}
                GROUP BY s.schema_name, t.table_name, v.schema_version, p.part HAVING {having})
            GROUP BY ALL ORDER BY ALL"""
    ).fetchall()


def _transaction(settings: Settings, table: str, call: str, column: str, *, merging: bool = False) -> Callable[[], int]:
    """A step that writes a table in one transaction, then settles the table's statistics (see `settle`)."""

    def run() -> int:
        with _refusals(), connected(settings) as con:
            # Each file is read once.
            con.execute("SET enable_external_file_cache = false")
            if merging:
                # Opening thousands of small files takes twice as long with a second thread, and more memory.
                con.execute("SET threads = 1")
            con.execute("BEGIN")
            done = con.execute(f"SELECT coalesce(sum({column}), 0)::BIGINT {call}").fetchall()[0][0]
            commit_message(con, "maintain")
            failpoint("mid compaction")
            con.execute("COMMIT")
        settle(settings, {table})
        return int(done)

    return run


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise `CommitConflict` if DuckLake refuses a commit: another writer was first, and nothing was changed."""
    import duckdb

    try:
        yield
    except duckdb.TransactionException as error:
        text = " ".join(str(error).split())[:300]
        raise CommitConflict(f"Another writer changed the lake first: {text}", "lake maintain") from error


def _call(settings: Settings, function: str, bound: str) -> int:
    with _refusals(), connected(settings) as con:
        con.execute("BEGIN")
        done = con.execute(f"FROM ducklake_{function}('{LAKE}', {bound})").fetchall()
        if function == "cleanup_old_files":
            failpoint("mid cleanup")
        con.execute("COMMIT")
    return len(done)


def _folders(settings: Settings, before: datetime) -> Step:
    """A step that removes the folders of chunks whose files are all deleted."""
    storage = open_storage(settings.data_path, settings)
    empty = storage.empty_folders(f"raw/*/{CHUNK}*")
    old = [folder for folder in empty if is_older(folder.rpartition("/")[2], before)]

    def run() -> int:
        for folder in old:
            storage.remove_folder(folder)
        return len(old)

    return Step("folders", "the lake", len(old), "folders", run)


def _count(con: DuckDBPyConnection, function: str, bound: str) -> int:
    found: list[Any] = con.execute(f"FROM ducklake_{function}('{LAKE}', {bound}, dry_run => true)").fetchall()
    return len(found)
