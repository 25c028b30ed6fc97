"""Extraction: submits a plan in chunks and yields their outcomes in groups as they arrive."""

from __future__ import annotations

import contextlib
import itertools
import queue
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prefect import get_run_logger
from prefect.runtime import flow_run

from ducklake_flows.errors import LakeError, redacted
from ducklake_flows.orchestration.chunk_task import pace_name
from ducklake_flows.orchestration.chunks import (
    BACKFILL_SECONDS,
    CHUNK_SECONDS,
    GROUP,
    Chunk,
    ChunkScheduler,
    cut,
    priority,
)
from ducklake_flows.orchestration.executor import SchedulerLost, WorkerDied
from ducklake_flows.orchestration.rates import Shares
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Failure, Outcome
from ducklake_flows.states import Order
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.orchestration.executor import Executor, Submitted
    from ducklake_flows.orchestration.root_run import RootRun
    from ducklake_flows.plan import Planned

WAKE_SECONDS = 1.0
"""Maximum seconds to wait for a chunk before looking whether the run was paused."""

GROWN_SECONDS = 10.0
"""Seconds between two looks at the size of the cluster."""


class Extraction:
    """Extracts a plan.

    Args:
        executor: Where its chunks run.
        workers: Processes of the local cluster; used only while the cluster has no workers.
        datasets: The datasets by key.
        tables: Columns and DuckDB types of every table, by name.
        root: Whether the run is a backfill, and whether it is paused.
        order: The order of its partitions.
    """

    def __init__(
        self,
        executor: Executor,
        workers: int,
        datasets: Mapping[str, Dataset],
        tables: Mapping[str, Mapping[str, str]],
        root: RootRun,
        order: Order = Order.newest,
    ) -> None:
        self._executor, self._datasets, self._tables = executor, datasets, tables
        self._root, self._order = root, order
        run = str(flow_run.id)
        self._shares = Shares(
            {key: dataset.rate for key, dataset in datasets.items() if dataset.rate is not None},
            lambda key, pace: executor.tell(pace_name(run, key), pace),
        )
        self._numbers = itertools.count()
        self._in_flight: dict[int, tuple[Submitted, Chunk, float]] = {}
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        # An existing cluster may have any number of workers. An autoscaling one may have none yet.
        there = executor.slots()
        if not there:
            get_run_logger().warning("the Dask cluster has no workers: waiting for one")
        self._slots = there or workers
        self._looked = time.monotonic()
        self._seconds = BACKFILL_SECONDS if root.is_backfill and executor.is_shared else CHUNK_SECONDS

    def groups(self, todo: Sequence[Planned]) -> Generator[list[Outcome]]:
        """Extract these partitions, in this order.

        A paused run submits no more chunks. Once those in flight are published, it waits, or its process ends.

        Yields:
            Outcomes in order of arrival, at most `GROUP` at a time. Extraction continues while the caller publishes a
            group.

        Raises:
            LakeError: the connection to the Dask scheduler was lost.
            GateError: the rate of a dataset cannot be shared with other runs.
            Pause: the run is suspended.
        """
        scheduler = ChunkScheduler(cut(todo, self._slots), self._slots)
        self._shares.in_flight(scheduler.in_flight)
        with self._shares:
            yield from self._groups(scheduler)

    def _groups(self, scheduler: ChunkScheduler) -> Iterator[list[Outcome]]:
        waiting: list[Outcome] = []
        while waiting or scheduler.unfinished:
            if not self._root.is_held:
                self._look(scheduler)
                chunks = scheduler.ready(self._shares.most(self._slots))
                self._shares.in_flight(scheduler.in_flight)
                for chunk in chunks:
                    self._submit(chunk)
            elif not waiting and not self._in_flight:
                with self._shares.left():
                    self._root.wait()
            for number in self._next(wait=not waiting):
                waiting += self._outcomes(scheduler, *self._in_flight.pop(number))
            group, waiting = waiting[:GROUP], waiting[GROUP:]
            if group:
                yield group

    def _look(self, scheduler: ChunkScheduler) -> None:
        """Let more chunks in flight if the cluster has grown."""
        if self._executor.is_shared and time.monotonic() - self._looked >= GROWN_SECONDS:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError):  # a lost scheduler is reported by its chunks
                scheduler.grown(self._executor.slots())

    def _submit(self, chunk: Chunk) -> None:
        start = self._datasets[chunk.dataset].partition(next(iter(chunk.versions))).start
        number, began = next(self._numbers), time.time()
        submitted = self._executor.submit(
            {
                "dataset": chunk.dataset,
                "versions": dict(chunk.versions),
                "table": dict(self._tables.get(self._datasets[chunk.dataset].table, {})),
                "pace": self._shares.pace(chunk.dataset),
                "limit": self._seconds,
                "others": {
                    member.key: dict(self._tables.get(member.table, {}))
                    for member in self._datasets[chunk.dataset].members
                },
            },
            priority(start, self._order, urgent=not self._root.is_backfill),
            partial(self._ended.put, number),
        )
        self._in_flight[number] = submitted, chunk, began

    def _next(self, *, wait: bool) -> list[int]:
        """The numbers of all chunks that have ended since the last call.

        Args:
            wait: Wait until at least one has ended, at most `WAKE_SECONDS`. None is in flight while a run waits for its
                share of a rate.
        """
        numbers = []
        with contextlib.suppress(queue.Empty):
            if wait:
                numbers.append(self._ended.get(timeout=WAKE_SECONDS))
            while True:
                numbers.append(self._ended.get_nowait())
        return numbers

    def _outcomes(self, scheduler: ChunkScheduler, submitted: Submitted, chunk: Chunk, began: float) -> list[Outcome]:
        """The outcomes of a chunk that has ended. For a lost chunk: failures of the partitions that are not retried.

        An error that is independent of the partition fails the whole chunk at once: a dataset's file that cannot be
        loaded on the worker, or a worker without the code.
        """
        try:
            extracted = submitted.result()
            failpoint("receipted")
        except SchedulerLost:
            raise
        except Exception as error:  # noqa: BLE001 - a dead worker, or any error of its task
            cause = lost_because(error)
            get_run_logger().warning("a chunk of %s was lost: %s", chunk.dataset, cause)
            retry = not isinstance(error, LakeError | ImportError | SyntaxError)
            return [
                Failure(chunk.dataset, key, new_attempt(), "failed", cause, chunk.versions[key])
                for key in scheduler.lost(chunk, retry=retry)
            ]
        scheduler.finished(chunk, len(extracted.outcomes))
        way = extracted.profile(began)
        return [replace(o, profile={**o.profile, **way}) for o in extracted.outcomes]


def lost_because(error: Exception) -> str:
    """The reason why a chunk returned no outcomes: one line without secrets."""
    if isinstance(error, WorkerDied):
        return f"its worker died: {error}"
    if isinstance(error, LakeError):
        text = error.message
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}"
    return redacted(" ".join(text.split()))[:500]
