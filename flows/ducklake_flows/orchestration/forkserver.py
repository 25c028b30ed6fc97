"""The process that local Dask workers are forked from: it imports everything once, while the run does other work."""

from __future__ import annotations

import signal

from ducklake_flows.settings import Settings

PRELOAD = [
    "distributed",
    "dlt",
    "duckdb",
    "ducklake_flows.ingest",
    "pandas",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.parquet",
]
"""What the process that local workers are forked from imports once for all of them."""


def prepare_workers(settings: Settings) -> None:
    """Start the process that the workers of a local cluster are forked from; safe to repeat.

    Prefect's address must be in the environment. The workers never see a Ctrl-C in the terminal: the run ends them.
    """
    if settings.dask_address:
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # by itself, for it would take the mask away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
