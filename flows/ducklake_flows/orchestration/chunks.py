"""The scheduler of chunks: which partitions form a task, and which task is submitted when. No Dask, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

CHUNK = 100
"""Partitions in one task at most. A task and its dlt run cost 0.3 s, whatever their number."""

CHUNK_SECONDS = 10.0
"""Time budget of a chunk: then no new partition starts, and finished ones are published."""

GROUP = 128
"""Partitions in one publishing transaction at most: it bounds how long the gate is held."""


class Todo(Protocol):
    """A planned partition, as far as it matters here."""

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
        alone: No other chunk is in flight, so that the death of a worker can be attributed to this one.
    """

    dataset: str
    versions: Mapping[str, str]
    alone: bool = False


def cut(todo: Sequence[Todo], slots: int) -> list[Chunk]:
    """Cut a plan into chunks of one dataset each.

    Chunks are as large as `CHUNK` allows, and there are about equally many for every slot, so that the last ones end
    together.

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
    """Chunks that wait, chunks in flight, and partitions that are retried alone.

    Args:
        chunks: What is to be extracted.
        slots: Tasks that run at the same time.
        limited: Datasets with a rate: at most ``slots`` of their chunks are in flight, since the rate is shared evenly
            among the slots.
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
        """The chunks to submit now; they are in flight from here on.

        Once nothing else is left, one partition whose chunk was lost.
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
            started: How many of its partitions, in order, it had time for. The others are queued again, in even
                chunks no larger than this.
        """
        self._in_flight.remove(chunk)
        left = dict(list(chunk.versions.items())[started:])
        if left and started:
            even = -(-len(left) // -(-len(left) // started))
            self._waiting.extend(Chunk(chunk.dataset, part) for part in _parts(left, even))

    def lost(self, chunk: Chunk, *, retry: bool) -> list[str]:
        """Record a chunk that came back without outcomes.

        A worker that dies loses all its chunks, and any of their partitions may have caused it. So each is retried
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
