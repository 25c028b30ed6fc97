"""The chunk scheduler: decides which partitions form a task and when it is submitted. Uses no Dask and no clock."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Protocol

from ducklake_flows.states import Order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

CHUNK = 100
"""Maximum partitions per task. A task and its dlt run have a fixed cost of 0.3 s."""

CHUNK_SECONDS = 10.0
"""Time budget of a chunk: after it no new partition starts, and finished ones are published."""

BACKFILL_SECONDS = 5.0
"""Time budget of a backfill's chunk on an existing cluster: chunks of other runs wait until it ends."""

GROUP = 128
"""Maximum partitions per publish transaction: limits how long the gate is held."""

IN_FLIGHT = 3
"""Maximum chunks of a run in flight per slot: one runs, and two more keep the slot busy while the run publishes.

Runs share an existing cluster, so a run must not queue everything that it has there.
"""


class Todo(Protocol):
    """The fields of a planned partition that the scheduler needs."""

    @property
    def dataset(self) -> str:
        """The dataset's key."""

    @property
    def partition(self) -> str:
        """The partition's key."""

    @property
    def source_version(self) -> str:
        """The source's version when the run was planned."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Partitions of one dataset that one task extracts.

    Args:
        dataset: The dataset's key.
        versions: The source's version by partition.
        alone: The chunk runs while no other is in flight, so that it is known to be the cause if its worker dies.
    """

    dataset: str
    versions: Mapping[str, str]
    alone: bool = False


def cut(todo: Sequence[Todo], slots: int) -> list[Chunk]:
    """Cut a plan into chunks of one dataset each.

    Chunks are as large as `CHUNK` allows. Their number is about a multiple of the slots, so that all slots finish at
    about the same time. They are in the order of their first partitions, so datasets take turns.

    Args:
        todo: The partitions, in the order in which to extract them.
        slots: Tasks that run at the same time.
    """
    by_dataset: dict[str, dict[str, str]] = {}
    for planned in todo:
        by_dataset.setdefault(planned.dataset, {})[planned.partition] = planned.source_version
    rounds = max(-(-len(todo) // (slots * CHUNK)), 1)
    size = -(-len(todo) // (slots * rounds))
    chunks = [Chunk(key, part) for key, versions in by_dataset.items() for part in _parts(versions, size)]
    position = {(planned.dataset, planned.partition): n for n, planned in enumerate(todo)}
    return sorted(chunks, key=lambda chunk: position[chunk.dataset, next(iter(chunk.versions))])


def _parts(versions: Mapping[str, str], size: int) -> Iterator[dict[str, str]]:
    keys = list(versions)
    for first in range(0, len(keys), size):
        yield {key: versions[key] for key in keys[first : first + size]}


def priority(start: datetime, order: Order, *, urgent: bool) -> int:
    """Dask's priority of a chunk: of all tasks on a cluster, those of the highest number run first.

    Every chunk of an urgent run comes before every chunk of a backfill. Among equals the newer partitions come first,
    also those of another run. A backfill from the oldest partition on comes after one from the newest on.

    Args:
        start: Start of the chunk's first partition.
        order: The order of its run.
        urgent: Whether the run was started by a schedule or an event.
    """
    day = start.toordinal()
    return (date.max.toordinal() * 2 if urgent else 0) + (day if order is Order.newest else -day)


class ChunkScheduler:
    """Queues the waiting chunks, the chunks in flight, and the partitions that are retried alone.

    At most `IN_FLIGHT` chunks per slot are in flight.

    Args:
        chunks: All chunks to extract, in order.
        slots: Tasks that run at the same time.
    """

    def __init__(self, chunks: Sequence[Chunk], slots: int) -> None:
        self._most = IN_FLIGHT * slots
        self._waiting = deque(chunks)
        self._suspects: list[Chunk] = []
        self._in_flight: list[Chunk] = []

    @property
    def unfinished(self) -> bool:
        """Whether any chunk waits or is in flight."""
        return bool(self._waiting or self._suspects or self._in_flight)

    @property
    def in_flight(self) -> Mapping[str, int]:
        """How many chunks of each dataset are in flight; 0 if some wait and none is."""
        found = Counter(chunk.dataset for chunk in self._in_flight)
        return {chunk.dataset: 0 for chunk in (*self._waiting, *self._suspects)} | found

    def grown(self, slots: int) -> None:
        """More chunks may be in flight, since the cluster has more slots now. A smaller number changes nothing."""
        self._most = max(self._most, IN_FLIGHT * slots)

    def ready(self, most: Mapping[str, int] | None = None) -> list[Chunk]:
        """The chunks to submit now, marked as in flight.

        If nothing else is in flight or waiting, one partition of a lost chunk.

        Args:
            most: How many chunks of a dataset may be in flight, for those with a rate.
        """
        most = most or {}
        submitted, held = [], deque[Chunk]()
        for chunk in self._waiting:
            is_limited = chunk.dataset in most and self._count(chunk.dataset) >= most[chunk.dataset]
            if is_limited or len(self._in_flight) >= self._most:
                held.append(chunk)
            else:
                self._in_flight.append(chunk)
                submitted.append(chunk)
        self._waiting = held
        if not self._in_flight and not held and self._suspects and most.get(self._suspects[-1].dataset, 1):
            self._in_flight.append(self._suspects.pop())
            submitted.append(self._in_flight[-1])
        return submitted

    def _count(self, dataset: str) -> int:
        return sum(chunk.dataset == dataset for chunk in self._in_flight)

    def finished(self, chunk: Chunk, started: int) -> None:
        """Record a chunk that came back.

        Args:
            chunk: The chunk.
            started: How many of its partitions, in order, were started within the time budget. The others are the next
                to be submitted, in chunks of even size, at most this large.
        """
        self._in_flight.remove(chunk)
        left = dict(list(chunk.versions.items())[started:])
        if left and started:
            even = -(-len(left) // -(-len(left) // started))
            self._waiting.extendleft(reversed([Chunk(chunk.dataset, part) for part in _parts(left, even)]))

    def lost(self, chunk: Chunk, *, retry: bool) -> list[str]:
        """Record a chunk that came back without outcomes.

        A dead worker loses all its chunks, and any of their partitions may be the cause. So each partition is retried
        while nothing else is in flight.

        Args:
            chunk: The chunk.
            retry: Whether another try can succeed.

        Returns:
            The partitions that have failed for good.
        """
        self._in_flight.remove(chunk)
        if chunk.alone or not retry:
            return list(chunk.versions)
        self._suspects += [Chunk(chunk.dataset, {key: version}, alone=True) for key, version in chunk.versions.items()]
        return []
