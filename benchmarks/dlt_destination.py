"""dlt's own `ducklake` destination: one pipeline run a partition, one after the other, for a limited time."""

from __future__ import annotations

import sys
import time
from typing import Any

import dlt
import duckdb
import pyarrow as pa
from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials

from benchmarks.measure import DATASET, DAYS, Run, peak_rss, report
from flows.datasets.model import parse_partition
from flows.lake.connect import prepare
from flows.settings import Settings, load_settings

WARM = DAYS[:1]
"""The first run ever makes the lake, and the first of a process costs seconds: it does not count."""


def run(settings: Settings, limit: float) -> Run:
    """Time as many partitions as end within a limit of seconds."""
    settings.home.mkdir(parents=True)
    with duckdb.connect() as con:
        # It puts the extensions where dlt's connections find them.
        prepare(con, settings)
    pipeline = dlt.pipeline(
        "flights",
        destination=dlt.destinations.ducklake(
            credentials=DuckLakeCredentials(
                "lake", catalog=f"sqlite:///{settings.catalog_file}", storage=settings.data_path
            )
        ),
        dataset_name="raw",
        pipelines_dir=str(settings.home / "pipelines"),
    )
    for day in WARM:
        pipeline.run(_resource(day))
    done: list[str] = []
    began = time.monotonic()
    for day in DAYS[len(WARM) :]:
        pipeline.run(_resource(day))
        done.append(day)
        if time.monotonic() - began >= limit:
            break
    wall = time.monotonic() - began
    return Run(
        "pipeline.run for each partition, write_disposition append (its cheapest), sequential",
        done,
        wall,
        {"limit": limit},
        {"process": peak_rss()},
    )


def _resource(day: str) -> Any:
    """The day's file as one Arrow table, read as our own source reads it."""
    partition = parse_partition(day, DATASET.grain)
    table = pa.Table.from_batches(DATASET.read(partition))
    date = pa.repeat(pa.scalar(partition.start.date()), table.num_rows)
    return dlt.resource(
        [table.append_column("flight_date", date)],
        name="flights",
        write_disposition="append",
        columns={"flight_date": {"data_type": "date", "partition": True}},
    )


if __name__ == "__main__":
    lake = load_settings()
    report(lake, run(lake, float(sys.argv[2])), WARM)
