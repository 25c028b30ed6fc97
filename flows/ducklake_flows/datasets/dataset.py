"""The definition of a dataset: its source, grain, contract and audits."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ducklake_flows.datasets.contract import Contract, like
from ducklake_flows.datasets.names import column_name
from ducklake_flows.datasets.partitions import Grain, Partition, partitions_between
from ducklake_flows.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ducklake_flows.datasets.audits import Audit

KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")

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

    def check(self, key: str, grain: Grain) -> None:
        """Check the source's arguments.

        Raises:
            BadInput: they do not distinguish partitions of this grain.
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


@dataclass(frozen=True)
class Dataset:
    """Everything that the pipeline knows about one dataset.

    Args:
        key: The dataset's name; the raw table is ``raw.<key>``.
        source: Reads one partition: a ``Source``, or a function of the partition that returns a dlt resource or
            yields rows.
        grain: The dataset's unit of work.
        partition_column: Partition column of the raw table: a DATE, or a TIMESTAMP for hours. The pipeline adds it if
            the source lacks it, and rejects rows with another value. None for ``full``.
        primary_key: Columns that identify a row; audited to be unique and not null.
        contract: Columns and types.
        audits: Further conditions.
        start: The first day with data; the default of ``--start``.
        end: The last day with data; None: the last partition that has ended.
        complete: Whether a partition without a source is a failure.
        rate: Maximum items per second for all runs together, with all their workers. An item is what the source
            yields, such as a page. Runs that overlap have equal shares. A run that joins others waits 5 s; the share of
            a run that was killed is free after about a minute. None: unlimited.
        schedule_hour: The hour of the day (UTC, 0 to 23) at which the ingest deployment runs the dataset; None: never.
        recheck: How long after its end a published partition is loaded again if its source changes, without being asked
            for: ``"7 days"``, a timedelta, or a number of days. Older ones are counted as stale and run with the mode
            ``stale``. A partition of grain ``full`` never ends, so any value loads it again. None: never.
        freshness: How long after its end a partition must be published, written as `recheck` is: ``"26 hours"``. If
            neither the newest partition of that age nor a newer one is, the dataset is overdue: `lake status` names it,
            and an alert is sent. Without a `start` it counts from the first published partition. None: never overdue. A
            partition of grain ``full`` has no end, so that grain takes none.
        retries: How often a partition is read again after an error that may pass, such as a lost connection or HTTP
            503; see ``ducklake_flows.sources.transient``.
        retry_delay: Seconds before the first retry, at most 60. Each further delay is twice as long, up to 60 s, plus
            a random part. The worker reads the other partitions of its chunk first.
        timeout: Maximum seconds that the source may take for its next item; then the partition fails. None: unlimited.
        partitioned: Whether maintenance keeps the files of each partition apart. Otherwise it merges files below
            64 MiB, so that readers and publishers look through fewer of them.
    """

    key: str
    source: Source | Callable[[Partition], Rows]
    grain: Grain = Grain.day
    partition_column: str | None = None
    primary_key: tuple[str, ...] = ()
    contract: Contract = Contract()  # noqa: RUF009 - frozen
    audits: tuple[Audit, ...] = ()
    start: date | None = None
    end: date | None = None
    complete: bool = False
    rate: float | None = None
    schedule_hour: int | None = None
    recheck: timedelta | str | int | None = None
    freshness: timedelta | str | int | None = None
    retries: int = 2
    retry_delay: float = 5.0
    timeout: float | None = 3600.0
    partitioned: bool = False

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.key):
            raise BadInput(f"{self.key!r} is not a dataset key: use {KEY.pattern}")
        try:
            object.__setattr__(self, "grain", Grain(self.grain))
        except ValueError:
            raise BadInput(f"{self.key}: {self.grain!r} is not a grain.", f"choose from {', '.join(Grain)}") from None
        for name, day in (("start", self.start), ("end", self.end)):
            if day is not None and (not isinstance(day, date) or isinstance(day, datetime)):
                raise BadInput(f"{self.key}: {name} is {day!r}, not a day.", f"{name}=date(2024, 1, 31)")
        if (self.grain is Grain.full) != (self.partition_column is None):
            raise BadInput(
                f"{self.key}: every grain except 'full' needs a partition_column, and 'full' must have none."
            )
        if self.partitioned and self.partition_column is None:
            raise BadInput(f"{self.key}: a dataset of grain 'full' is one partition.", "leave partitioned out")
        if self.rate is not None and self.rate <= 0:
            raise BadInput(f"{self.key}: rate must be above 0 items per second, not {self.rate}.")
        if self.schedule_hour is not None and not 0 <= self.schedule_hour <= 23:
            raise BadInput(f"{self.key}: schedule_hour must be from 0 to 23, not {self.schedule_hour}.")
        for name, given in (("recheck", self.recheck), ("freshness", self.freshness)):
            object.__setattr__(self, name, _window(self.key, name, given))
        if self.freshness is not None and self.grain is Grain.full:
            raise BadInput(
                f"{self.key}: freshness counts from the end of a partition, and one of grain 'full' has none.",
                "leave it out",
            )
        for name, value, low, high in (
            ("retries", self.retries, 0, 10),
            ("retry_delay", self.retry_delay, 0, 60),
            ("timeout", self.timeout, 0.1, math.inf),
        ):
            kinds = (int,) if name == "retries" else (int, float)
            if (value is None and name != "timeout") or (value is not None and type(value) not in kinds):
                raise BadInput(f"{self.key}: {name} is {value!r}, not a number.", f"for example: {name}={high // 2}")
            if value is not None and not low <= value <= high:
                allowed = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
                raise BadInput(f"{self.key}: {name} is {value!r}.", f"give a number {allowed}")
        if self.partition_column and column_name(self.partition_column) != self.partition_column:
            raise BadInput(f"{self.key}: {self.partition_column!r} is not a column name.", like(self.partition_column))
        if self.partition_column is not None and self.partition_column in self.contract.columns:
            found = self.contract.columns[self.partition_column]
            wanted = "timestamp_ntz" if self.grain is Grain.hour else "date"
            if found != wanted:
                raise BadInput(
                    f"{self.key}: the partition column {self.partition_column} is declared as {found}.",
                    f"declare it as {wanted}, or leave it out: the pipeline adds it",
                )
        if isinstance(self.primary_key, str) or not all(isinstance(name, str) for name in self.primary_key):
            raise BadInput(f"{self.key}: primary_key is {self.primary_key!r}.", 'primary_key=("order_id",)')
        if wrong := [name for name in self.primary_key if column_name(name) != name]:
            raise BadInput(f"{self.key}: the primary key's {wrong[0]!r} is not a column name.", like(wrong[0]))
        declared = {*self.contract.columns, self.partition_column}
        if unknown := [name for name in self.primary_key if self.contract.columns and name not in declared]:
            raise BadInput(
                f"{self.key}: the contract lacks columns of the primary key: {', '.join(unknown)}.",
                "declare them in the contract",
            )
        if isinstance(self.source, Checked):
            self.source.check(self.key, self.grain)

    @property
    def table(self) -> str:
        """Schema and name of the raw table."""
        return f"raw.{self.key}"

    @property
    def needs_start(self) -> bool:
        """Whether a range of the dataset's partitions needs an explicit first day."""
        return self.start is None and self.grain is not Grain.full

    def partitions(self, start: date | None = None, end: date | None = None) -> list[Partition]:
        """The partitions of a range. The dataset's start and end are the defaults.

        A partition that has not ended yet (this month, this hour) is left out unless ``end`` includes it.

        Raises:
            BadInput: the range is reversed, or neither the range nor the dataset has a start.
        """
        if self.grain is Grain.full:
            return partitions_between(self.grain, date.min, date.max)
        first = start or self.start
        if first is None:
            raise BadInput(f"{self.key} has no start date.", "add --start YYYY-MM-DD to the command")
        if end is not None:
            return partitions_between(self.grain, first, end)
        now = datetime.now(UTC).replace(tzinfo=None)
        last = min(self.end or now.date(), now.date())
        found = partitions_between(self.grain, first, last) if first <= last else []
        while found and found[-1].end > now:
            found.pop()
        return found

    def is_rechecked(self, partition: Partition, now: datetime) -> bool:
        """Whether a partition is within the window in which a changed source is loaded again.

        Args:
            partition: The partition.
            now: The present, in UTC, without zone.
        """
        return isinstance(self.recheck, timedelta) and now - partition.end <= self.recheck

    def late(self, last: Partition | None, now: datetime) -> list[Partition]:
        """The partitions after the last published one that should be published by now, oldest first; see `freshness`.

        Args:
            last: The newest published partition; None if there is none.
            now: The present, in UTC, without zone.
        """
        start = last.start.date() if last else self.start
        if start is None or not isinstance(self.freshness, timedelta):
            return []
        limit = self.freshness
        return [p for p in self.partitions(start) if (last is None or p > last) and p.end + limit <= now]

    def versions(self, partitions: Sequence[Partition]) -> dict[str, str]:
        """The version of each partition that the source has, by key; ``""`` if the source cannot tell before a read."""
        if isinstance(self.source, Source):
            return dict(self.source.versions(partitions))
        return {p.key: "" for p in partitions}

    def origin(self, partition: Partition) -> str:
        """What a partition is read from: the source's file or URL, or its function and the module that defines it."""
        if isinstance(self.source, Named):
            return self.source.origin(partition)
        named = self.source if callable(self.source) and hasattr(self.source, "__qualname__") else type(self.source)
        return f"{named.__module__.rpartition('.')[2]}.py: {named.__qualname__}"

    def chunk(self) -> AbstractContextManager[Callable[[Partition, Contract], Rows] | None]:
        """Prepare to read some partitions together; yields what `read` takes."""
        return self.source.chunk() if isinstance(self.source, Chunked) else nullcontext()

    def read(
        self,
        partition: Partition,
        known: Mapping[str, str] | None = None,
        using: Callable[[Partition, Contract], Rows] | None = None,
    ) -> Rows:
        """Read one partition from the source; raises what the source raises.

        Args:
            partition: The partition.
            known: The raw table's columns and DuckDB types.
            using: From `chunk`.
        """
        if using is None and not isinstance(self.source, Source):
            return self.source(partition)
        own = {self.partition_column: "TIMESTAMP" if self.grain is Grain.hour else "DATE"}
        found = {name: data_type for name, data_type in own.items() if name} | dict(known or {})
        contract = replace(self.contract, known=found)
        return using(partition, contract) if using else self.source.read(partition, contract)  # type: ignore[union-attr]


_UNITS = ("minute", "hour", "day", "week")


def _window(key: str, name: str, given: timedelta | str | int | None) -> timedelta | None:
    """The time that a dataset's `recheck` or `freshness` means.

    Raises:
        BadInput: it is not a time above zero.
    """
    found: timedelta | None = None
    if isinstance(given, timedelta):
        found = given
    elif isinstance(given, int) and not isinstance(given, bool):
        found = timedelta(days=min(given, timedelta.max.days))
    elif isinstance(given, str) and (parts := re.fullmatch(rf"(\d{{1,6}}) ?({'|'.join(_UNITS)})s?", given.strip())):
        found = timedelta(**{f"{parts[2]}s": int(parts[1])})
    elif given is None:
        return None
    if found is None or found <= timedelta(0):
        raise BadInput(f"{key}: {name} is {given!r}.", f'write it like this: {name}="7 days" (minutes, hours, weeks)')
    return found
