"""Verify: check every promise about the lake against the lake itself. Reads only.

It compares the ledger with the raw tables row for row (by fingerprint), the catalog with the storage, the files' paths
with their rows, the statistics of tables with those of files, the statistics of files with their footers, and answers
from statistics with a scan. It also checks the snapshots, and what the models were built from.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ducklake_flows.datasets.types import quoted
from ducklake_flows.errors import CatalogError
from ducklake_flows.lake import damage, keys, ledger, statistics
from ducklake_flows.lake.builds import refused_intervals
from ducklake_flows.lake.connect import connected, literal, one_snapshot, renew, rows
from ducklake_flows.lake.fence import check_release
from ducklake_flows.lake.files import place_in, registered
from ducklake_flows.lake.rows import condition
from ducklake_flows.lake.schema import qualified, shadow_key, table_columns
from ducklake_flows.project import all_tables
from ducklake_flows.settings import LAKE, Settings
from ducklake_flows.staging.layout import attempt_of
from ducklake_flows.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set
    from datetime import datetime

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.storage import Storage

REPAIR = "lake repair"
BACKUP = "restore the lake from a backup: docs/operations.md"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that was found.

    Args:
        severity: ``error``: a promise is broken; ``note``: worth knowing.
        check: The promise that was checked.
        subject: The table, partition or path that it concerns.
        message: What was found.
        fix: The command that repairs it, or what to do if no command does.
    """

    severity: Literal["error", "note"]
    check: str
    subject: str
    message: str
    fix: str = REPAIR


def verify(settings: Settings, since: datetime | None = None) -> Iterator[Finding]:
    """Run all checks; yields each finding as it is found.

    Two checks use a sample, so that they cost little compared with reading every row. The newest files of each table
    and as many others are compared with their footers (`statistics.SAMPLE`). Answers are checked on the first, the
    middle and the last partition of each raw table. The statistics of tables are compared with those of all files.

    Args:
        settings: Where the lake is.
        since: Read only the partitions whose last ledger row is at least this recent, their tables, and the footers of
            all files registered since; do not list the storage. The cost then depends on these, not on the whole lake.

    Raises:
        NotInitialised: there is no lake yet.
        CatalogError: the catalog cannot be opened.
    """
    import duckdb

    with connected(settings, read_only=True) as con:
        # Otherwise a publish between two statements could have its files in one answer, but not its ledger rows.
        with one_snapshot(con):
            tables = table_columns(con)
            yield from _release(con)
            published: dict[str, dict[str, ledger.Entry]] = {}
            for (key, partition), entry in ledger.latest(con, since=since).items():
                if entry.attempt_id:
                    published.setdefault(key, {})[partition] = entry
            files = dict(_files(con, None if since is None else {f"raw.{key}" for key in published}))
        yield from _registered_once(files)
        storage = open_storage(settings.data_path, settings)
        there = damage.stored(storage) if since is None else None
        lost: set[str] = set()
        datasets = [
            dataset
            for dataset in all_tables()
            if dataset.table in tables and (published.get(dataset.key) or files.get(dataset.table))
        ]
        if there is not None:
            others = {table: found for table, found in files.items() if table not in {d.table for d in datasets}}
            for finding, path in _storage(storage, others, there):
                lost.add(path)
                yield finding
            yield from _orphans(settings, con, storage, there)
            yield from _migrations(con)
        for dataset in datasets:
            renew(con, settings)
            columns, entries = tables[dataset.table], published.get(dataset.key, {})
            only = None if since is None or not dataset.partition_columns else entries.keys()
            found = damage.find(settings, con, dataset, columns, entries, files.get(dataset.table, []), only, there)
            for one in found:
                yield Finding("error", one.check, f"{one.dataset} {one.partition}", one.message)
            lost.update(path for one in found for path in one.lost)
            broken = {one.partition for one in found if one.check != "rows"}
            whole = {key: entry for key, entry in entries.items() if key not in broken}
            paths = [path for path, _ in files.get(dataset.table, []) if path not in lost]
            try:
                yield from _paths(con, dataset, columns, paths, None if only is None else whole.keys())
                yield from _answers(con, dataset, columns, whole)
                yield from _keys(con, dataset, columns, only)
            except duckdb.Error as error:
                yield Finding("error", "file readable", dataset.table, " ".join(str(error).split())[:300])
        yield from _statistics(settings, con, None if since is None else files.keys(), since, lost)
        with one_snapshot(con):
            yield from _quarantines(con, since)
            yield from _snapshots(con, since)
            yield from _builds(con)


def _release(con: DuckDBPyConnection) -> Iterator[Finding]:
    try:
        check_release(con)
    except CatalogError as error:
        yield Finding("error", "release", "the lake", error.message, error.fix)


def _files(con: DuckDBPyConnection, only: Set[str] | None) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """The registered files by table, see `registered`; of all tables or those in `only`."""
    for schema, table in con.execute(
        "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = ?", [LAKE]
    ).fetchall():
        if only is None or f"{schema}.{table}" in only:
            yield f"{schema}.{table}", registered(con, f"{schema}.{table}")


def _registered_once(files: Mapping[str, list[tuple[str, int]]]) -> Iterator[Finding]:
    for table, found in files.items():
        for path, count in Counter(path for path, _ in found).items():
            if count > 1:
                yield Finding("error", "registered once", table, f"{path} is registered {count} times")


def _storage(
    storage: Storage, files: Mapping[str, list[tuple[str, int]]], there: Mapping[str, int]
) -> Iterator[tuple[Finding, str]]:
    """Find the registered files that are missing, each with its path."""
    for table, found in files.items():
        for path, fault in damage.absent(storage, found, there):
            fix = BACKUP if table.startswith(("ops.", "raw.")) else REPAIR
            yield Finding("error", "file exists", table, f"{path} {fault}", fix), path


def _migrations(con: DuckDBPyConnection) -> Iterator[Finding]:
    """Name the tables that a stopped migration has left."""
    names = {shadow_key(dataset.key): dataset.key for dataset in all_tables()}
    for table in table_columns(con):
        if key := names.get(table.removeprefix("raw.")):
            fix = f"lake migrate {key}, as before; or: lake migrate {key} --abandon"
            yield Finding("note", "migration", table, "a migration is in progress or was stopped", fix)


def _orphans(
    settings: Settings, con: DuckDBPyConnection, storage: Storage, there: Mapping[str, int]
) -> Iterator[Finding]:
    """Count the staged files without a ledger row."""
    staged = {attempt_of(path) for path in there if path.startswith(f"{storage.url}raw/")} - {""}
    if orphans := staged - ledger.attempts_in(con, staged):
        what = f"{len(orphans)} staged files without a ledger row, from runs in progress or killed"
        yield Finding("note", "orphans", settings.data_path, what, "lake maintain (once they are a day old)")


def _keys(
    con: DuckDBPyConnection, dataset: Dataset, columns: Mapping[str, str], only: Set[str] | None
) -> Iterator[Finding]:
    """Check that a key that is unique over the whole table is."""
    if dataset.key_scope != "table":
        return
    if found := keys.twice(con, dataset, columns, None if only is None else list(map(dataset.partition, sorted(only)))):
        label = ", ".join(dataset.primary_key)
        fix = f"correct the source of one of them, then run: lake backfill {dataset.key} --mode stale"
        yield Finding("error", "key", dataset.table, f"the primary key ({label}) is not unique: {found}", fix)


def _where(dataset: Dataset, only: Set[str] | None) -> str:
    return "" if only is None else f"WHERE {condition(dataset, map(dataset.partition, sorted(only)))}"


def _paths(
    con: DuckDBPyConnection,
    dataset: Dataset,
    columns: Mapping[str, str],
    files: Sequence[str],
    only: Set[str] | None,
) -> Iterator[Finding]:
    """Check that the partition value in a file's path is that of its rows: DuckLake trusts the path."""
    places = {path: place for path in files if (place := place_in(dataset, path)) is not None}
    if only is not None:
        asked = {dataset.partition(key).place for key in only}
        places = {path: place for path, place in places.items() if place in asked}
    if not places or not dataset.partition_columns:
        return
    # A source may have a column named filename.
    name = next(n for n in (f"filename{i}" for i in range(len(columns) + 1)) if n not in columns)
    for number, column in enumerate((dataset.segment_column, dataset.partition_column)):
        if column is None:
            continue
        # Compared as timestamps: a file may store a day as text, or as its midnight.
        value = quoted(column) if column == dataset.segment_column else f"TRY_CAST({quoted(column)} AS TIMESTAMP)"
        for path, low, high, whole in con.execute(
            f"SELECT {quoted(name)}, min({value}), max({value}), count(*) = count({value}) "
            f"FROM read_parquet(?, hive_partitioning => false, filename => {literal(name)}) GROUP BY {quoted(name)}",
            [list(places)],
        ).fetchall():
            if not whole or not low == high == places[path][number]:
                what = f"{low} to {high}" + ("" if whole else ", and rows without a value")
                yield Finding("error", "partition column", dataset.table, f"{path} holds {what}")


def _statistics(
    settings: Settings, con: DuckDBPyConnection, only: Set[str] | None, since: datetime | None, lost: Set[str]
) -> Iterator[Finding]:
    """Check the statistics that DuckLake answers from, of all tables or those in `only`, against the files.

    Files in `lost` are left out.
    """
    import duckdb

    with one_snapshot(con):
        statistics.load(con, only)
    for table in statistics.wrong_rows(con):
        what = f"the table's statistics say {table.said:,} rows, but its files have {table.right:,}"
        yield Finding("error", "statistics", table.table, what)
    for column in statistics.wrong_columns(con):
        for fault in column.faults:
            what = f"column {column.column}: the table's {fault}"
            yield Finding("error", "statistics", column.table, what)
        if not column.faults:
            what = (
                f"column {column.column}: the table has neither min nor max, and DuckLake would set both from the "
                "next file alone"
            )
            yield Finding("note", "statistics", column.table, what)
    try:
        for file in statistics.wrong_files(con, settings, since, lost=lost):
            where = f"column {file.column}: " if file.column else ""
            for fault in file.faults:
                what = f"{where}the catalog's {fault}, in {file.path}"
                yield Finding("error", "statistics", file.table, what)
    except duckdb.Error as error:
        yield Finding("error", "file readable", "footers", " ".join(str(error).split())[:300])


@dataclass(frozen=True, slots=True)
class _Question:
    """A query that DuckDB answers with the help of statistics.

    Args:
        column: The column that it queries.
        what: The operators that it uses.
        condition: The condition on the rows.
        selected: The text of the query before ``FROM``.
        rest: The text of the query after the condition.
    """

    column: str
    what: str
    condition: str
    selected: str = "SELECT count(*)"
    rest: str = ""

    def sql(self, table: str, where: str) -> str:
        """The query on a relation, as a SQL expression."""
        also = f"{where} AND" if where else "WHERE"
        return f"({self.selected} FROM {table} {also} {self.condition} {self.rest})"


QUESTIONS = 12
"""Maximum number of queries per table, evenly spread over its columns and the operators. Each query reads the catalog's
whole list of files."""

ANSWERED_ROWS = 1_000_000
"""Maximum number of rows, over all partitions of a table on which answers are checked."""


def _answers(
    con: DuckDBPyConnection, dataset: Dataset, columns: Mapping[str, str], entries: Mapping[str, ledger.Entry]
) -> Iterator[Finding]:
    """Check that operators answered from statistics give the same result as on a copy of the rows.

    The copy is read without the table's statistics. Its partitions are found by the statistics of the partition column,
    which `_paths` has compared with the rows. Types without statistics in DuckLake are left out.
    """
    import duckdb

    keys = sorted(key for key, entry in entries.items() if entry.rows)
    chosen: dict[str, int] = {}
    for key in dict.fromkeys(keys[i] for i in (0, len(keys) // 2, -1) if keys):
        if sum(chosen.values()) + entries[key].rows <= ANSWERED_ROWS:
            chosen[key] = entries[key].rows
    kinds = statistics.TYPES.values()
    names = [name for name, kind in columns.items() if kind in kinds or kind.startswith("DECIMAL(")]
    if not chosen or not names:
        return
    where = _where(dataset, chosen.keys())
    con.execute(statistics.PLAIN)
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE answered AS SELECT {', '.join(map(quoted, names))} "
        f"FROM {qualified(dataset)} {where}"
    )
    con.execute(statistics.USE)
    bounds = con.execute(
        f"SELECT {', '.join(f'min({quoted(n)})::VARCHAR, max({quoted(n)})::VARCHAR' for n in names)} FROM answered"
    ).fetchall()[0]
    values = {name: bounds[2 * number : 2 * number + 2] for number, name in enumerate(names)}
    every = [question for name in names for question in _questions(name, columns[name], values[name])]
    questions = [every[i * len(every) // QUESTIONS] for i in range(QUESTIONS)] if len(every) > QUESTIONS else every
    right = _asked(con, questions, "answered", "")
    try:
        found = _asked(con, questions, qualified(dataset), where)
    except duckdb.Error:
        found = [_one(con, question, dataset, where) for question in questions]
    for question, mine, theirs in zip(questions, found, right, strict=True):
        if mine != theirs:
            said = f"{question.what} gives {str(mine)[:200]}, but a scan gives {str(theirs)[:200]}"
            yield Finding("error", "answers", dataset.table, f"column {question.column}: {said}")


def _questions(name: str, kind: str, bounds: Sequence[str | None]) -> Iterator[_Question]:
    """The questions for a column with these bounds (min, max). A bound that does not fit into a query is skipped."""
    column = quoted(name)
    for value in dict.fromkeys(bounds):
        if value is not None and len(value) < 1000 and "\0" not in value:
            yield _Question(name, f"= {value[:60]}", f"{column} = {literal(value)}::{kind}")
    yield _Question(name, "IS NULL", f"{column} IS NULL")
    yield _Question(
        name,
        "IS NOT NULL, GROUP BY, ORDER BY",
        f"{column} IS NOT NULL",
        f"SELECT string_agg(v::VARCHAR || ': ' || n, ', ' ORDER BY v) FROM (SELECT {column} AS v, count(*) AS n",
        "GROUP BY 1 ORDER BY 1 LIMIT 5)",
    )


def _asked(con: DuckDBPyConnection, questions: Sequence[_Question], table: str, where: str) -> Sequence[object]:
    """The answers of a relation to all questions, in one statement."""
    selected = ", ".join(question.sql(table, where) for question in questions)
    answers: Sequence[object] = con.execute(f"SELECT {selected}").fetchall()[0]
    return answers


def _one(con: DuckDBPyConnection, question: _Question, dataset: Dataset, where: str) -> object:
    """One answer, or the text of the error."""
    import duckdb

    try:
        return _asked(con, [question], qualified(dataset), where)[0]
    except duckdb.Error as error:
        return f"the error {str(error).splitlines()[0]!r}"


def _snapshots(con: DuckDBPyConnection, since: datetime | None) -> Iterator[Finding]:
    """Check that each ledger row that is newer than the oldest snapshot has its snapshot."""
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
                "error",
                "snapshot",
                f"{dataset} {partition}",
                f"no snapshot has token {token} ({count} ledger rows)",
                BACKUP,
            )


def _quarantines(con: DuckDBPyConnection, since: datetime | None) -> Iterator[Finding]:
    """Check that every extracted row of a published partition is published or set aside."""
    recent = f"AND p.recorded_at >= TIMESTAMPTZ {literal(since.isoformat())}" if since is not None else ""
    for dataset in all_tables():
        if (quarantine := dataset.quarantine) is None:
            continue
        for partition, extracted, published, set_aside, there in con.execute(
            f"""WITH latest AS (
                    SELECT dataset, partition, arg_max(rows_in, token) AS extracted,
                           arg_max(rows_published, token) AS published, arg_max(rows_quarantined, token) AS set_aside,
                           max(recorded_at) AS recorded_at
                    FROM {LAKE}.ops.ledger
                    WHERE dataset IN ({literal(dataset.key)}, {literal(quarantine.key)})
                          AND state IN {ledger.PUBLISHED_STATES}
                    GROUP BY ALL
                )
                SELECT p.partition, p.extracted, p.published, p.set_aside, coalesce(q.published, 0)
                FROM latest p LEFT JOIN latest q ON q.partition = p.partition AND q.dataset <> p.dataset
                WHERE p.dataset = {literal(dataset.key)} {recent}
                      AND (p.extracted <> p.published + p.set_aside OR p.set_aside <> coalesce(q.published, 0))
                ORDER BY ALL"""
        ).fetchall():
            what = (
                f"extracted: {extracted:,} rows, published: {published:,}, set aside: {set_aside:,}; "
                f"{quarantine.table} has {there:,}"
            )
            yield Finding("error", "quarantine", f"{dataset.key} {partition}", what, f"lake replay {dataset.key}")


def _builds(con: DuckDBPyConnection) -> Iterator[Finding]:
    """Check that the models were built from all published attempts, and that no interval was refused."""
    if not ledger.built_project(con, "prod"):
        return
    for refused in refused_intervals(con, "prod"):
        subject = f"{refused.model} {refused.span}"
        yield Finding("note", "model audit", subject, f"keeps its earlier rows: {refused.error}", refused.fix)
    stale = Counter(dataset for dataset, _ in ledger.unbuilt(con, "prod"))
    for dataset, count in stale.items():
        which = "1 partition is" if count == 1 else f"{count:,} partitions are"
        yield Finding("note", "models", dataset, f"{which} newer than silver and gold", "lake transform")
