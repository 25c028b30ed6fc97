"""Grains and partitions: a dataset's units of work, their keys and their bounds in time."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from ducklake_flows.errors import BadInput


class Grain(StrEnum):
    """A dataset's unit of work. ``full`` has one partition, which is refreshed as a whole. A week is ISO's."""

    hour = "hour"
    day = "day"
    week = "week"
    month = "month"
    quarter = "quarter"
    year = "year"
    full = "full"


FULL = "full"
"""The key of the partition of a dataset that has only one."""

FORMS = {
    Grain.hour: r"\d{4}-\d\d-\d\dT\d\d",
    Grain.day: r"\d{4}-\d\d-\d\d",
    Grain.week: r"\d{4}-W\d\d",
    Grain.month: r"\d{4}-\d\d",
    Grain.quarter: r"\d{4}-Q[1-4]",
    Grain.year: r"\d{4}",
    Grain.full: FULL,
}
"""Regular expressions of keys, without a segment and without `OFFSET`."""

OFFSET = r"[+-]\d{4}"
"""Regular expression of the distance from UTC in the key of an hour that comes twice."""

EXAMPLES = {
    Grain.hour: "2013-01-05T07",
    Grain.day: "2013-01-05",
    Grain.week: "2013-W01",
    Grain.month: "2013-01",
    Grain.quarter: "2013-Q1",
    Grain.year: "2013",
}
"""A key of each grain but ``full``."""

_LENGTHS = {Grain.hour: 13, Grain.day: 10, Grain.month: 7, Grain.year: 4}
"""Lengths of the keys that are a prefix of a timestamp in ISO format."""


@dataclass(frozen=True, order=True, slots=True)
class Partition:
    """One unit of work of a dataset.

    Args:
        key: The partition's name: ``2013-01-05``, ``2013-01-05T07``, ``2013-W01``, ``2013-01``, ``2013-Q1``, ``2013``
            or ``full``. Of a dataset with segments: the segment and this, ``eu/2013-01-05``; if the grain is ``full``,
            the segment alone, ``eu``. Of the hour that comes twice when a zone's clocks go back: with its distance from
            UTC, ``2026-10-25T02+0200``.
        grain: The dataset's grain.
        timezone: The dataset's zone, in which its days begin and end.
    """

    key: str
    grain: Grain = field(compare=False, default=Grain.day)
    timezone: str = field(compare=False, default="UTC")

    @property
    def segment(self) -> str:
        """The value of the segment column; "" if the dataset has no segments."""
        if self.grain is Grain.full:
            return "" if self.key == FULL else self.key
        return self.key.rpartition("/")[0]

    @property
    def period(self) -> str:
        """The key without the segment: ``2013-01-05``; ``full`` for a segment alone."""
        return FULL if self.grain is Grain.full else self.key.rpartition("/")[2]

    @property
    def local(self) -> datetime:
        """Start of the partition (inclusive) in the dataset's zone, without zone."""
        if self.grain is Grain.full:
            return datetime.min
        return datetime.fromisoformat(self.period[:13] if self.grain is Grain.hour else first_day(self.period))

    @property
    def start(self) -> datetime:
        """Start of the partition (inclusive), in UTC, without zone."""
        if self.timezone == "UTC" or self.grain is Grain.full:
            return self.local
        if offset := self.period[13:]:
            return datetime.strptime(self.period[:13] + offset, "%Y-%m-%dT%H%z").astimezone(UTC).replace(tzinfo=None)
        return in_utc(self.local, self.timezone)

    @property
    def end(self) -> datetime:
        """End of the partition (exclusive), in UTC, without zone."""
        if self.grain is Grain.hour:
            return self.start + _STEPS[Grain.hour]
        return self.high if self.timezone == "UTC" or self.grain is Grain.full else in_utc(self.high, self.timezone)

    @property
    def low(self) -> datetime:
        """What the partition column holds: midnight of the first day, or the start of the hour in UTC; without zone.

        Tables and models know a partition by the values from here to `high`. Unlike `start`, a day is that of the
        dataset's zone.
        """
        return self.start if self.grain is Grain.hour else self.local

    @property
    def high(self) -> datetime:
        """The `low` of the next partition."""
        if self.grain is Grain.full:
            return datetime.max
        low = self.low
        if self.grain in _MONTHS:
            month = low.month - 1 + _MONTHS[self.grain]
            return low.replace(year=low.year + month // 12, month=month % 12 + 1)
        return low + _STEPS[self.grain]

    @property
    def value(self) -> str:
        """The partition column's value, as SQL text: the first day, or a timestamp in UTC for hours."""
        return self.low.strftime("%Y-%m-%d %H:%M:%S" if self.grain is Grain.hour else "%Y-%m-%d")

    @property
    def place(self) -> tuple[str, datetime]:
        """Segment and `low`, which together identify the partition in its table."""
        return self.segment, self.low

    def __str__(self) -> str:
        return self.key


def in_utc(local: datetime, timezone: str, fold: int = 0) -> datetime:
    """A time of a zone in UTC, both without zone; of a time that occurs twice the first, or the second (``fold`` 1)."""
    return local.replace(tzinfo=ZoneInfo(timezone), fold=fold).astimezone(UTC).replace(tzinfo=None)


def in_zone(moment: datetime, timezone: str) -> datetime:
    """A time in UTC, without zone or with one, as the time of a zone, without zone."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(ZoneInfo(timezone)).replace(tzinfo=None)


_STEPS = {Grain.hour: timedelta(hours=1), Grain.day: timedelta(days=1), Grain.week: timedelta(weeks=1)}
_MONTHS = {Grain.month: 1, Grain.quarter: 3, Grain.year: 12}
"""Months of a partition."""


def grain_of(key: str) -> Grain:
    """The grain that a key without a segment has the form of; ``full`` for any other text."""
    if re.fullmatch(FORMS[Grain.hour] + OFFSET, key):
        return Grain.hour
    return next((grain for grain, form in FORMS.items() if re.fullmatch(form, key)), Grain.full)


def first_day(key: str) -> str:
    """The first day of the partition with this key, of any grain but hours and ``full``, in ISO format.

    Raises:
        ValueError: there is no such partition.
    """
    if key[5:6] == "W":
        return date.fromisocalendar(int(key[:4]), int(key[6:]), 1).isoformat()
    if key[5:6] == "Q":
        return f"{key[:4]}-{3 * int(key[6]) - 2:02}-01"
    return key + "-01-01"[len(key) - 4 :]


def parse_partition(key: str, grain: Grain) -> Partition:
    """Parse the key of a partition in UTC, without a segment; see `ducklake_flows.datasets.scheme.Scheme.parse`.

    Raises:
        BadInput: the key is not a partition of this grain.
    """
    if grain is Grain.full:
        if key != FULL:
            raise BadInput(f"{key!r} is not a partition: a dataset of grain full has only one, 'full'.")
        return Partition(key, grain)
    if re.fullmatch(FORMS[grain], key, re.ASCII):
        with contextlib.suppress(ValueError):
            return partition_at(Partition(key, grain).start, grain)
    raise BadInput(f"{key!r} is not a partition of grain {grain}.", f"write it like this: {EXAMPLES[grain]}")


def partitions_between(grain: Grain, start: date, end: date) -> list[Partition]:
    """All partitions of a grain from ``start`` to ``end``, both included.

    A week, month, quarter or year is included if any of its days is in the range.

    Raises:
        BadInput: ``end`` is before ``start``.
    """
    if grain is Grain.full:
        return [Partition(FULL, grain)]
    if end < start:
        raise BadInput(f"The range ends ({end}) before it starts ({start}).", "swap --start and --end")
    if grain in (Grain.hour, Grain.day):
        keys = [(start + timedelta(days)).isoformat() for days in range((end - start).days + 1)]
        if grain is Grain.hour:
            keys = [f"{key}T{hour:02}" for key in keys for hour in range(24)]
        return [Partition(key, grain) for key in keys]
    found = [partition_at(datetime.combine(start, datetime.min.time()), grain)]
    while found[-1].end.date() <= end:
        found.append(partition_at(found[-1].end, grain))
    return found


def partition_at(moment: datetime, grain: Grain) -> Partition:
    """The partition that contains a time in UTC."""
    if grain is Grain.full:
        return Partition(FULL, grain)
    if grain is Grain.week:
        year, week, _ = moment.isocalendar()
        return Partition(f"{year:04}-W{week:02}", grain)
    if grain is Grain.quarter:
        return Partition(f"{moment.year:04}-Q{(moment.month + 2) // 3}", grain)
    return Partition(moment.isoformat()[: _LENGTHS[grain]], grain)


def position(moment: datetime, grain: Grain) -> int:
    """The place of the partition that contains a moment, among all partitions of its grain; 0 for ``full``."""
    if grain is Grain.full:
        return 0
    if grain in _MONTHS:
        return (moment.year * 12 + moment.month - 1) // _MONTHS[grain]
    day = moment.toordinal()
    # The first day of the calendar, 1, is a Monday.
    return {Grain.hour: day * 24 + moment.hour, Grain.day: day, Grain.week: (day - 1) // 7}[grain]


_UNITS = ("minute", "hour", "day", "week")


def window(of: str, name: str, given: timedelta | str | int | None) -> timedelta | None:
    """A length of time as a dataset gives it: ``"26 hours"``, a timedelta, or a number of days.

    Args:
        of: The dataset, or the audit.
        name: The argument.
        given: Its value.

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
        raise BadInput(f"{of}: {name} is {given!r}.", f'write it like this: {name}="7 days" (minutes, hours, weeks)')
    return found
