"""The cost of one more partition in a lake of 100, 1,000, 10,000 and 50,000 partitions: it should be constant.

Each lake is maintained as at night before it is measured. Everything is measured twice; the second shows the noise.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import ROOT, Bench, Target, hand_over
from benchmarks.staging import stage
from ducklake_flows.datasets.partitions import partition_at
from ducklake_flows.lake.builds import plan_transform, record
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.maintenance import steps as maintenance
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.lake.verify import verify
from ducklake_flows.models import build as build_room
from ducklake_flows.models.adapter import LakeAdapter
from ducklake_flows.project import all_datasets, get_dataset
from ducklake_flows.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ducklake_flows.staging.receipt import Receipt

ROWS = 20
GROUP = 128
GAPS = 14
"""Partitions that are left out each time the lake grows."""
REPEATED = 5
"""Times that an operation is timed, after one that is not; the median counts."""
START = datetime(2000, 1, 1)
MODEL = """
MODEL (
  name silver.events,
  kind INCREMENTAL_BY_TIME_RANGE (time_column hour, batch_size 100000, partition_by_time_column FALSE),
  start '2000-01-01', cron '@hourly', signals (published(dataset := 'events'))
);
SELECT hour::TIMESTAMP AS hour, id::BIGINT AS id, value::DOUBLE AS value FROM raw.events
WHERE hour BETWEEN @start_dt AND @end_dt
"""


class Lake:
    """A growing lake and the operations that are timed on it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.dataset = get_dataset("events")
        self.published = 0
        self._next = 0
        """The first hour, counted from `START`, that is later than all published ones."""
        self._gaps: list[int] = []
        """Earlier hours that are not published yet."""
        self._version = 0
        self.project = folder / "project"
        shutil.copytree(
            ROOT / "sqlmesh_project", self.project, ignore=shutil.ignore_patterns("models", "audits", "tests")
        )
        (self.project / "models").mkdir()
        (self.project / "models" / "events.sql").write_text(MODEL)
        LakeAdapter.gate = contextlib.nullcontext
        os.environ["LAKE_MODELS"] = str(self.project)

    def stage(self, hours: Sequence[int]) -> list[Receipt]:
        """Stage partitions with new values; not timed."""
        self._version += 1
        partitions = [partition_at(START + timedelta(hours=hour), self.dataset.grain) for hour in hours]
        values = ", ".join(f"(TIMESTAMP '{p.value}')" for p in partitions)
        query = (
            f"SELECT id, id / 7 + {self._version} AS value, hour FROM range({ROWS}) r(id), (VALUES {values}) h(hour)"
        )
        return stage(self.settings, self.dataset, partitions, query)

    def publisher(self) -> contextlib.closing[Publisher]:
        """A publisher, as a run opens one."""
        return contextlib.closing(Publisher(self.settings, list(all_datasets().values()), "growth"))

    def grow(self, size: int) -> None:
        """Publish partitions up to this number, in groups of a run's size, and leave a few gaps."""
        count = size - self.published
        left = {self._next + count * n // GAPS for n in range(1, GAPS + 1)} if count > GAPS else set()
        with self.publisher() as publisher:
            while self.published < size:
                hours = list[int]()
                while len(hours) < min(GROUP, size - self.published):
                    (self._gaps if self._next in left else hours).append(self._next)
                    self._next += 1
                publisher.publish(self.stage(hours))
                self.published += len(hours)

    def new(self) -> list[int]:
        """The next partition in order."""
        self._next, self.published = self._next + 1, self.published + 1
        return [self._next - 1]

    def within(self) -> list[int]:
        """A partition that is missing between others."""
        self.published += 1
        return [self._gaps.pop(0)]

    def replaced(self, count: int = 1) -> list[int]:
        """Partitions that are published, somewhere in the lake."""
        gaps = set(self._gaps)
        first = self._version * 7_919 % max(self._next - count - GAPS, 1)
        return [hour for hour in range(first, first + count + GAPS) if hour not in gaps][:count]

    def publish(self, chosen: Callable[[], list[int]]) -> float:
        """Time publishing partitions in one group on an open connection, as in the middle of a run; in seconds."""
        with self.publisher() as publisher:

            def once() -> float:
                receipts = self.stage(chosen())
                began = time.monotonic()
                publisher.publish(receipts)
                return time.monotonic() - began

            return statistics.median([once() for _ in range(REPEATED + 1)][1:])

    def select(self) -> float:
        """Time reading one partition on an open connection, in seconds."""
        with connected(self.settings, read_only=True) as con:

            def once() -> float:
                self._version += 1
                (hour,) = self.replaced()
                value = partition_at(START + timedelta(hours=hour), self.dataset.grain).value
                began = time.monotonic()
                found = con.execute(f"SELECT count(*), sum(value) FROM raw.events WHERE hour = '{value}'").fetchall()
                took = time.monotonic() - began
                if found[0][0] != ROWS:
                    raise ValueError(f"{value} has {found[0][0]} rows instead of {ROWS}")
                return took

            return statistics.median([once() for _ in range(REPEATED + 1)][1:])

    def transform(self, chosen: Callable[[], list[int]] | None = None) -> float:
        """Time transforms of a partition published before each, without SQLMesh's start; in seconds."""
        took = []
        for _ in range(REPEATED if chosen else 1):
            if chosen:
                with self.publisher() as publisher:
                    publisher.publish(self.stage(chosen()))
            began = time.monotonic()
            todo = plan_transform(load_settings(), "prod")
            build_room.build(todo.environment, todo.changed_keys, todo.replan, lambda event: None)
            record(self.settings, todo, "growth")
            took.append(time.monotonic() - began)
        return statistics.median(took)

    def command(self, *arguments: str) -> float:
        """Time a `lake` command from a cold start, in seconds."""
        took = []
        for _ in range(3):
            began = time.monotonic()
            subprocess.run([Path(sys.executable).with_name("lake"), *arguments], check=True, capture_output=True)
            took.append(time.monotonic() - began)
        return statistics.median(took)

    def maintain(self) -> float:
        """Time the nightly maintenance, in seconds."""
        began = time.monotonic()
        for step in maintenance(self.settings, timedelta(days=30), datetime.now(UTC)):
            if step.todo:
                step.run()
        return time.monotonic() - began

    def verify(self, since: datetime | None = None) -> float:
        """Time a full `lake verify`, or one of the attempts recorded since a moment; in seconds."""
        began = time.monotonic()
        errors = [f for f in verify(self.settings, since) if f.severity == "error"]
        if errors:
            raise ValueError(f"`lake verify` found an error: {errors[0]}")
        return time.monotonic() - began

    def verify_one(self) -> float:
        """Time `lake verify --since` a moment after which one partition was replaced, in seconds."""
        moment = datetime.now(UTC)
        with self.publisher() as publisher:
            publisher.publish(self.stage(self.replaced()))
        return statistics.median([self.verify(moment) for _ in range(3)])


def run(settings: Settings, sizes: Sequence[int]) -> Bench:
    """Grow a lake to each size, and time one more partition at each."""
    bootstrap(settings, list(all_datasets().values()))
    lake = Lake(settings, settings.home)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        began = time.monotonic()
        lake.grow(size)
        grown = time.monotonic() - began
        lake.transform()
        maintained = lake.maintain()
        day = (START + timedelta(hours=size // 2)).date().isoformat()
        timed: dict[str, Callable[[], float]] = {
            "new": lambda: lake.publish(lake.new),
            "within": lambda: lake.publish(lake.within),
            "replace": lambda: lake.publish(lake.replaced),
            f"replace {GROUP}": lambda: lake.publish(lambda: lake.replaced(GROUP)),
            "transform new": lambda: lake.transform(lake.new),
            "transform replaced": lambda: lake.transform(lake.replaced),
            "select": lake.select,
            "plan": lambda day=day: lake.command("plan", "events", "--start", day, "--end", day),  # type: ignore[misc]
            "status": lambda: lake.command("status", "events"),
            "verify since": lake.verify_one,
            "verify": lake.verify,
        }
        first = {name: work() for name, work in timed.items()}
        again = {f"{name}, again": work() for name, work in timed.items()}
        rows.append({"partitions": size, "growing": grown, "maintain": maintained, **first, **again})
        print(rows[-1], file=sys.stderr, flush=True)
    least, last = rows[0], rows[-1]
    # The smallest lake has not as many partitions as are replaced together.
    grouped = next((row for row in rows if row["partitions"] >= GROUP * REPEATED), last)

    def target(name: str, limit: float, base: dict[str, Any] = least) -> Target:
        ratio, noise = last[name] / base[name], last[f"{name}, again"] / last[name]
        what = f"{name} at {last['partitions']:,}, times that at {base['partitions']:,}"
        return Target(f"{what} (the same again: {noise:.2f})", ratio, limit)

    return Bench(
        "Cost of one more partition by the number of published ones, seconds",
        [{"operation": name, **{f"{row['partitions']:,}": row[name] for row in rows}} for name in list(least)[1:]],
        [
            target("new", 1.2),
            target("within", 1.2),
            target("replace", 1.3),
            target(f"replace {GROUP}", 1.3, grouped),
            target("transform new", 1.2),
            target("transform replaced", 1.2),
            target("select", 1.2),
            target("verify since", 1.3),
            *(
                Target(f"{name} at {last['partitions']:,}, cold, seconds", last[name], 0.7)
                for name in ("plan", "status")
            ),
        ],
    )


if __name__ == "__main__":
    hand_over(run(load_settings(), [int(size) for size in sys.argv[2:]] or [100, 1_000, 10_000, 50_000]))
