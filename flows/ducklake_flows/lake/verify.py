"""Verify: check every promise about the lake against the lake itself. Reads only.

It compares the ledger with the raw tables row for row (by fingerprint), the catalog with the storage, the files' paths
with their rows, the statistics of tables with those of files, the statistics of files with their footers, and answers
from statistics with a scan. It also checks the fences, the snapshots, and what the models were built from.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.datasets.types import quoted
from ducklake_flows.lake import ledger, statistics
from ducklake_flows.lake.builds import refused_intervals
from ducklake_flows.lake.connect import connected, literal, rows
from ducklake_flows.lake.fence import FENCES, count_rows
from ducklake_flows.lake.schema import qualified, table_columns
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import LAKE, Settings
from ducklake_flows.staging.inspect import ALGORITHM, fingerprint_sql, fingerprint_text
from ducklake_flows.staging.layout import attempt_of
from ducklake_flows.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that was found.

    Args:
        severity: ``error``: a promise is broken; ``note``: worth knowing.
        check: The promise that was checked.
        subject: The table, partition or path that it concerns.
        message: What was found.
    """

    severity: Literal["error", "note"]
    check: str
    subject: str
    message: str


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
    """The full paths of the registered files, by table; of all tables or those in `only`."""
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
    """Find registered files that are missing; count staged files without a ledger row."""
    storage = open_storage(settings.data_path, settings)
    there = {storage.url + storage.relative(info.path) for info in storage.list()}
    for table, paths in files.items():
        for path in dict.fromkeys(paths):
            if path not in there and path.startswith(storage.url):
                yield Finding("error", "file exists", table, f"{path} is missing")
    staged = {attempt_of(path): path for path in there if path.startswith(f"{storage.url}raw/") and attempt_of(path)}
    orphans = staged.keys() - ledger.attempts_in(con, staged)
    if orphans:
        what = f"{len(orphans)} staged files without a ledger row, from runs in progress or killed"
        yield Finding("note", "orphans", settings.data_path, what)


def _rows(
    con: DuckDBPyConnection,
    dataset: Dataset,
    columns: Mapping[str, str],
    entries: Mapping[str, ledger.Entry],
    only: Set[str] | None,
) -> Iterator[Finding]:
    """Compare the rows of published partitions, all or those in `only`, with the ledger: by count and fingerprint."""
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
            yield Finding("error", "rows", subject, f"has {count:,} rows, but the ledger says {entry.rows:,}")
        elif entry.fingerprint.startswith(f"{ALGORITHM}:") and fingerprint != entry.fingerprint:
            yield Finding("error", "rows", subject, "has rows that differ from the staged ones")
    for partition, (count, _) in here.items():
        yield Finding("error", "rows", f"{dataset.key} {partition}", f"has {count:,} rows that are not in the ledger")


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
    """Check that the partition value in a file's path is that of its rows: DuckLake trusts the path."""
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
    # Compared as timestamps: a file may store a day as text, or as its midnight.
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
    """Check the statistics that DuckLake answers from, of all tables or those in `only`, against the files."""
    import duckdb

    statistics.load(con, only)
    for table in statistics.wrong_rows(con):
        what = f"the table's statistics say {table.said:,} rows, but its files have {table.right:,}; run: lake repair"
        yield Finding("error", "statistics", table.table, what)
    for column in statistics.wrong_columns(con):
        for fault in column.faults:
            what = f"column {column.column}: the table's {fault}; run: lake repair"
            yield Finding("error", "statistics", column.table, what)
        if not column.faults:
            what = (
                f"column {column.column}: the table has neither min nor max, and DuckLake would set both from the "
                "next file alone; run: lake repair"
            )
            yield Finding("note", "statistics", column.table, what)
    try:
        for file in statistics.wrong_files(con, settings, since):
            where = f"column {file.column}: " if file.column else ""
            for fault in file.faults:
                what = f"{where}the catalog's {fault}, in {file.path}; run: lake repair"
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
            said = f"{question.what} gives {str(mine)[:200]}, but a scan gives {str(theirs)[:200]}; run: lake repair"
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
                "error", "snapshot", f"{dataset} {partition}", f"no snapshot has token {token} ({count} ledger rows)"
            )


def _builds(con: DuckDBPyConnection) -> Iterator[Finding]:
    """Check that the models were built from all published attempts, and that no interval was refused."""
    if not ledger.built_project(con, "prod"):
        return
    for refused in refused_intervals(con, "prod"):
        what = f"keeps its earlier rows: {refused.error}; {refused.fix}"
        yield Finding("note", "model audit", f"{refused.model} {refused.span}", what)
    stale = Counter(dataset for dataset, _ in ledger.unbuilt(con, "prod"))
    for dataset, count in stale.items():
        yield Finding(
            "note", "models", dataset, f"{count} partitions are newer than silver and gold; run: lake transform"
        )
