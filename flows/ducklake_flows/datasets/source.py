"""What a source is: the methods that it must have, and those that it may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.datasets.scheme import Scheme

Rows = Any
"""What a source returns: dicts, lists of dicts, Arrow tables, batches or readers, pandas or polars frames, DuckDB
relations, or an iterable of any of these, such as a dlt resource."""


@runtime_checkable
class Source(Protocol):
    """A source that can list its partitions without reading them. Any other source is a function of the partition."""

    def versions(self, partitions: Sequence[Partition]) -> Mapping[str, str]:
        """The version of each partition that the source has, by key. Partitions that it lacks are left out.

        A version is any text that changes whenever the partition's content may have changed.
        """
        ...

    def read(self, partition: Partition, contract: Contract) -> Rows:
        """Read one partition.

        Raises:
            NoSource: the source does not have this partition (yet).
            SourceError: the source has the partition, but it cannot be read.
        """
        ...


@runtime_checkable
class Checked(Protocol):
    """A source that can check its arguments against the dataset."""

    def check(self, key: str, scheme: Scheme) -> None:
        """Check the source's arguments.

        Args:
            key: The dataset's key.
            scheme: How it is divided into partitions.

        Raises:
            BadInput: they do not distinguish its partitions.
        """
        ...


@runtime_checkable
class Segmented(Protocol):
    """A source that can list the segments that it has."""

    def segments(self, scheme: Scheme) -> Iterable[str]:
        """The segments, in any order.

        Args:
            scheme: How the dataset is divided into partitions.
        """
        ...


@runtime_checkable
class Chunked(Protocol):
    """A source that reads the partitions of a chunk together, such as over one connection."""

    def chunk(self) -> AbstractContextManager[Callable[[Partition, Contract], Rows]]:
        """Prepare to read some partitions. Yields a function that reads one, like `Source.read`."""
        ...


@runtime_checkable
class Strays(Protocol):
    """A source that can also list the files that it never reads."""

    def unmatched(self, partitions: Sequence[Partition]) -> list[str]:
        """Names of the files in the source's location that belong to none of these partitions."""
        ...


@runtime_checkable
class Named(Protocol):
    """A source that can name what it reads for a partition."""

    def origin(self, partition: Partition) -> str:
        """The partition's file, pattern of files, URL or table. Nothing is read to find it."""
        ...
