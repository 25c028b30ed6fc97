"""The definition of a dataset: its source, grain, contract and audits."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, get_args
from zoneinfo import available_timezones

from ducklake_flows.datasets.contract import Contract, like
from ducklake_flows.datasets.names import column_name
from ducklake_flows.datasets.partitions import Grain, Partition, in_utc, in_zone, window
from ducklake_flows.datasets.scheme import Scheme, checked_segment
from ducklake_flows.datasets.source import Checked, Chunked, Named, Rows, Segmented, Source
from ducklake_flows.datasets.types import declared_type
from ducklake_flows.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ducklake_flows.datasets.audits import Audit
    from ducklake_flows.datasets.contract import Refused

QUARANTINE = "quarantine"
"""The name of the table of the rows that are set aside, among the tables of its dataset."""

KeyScope = Literal["partition", "table"]

KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class Table:
    """A table that a dataset's source fills besides the dataset's own; see `Dataset.children` and `Dataset.resources`.

    Args:
        contract: Columns and types; inferred if it declares none.
        primary_key: Columns that identify a row; audited to be unique and not null. Empty for a child: the columns of
            its parent's key, and ``position``.
        audits: Further conditions.
    """

    contract: Contract = Contract()  # noqa: RUF009 - frozen
    primary_key: tuple[str, ...] = ()
    audits: tuple[Audit, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Everything that the pipeline knows about one dataset.

    Rows that the contract discards (``discard_row``), and rows that break an audit with ``on_fail="quarantine"``, are
    set aside: they go to ``raw.<key>__quarantine`` in the same commit as the rest, with the reason, the column, the
    file, the line and the row's content. They are replaced, rolled back and repaired with their partition.

    Args:
        key: The dataset's name; the raw table is ``raw.<key>``.
        source: Reads one partition: a ``Source``, or a function of the partition that returns a dlt resource or
            yields rows.
        grain: The dataset's unit of work.
        partition_column: Partition column of the raw table: a DATE, or a TIMESTAMP in UTC for hours. The pipeline adds
            it if the source lacks it, and rejects rows with another value. None for ``full``.
        segment_column: A column by which the dataset is divided, too, such as ``region``. Each segment and period is a
            partition, ``eu/2024-01-31``; with grain ``full``, each segment is: ``eu``. The pipeline adds and checks the
            column as it does `partition_column`. None: no segments.
        segments: The segments, ``("eu", "us")``, or a function that lists them at each plan. None: the source lists
            them.
        timezone: The zone in which the days, or hours, of the dataset begin and end: ``Europe/Brussels``. Also the
            contract's zone, if that has none.
        primary_key: Columns that identify a row; audited to be unique and not null.
        contract: Columns and types.
        audits: Further conditions.
        start: The first day with data; the default of ``--start``.
        end: The last day with data; None: the last partition that has ended.
        complete: Whether a partition without a source is a failure.
        rate: Maximum items per second for all runs together, with all their workers. An item is what the source
            yields, such as a page. Runs that overlap have equal shares. A run that joins others waits 5 s; the share of
            a run that was killed is free after about a minute. None: unlimited.
        schedule: When the ingest deployment loads the dataset, as cron in the dataset's zone: ``0 6 * * *``; None:
            never.
        recheck: How long after its end a published partition is loaded again if its source changes, without being asked
            for: ``"7 days"``, a timedelta, or a number of days. Older ones are counted as stale and run with the mode
            ``stale``. A partition of grain ``full`` never ends, so any value loads it again. None: never.
        late: With so many of its next partitions, the source may also give rows of a partition: with ``late=2``, the
            rows of the 5th are those with this day in the source's 5th, 6th and 7th. The others are left to their own
            partitions; a row that is later, or older than that, is refused. A new partition of the source makes the
            ones before it stale, so that `recheck` loads them again. Needs the partition column in the rows.
        quarantine_limit: The most rows of a partition that may be set aside, as a number or as a part of its rows:
            ``"1 %"``. A partition with more is rejected. None: no limit.
        freshness: How long after its end a partition must be published, written as `recheck` is: ``"26 hours"``. If
            neither the newest partition of that age nor a newer one is, the dataset is overdue: `lake status` names it,
            and an alert is sent. Without a `start` it counts from the first published partition. None: never overdue. A
            partition of grain ``full`` has no end, so that grain takes none.
        retries: How often a partition is read again after an error that may pass, such as a lost connection or HTTP
            503; see ``ducklake_flows.sources.transient``.
        retry_delay: Seconds before the first retry, at most 60. Each further delay is twice as long, up to 60 s, plus
            a random part. The worker reads the other partitions of its chunk first.
        timeout: Maximum seconds that the source may take for its next item; then the partition fails. None: unlimited.
        children: Tables of lists within the rows, by column: ``{"items": Table()}``. ``raw.<key>__items`` gets a row
            for each element, with the partition, the parent's primary key (``<key>_<column>``) and its ``position``,
            from 0. The column is left out of the parent. Both are replaced in one commit. Needs a `primary_key`.
        resources: Tables of further resources of a dlt source, by name: ``{"comments": Table()}`` fills
            ``raw.<key>__comments`` from the same read, in the same commit.
        key_scope: Where the primary key is unique: in each ``partition``, or in the whole ``table``: then a partition
            with a key that another one has is refused when it is published.
        partitioned: Whether maintenance keeps the files of each partition apart. Otherwise it merges files below
            64 MiB, so that readers and publishers look through fewer of them.
    """

    key: str
    source: Source | Callable[[Partition], Rows]
    grain: Grain = Grain.day
    partition_column: str | None = None
    segment_column: str | None = None
    segments: Sequence[str] | Callable[[], Iterable[str]] | None = None
    timezone: str = "UTC"
    primary_key: tuple[str, ...] = ()
    contract: Contract = Contract()  # noqa: RUF009 - frozen
    audits: tuple[Audit, ...] = ()
    start: date | None = None
    end: date | None = None
    complete: bool = False
    rate: float | None = None
    schedule: str | None = None
    recheck: timedelta | str | int | None = None
    late: int = 0
    quarantine_limit: int | str | None = None
    freshness: timedelta | str | int | None = None
    retries: int = 2
    retry_delay: float = 5.0
    timeout: float | None = 3600.0
    key_scope: KeyScope = "partition"
    partitioned: bool = False
    children: Mapping[str, Table] = field(default_factory=dict)
    resources: Mapping[str, Table] = field(default_factory=dict)
    scheme: Scheme = field(init=False, repr=False, compare=False)
    members: tuple[Member, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.key):
            raise BadInput(f"{self.key!r} is not a dataset key: use {KEY.pattern}")
        try:
            object.__setattr__(self, "grain", Grain(self.grain))
        except ValueError:
            raise BadInput(f"{self.key}: {self.grain!r} is not a grain.", f"choose from {', '.join(Grain)}") from None
        self._divide()
        for name, day in (("start", self.start), ("end", self.end)):
            if day is not None and (not isinstance(day, date) or isinstance(day, datetime)):
                raise BadInput(f"{self.key}: {name} is {day!r}, not a day.", f"{name}=date(2024, 1, 31)")
        if (self.grain is Grain.full) != (self.partition_column is None):
            raise BadInput(
                f"{self.key}: every grain except 'full' needs a partition_column, and 'full' must have none."
            )
        if self.partitioned and not self.partition_columns:
            raise BadInput(f"{self.key}: a dataset of grain 'full' is one partition.", "leave partitioned out")
        if self.rate is not None and self.rate <= 0:
            raise BadInput(f"{self.key}: rate must be above 0 items per second, not {self.rate}.")
        if self.schedule is not None and not _is_cron(self.schedule):
            raise BadInput(f"{self.key}: schedule is {self.schedule!r}.", 'write it as cron: schedule="0 6 * * *"')
        for name, given in (("recheck", self.recheck), ("freshness", self.freshness)):
            object.__setattr__(self, name, window(self.key, name, given))
        if self.freshness is not None and self.grain is Grain.full:
            raise BadInput(
                f"{self.key}: freshness counts from the end of a partition, and one of grain 'full' has none.",
                "leave it out",
            )
        for name, value, low, high in (
            ("retries", self.retries, 0, 10),
            ("late", self.late, 0, 366),
            ("retry_delay", self.retry_delay, 0, 60),
            ("timeout", self.timeout, 0.1, math.inf),
        ):
            kinds = (int, float) if name in ("retry_delay", "timeout") else (int,)
            if (value is None and name != "timeout") or (value is not None and type(value) not in kinds):
                raise BadInput(f"{self.key}: {name} is {value!r}, not a number.", f"for example: {name}={high // 2}")
            if value is not None and not low <= value <= high:
                allowed = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
                raise BadInput(f"{self.key}: {name} is {value!r}.", f"give a number {allowed}")
        for column, kind in self.partition_columns.items():
            if column_name(column) != column:
                raise BadInput(f"{self.key}: {column!r} is not a column name.", like(column))
            wanted = {"VARCHAR": "text", "DATE": "date"}.get(kind, "timestamp_ntz")
            if self.contract.columns.get(column, wanted) != wanted:
                raise BadInput(
                    f"{self.key}: the partition column {column} is declared as {self.contract.columns[column]}.",
                    f"declare it as {wanted}, or leave it out: the pipeline adds it",
                )
        if self.late and (self.partition_column is None or self.resources):
            raise BadInput(f"{self.key}: late needs days or hours, and rows of one resource.", "leave it out")
        if isinstance(self.primary_key, str) or not all(isinstance(name, str) for name in self.primary_key):
            raise BadInput(f"{self.key}: primary_key is {self.primary_key!r}.", 'primary_key=("order_id",)')
        if wrong := [name for name in self.primary_key if column_name(name) != name]:
            raise BadInput(f"{self.key}: the primary key's {wrong[0]!r} is not a column name.", like(wrong[0]))
        declared = {*self.contract.columns, *self.added_columns}
        if unknown := [name for name in self.primary_key if self.contract.columns and name not in declared]:
            raise BadInput(
                f"{self.key}: the contract lacks columns of the primary key: {', '.join(unknown)}.",
                "declare them in the contract",
            )
        if self.key_scope not in get_args(KeyScope):
            raise BadInput(
                f"{self.key}: key_scope={self.key_scope!r} is not known.", f"choose from {get_args(KeyScope)}"
            )
        if self.key_scope == "table" and not (self.primary_key and self.partition_columns):
            what = "there is one partition" if self.primary_key else "there is no primary_key"
            raise BadInput(f'{self.key}: key_scope="table", but {what}.', "leave it out")
        if isinstance(self.source, Checked):
            self.source.check(self.key, self.scheme)
        self._check_quarantine()
        object.__setattr__(self, "members", tuple(self._members()))

    def _check_quarantine(self) -> None:
        if self.quarantine_limit is not None:
            if not self.sets_aside:
                raise BadInput(f"{self.key}: no rule sets rows aside.", 'schema_contract={"data_type": "discard_row"}')
            _checked_limit(self.key, self.quarantine_limit)
        others = {**self.children, **self.resources}
        if self.sets_aside and QUARANTINE in others:
            raise BadInput(f"{self.key}: its table {QUARANTINE} is that of rows which are set aside.", "rename it")
        for name, table in others.items():
            if table.contract.discards_rows or any(audit.on_fail == QUARANTINE for audit in table.audits):
                raise BadInput(f"{self.key}: {name} cannot set rows aside.", "reject the partition instead")

    @property
    def sets_aside(self) -> bool:
        """Whether rows that break a rule are set aside, so that the dataset has a quarantine table."""
        return self.contract.discards_rows or any(audit.on_fail == QUARANTINE for audit in self.audits)

    @property
    def quarantine(self) -> Member | None:
        """The table of the rows that are set aside; None if none are."""
        return next((member for member in self.members if member.is_quarantine), None)

    @property
    def is_quarantine(self) -> bool:
        """Whether this is the table of rows that a dataset sets aside."""
        return False

    def is_over_limit(self, set_aside: int, rows: int) -> bool:
        """Whether more rows are set aside than `quarantine_limit` allows.

        Args:
            set_aside: Number of rows that are set aside.
            rows: Number of the others.
        """
        limit = self.quarantine_limit
        if isinstance(limit, str):
            return set_aside > (set_aside + rows) * Decimal(limit.rstrip("% ")) / 100
        return limit is not None and set_aside > limit

    def _members(self) -> Iterator[Member]:
        """The datasets of the other tables."""
        if self.children and not self.primary_key:
            raise BadInput(
                f"{self.key}: the rows of {min(self.children)} need the key of their parent.", "primary_key="
            )
        if twice := self.children.keys() & self.resources.keys():
            raise BadInput(f"{self.key}: {min(twice)} is both a column and a resource.")
        tables = {**self.children, **self.resources, **({QUARANTINE: _QUARANTINE} if self.sets_aside else {})}
        for name, table in tables.items():
            if column_name(name) != name or not KEY.fullmatch(f"{self.key}__{name}"):
                raise BadInput(f"{self.key}: {name!r} is not the name of a table.", like(name))
            if name in self.contract.columns or name in self.primary_key:
                raise BadInput(f"{self.key}: {name} has a table of its own.", "leave the column out of the contract")
            types = {column: self.contract.columns.get(column) for column in self.primary_key}
            keys = {f"{self.key}_{column}": kind and declared_type(kind) for column, kind in types.items()}
            added = {**keys, "position": "BIGINT"} if name in self.children else {}
            if wrong := added.keys() & table.contract.columns.keys():
                raise BadInput(f"{self.key}: the pipeline adds {min(wrong)} to the rows of {name}.", "leave it out")
            yield Member(
                f"{self.key}__{name}",
                _not_read_alone,
                self.grain,
                self.partition_column,
                self.segment_column,
                self.segments,
                self.timezone,
                table.primary_key or tuple(added),
                table.contract,
                table.audits,
                self.start,
                self.end,
                partitioned=self.partitioned,
                parent=self.key,
                name=name,
                added=added,
            )

    def _divide(self) -> None:
        """Check and set how the dataset is divided into partitions."""
        if self.timezone not in available_timezones():
            raise BadInput(
                f"{self.key}: {self.timezone!r} is not a time zone.", "use a name such as Europe/Berlin or UTC"
            )
        if self.grain is Grain.hour and self.timezone == "Australia/Lord_Howe":
            raise BadInput(f"{self.key}: the clocks of {self.timezone} are set by half an hour.", "use days, or UTC")
        if self.timezone != "UTC" and self.contract.timezone is None:
            object.__setattr__(self, "contract", replace(self.contract, timezone=self.timezone))
        if (self.segments is not None) > (self.segment_column is not None):
            raise BadInput(f"{self.key}: in which column are the segments?", 'segment_column="region"')
        if self.segment_column is not None and self.segment_column == self.partition_column:
            raise BadInput(f"{self.key}: the segments need a column of their own, not {self.segment_column}.")
        if isinstance(self.segments, str):
            raise BadInput(f"{self.key}: segments is {self.segments!r}.", 'segments=("eu", "us")')
        if self.segments is not None and not callable(self.segments):
            object.__setattr__(self, "segments", tuple(map(checked_segment, self.segments)))
        if self.segment_column and self.segments is None and not isinstance(self.source, Segmented):
            raise BadInput(f"{self.key}: the source cannot list its segments.", 'segments=("eu", "us")')
        scheme = Scheme(self.grain, self.timezone, self.segment_column is not None)
        object.__setattr__(self, "scheme", scheme)

    @property
    def table(self) -> str:
        """Schema and name of the raw table."""
        return f"raw.{self.key}"

    @property
    def partition_columns(self) -> dict[str, str]:
        """The columns that say to which partition a row belongs, each with its DuckDB type: segment, then time."""
        found = {
            self.segment_column: "VARCHAR",
            self.partition_column: "TIMESTAMP" if self.grain is Grain.hour else "DATE",
        }
        return {name: data_type for name, data_type in found.items() if name is not None}

    @property
    def added_columns(self) -> dict[str, str | None]:
        """The columns that the pipeline adds to the contract's, each with its DuckDB type; None: that of the values."""
        return dict(self.partition_columns)

    def partition_values(self, partition: Partition) -> dict[str, str]:
        """The value of each partition column in a partition's rows, as SQL text."""
        found = {self.segment_column: partition.segment, self.partition_column: partition.value}
        return {name: value for name, value in found.items() if name is not None}

    def partition(self, key: str) -> Partition:
        """The partition with this key.

        Raises:
            BadInput: there is none.
        """
        return self.scheme.parse(key)

    @property
    def needs_start(self) -> bool:
        """Whether a range of the dataset's partitions needs an explicit first day."""
        return self.start is None and self.grain is not Grain.full

    def partitions(self, start: date | None = None, end: date | None = None) -> list[Partition]:
        """The partitions of a range. The dataset's start and end are the defaults.

        A partition that has not ended yet (this month, this hour) is left out unless ``end`` includes it. The segments
        may be asked of the source.

        Raises:
            BadInput: the range is reversed, or neither the range nor the dataset has a start, or a segment is none.
        """
        periods = self.periods(start, end)
        return self.scheme.of_segments(periods, self.listed()) if self.segment_column else periods

    def periods(self, start: date | None = None, end: date | None = None) -> list[Partition]:
        """The partitions of a range, see `partitions`, without segments.

        Raises:
            BadInput: the range is reversed, or neither the range nor the dataset has a start.
        """
        if self.grain is Grain.full:
            return self.scheme.between(date.min, date.max)
        first = start or self.start
        if first is None:
            raise BadInput(f"{self.key} has no start date.", "add --start YYYY-MM-DD to the command")
        if end is not None:
            return self.scheme.between(first, end)
        now = datetime.now(UTC).replace(tzinfo=None)
        today = in_zone(now, self.timezone).date()
        last = min(self.end or today, today)
        found = self.scheme.between(first, last) if first <= last else []
        while found and found[-1].end > now:
            found.pop()
        return found

    @property
    def declared(self) -> tuple[str, ...]:
        """The segments, if the dataset names them; otherwise they are listed at each plan."""
        return () if self.segments is None or callable(self.segments) else tuple(self.segments)

    def listed(self) -> list[str]:
        """The dataset's segments, sorted; none if it has no segment column.

        Raises:
            BadInput: a text that the source or the function lists is not a segment.
        """
        if self.segment_column is None:
            return []
        found: Iterable[str] = ()
        if self.segments is not None:
            found = self.segments() if callable(self.segments) else self.segments
        elif isinstance(self.source, Segmented):
            found = self.source.segments(self.scheme)
        try:
            return sorted(set(map(checked_segment, found)))
        except BadInput as error:
            raise BadInput(f"{self.key}: {error.message}", error.fix) from None

    def is_rechecked(self, partition: Partition, now: datetime) -> bool:
        """Whether a partition is within the window in which a changed source is loaded again.

        Args:
            partition: The partition.
            now: The present, in UTC, without zone.
        """
        return isinstance(self.recheck, timedelta) and now - partition.end <= self.recheck

    def overdue(self, last: Partition | None, now: datetime) -> list[Partition]:
        """The periods after the last published one that should be published by now, oldest first; see `freshness`.

        Args:
            last: The newest published partition of a segment, or of the dataset if it has none; None if there is none.
            now: The present, in UTC, without zone.
        """
        start = last.local.date() if last else self.start
        if start is None or not isinstance(self.freshness, timedelta):
            return []
        limit = self.freshness
        return [p for p in self.periods(start) if (last is None or p.start > last.start) and p.end + limit <= now]

    def versions(self, partitions: Sequence[Partition]) -> dict[str, str]:
        """The version of each partition that the source has, by key; ``""`` if the source cannot tell before a read.

        With `late`, those of its next partitions are part of it.
        """
        if not isinstance(self.source, Source):
            return {p.key: "" for p in partitions}
        if not self.late:
            return dict(self.source.versions(partitions))
        of = {partition: self.read_from(partition) for partition in partitions}
        found = self.source.versions(list({one.key: one for some in of.values() for one in some}.values()))
        return {
            partition.key: " ".join(found[one.key] for one in some if one.key in found)
            for partition, some in of.items()
            if partition.key in found
        }

    def read_from(self, partition: Partition) -> list[Partition]:
        """The partitions of the source in which rows of a partition may be: itself, then the next ones; see `late`."""
        found = [partition]
        while len(found) <= self.late:
            found.append(self.scheme.at(found[-1].end, partition.segment))
        return found

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
        aside: Callable[[Refused], None] | None = None,
    ) -> Rows:
        """Read one partition from the source; raises what the source raises.

        Args:
            partition: The partition.
            known: The raw table's columns and DuckDB types.
            using: From `chunk`.
            aside: Takes the rows that are set aside.
        """
        if using is None and not isinstance(self.source, Source):
            return self.source(partition)
        # A list with a table of its own is not in the contract, whatever that does with other columns.
        known = self.partition_columns | dict.fromkeys(self.children, "JSON") | dict(known or {})
        contract = replace(self.contract_of(partition, aside), known=known)
        return using(partition, contract) if using else self.source.read(partition, contract)  # type: ignore[union-attr]

    def contract_of(self, partition: Partition, aside: Callable[[Refused], None] | None = None) -> Contract:
        """The contract of a partition's rows, which knows which of two hours of one name the partition is.

        Args:
            partition: The partition.
            aside: Takes the rows that are set aside, if the contract discards any.
        """
        found = self.contract
        if aside is not None and found.discards_rows:
            found = replace(found, aside=aside)
        twice = len(partition.period) > len("2026-10-25T02") and self.contract.timezone == self.timezone
        if not twice:
            return found
        first = in_utc(partition.local, self.timezone) == partition.start
        return replace(found, ambiguous="earliest" if first else "latest")


_QUARANTINE = Table(
    Contract(
        {"reason": "text", "column_name": "text", "file": "text", "line": "bigint", "content": "text"},
        schema_contract="freeze",
    )
)


def _checked_limit(key: str, limit: object) -> None:
    """Raises `BadInput` if a `quarantine_limit` is neither a number of rows nor a percentage."""
    is_number = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0
    is_part = isinstance(limit, str) and re.fullmatch(r"\d{1,2}(\.\d{1,6})? ?%", limit)
    if not is_number and not is_part:
        raise BadInput(f"{key}: quarantine_limit is {limit!r}.", 'write it like this: 100, or "1 %"')


def _is_cron(text: object) -> bool:
    from cronsim import CronSim, CronSimError

    try:
        return isinstance(text, str) and len(text.split()) == 5 and CronSim(text, datetime.now()) is not None
    except CronSimError:
        return False


@dataclass(frozen=True)
class Member(Dataset):
    """The dataset of another table of a dataset: it is extracted, published and restored with its parent.

    Args:
        parent: The parent's key.
        name: The column of the parent, or the resource, that the rows come from.
        added: The columns that a child has besides its contract's, see `Dataset.added_columns`.
    """

    parent: str = ""
    name: str = ""
    added: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def is_quarantine(self) -> bool:
        """Whether this is the table of rows that its parent sets aside."""
        return self.name == QUARANTINE

    @property
    def is_child(self) -> bool:
        """Whether its rows are the elements of lists in its parent's rows."""
        return bool(self.added)

    @property
    def added_columns(self) -> dict[str, str | None]:
        """As of a dataset; and of a child, the parent's key and the position."""
        return {**self.partition_columns, **self.added}


def _not_read_alone(partition: Partition) -> Rows:
    raise BadInput(f"{partition}: the table is filled with its parent.", "load the parent")
