"""Grains and partitions: a dataset's units of work, their keys and their bounds."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum

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

    def key_sql(self, column: str) -> str:
        """The key of the partition that a quoted column names, in DuckDB's SQL."""
        if self is Grain.quarter:
            return f"strftime({column}, '%Y-Q') || quarter({column})"
        return f"strftime({column}, '{_FORMATS[self]}')"


_FORMATS = {
    Grain.hour: "%Y-%m-%dT%H",
    Grain.day: "%Y-%m-%d",
    Grain.week: "%G-W%V",
    Grain.month: "%Y-%m",
    Grain.year: "%Y",
    Grain.full: "full",
}
"""Formats of keys, for `strftime` in Python and in SQL."""

FORMS = {
    Grain.hour: r"\d{4}-\d\d-\d\dT\d\d",
    Grain.day: r"\d{4}-\d\d-\d\d",
    Grain.week: r"\d{4}-W\d\d",
    Grain.month: r"\d{4}-\d\d",
    Grain.quarter: r"\d{4}-Q[1-4]",
    Grain.year: r"\d{4}",
    Grain.full: "full",
}
"""Regular expressions of keys."""

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
        key: The partition's name, which sorts by time: ``2013-01-05``, ``2013-01-05T07``, ``2013-W01``, ``2013-01``,
            ``2013-Q1``, ``2013`` or ``full``.
        grain: The dataset's grain.
    """

    key: str
    grain: Grain = field(compare=False, default=Grain.day)

    @property
    def start(self) -> datetime:
        """Start of the partition (inclusive), in UTC, without zone."""
        if self.grain is Grain.full:
            return datetime.min
        return datetime.fromisoformat(first_day(self.key) if self.grain is not Grain.hour else self.key)

    @property
    def end(self) -> datetime:
        """End of the partition (exclusive), in UTC, without zone."""
        if self.grain is Grain.full:
            return datetime.max
        start = self.start
        if self.grain in _MONTHS:
            month = start.month - 1 + _MONTHS[self.grain]
            return start.replace(year=start.year + month // 12, month=month % 12 + 1)
        return start + _STEPS[self.grain]

    @property
    def value(self) -> str:
        """The partition column's value, as SQL text: the first day, or a timestamp for hours."""
        return self.start.strftime("%Y-%m-%d %H:%M:%S" if self.grain is Grain.hour else "%Y-%m-%d")

    def __str__(self) -> str:
        return self.key


_STEPS = {Grain.hour: timedelta(hours=1), Grain.day: timedelta(days=1), Grain.week: timedelta(weeks=1)}
_MONTHS = {Grain.month: 1, Grain.quarter: 3, Grain.year: 12}
"""Months of a partition."""


def grain_of(key: str) -> Grain:
    """The grain that a key has the form of; ``full`` for any other text."""
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
    """Parse a partition's key.

    Raises:
        BadInput: the key is not a partition of this grain.
    """
    if grain is Grain.full:
        if key != "full":
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
        return [Partition("full", grain)]
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
        return Partition("full", grain)
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
