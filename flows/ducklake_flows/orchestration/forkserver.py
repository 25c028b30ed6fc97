"""Starts the process that local Dask workers are forked from; it imports everything while the run does other work."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ducklake_flows.settings import Settings

PRELOAD = [
    "distributed",
    "dlt",
    "duckdb",
    "ducklake_flows.ingest",
    "ducklake_flows.orchestration.cluster",
    "pandas",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.parquet",
]
"""Modules that the fork server imports once for all local workers."""


def prepare_workers(settings: Settings) -> None:
    """Start the fork server for the workers of a local cluster, unless an existing cluster is used. Safe to repeat.

    Prefect's address must be in the environment. SIGINT is blocked in the workers: on Ctrl-C the run stops them.
    """
    if settings.dask_address:
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # before SIGINT is blocked: its start unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
