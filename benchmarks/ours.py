"""This project: the backfill that `lake backfill flights` runs, on a real Prefect server and two Dask processes."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

from benchmarks.alone import GROUP
from benchmarks.measure import DATASET, DAYS, Run, peak_rss, report
from flows import server
from flows.settings import Settings, load_settings

WORKERS = 2


def run(settings: Settings) -> Run:
    """Time the year. The workers' first import of dlt, after the cluster's start, counts.

    Whoever starts this process stops the server after it: without one, Prefect's threads keep a process from ending.
    """
    began = time.monotonic()
    server.use(settings)
    start_ups = {"server start": time.monotonic() - began}
    # Only now: Prefect reads where its server is when it is imported.
    began = time.monotonic()
    from flows import ingest
    from flows.setup import initialise

    start_ups["imports"] = time.monotonic() - began
    if ingest.GROUP != GROUP:
        raise ValueError(f"the groups differ: {ingest.GROUP} partitions, and {GROUP} for DuckDB alone")
    began = time.monotonic()
    initialise(settings, [DATASET])
    start_ups["lake init"] = time.monotonic() - began
    began = time.monotonic()
    summary = ingest.ingest([DATASET.key], workers=WORKERS)
    call = time.monotonic() - began
    if summary["published"] != len(DAYS):
        raise ValueError(f"{summary['published']} partitions were published, not {len(DAYS)}")
    seconds = summary["seconds"]
    return Run(
        f"flows.ingest on Prefect, Dask ({WORKERS} processes) and dlt; {summary['commits']} commits",
        DAYS,
        seconds["total"] - seconds["cluster start"],
        {**start_ups, **seconds, "the whole call": call},
        {
            "flow": peak_rss(),
            "worker": summary["peak_rss"] >> 20,
            "children": peak_rss(resource.RUSAGE_CHILDREN),
            "server": _server_peak(settings),
        },
    )


def _server_peak(settings: Settings) -> int:
    """Peak memory of the Prefect server while it still runs, in MiB; from Linux's /proc."""
    pid = json.loads((settings.home / "prefect" / "server.json").read_text())["pid"]
    status = (Path("/proc") / str(pid) / "status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


if __name__ == "__main__":
    lake = load_settings()
    report(lake, run(lake))
