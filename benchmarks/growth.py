"""The cost of one more partition in a lake of 100, 1,000, 10,000 and 50,000 partitions: it should be constant."""

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
from ducklake_flows.datasets.partitions import Partition, partition_at
from ducklake_flows.lake.builds import plan_transform, record
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
START = datetime(2000, 1, 1)
MODEL = """
MODEL (
  name silver.events,
  kind INCREMENTAL_BY_TIME_RANGE (time_column hour, batch_size 100000),
  start '2000-01-01', cron '@hourly', partitioned_by hour, signals (published(dataset := 'events'))
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
        self.scanning = 0.0
        """Seconds that the last publish spent on reading the catalog's list of files, which has no index."""
        self.project = folder / "project"
        shutil.copytree(
            ROOT / "sqlmesh_project", self.project, ignore=shutil.ignore_patterns("models", "audits", "tests")
        )
        (self.project / "models").mkdir()
        (self.project / "models" / "events.sql").write_text(MODEL)
        LakeAdapter.gate = contextlib.nullcontext
        os.environ["LAKE_MODELS"] = str(self.project)

    def hours(self, count: int) -> list[Partition]:
        """The next partitions that are not published yet."""
        first = START + timedelta(hours=self.published)
        return [partition_at(first + timedelta(hours=n), self.dataset.grain) for n in range(count)]

    def stage(self, hours: Sequence[Partition]) -> list[Receipt]:
        """Stage partitions; not timed."""
        values = ", ".join(f"(TIMESTAMP '{p.value}')" for p in hours)
        query = f"SELECT id, id / 7 AS value, hour FROM range({ROWS}) r(id), (VALUES {values}) h(hour)"
        return stage(self.settings, self.dataset, hours, query)

    def grow(self, size: int) -> None:
        """Publish partitions up to this number, in groups of a run's size."""
        publisher = Publisher(self.settings, list(all_datasets().values()), "growth")
        while self.published < size:
            hours = self.hours(min(GROUP, size - self.published))
            publisher.publish(self.stage(hours))
            self.published += len(hours)
        publisher.close()

    def publish_one(self) -> float:
        """Time publishing one more partition on an open connection, as in the middle of a run; in seconds."""
        publisher = Publisher(self.settings, list(all_datasets().values()), "growth")

        def publish() -> float:
            receipts = self.stage(self.hours(1))
            began = time.monotonic()
            publisher.publish(receipts)
            self.published += 1
            return time.monotonic() - began

        took = [publish() for _ in range(8)]
        con = publisher._connection()  # noqa: SLF001 - its log is read
        con.execute("CALL enable_logging('DuckLakeMetadata')")
        publish()
        self.scanning = con.execute(
            "SELECT coalesce(sum(elapsed_ms), 0) / 1000 FROM duckdb_logs_parsed('DuckLakeMetadata') "
            "WHERE regexp_matches(query, 'FROM.*(ducklake_data_file|ducklake_file_column_stats)')"
        ).fetchall()[0][0]
        publisher.close()
        return statistics.median(took[1:])

    def transform(self) -> float:
        """Time a transform of the new partitions without SQLMesh's start, in seconds."""
        began = time.monotonic()
        todo = plan_transform(load_settings(), "prod")
        build_room.build(todo.environment, todo.changed_keys, todo.replan, lambda event: None)
        record(self.settings, todo, "growth")
        return time.monotonic() - began

    def transform_one(self) -> float:
        """Time a transform of one new partition, in seconds."""
        took = []
        for _ in range(3):
            self.grow(self.published + 1)
            took.append(self.transform())
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
        """Time the nightly maintenance, in seconds. Its main work is flushing the ledger's rows to Parquet."""
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


def run(settings: Settings, sizes: Sequence[int]) -> Bench:
    """Grow a lake to each size, and time one more partition at each."""
    bootstrap(settings, list(all_datasets().values()))
    lake = Lake(settings, settings.home)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        began = time.monotonic()
        lake.grow(size)
        grown = time.monotonic() - began
        moment = datetime.now(UTC)
        day = (START + timedelta(hours=lake.published)).date().isoformat()
        lake.transform()
        maintained = lake.maintain()
        timed: dict[str, Callable[[], float]] = {
            "publish": lake.publish_one,
            "publish: files listed": lambda: lake.scanning,
            "transform": lake.transform_one,
            "plan": lambda day=day: lake.command("plan", "events", "--start", day, "--end", day),  # type: ignore[misc]
            "status": lambda: lake.command("status", "events"),
            "verify since": lambda moment=moment: lake.verify(moment),  # type: ignore[misc]
            "verify": lake.verify,
        }
        rows.append(
            {
                "partitions": size,
                "growing": grown,
                "maintain": maintained,
                **{name: work() for name, work in timed.items()},
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    first, last = rows[0], rows[-1]
    return Bench(
        "Cost of one more partition, seconds",
        rows,
        [
            *(
                Target(
                    f"{name} at {size['partitions']:,}, times that at {first['partitions']:,}",
                    size[name] / first[name],
                    1.2,
                )
                for name in ("publish", "transform")
                for size in rows[1:]
            ),
            *(
                Target(f"{name} at {last['partitions']:,}, cold, seconds", last[name], 1.0)
                for name in ("plan", "status")
            ),
        ],
    )


if __name__ == "__main__":
    hand_over(run(load_settings(), [int(size) for size in sys.argv[2:]] or [100, 1_000, 10_000, 50_000]))
