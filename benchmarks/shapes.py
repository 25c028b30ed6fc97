"""Wide, deep and skewed partitions: this project's backfill or dlt's own destination on one dataset."""

from __future__ import annotations

import sys
import time
from datetime import date
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Run, hand_over, peak_rss
from ducklake_flows.lake.connect import connected
from ducklake_flows.orchestration import server
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import LAKE, Settings, load_settings

if TYPE_CHECKING:
    from ducklake_flows.datasets.dataset import Dataset


def ours(settings: Settings, dataset: Dataset, end: date) -> Run:
    """Time a backfill on a real Prefect server and two Dask processes, without the cluster's start."""
    server.use(settings)
    from ducklake_flows.ingest import ingest
    from ducklake_flows.orchestration.bootstrap import initialise

    initialise(settings, [dataset])
    summary = ingest([dataset.key], end=end, workers=2)
    seconds = summary["seconds"]
    return Run(
        "ducklake_flows.ingest",
        [p.key for p in dataset.partitions(end=end)],
        seconds["total"] - seconds["cluster start"],
        seconds,
        {"flow": peak_rss(), "worker": summary["peak_rss"] >> 20},
        len(summary["failed"]),
        summary["rows"],
    )


def dlt(settings: Settings, dataset: Dataset, end: date, limit: float) -> Run:
    """Time one pipeline run per partition until the limit, in seconds, is reached."""
    import dlt as library

    from benchmarks.dlt_destination import pipeline_of

    settings.home.mkdir(parents=True, exist_ok=True)
    pipeline = pipeline_of(settings)
    pipeline.run(library.resource([{"row": 1}], name="warm_up"))
    done: list[str] = []
    began = time.monotonic()
    for partition in dataset.partitions(end=end):

        def rows(partition: Any = partition) -> Any:
            yield from dataset.read(partition)

        pipeline.run(library.resource(rows, name=dataset.key, write_disposition="append"))
        done.append(partition.key)
        if time.monotonic() - began >= limit:
            break
    wall = time.monotonic() - began
    with connected(settings, read_only=True) as con:
        count = con.execute(f"SELECT count(*) FROM {LAKE}.raw.{dataset.key}").fetchall()[0][0]
    return Run("pipeline.run for each partition", done, wall, {"limit": limit}, {"process": peak_rss()}, 0, count)


if __name__ == "__main__":
    lake, chosen, last = load_settings(), get_dataset(sys.argv[3]), date.fromisoformat(sys.argv[4])
    hand_over(ours(lake, chosen, last) if sys.argv[2] == "ours" else dlt(lake, chosen, last, float(sys.argv[5])))
