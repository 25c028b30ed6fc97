"""Question 2: the same backfill by every contender: filled in parallel, replaced once, killed once in the middle.

Each contender replaces whole days, day by day and in groups, and retries after a conflict. Before a figure is reported,
its rows are read back by DuckDB and compared with the lines of each day's file.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import multiprocessing
import os
import queue
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import duckdb

from benchmarks.assess.common import BUSY, days_of_year, landed_rows, one_line, timed
from benchmarks.assess.delta import Delta
from benchmarks.assess.ducklake_direct import DuckLakeDirect
from benchmarks.assess.ducklake_gate import DuckLakeGate
from benchmarks.assess.iceberg import Iceberg
from benchmarks.assess.plain_duckdb import PlainDuckDB
from benchmarks.assess.quack import Quack
from benchmarks.assess.sequential import Sequential
from benchmarks.assess.table_per_partition import TablePerPartition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.assess.common import Contender, Services, Writer

CONTENDERS: list[type[Contender]] = [
    Sequential,
    TablePerPartition,
    PlainDuckDB,
    Quack,
    Iceberg,
    Delta,
    DuckLakeDirect,
    DuckLakeGate,
]
ATTEMPTS = 10
"""Attempts of a writer at a group of days, as an orchestrator's retries would."""
GROUP = 32
"""Days of one commit, in groups."""
CRASH_DAYS = 48
REPLACED_DAYS = 32

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.assess.backfill"])


def run(
    services: Services, corrected: Path, days: int, repeats: int, limit: float, only: str = ""
) -> Iterator[dict[str, Any]]:
    """Run every contender on both storages. Repetitions begin with the fastest: there may not be time for all.

    Args:
        services: Hands out places.
        corrected: The same landing folder, where the first days have one more row each.
        days: How many days of the year.
        repeats: How often on a folder. In S3 once.
        limit: Seconds after which a writer begins no further group.
        only: A word of the contenders' names; "" for all of them.

    Yields:
        A row for each run.
    """
    cases = [case for case in itertools.product(CONTENDERS, (1, GROUP)) if only.lower() in case[0].name.lower()]
    lasted: dict[tuple[type[Contender], int], float] = {}
    for number in range(repeats):
        for storage in ("folder", "S3") if number == 0 else ("folder",):
            for contender, group in sorted(cases, key=lambda case: lasted.get(case, 0.0) if number else 0.0):
                if storage == "S3" and contender in {PlainDuckDB, Quack}:
                    continue  # A database file in S3 is read-only.
                began = time.monotonic()
                row = _one(contender, services, corrected, storage, group, days_of_year(days), limit)
                lasted.setdefault((contender, group), time.monotonic() - began)
                if number == 0 and "unreadable" not in row:  # What a crash leaves is no timing: once is enough.
                    killed = days_of_year(min(CRASH_DAYS, days))
                    row |= _crash(contender(services.place(storage)), killed, group, limit)
                row["run"] = number
                print({k: v for k, v in row.items() if k != "errors"}, file=sys.stderr, flush=True)
                yield row


def _one(
    kind: type[Contender],
    services: Services,
    corrected: Path,
    storage: str,
    group: int,
    days: Sequence[str],
    limit: float,
) -> dict[str, Any]:
    place = services.place(storage)
    contender = kind(place)
    row: dict[str, Any] = {"contender": kind.name, "how": kind.how, "storage": storage, "group": group}
    with contender.start():
        contender.create()
        began_with = contender.commits()
        filled = _write(contender, days, group, limit)
        if not filled.done:
            return row | {"days": 0, "failed": len(days), "errors": filled.errors}
        contender.finish()
        expected = landed_rows(place, filled.done)
        row |= {
            "days": len(filled.done),
            "seconds": filled.seconds,
            "days/s": len(filled.done) / filled.seconds,
            "conflicts": filled.conflicts,
            "failed": len(filled.failed) + filled.stuck,
            "worst commit, s": filled.worst,
            "errors": filled.errors,
        }
        try:
            wrong = _wrong(contender, expected)
        except duckdb.Error as error:  # a finding, too: what was written cannot be read back
            return row | {"unreadable": one_line(error)}
        row |= {
            "wrong days": wrong,
            "commits": contender.commits() - began_with,
            "files": contender.live_files(),
            "MiB": sum(f.stat().st_size for f in place.files.rglob("*") if f.is_file()) / 2**20,
            "read a day, s": timed(lambda: _look(contender, f"flight_date = '{filled.done[0]}'")),
            "read the year, s": timed(lambda: _look(contender, "true")),
        }
        if isinstance(contender, Quack):
            row["a client's ROLLBACK undoes its INSERT"] = contender.rolls_back()
        row |= _replace(contender, corrected, filled.done[:REPLACED_DAYS], group, limit, expected)
    return row


@dataclasses.dataclass
class Written:
    """What a set of writers did."""

    done: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    conflicts: int = 0
    stuck: int = 0
    worst: float = 0.0
    seconds: float = 0.0
    errors: list[str] = dataclasses.field(default_factory=list)


def _write(
    contender: Contender, days: Sequence[str], group: int, limit: float, kill_after: int | None = None
) -> Written:
    """Let the contender's writers write the days; with ``kill_after``, kill them once so many days are done."""
    writers = contender.processes * contender.threads
    # Groups go round the writers, so that no two of them have neighbouring days only by chance.
    shares: list[list[list[str]]] = [[] for _ in range(writers)]
    for number, first in enumerate(range(0, len(days), group)):
        shares[number % writers].append(list(days[first : first + group]))
    shares = [share for share in shares if share]
    told: Any = CONTEXT.Queue()
    ready, go = CONTEXT.Semaphore(0), CONTEXT.Event()
    per_process = [shares] if contender.threads > 1 else [[share] for share in shares]
    processes = [
        CONTEXT.Process(target=_process, args=(contender, mine, limit, ready, go, told), daemon=True)
        for mine in per_process
    ]
    for process in processes:
        process.start()
    for _ in shares:
        ready.acquire(timeout=BUSY)
    began = last = time.monotonic()
    go.set()
    result, ended = Written(), 0
    while ended < len(shares):
        try:
            what, chunk, value = told.get(timeout=limit + BUSY if kill_after is None else 20)
        except queue.Empty:
            result.stuck = len(shares) - ended
            break
        if what == "done":
            result.done += chunk
            result.worst = max(result.worst, value)
            last = time.monotonic()
        elif what == "conflict":
            result.conflicts += 1
            if len(result.errors) < 5:
                result.errors.append(value)
        elif what == "failed":
            result.failed += chunk
        else:
            ended += 1
        if kill_after is not None and len(result.done) >= kill_after:
            break
    for process in processes:
        if kill_after is not None or result.stuck:
            process.kill()
        process.join()
    result.done.sort()
    result.seconds = last - began
    return result


def _process(contender: Contender, shares: Sequence[Any], limit: float, ready: Any, go: Any, told: Any) -> None:
    """One process with a thread for each share."""
    os.environ["POLARS_MAX_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    threads = [threading.Thread(target=_work, args=(contender, share, limit, ready, go, told)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _work(contender: Contender, share: Sequence[Sequence[str]], limit: float, ready: Any, go: Any, told: Any) -> None:
    writer = _open(contender, told)
    ready.release()
    go.wait()
    began = time.monotonic()
    for chunk in share:
        if time.monotonic() - began > limit:
            break
        for attempt in range(ATTEMPTS):
            started = time.monotonic()
            try:
                writer.replace(chunk)
            except Exception as error:  # noqa: BLE001 - counted; the contenders raise errors of many kinds
                told.put(("conflict", chunk, one_line(error)))
                time.sleep(random.random() * 0.02 * 2**attempt)  # noqa: S311 - the backoff of an orchestrator
                writer.reset()
            else:
                told.put(("done", chunk, time.monotonic() - started))
                break
        else:
            told.put(("failed", chunk, None))
    told.put(("end", [], None))
    writer.close()


def _open(contender: Contender, told: Any) -> Writer:
    """Open a writer; a reader may hold the lock of a database file."""
    while True:
        try:
            return contender.writer()
        except Exception as error:  # noqa: BLE001 - counted
            told.put(("conflict", [], one_line(error)))
            time.sleep(random.random() * 0.05)  # noqa: S311 - the backoff of an orchestrator


def _look(contender: Contender, where: str) -> Any:
    """Read with a new connection, as a new reader does."""
    con, table = contender.reader()
    with con:
        return con.execute(f"SELECT count(*), sum(distance), max(dep_delay) FROM {table} WHERE {where}").fetchall()[0]


def _counts(contender: Contender) -> dict[str, int]:
    con, table = contender.reader()
    with con:
        return dict(
            con.execute(f"SELECT strftime(flight_date, '%Y-%m-%d'), count(*) FROM {table} GROUP BY ALL").fetchall()
        )


def _wrong(contender: Contender, expected: dict[str, int]) -> int:
    """Days whose rows differ from their file's, or that should not be there."""
    found = _counts(contender)
    return sum(found.get(day) != expected.get(day) for day in found.keys() | expected.keys())


def _replace(
    contender: Contender, corrected: Path, days: Sequence[str], group: int, limit: float, expected: dict[str, int]
) -> dict[str, Any]:
    """Replace some days by files with one more row, while a reader looks at one of them."""
    newer = copy.copy(contender)
    newer.place = dataclasses.replace(contender.place, landing=corrected)
    stop, told = CONTEXT.Event(), CONTEXT.Queue()
    after = expected | landed_rows(newer.place, days)
    day = days[len(days) // 2]
    watcher = CONTEXT.Process(
        target=_watch, args=(contender, day, {expected[day], after[day]}, stop, told), daemon=True
    )
    watcher.start()
    told.get(timeout=BUSY)
    mark = contender.mark()
    written = _write(newer, days, group, limit)
    stop.set()
    looks, torn, refused = told.get(timeout=BUSY)
    watcher.join()
    reached = expected | {day: after[day] for day in written.done}
    history = None
    if mark is not None:
        try:
            history = contender.at(mark)
        except Exception as error:  # noqa: BLE001 - the answer is that it does not work
            written.errors.append(f"history: {one_line(error)}")
    return {
        "replaced": len(written.done),
        "replace, s": written.seconds,
        "replace, conflicts": written.conflicts,
        "replace, failed": len(written.failed) + written.stuck,
        "replace, wrong days": _wrong(contender, reached),
        "looks": looks,
        "torn looks": torn,
        "refused looks": refused,
        "time travel": history == sum(expected.values()),
        "replace, errors": written.errors,
    }


def _watch(contender: Contender, day: str, right: set[int], stop: Any, told: Any) -> None:
    looks = torn = refused = 0
    told.put("ready")
    while not stop.is_set():
        try:
            found = _look(contender, f"flight_date = '{day}'")[0]
        except Exception:  # noqa: BLE001 - counted
            refused += 1
            time.sleep(0.01)
        else:
            torn += found not in right
        looks += 1
    told.put((looks, torn, refused))


def _crash(contender: Contender, days: Sequence[str], group: int, limit: float) -> dict[str, Any]:
    """Kill the writers (SIGKILL) after a third of the days; then write what is missing."""
    group = min(group, max(1, len(days) // 12))
    with contender.start():
        contender.create()
        _write(contender, days, group, limit, kill_after=len(days) // 3)
        contender.crash()
    with contender.start():
        contender.finish()
        expected, found = landed_rows(contender.place, days), _counts(contender)
        whole = [day for day in days if found.get(day) == expected[day]]
        live = contender.live_files()
        files = [f for f in contender.place.files.rglob("*.parquet") if "_delta_log" not in f.parts]
        resumed = _write(contender, [day for day in days if day not in whole], group, BUSY)
        contender.finish()
        return {
            "killed: whole days": len(whole),
            "killed: torn days": sum(day not in whole for day in found),
            "killed: files left": None if live is None else len(files) - live,
            "killed, continued: failed": len(resumed.failed) + resumed.stuck,
            "killed, continued: wrong days": _wrong(contender, expected),
            "killed, errors": resumed.errors,
        }
