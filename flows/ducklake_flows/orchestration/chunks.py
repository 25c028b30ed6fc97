"""The chunk scheduler: decides which partitions form a task and when it is submitted. Uses no Dask and no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

CHUNK = 100
"""Maximum partitions per task. A task and its dlt run have a fixed cost of 0.3 s."""

CHUNK_SECONDS = 10.0
"""Time budget of a chunk: after it no new partition starts, and finished ones are published."""

GROUP = 128
"""Maximum partitions per publish transaction: limits how long the gate is held."""


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
    about the same time.

    Args:
        todo: The partitions, in order.
        slots: Tasks that run at the same time.
    """
    by_dataset: dict[str, dict[str, str]] = {}
    for planned in todo:
        by_dataset.setdefault(planned.dataset, {})[planned.partition] = planned.source_version
    rounds = max(-(-len(todo) // (slots * CHUNK)), 1)
    size = -(-len(todo) // (slots * rounds))
    return [Chunk(key, part) for key, versions in by_dataset.items() for part in _parts(versions, size)]


def _parts(versions: Mapping[str, str], size: int) -> Iterator[dict[str, str]]:
    keys = list(versions)
    for first in range(0, len(keys), size):
        yield {key: versions[key] for key in keys[first : first + size]}


class ChunkScheduler:
    """Queues the waiting chunks, the chunks in flight, and the partitions that are retried alone.

    Args:
        chunks: All chunks to extract.
        slots: Tasks that run at the same time.
        limited: Datasets with a rate limit: at most ``slots`` of their chunks are in flight, since the rate is divided
            evenly among the slots.
    """

    def __init__(self, chunks: Sequence[Chunk], slots: int, limited: Collection[str] = ()) -> None:
        self._slots, self._limited = slots, set(limited)
        self._waiting = deque(chunks)
        self._suspects: list[Chunk] = []
        self._in_flight: list[Chunk] = []

    @property
    def unfinished(self) -> bool:
        """Whether any chunk waits or is in flight."""
        return bool(self._waiting or self._suspects or self._in_flight)

    def ready(self) -> list[Chunk]:
        """The chunks to submit now, marked as in flight.

        If nothing else is in flight or waiting, one partition of a lost chunk.
        """
        submitted, held = [], deque[Chunk]()
        for chunk in self._waiting:
            if chunk.dataset in self._limited and self._count(chunk.dataset) >= self._slots:
                held.append(chunk)
            else:
                self._in_flight.append(chunk)
                submitted.append(chunk)
        self._waiting = held
        if not self._in_flight and self._suspects:
            self._in_flight.append(self._suspects.pop())
            submitted.append(self._in_flight[-1])
        return submitted

    def _count(self, dataset: str) -> int:
        return sum(chunk.dataset == dataset for chunk in self._in_flight)

    def finished(self, chunk: Chunk, started: int) -> None:
        """Record a chunk that came back.

        Args:
            chunk: The chunk.
            started: How many of its partitions, in order, were started within the time budget. The others are queued
                again in chunks of even size, at most this large.
        """
        self._in_flight.remove(chunk)
        left = dict(list(chunk.versions.items())[started:])
        if left and started:
            even = -(-len(left) // -(-len(left) // started))
            self._waiting.extend(Chunk(chunk.dataset, part) for part in _parts(left, even))

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
