"""Which intervals of a model are ready, according to the ledger: none is built before its partitions are published."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ducklake_flows.errors import BadInput
from ducklake_flows.lake.ledger import latest
from ducklake_flows.project import get_dataset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset


def ready(
    batch: Sequence[tuple[datetime, datetime]], con: DuckDBPyConnection, key: str
) -> list[tuple[datetime, datetime]]:
    """The intervals for which every partition of the dataset has been published at least once.

    Interval and grain may differ: a day over hourly data has 24 partitions, an hour over daily data has one.
    Partitions before the dataset's ``start`` or after its ``end`` are not required. An interval completely outside
    that range is ready only if its partitions were published nevertheless.

    Of a dataset with segments, all partitions of each declared segment are required. If its segments are listed, those
    are that have a partition in the ledger in this interval, and at least one: they come and go.

    Args:
        batch: Intervals of the partition column's values, start included and end excluded, with a time zone.
        con: A connection with the lake attached. The ledger is read once, for the range of the batch.
        key: The dataset that the model reads.
    """
    dataset = get_dataset(key)
    wanted = [_overlapping(dataset, start, end) for start, end in batch]
    bounds = [dataset.scheme.holding(moment).period[:13] for pair in wanted for moment in pair]
    # A character that comes after those of a distance from UTC, which some hours have.
    entries = latest(con, key) if dataset.segment_column else latest(con, key, [*bounds, f"{max(bounds, default='')}~"])
    published = _lows(dataset, [name for (_, name), entry in entries.items() if entry.attempt_id])
    declared = dataset.declared
    known = _lows(dataset, [name for _, name in entries]) if dataset.segment_column and not declared else {}

    def complete(first: datetime, last: datetime) -> bool:
        low = dataset.scheme.holding(first).low
        number = dataset.scheme.count(first, last)
        there = {segment: _between(lows, low, last) for segment, lows in published.items()}
        if dataset.segment_column is None or declared:
            return all(there.get(segment, 0) == number for segment in declared or ("",))
        asked = [segment for segment, lows in known.items() if _between(lows, low, last)]
        return bool(asked) and all(there.get(segment, 0) == number for segment in asked)

    return [interval for interval, pair in zip(batch, wanted, strict=True) if complete(*pair)]


def _lows(dataset: Dataset, keys: Sequence[str]) -> Mapping[str, list[datetime]]:
    """The values of the partition column of partitions, sorted, by segment. Keys of another grain are left out."""
    found = defaultdict[str, list[datetime]](list)
    for key in keys:
        try:
            segment, low = dataset.partition(key).place
        except BadInput:
            continue  # of before the dataset's grain was changed
        found[segment].append(low)
    for lows in found.values():
        lows.sort()
    return found


def _between(lows: Sequence[datetime], first: datetime, last: datetime) -> int:
    """How many of these sorted values are between two others, both included."""
    return bisect_right(lows, last) - bisect_left(lows, first)


def _overlapping(dataset: Dataset, start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The first and last value of an interval within the dataset's range, or of the whole if they don't overlap."""
    start, last = (moment.astimezone(UTC).replace(tzinfo=None) for moment in (start, end - timedelta(microseconds=1)))
    since = max(start, dataset.scheme.begin(dataset.start)) if dataset.start else start
    until = (
        min(last, dataset.scheme.begin(dataset.end + timedelta(1)) - timedelta(microseconds=1)) if dataset.end else last
    )
    return (since, until) if since <= until else (start, last)
