"""Question 1: concurrent writers of one DuckLake: catalogs, numbers of writers, retry settings, kinds of writes.

Data is in a local folder, so that only the catalog is compared. Every writer is a process with a DuckDB of its own
(with a DuckDB-file catalog: a thread of one process). After each case the rows are compared with the commits that the
writers were told of, and with the lines of each day's file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.assess.common import TABLE_COLUMNS, connect, csv_sql, days_of_year, gate, landed_rows, one_line
from benchmarks.assess.quack import server
from deployments.services import free_port, new_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duckdb import DuckDBPyConnection

    from benchmarks.assess.common import Place, Services

RETRIES: dict[str, tuple[int, int, float] | None] = {
    "default (10, 100 ms, 1.5)": None,
    "theirs (200, 150 ms, 2.5)": (200, 150, 2.5),
    "flat (1000, 10 ms, 1.0)": (1000, 10, 1.0),
    "gate of one": None,
}
GATE = "gate of one"
DEFAULT = "default (10, 100 ms, 1.5)"
CATALOGS = ("PostgreSQL", "SQLite", "DuckDB behind Quack", "DuckDB file, threads")
COUNTS = (1, 2, 4, 8, 16)
KINDS = {
    "append, a table each": "each writer appends to its own table",
    "append, one table": "all append to one table",
    "replace other days, empty": "DELETE and INSERT, each writer its own days, no rows before",
    "replace other days, full": "the same, the days have rows",
    "replace the same days, empty": "all replace the same day at about the same time, no rows before",
    "replace the same days, full": "the same, the days have rows",
}
TRIO = ("2024-10-13", "2024-10-14", "2024-10-15")
"""The partitions that hung in the first attempt. Their data is that of the first three days of 2013."""
LIMIT = 10.0
"""Seconds after which a writer begins no further commit."""
PATIENCE = 15.0
"""Seconds that a writer then has to end its last commit; afterwards it is counted as asleep, and stopped."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.assess.writers"])


@dataclass(frozen=True)
class Case:
    """One combination."""

    catalog: str
    kind: str
    retries: str
    writers: int
    commits: int


def run(services: Services, repeats: int, commits: int, counts: Sequence[int] = COUNTS) -> Iterator[dict[str, Any]]:
    """Run all cases.

    Args:
        services: Hands out places.
        repeats: How often each.
        commits: Commits of each case, shared among its writers.
        counts: Numbers of writers.

    Yields:
        A row for each run.
    """
    one = "append, one table"
    scaling = [Case(c, one, r, n, commits) for c in CATALOGS for r in (DEFAULT, GATE) for n in counts]
    settings = [Case("PostgreSQL", one, r, 6, 2 * commits) for r in RETRIES]
    kinds = [Case("PostgreSQL", k, r, 4, commits) for k in KINDS for r in (DEFAULT, GATE)]
    trio = [Case("PostgreSQL", "the three that hung", r, 3, 3) for r in RETRIES]
    parts = (("settings", settings), ("kinds", kinds), ("trio", trio), ("scaling", scaling))
    for number in range(repeats):
        for part, cases in parts:
            for case in cases:
                row = {"part": part, "run": number, **_one(services, case)}
                print({k: v for k, v in row.items() if k != "errors"}, file=sys.stderr, flush=True)
                yield row


class Lake:
    """A lake with one of the catalogs. Sent to every writer, so it holds values only."""

    def __init__(self, place: Place, catalog: str) -> None:
        self.place, self.catalog = place, catalog
        self.port, self.token = free_port(), new_secret()
        self.shared: DuckDBPyConnection | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the server of the catalog, if it has one of its own."""
        if self.catalog == "DuckDB behind Quack":
            with server(f"{self.place.folder}/catalog.duckdb", self.port, self.token, self.place):
                yield
        else:
            yield

    def attach(self) -> DuckDBPyConnection:
        """A connection with the lake attached."""
        data = f"DATA_PATH '{self.place.folder}/data/'"
        if self.catalog == "PostgreSQL":
            con = connect("ducklake", "postgres_scanner")
            con.execute(f"CREATE SECRET place_catalog (TYPE postgres, PASSWORD '{self.place.postgres[2]}')")
            con.execute(f"ATTACH 'ducklake:postgres:{self.place.libpq}' AS lake ({data}, META_SECRET 'place_catalog')")
        elif self.catalog == "SQLite":
            # As the maintainers advise: https://github.com/duckdb/ducklake/issues/128
            con = connect("ducklake", "sqlite_scanner")
            path = f"ducklake:sqlite:{self.place.folder}/catalog.sqlite"
            con.execute(f"ATTACH '{path}' AS lake ({data}, META_JOURNAL_MODE 'WAL', META_BUSY_TIMEOUT 5000)")
        elif self.catalog == "DuckDB behind Quack":
            con = connect("ducklake", "quack")
            con.execute(f"CREATE SECRET (TYPE quack, TOKEN '{self.token}', SCOPE 'quack:127.0.0.1:{self.port}')")
            con.execute(f"ATTACH 'ducklake:quack:127.0.0.1:{self.port}' AS lake ({data})")
        else:
            con = connect("ducklake")
            con.execute(f"ATTACH 'ducklake:{self.place.folder}/catalog.ducklake' AS lake ({data})")
        return con


def _one(services: Services, case: Case) -> dict[str, Any]:
    """Run one case in a new lake."""
    place = services.place()
    lake = Lake(place, case.catalog)
    trio = case.kind == "the three that hung"
    plan = _plan(case, days_of_year(case.commits))
    with lake.running():
        with lake.attach() as con:
            for table in sorted({table for share in plan for table, _ in share}):
                con.execute(f"CREATE TABLE lake.{table} ({TABLE_COLUMNS})")
                con.execute(f"ALTER TABLE lake.{table} SET PARTITIONED BY (flight_date)")
            if case.kind.endswith("full"):
                days = sorted({day for share in plan for _, day in share})
                con.execute(f"INSERT INTO lake.flights BY NAME {csv_sql(place, days)}")
        row = _race(lake, case, plan)
        with lake.attach() as con:
            row["wrong"] = _wrong(con, case, place, row.pop("committed"))
    return {
        "catalog": case.catalog,
        "kind": case.kind if not trio else f"{', '.join(TRIO)} into one table",
        "retries": case.retries,
        "writers": case.writers,
        **row,
    }


def _plan(case: Case, days: Sequence[str]) -> list[list[tuple[str, str]]]:
    """The tables and days that each writer writes, in order."""
    same = case.kind.startswith("replace the same")
    shares = []
    for writer in range(case.writers):
        table = f"flights_{writer}" if case.kind == "append, a table each" else "flights"
        mine = days[writer :: case.writers]
        shares.append([(table, days[round_] if same else day) for round_, day in enumerate(mine)])
    return shares


def _race(lake: Lake, case: Case, plan: Sequence[Sequence[tuple[str, str]]]) -> dict[str, Any]:
    threads = case.catalog == "DuckDB file, threads"
    told: Any = CONTEXT.Queue()
    ready, go = CONTEXT.Semaphore(0), CONTEXT.Event()
    groups = [list(enumerate(plan))] if threads else [[(number, share)] for number, share in enumerate(plan)]
    processes = [
        CONTEXT.Process(target=_process, args=(lake, case, group, ready, go, told), daemon=True) for group in groups
    ]
    for process in processes:
        process.start()
    for _ in plan:
        ready.acquire(timeout=60)
    began = last = time.monotonic()
    go.set()
    committed: list[tuple[str, str]] = []
    errors: list[str] = []
    worst, ended = 0.0, 0
    begun: dict[int, float] = {}
    while ended < len(plan):
        try:
            what, writer, value, took = told.get(timeout=max(0.1, began + LIMIT + PATIENCE - time.monotonic()))
        except queue.Empty:
            break
        if what == "begun":
            begun[writer] = took
            continue
        begun.pop(writer, None)
        if what == "done":
            committed.append(value)
            worst, last = max(worst, took), time.monotonic()
        elif what == "failed":
            errors.append(value)
            worst = max(worst, took)
        else:
            ended += 1
    now = time.monotonic()
    for process in processes:
        if ended < len(plan):
            process.kill()
        process.join()
    return {
        "commits": len(committed),
        "failed": len(errors),
        "asleep": len(begun),
        "seconds": last - began,
        "commits/s": len(committed) / (last - began) if committed else 0.0,
        "worst, s": max([worst, *(now - since for since in begun.values())]),
        "errors": sorted({_kind_of(error) for error in errors}),
        "committed": committed,
    }


def _process(lake: Lake, case: Case, shares: Sequence[Any], ready: Any, go: Any, told: Any) -> None:
    if case.catalog != "DuckDB file, threads":
        number, share = shares[0]
        _work(lake.attach(), lake, case, number, share, ready, go, told)
        return
    from threading import Thread

    con = lake.attach()
    threads = [Thread(target=_work, args=(con.cursor(), lake, case, *share, ready, go, told)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _work(
    con: DuckDBPyConnection,
    lake: Lake,
    case: Case,
    number: int,
    share: Sequence[tuple[str, str]],
    ready: Any,
    go: Any,
    told: Any,
) -> None:
    """Commit one writer's share."""
    if setting := RETRIES[case.retries]:
        for name, value in zip(("max_retry_count", "retry_wait_ms", "retry_backoff"), setting, strict=True):
            con.execute(f"SET GLOBAL ducklake_{name} = {value}")
    ready.release()
    go.wait()
    began = time.monotonic()
    for table, day in share:
        if time.monotonic() - began > LIMIT:
            break
        started = time.monotonic()
        told.put(("begun", number, None, started))
        try:
            with gate(lake.place.folder / "gate") if case.retries == GATE else contextlib.nullcontext():
                started = time.monotonic()
                con.execute("BEGIN")
                if case.kind.startswith("replace"):
                    con.execute(f"DELETE FROM lake.{table} WHERE flight_date = '{day}'")
                con.execute(f"INSERT INTO lake.{table} BY NAME {csv_sql(lake.place, [day])}")
                con.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - counted
            told.put(("failed", number, str(error), time.monotonic() - started))
            with contextlib.suppress(Exception):
                con.execute("ROLLBACK")
        else:
            told.put(("done", number, (table, day), time.monotonic() - started))
    told.put(("end", number, None, 0.0))


def _wrong(con: DuckDBPyConnection, case: Case, place: Place, committed: Sequence[tuple[str, str]]) -> int:
    """Days that do not have the rows of what was committed: appends add up, a replaced day has its file's rows."""
    lines = landed_rows(place, sorted({day for _, day in committed}))
    wrong = 0
    for table in sorted({table for table, _ in committed}):
        found = dict(
            con.execute(f"SELECT strftime(flight_date, '%Y-%m-%d'), count(*) FROM lake.{table} GROUP BY ALL").fetchall()
        )
        for day in {day for name, day in committed if name == table}:
            wrong += found.get(day) != lines[day]
    return wrong


def _kind_of(error: str) -> str:
    """An error without its numbers and SQL, so that equal kinds are equal."""
    for known in (
        "Exceeded the maximum retry count",
        "database is locked",
        "another transaction has inserted into it",
        "another transaction has deleted from it",
        "Could not set lock",
    ):
        if known in error:
            return known
    return one_line(error)[:160]
