"""Counts and ranges in words: ``1 row``, ``2 rows``, ``2013-03-01..04-07``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ducklake_flows.datasets.partitions import Grain, Partition, grain_of, partition_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import timedelta

_SHARED = tuple(len(start) for start in ("2013-01-05", "2013-01-", "2013-"))

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))

SHOWN = 5
"""Maximum ranges that a text names."""


def count(number: int, noun: str) -> str:
    """A number with its noun, in the singular or plural: ``1 row``, ``1,204 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(time: timedelta) -> str:
    """A time in its largest whole unit: ``26 hours``, ``2 days``."""
    seconds = round(time.total_seconds())
    unit, name = next((n, name) for n, name in _UNITS if seconds % n == 0)
    return count(seconds // unit, name)


def spans(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Contiguous ranges of partition keys: the first and last key of each, in order."""
    found: list[tuple[str, str]] = []
    for key in sorted(set(keys), key=split):
        if found and following(found[-1][1]) == key:
            found[-1] = (found[-1][0], key)
        else:
            found.append((key, key))
    return found


def following(key: str) -> str:
    """The key of the next partition of the same segment and grain; "" for ``full`` and for a segment alone."""
    segment, period = split(key)
    grain = grain_of(period)
    if grain is Grain.full:
        return ""
    return f"{segment}{partition_at(Partition(period[:13], grain).high, grain).key}"


def split(key: str) -> tuple[str, str]:
    """The segment of a partition's key, with its slash, and the rest."""
    segment, slash, period = key.rpartition("/")
    return f"{segment}{slash}", period


def span_text(first: str, last: str) -> str:
    """A range of keys; the end omits the part that it shares with the start: ``2013-03-01..04-07``."""
    if first == last:
        return first
    start, end = split(first)[1], split(last)[1]
    shared = next((n for n in _SHARED if n < len(start) and start[:n] == end[:n]), 0)
    return f"{first}..{end[shared:]}"


def ranges(found: Sequence[tuple[str, str]]) -> str:
    """Ranges as one text; at most `SHOWN` are named."""
    more = f" and {count(len(found) - SHOWN, 'more range')}" if len(found) > SHOWN else ""
    return ", ".join(span_text(*span) for span in found[:SHOWN]) + more
