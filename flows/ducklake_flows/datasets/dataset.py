"""What a dataset is: its source, its grain, its contract and its audits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Protocol, runtime_checkable

from ducklake_flows.datasets.audits import Audit
from ducklake_flows.datasets.contract import Contract, like
from ducklake_flows.datasets.names import column_name
from ducklake_flows.datasets.partitions import Grain, Partition, partitions_between
from ducklake_flows.errors import BadInput

KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")

Rows = Any
"""What reading gives: dicts, lists of dicts, Arrow tables, batches or readers, pandas or polars frames, DuckDB
relations, or an iterable of any of these, such as a dlt resource."""


@runtime_checkable
class Source(Protocol):
    """A source that can say, without reading, what it has; a plain function of the partition will do otherwise."""

    def versions(self, partitions: Sequence[Partition]) -> Mapping[str, str]:
        """The version of each partition that is there, by key; one that is not there is left out.

        A version is any text that changes when the partition's content may have changed.
        """
        ...

    def read(self, partition: Partition, contract: Contract) -> Rows:
        """Read one partition.

        Raises:
            NoSource: there is nothing for this partition (yet).
            SourceError: there is something, but it cannot be read.
        """
        ...


@runtime_checkable
class Checked(Protocol):
    """A source that knows whether it can be what a dataset asks of it."""

    def check(self, key: str, grain: Grain) -> None:
        """Look at its own arguments.

        Raises:
            BadInput: it cannot tell partitions of this grain apart.
        """
        ...


@runtime_checkable
class Strays(Protocol):
    """A source that can also say which of its files it never reads."""

    def unmatched(self, partitions: Sequence[Partition]) -> list[str]:
        """The names of the files that lie where the source looks, and are none of these partitions'."""
        ...


@dataclass(frozen=True)
class Dataset:
    """One dataset: everything the pipeline knows of it.

    Args:
        key: Its name; the raw table is ``raw.<key>``.
        source: Reads one partition: a ``Source``, or a function of the partition that returns a dlt resource or
            yields rows.
        grain: Its unit of work.
        partition_column: The raw table's partition column, a DATE (a TIMESTAMP for hours). The pipeline fills
            it in where the source lacks it, and rejects rows that disagree. None for ``full``.
        primary_key: Columns that identify a row; audited to be unique and not null.
        contract: Columns and types.
        audits: Further conditions.
        start: The first day there is, the default of ``--start``.
        end: The last day there is; None means the last partition that is over.
        complete: Whether a partition without a source is a failure.
        rate: Items (what the source yields: a page, say) a second that one run asks for at most, all its workers
            together; None means as many as it gets.
        schedule_hour: The hour of the day (UTC, 0 to 23) at which the ingest deployment runs the dataset; None: never.
    """

    key: str
    source: Source | Callable[[Partition], Rows]
    grain: Grain = Grain.day
    partition_column: str | None = None
    primary_key: tuple[str, ...] = ()
    contract: Contract = Contract()
    audits: tuple[Audit, ...] = ()
    start: date | None = None
    end: date | None = None
    complete: bool = False
    rate: float | None = None
    schedule_hour: int | None = None

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
            raise BadInput(f"{self.key}: every grain but 'full' needs a partition_column, and 'full' none.")
        if self.rate is not None and self.rate <= 0:
            raise BadInput(f"{self.key}: the rate is above 0 items a second, not {self.rate}.")
        if self.schedule_hour is not None and not 0 <= self.schedule_hour <= 23:
            raise BadInput(f"{self.key}: schedule_hour is from 0 to 23, not {self.schedule_hour}.")
        if self.partition_column and column_name(self.partition_column) != self.partition_column:
            raise BadInput(f"{self.key}: {self.partition_column!r} is not a column name.", like(self.partition_column))
        declared = {*self.contract.columns, self.partition_column}
        if unknown := [name for name in self.primary_key if self.contract.columns and name not in declared]:
            raise BadInput(
                f"{self.key}: the primary key's {', '.join(unknown)} is not in the contract.", "declare it there, too"
            )
        if isinstance(self.source, Checked):
            self.source.check(self.key, self.grain)

    @property
    def table(self) -> str:
        """The raw table, schema and name."""
        return f"raw.{self.key}"

    @property
    def needs_start(self) -> bool:
        """Whether a range of its partitions must name its first day."""
        return self.start is None and self.grain is not Grain.full

    def partitions(self, start: date | None = None, end: date | None = None) -> list[Partition]:
        """The partitions of a range; the dataset's own where an end is left open.

        One that is not over yet (this month, this hour) is left out unless ``end`` asks for it.

        Raises:
            BadInput: the range is reversed, or has no start and the dataset names none.
        """
        if self.grain is Grain.full:
            return partitions_between(self.grain, date.min, date.max)
        first = start or self.start
        if first is None:
            raise BadInput(f"{self.key} has no start of its own.", "name one with --start YYYY-MM-DD")
        if end is not None:
            return partitions_between(self.grain, first, end)
        now = datetime.now(UTC).replace(tzinfo=None)
        last = min(self.end or now.date(), now.date())
        found = partitions_between(self.grain, first, last) if first <= last else []
        while found and found[-1].end > now:
            found.pop()
        return found

    def versions(self, partitions: Sequence[Partition]) -> dict[str, str]:
        """What the source has: a version by partition key. ``""`` where it cannot say before reading."""
        if isinstance(self.source, Source):
            return dict(self.source.versions(partitions))
        return {p.key: "" for p in partitions}

    def read(self, partition: Partition, known: Mapping[str, str] | None = None) -> Rows:
        """Read one partition from the source; raises what the source raises."""
        if isinstance(self.source, Source):
            own = {self.partition_column: "TIMESTAMP" if self.grain is Grain.hour else "DATE"}
            found = {name: data_type for name, data_type in own.items() if name} | dict(known or {})
            return self.source.read(partition, replace(self.contract, known=found))
        return self.source(partition)
