"""Extraction on Dask: on the cluster at LAKE_DASK_ADDRESS, or on a local one for the duration of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from dask.base import annotate
from distributed import KilledWorker, Variable, WorkerPlugin, get_client
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from prefect import task
from prefect.exceptions import CrashedRun
from prefect.runtime import flow_run
from prefect_dask.task_runners import DaskTaskRunner

from ducklake_flows.errors import LakeError
from ducklake_flows.extract.chunk import warm_up
from ducklake_flows.orchestration import chunk_task, forkserver
from ducklake_flows.orchestration.executor import SchedulerLost, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ducklake_flows.orchestration.chunk_task import Extracted, Parameters
    from ducklake_flows.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Seconds between two looks of a chunk at its pace."""

DEATHS = (KilledWorker, CommClosedError, CrashedRun)
"""Errors of a task whose worker died or was stopped."""


@contextlib.contextmanager
def cluster(settings: Settings, workers: int) -> Iterator[OnDask]:
    """A started cluster, as an executor.

    Args:
        settings: Contains the address of an existing scheduler, if any.
        workers: Processes of a local cluster; ignored with an existing scheduler.

    Raises:
        LakeError: the scheduler does not answer.
    """
    import dask

    # No retries by Dask: the run retries a lost chunk's partitions one at a time; see `orchestration.chunks`.
    dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": "20s"})
    # Otherwise each local cluster writes some hundred lines about its end into the run's output.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:
        address = settings.dask_address or stack.enter_context(_local_cluster(settings, workers))
        runner = DaskTaskRunner(address=address)
        try:
            stack.enter_context(runner)
            runner.client.register_plugin(Tasks())
            runner.client.run(_warm_up)
        except OSError:
            raise LakeError(
                f"The Dask scheduler at {address} does not answer.",
                "start it, or correct LAKE_DASK_ADDRESS; then run the same command again",
            ) from None
        found = OnDask(runner, is_shared=settings.dask_address is not None)
        try:
            yield found
        finally:
            found.forget()


class OnDask:
    """Runs chunks on a Dask cluster.

    Args:
        runner: The started task runner.
        is_shared: Whether the cluster is an existing one.
    """

    def __init__(self, runner: DaskTaskRunner, *, is_shared: bool) -> None:
        self._runner, self.is_shared = runner, is_shared
        self._told: set[str] = set()

    def slots(self) -> int:
        """The threads of all workers."""
        return sum(self._runner.client.nthreads().values())

    def submit(self, parameters: Parameters, priority: int, ended: Callable[[], None]) -> _OnDask:
        """Send a chunk to the scheduler.

        Raises:
            SchedulerLost: the connection to the scheduler was lost.
        """
        try:
            # The task runner takes no priority, but Dask takes it from the annotations of the context.
            with annotate(priority=priority):
                future = self._runner.submit(extract, parameters=dict(parameters))
        except ClosedClientError:
            raise self.lost() from None
        future.wrapped_future.add_done_callback(lambda _: ended())
        return _OnDask(self, future)

    def tell(self, name: str, pace: float) -> bool:
        """Write the pace to the scheduler, where workers read it: a worker that hangs delays no other one."""
        if self.is_closed:
            return False  # the chunks report it
        try:
            Variable(name, client=self._runner.client).set(pace, timeout=f"{LOOK_SECONDS} s")
        except (OSError, ClosedClientError) as error:
            log.warning("the pace of a chunk was not told: %s", error)
            return False
        self._told.add(name)
        return True

    def forget(self) -> None:
        """Remove the paces from the scheduler."""
        for name in self._told:
            Variable(name, client=self._runner.client).delete()

    @property
    def is_closed(self) -> bool:
        """Whether the connection to the scheduler was lost."""
        return self._runner.client.status in ("closing", "closed")

    def lost(self) -> SchedulerLost:
        """The error for it."""
        return SchedulerLost(
            f"The connection to the Dask scheduler at {self._runner.address} was lost, including its running "
            "tasks. Published partitions stay published.",
            "start the scheduler again, then run the same command again",
        )


class _OnDask:
    def __init__(self, cluster: OnDask, future: Any) -> None:
        self._cluster, self._future = cluster, future

    def result(self) -> Extracted:
        try:
            found = self._future.result(raise_on_failure=False)
            if isinstance(found, BaseException):
                raise found
        except Exception as error:
            if self._cluster.is_closed:
                raise self._cluster.lost() from None
            if isinstance(error, DEATHS):
                raise WorkerDied(type(error).__name__) from None
            raise
        finally:
            # If a client still holds the future of a finished task when its worker dies, Dask runs the task again.
            self._future.wrapped_future.release()
        extracted: Extracted = found
        return extracted


@task(**chunk_task.TASK)
def extract(
    dataset: str,
    versions: dict[str, str],
    table: dict[str, str],
    pace: float,
    limit: float,
    others: dict[str, dict[str, str]],
) -> Any:
    """Extract one chunk of partitions on a Dask worker; see `chunk_task.run`."""
    told = paces(chunk_task.pace_name(str(flow_run.id), dataset)) if pace else lambda: None
    return chunk_task.run(dataset, versions, table, pace, limit, others, given_at(), abandonment(), told)


class Tasks(WorkerPlugin):
    """Watches the tasks of a worker: since when each runs, and which ones lost the run that submitted them.

    Dask cancels a lost client's queued tasks but not running ones (dask/distributed#3681). It tells only plugins.
    """

    name = "ducklake-flows"
    idempotent = True
    """Of several runs on a cluster, the first one registers it."""

    def __init__(self) -> None:
        self.started: dict[Any, float] = {}
        """By key, in seconds since the epoch."""
        self.abandoned: set[Any] = set()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Dask calls this at each change of a task's state, in the worker's main thread."""
        if finish == "executing":
            self.started[key] = time.time()
        elif finish == "released" and start in ("executing", "long-running"):
            self.abandoned.add(key)
        elif finish == "waiting":
            self.abandoned.discard(key)  # it is wanted again
        elif finish == "forgotten":
            self.abandoned.discard(key)
            self.started.pop(key, None)


def _own() -> tuple[Any, Tasks]:
    """The key of the task that calls this, and its worker's tasks."""
    from distributed import get_worker

    worker = get_worker()
    tasks = worker.plugins[Tasks.name]
    assert isinstance(tasks, Tasks)  # noqa: S101 - for mypy
    return worker.get_current_task(), tasks


def abandonment() -> Callable[[], bool]:
    """Call in a task on its worker: returns a function that tells whether the run that submitted the task has ended."""
    key, tasks = _own()
    return lambda: key in tasks.abandoned


def given_at() -> float:
    """Call in a task on its worker: the time at which the worker started the task, in seconds since the epoch."""
    key, tasks = _own()
    return tasks.started.get(key, time.time())


def paces(name: str) -> Callable[[], float | None]:
    """Call in a task on its worker: returns a function that gives the pace that the run has told, None if none.

    Args:
        name: See `chunk_task.pace_name`.
    """
    variable = Variable(name, client=get_client())
    found: float | None = None
    looked = -LOOK_SECONDS

    def told() -> float | None:
        nonlocal found, looked
        if time.monotonic() >= looked + LOOK_SECONDS:
            looked = time.monotonic()
            try:
                found = float(variable.get(timeout=LOOK_SECONDS))
            except OSError as error:
                log.warning("the pace of a chunk was not read: %s", error)
        return found

    return told


def _warm_up() -> None:
    """Warm up a worker, including Prefect's settings and client, so that its first chunk does not wait."""
    from prefect.client.orchestration import get_client
    from prefect.settings import Settings as PrefectSettings

    warm_up()
    if os.environ.get("PREFECT_API_URL"):  # without it, Prefect would start a temporary server here
        PrefectSettings()
        with get_client(sync_client=True):
            pass


@contextlib.contextmanager
def _local_cluster(settings: Settings, workers: int) -> Iterator[str]:
    import dask
    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    # Workers are forked from one process that has imported everything, so that none imports again.
    # The profiler is off: it reads other threads' frames, which Python 3.11 may free at the same time.
    dask.config.set(
        {"distributed.worker.multiprocessing-method": "forkserver", "distributed.worker.profile.enabled": False}
    )
    environment = {**settings.worker_environment(), "PREFECT_API_URL": os.environ.get("PREFECT_API_URL", "")}
    get_mp_context()  # call it first: it replaces the preload list with Dask's
    forkserver.prepare_workers(settings)
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        # Dask logs an error for a heartbeat during shutdown. Errors of chunks are returned with their results.
        silence_logs=logging.CRITICAL,
        env=environment,
    ) as cluster:
        yield cluster.scheduler_address
