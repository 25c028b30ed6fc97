"""Verify: every promise about the lake, checked against the lake itself. Reads only.

The ledger is held against the raw tables row for row (by fingerprint), the catalog against the storage, the files'
paths against their rows, the fences, the snapshots, and what the models were built from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from flows.datasets import all_datasets
from flows.datasets.model import Dataset, parse_partition
from flows.lake import ledger
from flows.lake.connect import connected, literal, rows
from flows.lake.schema import qualified, table_columns
from flows.settings import LAKE, Settings
from flows.stage.inspect import ALGORITHM, fingerprint_sql, fingerprint_text
from flows.stage.layout import attempt_of
from flows.stage.types import quoted
from flows.storage import open_storage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Args:
        severity: ``error`` breaks a promise; ``note`` is worth knowing.
        check: Which promise.
        subject: What it is about.
        message: What was found.
    """

    severity: Literal["error", "note"]
    check: str
    subject: str
    message: str


def verify(settings: Settings, since: datetime | None = None) -> Iterator[Finding]:
    """Check everything; yields what is found as it is found.

    Args:
        settings: Where the lake is.
        since: Read only the partitions whose last ledger row is as young as this, and do not list the storage: the
            cost is then theirs, and not the lake's.

    Raises:
        NotInitialised: there is no lake yet.
        CatalogError: the catalog cannot be opened.
    """
    import duckdb

    with connected(settings, read_only=True) as con:
        tables = table_columns(con)
        yield from _fences(con)
        latest = ledger.latest(con)
        published: dict[str, dict[str, ledger.Entry]] = {}
        for (key, partition), entry in latest.items():
            if entry.attempt_id and (since is None or entry.recorded_at >= since):
                published.setdefault(key, {})[partition] = entry
        files = dict(_files(con, None if since is None else {f"raw.{key}" for key in published}))
        yield from _registered_once(files)
        if since is None:
            yield from _storage(settings, con, files)
        for dataset in all_datasets().values():
            entries = published.get(dataset.key, {})
            if dataset.table not in tables or not (entries or files.get(dataset.table)):
                continue
            only = None if since is None or dataset.partition_column is None else entries.keys()
            try:
                yield from _rows(con, dataset, tables[dataset.table], entries, only)
                yield from _paths(con, dataset, files, only)
            except duckdb.Error as error:
                yield Finding("error", "file readable", dataset.table, " ".join(str(error).split())[:300])
        yield from _snapshots(con, since)
        yield from _builds(con)


def _fences(con: DuckDBPyConnection) -> Iterator[Finding]:
    for fence in ("fence", "transform_fence"):
        count = con.execute(f"SELECT count(*) FROM {LAKE}.ops.{fence}").fetchall()[0][0]
        if count != 1:
            yield Finding("error", "fence", f"ops.{fence}", f"has {count} rows instead of one")


def _files(con: DuckDBPyConnection, only: Set[str] | None) -> Iterator[tuple[str, list[str]]]:
    """The registered files of every table of the lake, or of some, full paths."""
    for schema, table in con.execute(
        "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = ?", [LAKE]
    ).fetchall():
        if only is not None and f"{schema}.{table}" not in only:
            continue
        found = con.execute(
            f"SELECT data_file, delete_file FROM ducklake_list_files('{LAKE}', ?, schema => ?)", [table, schema]
        ).fetchall()
        yield f"{schema}.{table}", [path for pair in found for path in pair if path]


def _registered_once(files: Mapping[str, list[str]]) -> Iterator[Finding]:
    for table, paths in files.items():
        for path, count in Counter(paths).items():
            if count > 1:
                yield Finding("error", "registered once", table, f"{path} is registered {count} times")


def _storage(settings: Settings, con: DuckDBPyConnection, files: Mapping[str, list[str]]) -> Iterator[Finding]:
    """No registered file is missing; those that nothing names are counted."""
    storage = open_storage(settings.data_path, settings)
    there = {storage.url + storage.relative(info.path) for info in storage.list()}
    for table, paths in files.items():
        for path in dict.fromkeys(paths):
            if path not in there and path.startswith(storage.url):
                yield Finding("error", "file exists", table, f"{path} is missing")
    staged = {attempt_of(path): path for path in there if path.startswith(f"{storage.url}raw/") and attempt_of(path)}
    orphans = staged.keys() - ledger.attempts_in(con, staged)
    if orphans:
        what = f"{len(orphans)} staged files that no ledger row names, of runs under way or killed"
        yield Finding("note", "orphans", settings.data_path, what)


def _rows(
    con: DuckDBPyConnection,
    dataset: Dataset,
    columns: Mapping[str, str],
    entries: Mapping[str, ledger.Entry],
    only: Set[str] | None,
) -> Iterator[Finding]:
    """Each published partition's rows, or those of some partitions, are the ledger's, by count and by content."""
    column = dataset.partition_column
    key = f"strftime({quoted(column)}, '{dataset.grain.key_format}')" if column else "'full'"
    found = con.execute(
        f"SELECT {key}, count(*), {fingerprint_sql(columns)} FROM {qualified(dataset)} {_where(dataset, only)} "
        "GROUP BY ALL"
    ).fetchall()
    here = {partition: (count, fingerprint_text(count, digest)) for partition, count, digest in found if count}
    for partition, entry in entries.items():
        count, fingerprint = here.pop(partition, (0, fingerprint_text(0, 0)))
        subject = f"{dataset.key} {partition}"
        if count != entry.rows:
            yield Finding("error", "rows", subject, f"has {count:,} rows, the ledger says {entry.rows:,}")
        elif entry.fingerprint.startswith(f"{ALGORITHM}:") and fingerprint != entry.fingerprint:
            yield Finding("error", "rows", subject, "has other rows than were staged")
    for partition, (count, _) in here.items():
        yield Finding("error", "rows", f"{dataset.key} {partition}", f"has {count:,} rows the ledger does not know")


def _where(dataset: Dataset, only: Set[str] | None) -> str:
    if only is None or dataset.partition_column is None:
        return ""
    values = ", ".join(literal(parse_partition(key, dataset.grain).value) for key in sorted(only))
    return f"WHERE {quoted(dataset.partition_column)} IN ({values})"


def _paths(
    con: DuckDBPyConnection, dataset: Dataset, files: Mapping[str, list[str]], only: Set[str] | None
) -> Iterator[Finding]:
    """The partition value in a file's path is that of its rows: DuckLake believes the path."""
    column = dataset.partition_column
    if column is None:
        return
    paths = [p for p in files.get(dataset.table, []) if f"/{column}=" in p]
    if only is not None:
        values = {parse_partition(key, dataset.grain).value for key in only}
        paths = [p for p in paths if _said(p, column) in values]
    if not paths:
        return
    for path, low, high in con.execute(
        f"SELECT filename, min({quoted(column)})::VARCHAR, max({quoted(column)})::VARCHAR "
        "FROM read_parquet(?, hive_partitioning => false, filename => true) GROUP BY filename",
        [paths],
    ).fetchall():
        said = _said(path, column)
        if low != said or high != said:
            yield Finding("error", "partition column", dataset.table, f"{path} holds {low} to {high}")


def _said(path: str, column: str) -> str:
    """The partition value in a file's path."""
    return path.rpartition(f"/{column}=")[2].partition("/")[0].replace("%20", " ").replace("%3A", ":")


def _snapshots(con: DuckDBPyConnection, since: datetime | None) -> Iterator[Finding]:
    """Every published ledger row's snapshot exists, or is older than the oldest there is."""
    snapshots = rows(con, f"SELECT snapshot_time, commit_extra_info FROM {LAKE}.snapshots()")
    tokens = {json.loads(s["commit_extra_info"] or "{}").get("token") for s in snapshots}
    oldest = min(s["snapshot_time"] for s in snapshots)
    for token, dataset, partition, count in con.execute(
        f"SELECT token, any_value(dataset), any_value(partition), count(*) FROM {LAKE}.ops.ledger "
        "WHERE recorded_at > ? GROUP BY token",
        [max(oldest, since or oldest)],
    ).fetchall():
        if token not in tokens:
            yield Finding(
                "error", "snapshot", f"{dataset} {partition}", f"no snapshot has token {token} ({count} ledger rows)"
            )


def _builds(con: DuckDBPyConnection) -> Iterator[Finding]:
    """The models were built from what is published."""
    if not ledger.built_project(con, "prod"):
        return
    stale = Counter(dataset for dataset, _ in ledger.unbuilt(con, "prod"))
    for dataset, count in stale.items():
        yield Finding("note", "models", dataset, f"{count} partitions are newer than silver and gold: lake transform")
