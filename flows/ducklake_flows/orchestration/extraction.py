"""Extraction on Dask: submits chunks as Prefect tasks and yields their outcomes in groups as they arrive."""

from __future__ import annotations

import contextlib
import queue
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dask.base import annotate
from distributed import KilledWorker
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import CrashedRun
from prefect.runtime import task_run
from prefect.states import Completed, Failed

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.errors import LakeError, redacted
from ducklake_flows.extract.chunk import Stopped, extract_chunk
from ducklake_flows.orchestration.chunks import (
    BACKFILL_SECONDS,
    CHUNK_SECONDS,
    GROUP,
    Chunk,
    ChunkScheduler,
    cut,
    priority,
)
from ducklake_flows.orchestration.cluster import abandonment, given_at
from ducklake_flows.report.causes import Failed as Failing
from ducklake_flows.report.causes import causes, lines
from ducklake_flows.settings import load_settings
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Failure, Outcome
from ducklake_flows.states import Order, State
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prefect_dask.task_runners import DaskTaskRunner

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.orchestration.root_run import RootRun
    from ducklake_flows.plan import Planned
    from ducklake_flows.settings import Settings

WAKE_SECONDS = 1.0
"""Maximum seconds to wait for a chunk before looking whether the run was paused."""

GROWN_SECONDS = 10.0
"""Seconds between two looks at the size of the cluster."""

_DEATHS = (KilledWorker, CommClosedError, CrashedRun)
"""Errors of a task whose worker died or was stopped."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a task returns: its chunk's outcomes, and when it was received, began and ended, in seconds since 1970.

    The times are comparable across hosts only if their clocks are in sync.
    """

    outcomes: list[Outcome]
    given: float
    began: float
    ended: float

    def profile(self, submitted: float) -> dict[str, float]:
        """Seconds of the chunk's transport, divided evenly among its partitions."""
        way = {
            "dask": self.given - submitted,
            "prefect": self.began - self.given,
            "receipt": time.time() - self.ended,
        }
        return {stage: max(seconds, 0.0) / max(len(self.outcomes), 1) for stage, seconds in way.items()}


def _chunk_name() -> str:
    parameters = task_run.parameters
    keys = sorted(parameters["versions"])
    span = keys[0] if len(keys) == 1 else f"{keys[0]}..{keys[-1]} ({len(keys)})"
    return f"{parameters['dataset']} {span}"


@task(name="extract", task_run_name=_chunk_name, cache_policy=NO_CACHE, persist_result=False)
def extract(dataset: str, versions: dict[str, str], table: dict[str, str], pace: float, limit: float) -> Any:
    """Extract one chunk of partitions on a Dask worker; see `ducklake_flows.extract.chunk.extract_chunk`.

    Returns:
        What was `Extracted`, or a state that holds it; see `_ended`.
    """
    logger, given, began = get_run_logger(), given_at(), time.time()
    outcomes: list[Outcome] = []
    try:
        settings = load_settings()
        outcomes = extract_chunk(dataset, versions, settings, table, abandonment(), pace, limit)
        # Redact before anything is logged, shown or recorded: a source's error text may contain its password.
        outcomes = [_redacted(o, settings) if isinstance(o, Failure) else o for o in outcomes]
    except Stopped:
        logger.warning("stopped: the run that submitted this chunk has ended")
    else:
        if left := len(versions) - len(outcomes):
            logger.info("time budget used up: %d of %d partitions are returned", left, len(versions))
    return _ended(Extracted(outcomes, given, began, time.time()))


def _redacted(failure: Failure, settings: Settings) -> Failure:
    return replace(failure, error=settings.redact(failure.error), traceback=settings.redact(failure.traceback))


def _ended(extracted: Extracted) -> Any:
    """The task's state: Failed if all partitions failed; Completed with a name like ``28 of 31`` if some did."""
    failed = [o for o in extracted.outcomes if isinstance(o, Failure) and o.state != State.no_source]
    if not failed:
        return extracted
    found = causes(Failing(f.dataset, f.partition, f.state, f.error, f.fix) for f in failed)
    logger = get_run_logger()
    for line in lines(found, indent=""):
        logger.error(line)
    for cause in found:
        first = next(f for f in failed if f.partition == cause.partitions[0])
        if first.traceback:
            logger.error("%s %s:\n%s", first.dataset, first.partition, first.traceback)
    good, message = len(extracted.outcomes) - len(failed), "\n".join(lines(found, indent=""))
    # The coordinator needs the outcomes of a failed chunk, too.
    if not good:
        return Failed(message=message, data=extracted)
    return Completed(name=f"{good} of {len(extracted.outcomes)}", message=message, data=extracted)


class Extraction:
    """Extracts a plan on a started task runner.

    Args:
        settings: Contains the address of an existing scheduler, if any.
        runner: The started task runner.
        workers: Processes of the local cluster; used only while the cluster has no workers.
        datasets: The datasets by key.
        tables: Columns and DuckDB types of every table, by name.
        root: Whether the run is a backfill, and whether it is paused.
        order: The order of its partitions.
    """

    def __init__(
        self,
        settings: Settings,
        runner: DaskTaskRunner,
        workers: int,
        datasets: Mapping[str, Dataset],
        tables: Mapping[str, Mapping[str, str]],
        root: RootRun,
        order: Order = Order.newest,
    ) -> None:
        self._settings, self._runner, self._datasets, self._tables = settings, runner, datasets, tables
        self._root, self._order = root, order
        self._in_flight: dict[str, tuple[Any, Chunk, float]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        # An existing cluster may have any number of workers. An autoscaling one may have none yet.
        there = sum(runner.client.nthreads().values())
        if not there:
            get_run_logger().warning("the Dask cluster has no workers: waiting for one")
        self._slots = there or workers
        self._looked = time.monotonic()
        is_shared_backfill = root.is_backfill and settings.dask_address is not None
        self._seconds = BACKFILL_SECONDS if is_shared_backfill else CHUNK_SECONDS

    def groups(self, todo: Sequence[Planned]) -> Iterator[list[Outcome]]:
        """Extract these partitions, in this order.

        A paused run submits no more chunks. Once those in flight are published, it waits, or its process ends.

        Yields:
            Outcomes in order of arrival, at most `GROUP` at a time. Extraction continues while the caller publishes a
            group.

        Raises:
            LakeError: the connection to the Dask scheduler was lost.
            Pause: the run is suspended.
        """
        limited = [key for key, dataset in self._datasets.items() if dataset.rate is not None]
        scheduler = ChunkScheduler(cut(todo, self._slots), self._slots, limited)
        waiting: list[Outcome] = []
        while waiting or scheduler.unfinished:
            if not self._root.is_held:
                self._look(scheduler)
                for chunk in scheduler.ready():
                    self._submit(chunk)
            elif not waiting and not self._in_flight:
                self._root.wait()
            for key in self._next(wait=not waiting):
                waiting += self._outcomes(scheduler, *self._in_flight.pop(key))
            group, waiting = waiting[:GROUP], waiting[GROUP:]
            if group:
                yield group

    def _look(self, scheduler: ChunkScheduler) -> None:
        """Let more chunks in flight if the cluster has grown."""
        if self._settings.dask_address and time.monotonic() - self._looked >= GROWN_SECONDS:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError):  # a lost scheduler is reported by its chunks
                scheduler.grown(sum(self._runner.client.nthreads().values()))

    def _submit(self, chunk: Chunk) -> None:
        rate = self._datasets[chunk.dataset].rate
        start = parse_partition(next(iter(chunk.versions)), self._datasets[chunk.dataset].grain).start
        try:
            # The task runner takes no priority, but Dask takes it from the annotations of the context.
            with annotate(priority=priority(start, self._order, urgent=not self._root.is_backfill)):
                future = self._runner.submit(
                    extract,
                    parameters={
                        "dataset": chunk.dataset,
                        "versions": chunk.versions,
                        "table": self._tables.get(self._datasets[chunk.dataset].table, {}),
                        "pace": self._slots / rate if rate else 0.0,
                        "limit": self._seconds,
                    },
                )
        except ClosedClientError:
            raise self._scheduler_is_gone() from None
        wrapped = future.wrapped_future
        self._in_flight[str(wrapped.key)] = (future, chunk, time.time())
        wrapped.add_done_callback(lambda done: self._ended.put(str(done.key)))

    def _next(self, *, wait: bool) -> list[str]:
        """The keys of all chunks that have ended since the last call.

        Args:
            wait: Wait until at least one has ended, at most `WAKE_SECONDS`.
        """
        keys = []
        with contextlib.suppress(queue.Empty):
            if wait and self._in_flight:
                keys.append(self._ended.get(timeout=WAKE_SECONDS))
            while True:
                keys.append(self._ended.get_nowait())
        return keys

    def _outcomes(self, scheduler: ChunkScheduler, future: Any, chunk: Chunk, submitted: float) -> list[Outcome]:
        """The outcomes of a chunk that has ended. For a lost chunk: failures of the partitions that are not retried.

        An error that is independent of the partition fails the whole chunk at once: a dataset's file that cannot be
        loaded on the worker, or a worker without the code.
        """
        try:
            extracted: Extracted = future.result(raise_on_failure=False)
            if isinstance(extracted, BaseException):
                raise extracted
            failpoint("receipted")
        except Exception as error:  # noqa: BLE001 - a dead worker, or any error of its task
            if self._runner.client.status in ("closing", "closed"):
                raise self._scheduler_is_gone() from None
            cause = lost_because(error)
            get_run_logger().warning("a chunk of %s was lost: %s", chunk.dataset, cause)
            retry = not isinstance(error, LakeError | ImportError | SyntaxError)
            return [
                Failure(chunk.dataset, key, new_attempt(), "failed", cause, chunk.versions[key])
                for key in scheduler.lost(chunk, retry=retry)
            ]
        finally:
            # If a client still holds the future of a finished task when its worker dies, Dask runs the task again.
            future.wrapped_future.release()
        scheduler.finished(chunk, len(extracted.outcomes))
        way = extracted.profile(submitted)
        return [replace(o, profile={**o.profile, **way}) for o in extracted.outcomes]

    def _scheduler_is_gone(self) -> LakeError:
        return LakeError(
            f"The connection to the Dask scheduler at {self._runner.address} was lost, including its running "
            "tasks. Published partitions stay published.",
            "start the scheduler again, then run the same command again",
        )


def lost_because(error: Exception) -> str:
    """The reason why a chunk returned no outcomes: one line without secrets."""
    if isinstance(error, _DEATHS):
        return f"its worker died: {type(error).__name__}"
    if isinstance(error, LakeError):
        text = error.message
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}"
    return redacted(" ".join(text.split()))[:500]
