"""Where extraction runs: the Dask cluster at LAKE_DASK_ADDRESS, or a local one for the length of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator

from prefect_dask.task_runners import DaskTaskRunner

from ducklake_flows.errors import LakeError
from ducklake_flows.extract.chunk import warm_up
from ducklake_flows.orchestration import forkserver
from ducklake_flows.settings import Settings


@contextlib.contextmanager
def task_runner(settings: Settings, workers: int) -> Iterator[DaskTaskRunner]:
    """A started task runner.

    Args:
        settings: Names an existing scheduler, if there is one.
        workers: Processes of a local cluster; an existing one has its own.

    Raises:
        LakeError: the scheduler does not answer.
    """
    import dask

    # A chunk whose worker died is not tried again here, with its neighbours, but alone; see `ducklake_flows.ingest`.
    dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": "20s"})
    with contextlib.ExitStack() as stack:
        address = settings.dask_address or stack.enter_context(_local_cluster(settings, workers))
        runner = DaskTaskRunner(address=address)
        try:
            stack.enter_context(runner)
            runner.client.run(_warm_up)
        except OSError:
            raise LakeError(
                f"The Dask scheduler at {address} does not answer.", "start it, or mend LAKE_DASK_ADDRESS"
            ) from None
        yield runner


def abandonment() -> Callable[[], bool]:
    """In a task, on its worker: a way to see whether the run that submitted it is gone, however it ended.

    Dask drops what waits when a client leaves, but lets go on what is under way, and never says so to the task.
    """
    from dask.context import thread_state
    from distributed import get_worker

    tasks, key = get_worker().state.tasks, thread_state.key

    def is_abandoned() -> bool:
        task = tasks.get(key)
        return task is None or task.state == "cancelled"

    return is_abandoned


def given_at() -> float:
    """In a task: when its worker began with it, in seconds since the epoch."""
    from dask.context import thread_state
    from distributed import get_worker

    task = get_worker().state.tasks[thread_state.key]
    return float(task.start_time or time.time())


def _warm_up() -> None:
    """On a worker: what its first chunk would otherwise wait for, Prefect's settings and client among it."""
    from prefect.client.orchestration import get_client
    from prefect.settings import Settings as PrefectSettings

    warm_up()
    if os.environ.get("PREFECT_API_URL"):  # without it, Prefect would start a server of its own here
        PrefectSettings()
        with get_client(sync_client=True):
            pass


@contextlib.contextmanager
def _local_cluster(settings: Settings, workers: int) -> Iterator[str]:
    import dask
    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    # The workers are forked from one process that has imported everything, instead of importing it each for itself.
    # Dask's profiler reads other threads' frames, which Python 3.11 may free under it.
    dask.config.set(
        {"distributed.worker.multiprocessing-method": "forkserver", "distributed.worker.profile.enabled": False}
    )
    environment = {**settings.worker_environment(), "PREFECT_API_URL": os.environ.get("PREFECT_API_URL", "")}
    get_mp_context()  # it has a list of its own of what to import, and forgets ours
    forkserver.prepare_workers(settings)
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        # A heartbeat that meets the end of a run is an error to Dask; a chunk's own errors come back with it.
        silence_logs=logging.CRITICAL,
        env=environment,
    ) as cluster:
        yield cluster.scheduler_address
