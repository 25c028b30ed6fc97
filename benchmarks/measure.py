"""Common parts of the benchmarks: a contender's result, a table with targets, and the start of a contender."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ducklake_flows.lake.connect import connected
from ducklake_flows.orchestration import server
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import LAKE, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
DATASET = get_dataset("flights")
DAYS = [p.key for p in DATASET.partitions()]
ROWS = 336_776
"""Rows of the whole year."""

LANDED = "BENCH_LANDED"
"""Variable with the local folder of the landing files, set even if contenders read them from S3."""


@dataclass
class Run:
    """One contender's result.

    Args:
        how: What was run.
        days: The partitions that were timed and are in the lake.
        wall: Seconds for these partitions, without start-up.
        seconds: The parts of ``wall`` and the start-up times, in seconds.
        peak_rss: Peak memory in MiB, by kind of process.
        failed: Partitions that failed in that time.
        rows: Rows of these partitions; set by `report`.
        counts: Further counts.
    """

    how: str
    days: Sequence[str]
    wall: float
    seconds: dict[str, float]
    peak_rss: dict[str, int]
    failed: int = 0
    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Target:
    """A measured value and its limit: a maximum, or a minimum if ``at_least``."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Bench:
    """The result of one benchmark.

    Args:
        title: What was measured, with its unit.
        rows: A table: the same columns in every row.
        targets: The targets.
        notes: Explanations for the reader.
    """

    title: str
    rows: list[dict[str, Any]]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def peak_rss(who: int = resource.RUSAGE_SELF) -> int:
    """Peak memory of this process, or of the largest child that has ended, in MiB.

    On Linux, a child's value includes the memory of its parent at the start of the child, so parents should be small.
    """
    return resource.getrusage(who).ru_maxrss >> 10


def report(settings: Settings, run: Run, warm: Sequence[str] = ()) -> None:
    """Check the lake's rows, then write a contender's result into the file given on the command line.

    Args:
        settings: Where the lake is.
        run: The result.
        warm: Partitions that were loaded before the timed ones.

    Raises:
        ValueError: the lake does not contain exactly these partitions, each with all rows of its file.
    """
    landed = {day: _lines(Path(os.environ[LANDED], "flights", f"{day}.csv")) - 1 for day in (*warm, *run.days)}
    with connected(settings, read_only=True) as con:
        sql = f"SELECT strftime(flight_date, '%Y-%m-%d'), count(*) FROM {LAKE}.raw.flights GROUP BY ALL"
        found = dict(con.execute(sql).fetchall())
    # A partition reported as failed may nevertheless be in the lake, completely or in part.
    wrong = sorted(day for day in landed if found.get(day) != landed[day]) + sorted(
        found.keys() - landed.keys() if not run.failed else ()
    )
    if wrong:
        raise ValueError(f"{len(wrong)} days differ from their landing files; the first is {wrong[0]}")
    if len(found) == len(DAYS) and sum(found.values()) != ROWS:
        raise ValueError(f"the lake has {sum(found.values()):,} rows instead of {ROWS:,}")
    run.rows = sum(found[day] for day in run.days)
    hand_over(run)


def hand_over(result: Run | Bench) -> None:
    """Write a result into the file given on the command line."""
    Path(sys.argv[1]).write_text(json.dumps(asdict(result)))


def contend(module: str, home: Path, settings: Mapping[str, str], *arguments: object) -> dict[str, Any]:
    """Run a module in a separate process with its own lake, and read its result.

    Args:
        module: Name of a module in ``benchmarks``.
        home: The lake's folder; its Prefect server is stopped afterwards.
        settings: Further environment variables.
        arguments: Command-line arguments after the result file.

    Raises:
        SystemExit: the module failed; nothing is reported.
    """
    output = home.with_suffix(".json")
    # The user's own settings must not leak into the benchmark.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAKE_", "PREFECT_", "DASK_"))}
    environment = {
        **kept,
        "LAKE_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "",
        "DLT_DATA_DIR": str(home.parent / "dlt"),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "DO_NOT_TRACK": "1",
        **settings,
    }
    Console(stderr=True).rule(f"{home.name}: {module}")
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", str(output), *map(str, arguments)],
        env=environment,
        cwd=home.parent,
    )
    try:
        code = process.wait()
    finally:
        # On Ctrl-C the child also gets the signal and ends itself; it needs the server until then.
        process.wait()
        server.stop(Settings(home=home))
    if code:
        raise SystemExit(f"{module} failed with exit code {code}; nothing is reported.")
    return dict(json.loads(output.read_text()))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def about(packages: Iterable[str]) -> dict[str, Any]:
    """When and on what a result is measured, with the versions of Python and these packages."""
    return {
        "when": date.today().isoformat(),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        },
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
    }
