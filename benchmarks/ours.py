"""This project: the backfill of `lake backfill flights`, on a real Prefect server and two Dask processes."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

from benchmarks.measure import DATASET, DAYS, Run, peak_rss, report
from ducklake_flows.orchestration import server
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import Settings, load_settings

WORKERS = 2
WARM = "airlines"
"""Loaded before timing: a new Prefect server is still busy with its start, and dlt's first run is slow too."""


def run(settings: Settings) -> Run:
    """Time the year, as the second run of this process and its server.

    The parent of this process stops the server after it ends: without a server, Prefect's threads keep the process
    from ending.
    """
    began = time.monotonic()
    server.use(settings)
    start_ups = {"server start": time.monotonic() - began}
    # Not at the top: Prefect reads its server's address when it is imported.
    began = time.monotonic()
    from ducklake_flows.ingest import ingest
    from ducklake_flows.orchestration.bootstrap import initialise
    from ducklake_flows.orchestration.chunks import cut
    from ducklake_flows.plan import make_plan

    start_ups["imports"] = time.monotonic() - began
    began = time.monotonic()
    initialise(settings, [DATASET, get_dataset(WARM)])
    start_ups["lake init"] = time.monotonic() - began
    began = time.monotonic()
    ingest([WARM], workers=1)
    start_ups["first run"] = time.monotonic() - began
    chunks = len(cut(make_plan(settings, [DATASET]), WORKERS))
    busy = _server_processor(settings)
    began = time.monotonic()
    summary = ingest([DATASET.key], workers=WORKERS)
    call = time.monotonic() - began
    if summary["published"] != len(DAYS):
        raise ValueError(f"{summary['published']} partitions were published, not {len(DAYS)}")
    seconds = summary["seconds"]
    return Run(
        f"ducklake_flows.ingest on Prefect, Dask ({WORKERS} processes) and dlt; {summary['commits']} commits",
        DAYS,
        seconds["total"] - seconds["cluster start"],
        {**start_ups, **seconds, "the whole call": call, "server processor": _server_processor(settings) - busy},
        {
            "flow": peak_rss(),
            "worker": summary["peak_rss"] >> 20,
            "children": peak_rss(resource.RUSAGE_CHILDREN),
            "server": _server_peak(settings),
        },
        counts={"chunks": chunks, "commits": summary["commits"]},
    )


def _server_pid(settings: Settings) -> int:
    return int(json.loads((settings.home / "prefect" / "server.json").read_text())["pid"])


def _server_processor(settings: Settings) -> float:
    """CPU seconds used by the Prefect server, from Linux's /proc."""
    spent = (Path("/proc") / str(_server_pid(settings)) / "stat").read_text().rpartition(")")[2].split()
    return (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")


def _server_peak(settings: Settings) -> int:
    """Peak memory of the running Prefect server in MiB, from Linux's /proc."""
    status = (Path("/proc") / str(_server_pid(settings)) / "status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


if __name__ == "__main__":
    lake = load_settings()
    report(lake, run(lake))
