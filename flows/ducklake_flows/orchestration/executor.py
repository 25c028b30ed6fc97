"""Where a run's chunks are extracted: on Dask, or in the run's own process if there is only one partition."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from prefect import task
from prefect.runtime import flow_run

from ducklake_flows.errors import LakeError
from ducklake_flows.orchestration import chunk_task
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ducklake_flows.orchestration.chunk_task import Extracted, Parameters
    from ducklake_flows.plan import Planned
    from ducklake_flows.settings import Settings


class WorkerDied(Exception):
    """The process that extracted a chunk died or was stopped."""


class SchedulerLost(LakeError):
    """The connection to the Dask scheduler was lost."""


class Submitted(Protocol):
    """A chunk that was submitted."""

    def result(self) -> Extracted:
        """What was extracted. Call it once, after the chunk has ended.

        Raises:
            WorkerDied: its process died.
            SchedulerLost: nothing more can be extracted.
        """


class Executor(Protocol):
    """Runs chunks as Prefect tasks."""

    is_shared: bool
    """Whether other runs' chunks may run there, too."""

    def slots(self) -> int:
        """How many chunks it runs at the same time; 0 while an existing cluster has no workers."""

    def submit(self, parameters: Parameters, priority: int, ended: Callable[[], None]) -> Submitted:
        """Begin a chunk.

        Args:
            parameters: The chunk.
            priority: Of several waiting chunks, the one with the highest number begins.
            ended: Called in any thread when the chunk has ended.

        Raises:
            SchedulerLost: nothing more can be extracted.
        """

    def tell(self, name: str, pace: float) -> bool:
        """Tell the workers a new pace, in any thread.

        Args:
            name: See `chunk_task.pace_name`.
            pace: Seconds between two items of each chunk.

        Returns:
            Whether they can know it.
        """


@contextlib.contextmanager
def executor(settings: Settings, workers: int, todo: Sequence[Planned]) -> Iterator[Executor]:
    """A started executor.

    Args:
        settings: Contains the address of an existing Dask scheduler, if any.
        workers: Processes of a local cluster; ignored with an existing scheduler.
        todo: The partitions of the run. A single one needs no cluster of its own, whose start takes longer than most
            partitions. It gets one if it failed before, since it may have killed its process.

    Raises:
        LakeError: the scheduler does not answer.
    """
    if settings.dask_address is None and len(todo) == 1 and todo[0].state is not State.failed:
        yield InProcess()
        return
    # Dask is imported only where it is needed: it takes half a second.
    from ducklake_flows.orchestration.cluster import cluster

    with cluster(settings, workers) as found:
        yield found


class InProcess:
    """Runs each chunk where it is submitted, before `submit` returns. If the process dies, the run has crashed."""

    is_shared = False

    def slots(self) -> int:
        """One: the run's thread."""
        return 1

    def tell(self, name: str, pace: float) -> bool:
        """Keep the pace for the chunk, which runs in this process."""
        _told[name] = pace
        return True

    def submit(self, parameters: Parameters, priority: int, ended: Callable[[], None]) -> Submitted:  # noqa: ARG002
        """Run a chunk to its end."""
        state: Any = extract(**parameters, return_state=True)
        ended()
        return _Done(state)


_told: dict[str, float] = {}
"""The paces by name."""


class _Done:
    def __init__(self, state: Any) -> None:
        self._state = state

    def result(self) -> Extracted:
        found = self._state.result(raise_on_failure=False)
        if isinstance(found, BaseException):
            raise found
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
    """Extract one chunk of partitions in the run's process; see `chunk_task.run`."""
    name = chunk_task.pace_name(str(flow_run.id), dataset)
    return chunk_task.run(dataset, versions, table, pace, limit, others, told=lambda: _told.get(name))
