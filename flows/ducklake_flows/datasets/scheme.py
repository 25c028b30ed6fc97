"""How a dataset is divided into partitions: by time in a zone, by segments, or by both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Self

from ducklake_flows.datasets.partitions import (
    EXAMPLES,
    FORMS,
    FULL,
    OFFSET,
    Grain,
    Partition,
    in_utc,
    in_zone,
    parse_partition,
    partition_at,
    partitions_between,
    position,
)
from ducklake_flows.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

SEGMENT = r"\w(?:[\w .@+-]{0,98}\w)?"
"""Regular expression of a segment. It is part of paths and patterns, so it has no slash, comma or star."""

_NO_SEGMENTS = ("full", "null", "__hive_default_partition__")
"""Texts, in lower case, that have another meaning as a key, or as the name of a folder."""

_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a dataset is divided into partitions.

    Args:
        grain: The unit of time; ``full`` for none.
        timezone: The zone in which hours, days and months begin and end.
        segmented: Whether the dataset is divided by segments, too, such as regions.
    """

    grain: Grain = Grain.day
    timezone: str = "UTC"
    segmented: bool = False

    @classmethod
    def of(cls, partition: Partition) -> Self:
        """The scheme that a partition is one of."""
        return cls(partition.grain, partition.timezone, bool(partition.segment))

    def parse(self, key: str) -> Partition:
        """The partition with this key.

        Raises:
            BadInput: there is none.
        """
        if not self.segmented:
            return self._made("", self._period(key))
        if self.grain is Grain.full:
            return self._made(checked_segment(key), FULL)
        segment, slash, period = key.rpartition("/")
        if not slash:
            raise BadInput(
                f"{key!r} is not a partition: a segment and a slash are missing.", f"for example {self.example}"
            )
        return self._made(checked_segment(segment), self._period(period))

    def at(self, moment: datetime, segment: str = "") -> Partition:
        """The partition that contains a moment.

        Args:
            moment: In UTC, without zone or with one.
            segment: The segment; "" if the dataset has none.
        """
        if self.timezone == "UTC" or self.grain is Grain.full:
            return self._made(segment, partition_at(moment, self.grain).key)
        local = in_zone(moment, self.timezone)
        period = partition_at(local, self.grain).key
        if self.grain is Grain.hour:
            moment = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
            period += self._offset(local, moment)
        return self._made(segment, period)

    def holding(self, value: date | datetime, segment: str = "") -> Partition:
        """The partition whose column may have a value: a day of the zone, or a time in UTC for hours."""
        if self.grain is Grain.hour and isinstance(value, datetime):
            return self.at(value, segment)
        moment = value if isinstance(value, datetime) else datetime.combine(value, datetime.min.time())
        return self._made(segment, partition_at(moment, self.grain).key)

    def between(self, start: date, end: date) -> list[Partition]:
        """The partitions from one day to another, both included, in order of time, without segments.

        A week, month, quarter or year is included if any of its days is in the range.

        Raises:
            BadInput: ``end`` is before ``start``.
        """
        found = partitions_between(self.grain, start, end)
        if self.timezone == "UTC" or self.grain is Grain.full:
            return found
        if self.grain is not Grain.hour:
            zoned = (self._made("", p.key) for p in found)
            return [p for p in zoned if p.start < p.end]  # in Samoa, there was no 2011-12-30
        first, last = self.begin(start), self.begin(end + timedelta(1))
        return [self.at(first + hours * _HOUR) for hours in range((last - first) // _HOUR)]

    def of_segments(self, periods: Sequence[Partition], segments: Sequence[str]) -> list[Partition]:
        """The partitions of these segments, one segment after the other, for each of some periods from `between`."""
        return [self._made(segment, period.key) for segment in segments for period in periods]

    def begin(self, day: date) -> datetime:
        """What the partition column holds at the begin of a day: its midnight, of hours in UTC."""
        midnight = datetime.combine(day, datetime.min.time())
        return in_utc(midnight, self.timezone) if self.grain is Grain.hour and self.timezone != "UTC" else midnight

    def count(self, first: datetime, last: datetime) -> int:
        """How many partitions of a segment there are from that which holds one value to that which holds another.

        Args:
            first: A value of the partition column, see `holding`.
            last: Another, not before it.
        """
        if self.grain is Grain.hour and self.timezone != "UTC":
            return (self.at(last).start - self.at(first).start) // _HOUR + 1
        return position(last, self.grain) - position(first, self.grain) + 1

    @property
    def forms(self) -> tuple[str, ...]:
        """Regular expressions of a period, see `Partition.period`, the longer first."""
        form = FORMS[self.grain]
        return (form + OFFSET, form) if self.grain is Grain.hour and self.timezone != "UTC" else (form,)

    @property
    def example(self) -> str:
        """A partition's key."""
        period = EXAMPLES.get(self.grain, FULL)
        return "/".join(["eu"] * self.segmented + [period] * (not self.segmented or self.grain is not Grain.full))

    def _made(self, segment: str, period: str) -> Partition:
        if not segment:
            return Partition(period, self.grain, self.timezone)
        key = segment if self.grain is Grain.full else f"{segment}/{period}"
        return Partition(key, self.grain, self.timezone)

    def _period(self, text: str) -> str:
        """Check a key without its segment, and write it in its only spelling.

        Raises:
            BadInput: there is no such partition.
        """
        if self.timezone == "UTC" or self.grain is not Grain.hour:
            found = parse_partition(text, self.grain)
            zoned = Partition(found.key, self.grain, self.timezone)
            if zoned.start >= zoned.end:
                raise BadInput(f"There was no {text} in {self.timezone}: its clocks were set forward by a day.")
            return found.key
        plain, offset = text[:13], text[13:]
        local = parse_partition(plain, self.grain).local
        if offset and not re.fullmatch(FORMS[self.grain] + OFFSET, text, re.ASCII):
            parse_partition(text, self.grain)  # raises
        moments = dict.fromkeys(in_utc(local, self.timezone, fold) for fold in (0, 1))
        there = [moment for moment in moments if in_zone(moment, self.timezone) == local]
        if not there:
            raise BadInput(f"There is no hour {text} in {self.timezone}: its clocks are set forward.")
        keys = {f"{plain}{_written(local - moment)}": moment for moment in there}
        if offset and text not in keys:
            raise BadInput(f"There is no hour {text} in {self.timezone}.", f"write it like this: {' or '.join(keys)}")
        if not offset and len(there) > 1:
            raise BadInput(f"The hour {text} comes twice in {self.timezone}.", f"choose from {', '.join(keys)}")
        return text if len(there) > 1 else plain

    def _offset(self, local: datetime, moment: datetime) -> str:
        """The distance from UTC that tells an hour apart from another of the same name; "" if there is only one."""
        twice = in_utc(local, self.timezone, 0) != in_utc(local, self.timezone, 1)
        return _written(local - moment) if twice else ""


def checked_segment(text: str) -> str:
    """A segment, if it is one.

    Raises:
        BadInput: it is none.
    """
    if re.fullmatch(SEGMENT, text) is None or text.casefold() in _NO_SEGMENTS:
        raise BadInput(
            f"{text!r} is not a segment.",
            "use at most 100 letters, digits, spaces and _ . @ + -, the first and last a letter, digit or _; "
            "'full' and 'null' have another meaning",
        )
    return text


def _written(offset: timedelta) -> str:
    """A distance from UTC as in a key: ``+0200``."""
    minutes = round(offset.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"
