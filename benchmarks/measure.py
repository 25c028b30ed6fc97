"""What each contender reports, and the check that every row arrived before it may."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.datasets import get_dataset
from flows.lake.connect import connected
from flows.settings import LAKE, Settings

DATASET = get_dataset("flights")
DAYS = [p.key for p in DATASET.partitions()]
ROWS = 336_776
"""Rows of the whole year."""


@dataclass
class Run:
    """One contender's result.

    Args:
        how: What was run.
        days: The partitions that were timed.
        wall: Seconds they took, start-up left out.
        seconds: What the wall is made of, and the start-ups.
        peak_rss: Peak memory in MiB, by kind of process.
        rows: Rows of these partitions; `report` fills it in.
    """

    how: str
    days: Sequence[str]
    wall: float
    seconds: dict[str, float]
    peak_rss: dict[str, int]
    rows: int = 0


def peak_rss(who: int = resource.RUSAGE_SELF) -> int:
    """Peak memory of this process, or of the largest child that has ended, in MiB.

    Linux takes what the parent had when it started a process for that process's own: a parent should be small.
    """
    return resource.getrusage(who).ru_maxrss >> 10


def report(settings: Settings, run: Run, warm: Sequence[str] = ()) -> None:
    """Hand a result over in the file that the command line names, once every row is seen to be in the lake.

    Args:
        settings: Where the lake is.
        run: The result.
        warm: Partitions that were loaded before the timed ones.

    Raises:
        ValueError: the lake does not hold just these partitions, each with all rows of its file.
    """
    landed = {day: _lines(Path(settings.landing) / "flights" / f"{day}.csv") - 1 for day in (*warm, *run.days)}
    with connected(settings, read_only=True) as con:
        sql = f"SELECT strftime(flight_date, '%Y-%m-%d'), count(*) FROM {LAKE}.raw.flights GROUP BY ALL"
        found = dict(con.execute(sql).fetchall())
    if found != landed:
        wrong = sorted(day for day in found.keys() | landed.keys() if found.get(day) != landed.get(day))
        raise ValueError(f"{len(wrong)} days are not in the lake as they landed; the first is {wrong[0]}")
    if len(found) == len(DAYS) and sum(found.values()) != ROWS:
        raise ValueError(f"the year has {ROWS:,} rows, but the lake {sum(found.values()):,}")
    run.rows = sum(found[day] for day in run.days)
    Path(sys.argv[1]).write_text(json.dumps(asdict(run)))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
