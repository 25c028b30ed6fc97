"""What a dataset is: its grain and partitions, its source, its contract and its audits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, Protocol, get_args, runtime_checkable
from zoneinfo import available_timezones

from flows.datasets.names import column_name
from flows.errors import BadInput

KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")
DECIMAL = re.compile(r"decimal\((\d{1,2}), ?(\d{1,2})\)")


class Grain(StrEnum):
    """A dataset's unit of work. ``full`` has one partition, which is refreshed whole."""

    hour = "hour"
    day = "day"
    month = "month"
    full = "full"

    @property
    def key_format(self) -> str:
        """How a partition's key is written, for `strftime`, Python's or SQL's."""
        return _FORMATS[self]


_FORMATS = {Grain.hour: "%Y-%m-%dT%H", Grain.day: "%Y-%m-%d", Grain.month: "%Y-%m", Grain.full: "full"}
_LENGTHS = {Grain.hour: 13, Grain.day: 10, Grain.month: 7}
"""How much of a moment in ISO's spelling is a partition's key."""


@dataclass(frozen=True, order=True, slots=True)
class Partition:
    """One unit of work of a dataset.

    Args:
        key: Its name, which sorts by time: ``2013-01-05``, ``2013-01-05T07``, ``2013-01`` or ``full``.
        grain: The dataset's grain.
    """

    key: str
    grain: Grain = field(compare=False, default=Grain.day)

    @property
    def start(self) -> datetime:
        """The first moment of the partition, UTC, without zone."""
        if self.grain is Grain.full:
            return datetime.min
        return datetime.fromisoformat(f"{self.key}-01" if self.grain is Grain.month else self.key)

    @property
    def end(self) -> datetime:
        """The first moment after the partition, UTC, without zone."""
        if self.grain is Grain.full:
            return datetime.max
        if self.grain is Grain.month:
            return (self.start + timedelta(days=32)).replace(day=1)
        return self.start + (timedelta(hours=1) if self.grain is Grain.hour else timedelta(days=1))

    @property
    def value(self) -> str:
        """The partition column's value, in SQL's spelling: a date, or a timestamp for hours."""
        return self.start.strftime("%Y-%m-%d %H:%M:%S" if self.grain is Grain.hour else "%Y-%m-%d")

    def __str__(self) -> str:
        return self.key


def parse_partition(key: str, grain: Grain) -> Partition:
    """Read a partition's key.

    Raises:
        BadInput: it is not a partition of this grain.
    """
    if grain is Grain.full:
        if key != "full":
            raise BadInput(f"{key!r} is not a partition: a full-refresh dataset has just one, 'full'.")
        return Partition(key, grain)
    try:
        moment = datetime.strptime(key, grain.key_format)
    except ValueError:
        example = datetime(2013, 1, 5, 7).strftime(grain.key_format)
        raise BadInput(f"{key!r} is not a partition by {grain}.", f"write it like this: {example}") from None
    return Partition(moment.strftime(grain.key_format), grain)


def partitions_between(grain: Grain, start: date, end: date) -> list[Partition]:
    """All partitions of a grain that begin on a day from ``start`` to ``end``, both included.

    Months count when any of their days lies in the range.

    Raises:
        BadInput: ``end`` is before ``start``.
    """
    if grain is Grain.full:
        return [Partition("full", grain)]
    if end < start:
        raise BadInput(f"The range ends ({end}) before it starts ({start}).", "swap --start and --end")
    keys = [(start + timedelta(days)).isoformat() for days in range((end - start).days + 1)]
    if grain is Grain.month:
        keys = list(dict.fromkeys(key[: _LENGTHS[grain]] for key in keys))
    elif grain is Grain.hour:
        keys = [f"{key}T{hour:02}" for key in keys for hour in range(24)]
    return [Partition(key, grain) for key in keys]


def partition_at(moment: datetime, grain: Grain) -> Partition:
    """The partition that a moment (UTC) lies in."""
    return Partition("full" if grain is Grain.full else moment.isoformat()[: _LENGTHS[grain]], grain)


DataType = str
"""A column's type in a contract: one of `TYPES`, or ``decimal(p,s)`` with a precision and a scale."""

TYPES = (
    *("text", "bigint", "double", "bool", "timestamp", "timestamp_ntz"),
    *("date", "time", "decimal", "binary", "json"),
)
"""dlt's names of the column types, and ``timestamp_ntz``: a moment without a zone. A ``timestamp`` is stored in UTC."""

NewColumns = Literal["evolve", "freeze", "discard_value"]


@dataclass(frozen=True)
class Contract:
    """What a dataset's rows must look like.

    Args:
        columns: Name and data type of every column, in order. Empty: they are inferred.
        new_columns: What becomes of a column that is not declared: ``evolve`` adds it to the table, ``freeze``
            rejects the partition, ``discard_value`` leaves it out.
        rename: The column that one of the source's names becomes, where it is not to be the one that
            `flows.datasets.names.column_name` makes of it.
        timezone: The zone of moments that a source gives without one, for columns declared as ``timestamp``;
            ``Europe/Berlin``. None refuses them.
        known: The DuckDB type of each column that the raw table has by now, for sources whose own types say less. The
            pipeline fills it in.
    """

    columns: Mapping[str, DataType] = field(default_factory=dict)
    new_columns: NewColumns = "evolve"
    rename: Mapping[str, str] = field(default_factory=dict)
    timezone: str | None = None
    known: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, data_type in self.columns.items():
            if not isinstance(name, str) or not name or column_name(name) != name:
                raise BadInput(f"{name!r} is not a column name.", _like(name))
            if data_type not in TYPES and not _is_decimal(data_type):
                raise BadInput(
                    f"{name}: {data_type!r} is not a column type.", f"choose from {', '.join(TYPES)}, decimal(p,s)"
                )
        if self.new_columns not in get_args(NewColumns):
            raise BadInput(
                f"new_columns={self.new_columns!r} is not known.", f"choose from {', '.join(get_args(NewColumns))}"
            )
        for source, name in self.rename.items():
            if not name or column_name(name) != name:
                raise BadInput(f"rename: {source!r} cannot become {name!r}.", _like(name))
        if self.timezone is not None and self.timezone not in available_timezones():
            raise BadInput(f"{self.timezone!r} is not a time zone.", "name it as in Europe/Berlin or UTC")


def _is_decimal(data_type: object) -> bool:
    found = DECIMAL.fullmatch(data_type) if isinstance(data_type, str) else None
    return found is not None and 1 <= int(found[1]) <= 38 and int(found[2]) <= int(found[1])


def _like(name: object) -> str:
    like = column_name(name) if isinstance(name, str) else ""
    return f"write it like this: {like}" if like else "use letters, digits and underscores"


@dataclass(frozen=True)
class Audit:
    """A condition on a partition's rows, checked before it is published.

    Args:
        name: How a failure is named.
        condition: A SQL expression over the columns of one row that must not be false, or an aggregate
            over the partition that must be true.
        on_fail: ``reject`` keeps the partition from being published; ``warn`` only says so.
    """

    name: str
    condition: str
    on_fail: Literal["reject", "warn"] = "reject"
    aggregate: bool = False


def not_null(*columns: str) -> Audit:
    """No row has a null in any of these columns."""
    return Audit(f"not_null({', '.join(columns)})", " AND ".join(f'"{c}" IS NOT NULL' for c in columns))


def at_least(rows: int) -> Audit:
    """The partition has at least so many rows."""
    return Audit(f"at_least({rows})", f"count(*) >= {rows}", aggregate=True)


def expect(name: str, condition: str, on_fail: Literal["reject", "warn"] = "reject") -> Audit:
    """No row makes this SQL condition false (a null passes)."""
    return Audit(name, condition, on_fail)


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
        hour: The hour of the day (UTC) at which the ingest deployment looks for what is new; None means never by
            itself.
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
    hour: int | None = None

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
        if self.hour is not None and not 0 <= self.hour <= 23:
            raise BadInput(f"{self.key}: the hour is from 0 to 23, not {self.hour}.")
        if self.partition_column and column_name(self.partition_column) != self.partition_column:
            raise BadInput(f"{self.key}: {self.partition_column!r} is not a column name.", _like(self.partition_column))
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
