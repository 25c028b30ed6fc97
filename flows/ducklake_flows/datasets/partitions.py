"""Grains and partitions: a dataset's units of work, their keys and their bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum

from ducklake_flows.errors import BadInput


class Grain(StrEnum):
    """A dataset's unit of work. ``full`` has one partition, which is refreshed as a whole."""

    hour = "hour"
    day = "day"
    month = "month"
    full = "full"

    @property
    def key_format(self) -> str:
        """Format of a partition's key for `strftime` in Python and in SQL."""
        return _FORMATS[self]


_FORMATS = {Grain.hour: "%Y-%m-%dT%H", Grain.day: "%Y-%m-%d", Grain.month: "%Y-%m", Grain.full: "full"}
_LENGTHS = {Grain.hour: 13, Grain.day: 10, Grain.month: 7}
"""Length of a partition's key, which is a prefix of a timestamp in ISO format."""


@dataclass(frozen=True, order=True, slots=True)
class Partition:
    """One unit of work of a dataset.

    Args:
        key: The partition's name, which sorts by time: ``2013-01-05``, ``2013-01-05T07``, ``2013-01`` or ``full``.
        grain: The dataset's grain.
    """

    key: str
    grain: Grain = field(compare=False, default=Grain.day)

    @property
    def start(self) -> datetime:
        """Start of the partition (inclusive), in UTC, without zone."""
        if self.grain is Grain.full:
            return datetime.min
        return datetime.fromisoformat(f"{self.key}-01" if self.grain is Grain.month else self.key)

    @property
    def end(self) -> datetime:
        """End of the partition (exclusive), in UTC, without zone."""
        if self.grain is Grain.full:
            return datetime.max
        if self.grain is Grain.month:
            return (self.start + timedelta(days=32)).replace(day=1)
        return self.start + (timedelta(hours=1) if self.grain is Grain.hour else timedelta(days=1))

    @property
    def value(self) -> str:
        """The partition column's value, as SQL text: a date, or a timestamp for hours."""
        return self.start.strftime("%Y-%m-%d %H:%M:%S" if self.grain is Grain.hour else "%Y-%m-%d")

    def __str__(self) -> str:
        return self.key


def parse_partition(key: str, grain: Grain) -> Partition:
    """Parse a partition's key.

    Raises:
        BadInput: the key is not a partition of this grain.
    """
    if grain is Grain.full:
        if key != "full":
            raise BadInput(f"{key!r} is not a partition: a dataset of grain full has only one, 'full'.")
        return Partition(key, grain)
    try:
        moment = datetime.strptime(key, grain.key_format)
    except ValueError:
        example = datetime(2013, 1, 5, 7).strftime(grain.key_format)
        raise BadInput(f"{key!r} is not a partition of grain {grain}.", f"write it like this: {example}") from None
    return Partition(moment.strftime(grain.key_format), grain)


def partitions_between(grain: Grain, start: date, end: date) -> list[Partition]:
    """All partitions of a grain from ``start`` to ``end``, both included.

    A month is included if any of its days is in the range.

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
    """The partition that contains a time in UTC."""
    return Partition("full" if grain is Grain.full else moment.isoformat()[: _LENGTHS[grain]], grain)
