"""Verify: every promise about the lake, checked against the lake itself. Reads only.

The ledger is held against the raw tables row for row (by fingerprint), the catalog against the storage, the files'
paths against their rows, the statistics of tables against those of files, those of files against their footers, answers
by statistics against a scan, the fences, the snapshots, and what the models were built from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.datasets.types import quoted
from ducklake_flows.lake import ledger, statistics
from ducklake_flows.lake.connect import connected, literal, rows
from ducklake_flows.lake.fence import FENCES, count_rows
from ducklake_flows.lake.schema import qualified, table_columns
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import LAKE, Settings
from ducklake_flows.staging.inspect import ALGORITHM, fingerprint_sql, fingerprint_text
from ducklake_flows.staging.layout import attempt_of
from ducklake_flows.storage import open_storage

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

    Two checks are of a sample, so that they cost little beside the reading of every row: the newest files of each
    table and as many others are held against their footers (`statistics.SAMPLE`), and answers are tried on the first,
    the middle and the last partition of each raw table. The statistics of tables are held against those of all files.

    Args:
        settings: Where the lake is.
        since: Read only the partitions whose last ledger row is as young as this, the tables they are in, and the
            footers of all files registered since; do not list the storage: the cost is then theirs, and not the lake's.

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
        yield from _statistics(settings, con, None if since is None else files.keys(), since)
        for dataset in all_datasets().values():
            entries = published.get(dataset.key, {})
            if dataset.table not in tables or not (entries or files.get(dataset.table)):
                continue
            only = None if since is None or dataset.partition_column is None else entries.keys()
            try:
                yield from _rows(con, dataset, tables[dataset.table], entries, only)
                yield from _paths(con, dataset, tables[dataset.table], files, only)
                yield from _answers(con, dataset, tables[dataset.table], entries)
            except duckdb.Error as error:
                yield Finding("error", "file readable", dataset.table, " ".join(str(error).split())[:300])
        yield from _snapshots(con, since)
        yield from _builds(con)


def _fences(con: DuckDBPyConnection) -> Iterator[Finding]:
    for fence in FENCES:
        count = count_rows(con, fence)
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
    con: DuckDBPyConnection,
    dataset: Dataset,
    columns: Mapping[str, str],
    files: Mapping[str, list[str]],
    only: Set[str] | None,
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
    # A source may have a column named filename.
    name = next(n for n in (f"filename{i}" for i in range(len(columns) + 1)) if n not in columns)
    # As moments: a day may stand in the file as text, or as its midnight.
    value = f"TRY_CAST({quoted(column)} AS TIMESTAMP)"
    for path, low, high, whole in con.execute(
        f"SELECT {quoted(name)}, min({value}), max({value}), count(*) = count({value}) "
        f"FROM read_parquet(?, hive_partitioning => false, filename => {literal(name)}) GROUP BY {quoted(name)}",
        [paths],
    ).fetchall():
        if not whole or not low == high == datetime.fromisoformat(_said(path, column)):
            what = f"{low} to {high}" + ("" if whole else ", and rows without a value")
            yield Finding("error", "partition column", dataset.table, f"{path} holds {what}")


def _said(path: str, column: str) -> str:
    """The partition value in a file's path."""
    return path.rpartition(f"/{column}=")[2].partition("/")[0].replace("%20", " ").replace("%3A", ":")


def _statistics(
    settings: Settings, con: DuckDBPyConnection, only: Set[str] | None, since: datetime | None
) -> Iterator[Finding]:
    """The statistics by which DuckLake answers are those of the files, of every table or of some."""
    import duckdb

    statistics.load(con, only)
    for table in statistics.wrong_rows(con):
        what = f"the table's statistics say {table.said:,} rows, its files {table.right:,}: lake repair"
        yield Finding("error", "statistics", table.table, what)
    for column in statistics.wrong_columns(con):
        for fault in column.faults:
            what = f"column {column.column}: the table's {fault}: lake repair"
            yield Finding("error", "statistics", column.table, what)
        if not column.faults:
            what = (
                f"column {column.column}: the table has neither min nor max, and DuckLake would fill them from the "
                "next file alone: lake repair"
            )
            yield Finding("note", "statistics", column.table, what)
    try:
        for file in statistics.wrong_files(con, settings, since):
            where = f"column {file.column}: " if file.column else ""
            for fault in file.faults:
                what = f"{where}the catalog's {fault}, in {file.path}: lake repair"
                yield Finding("error", "statistics", file.table, what)
    except duckdb.Error as error:
        yield Finding("error", "file readable", "footers", " ".join(str(error).split())[:300])


@dataclass(frozen=True, slots=True)
class _Question:
    """A query that DuckDB answers with the help of statistics.

    Args:
        column: The column it is about.
        what: The operators.
        condition: On the column's rows.
        selected: What is selected of ``FROM`` a relation, its rows that meet the condition.
        rest: What follows.
    """

    column: str
    what: str
    condition: str
    selected: str = "SELECT count(*)"
    rest: str = ""

    def sql(self, table: str, where: str) -> str:
        """The query on a relation, as an expression."""
        also = f"{where} AND" if where else "WHERE"
        return f"({self.selected} FROM {table} {also} {self.condition} {self.rest})"


QUESTIONS = 12
"""So many queries a table are tried, evenly spread over its columns and the operators: each costs a look at the
catalog's whole list of files."""

ANSWERED_ROWS = 1_000_000
"""Answers are tried on partitions of at most so many rows together."""


def _answers(
    con: DuckDBPyConnection, dataset: Dataset, columns: Mapping[str, str], entries: Mapping[str, ledger.Entry]
) -> Iterator[Finding]:
    """Operators that are answered by statistics give what they give on a copy of the rows.

    The copy is read past the statistics of the table; the partitions are found by their own column's, which `_paths`
    has held against the rows. A type that DuckLake keeps no statistics of is left out.
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
            said = f"{question.what} gives {str(mine)[:200]}, a scan {str(theirs)[:200]}: lake repair"
            yield Finding("error", "answers", dataset.table, f"column {question.column}: {said}")


def _questions(name: str, kind: str, bounds: Sequence[str | None]) -> Iterator[_Question]:
    """What to ask of a column whose smallest and largest values are given; a text may not do for a query."""
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
    """The answers of a relation, all in one statement."""
    selected = ", ".join(question.sql(table, where) for question in questions)
    answers: Sequence[object] = con.execute(f"SELECT {selected}").fetchall()[0]
    return answers


def _one(con: DuckDBPyConnection, question: _Question, dataset: Dataset, where: str) -> object:
    """One answer, or the error that came instead."""
    import duckdb

    try:
        return _asked(con, [question], qualified(dataset), where)[0]
    except duckdb.Error as error:
        return f"the error {str(error).splitlines()[0]!r}"


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
