"""What a run is going to need, begun before it asks: Dask's workers and SQLMesh each import for seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from flows.settings import Settings

PRELOAD = [
    "distributed",
    "dlt",
    "duckdb",
    "flows.ingest",
    "pandas",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.parquet",
]
"""What the process that local workers are forked from imports once for all of them."""

_builds: list[subprocess.Popen[str]] = []


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


def start_build(settings: Settings) -> subprocess.Popen[str]:
    """The build's process: it imports SQLMesh, and waits for its request. Takes one that is prepared."""
    if _builds:
        return _builds.pop()
    return subprocess.Popen(
        [sys.executable, "-m", "flows.build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings.environment()},
    )


@contextlib.contextmanager
def prepared_build(settings: Settings) -> Iterator[None]:
    """Have a build's process ready within a block; one that nobody took is ended."""
    process = start_build(settings)
    _builds.append(process)
    try:
        yield
    finally:
        if process in _builds:
            _builds.remove(process)
            with process:
                process.kill()
