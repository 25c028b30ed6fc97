"""Which intervals of a model are ready, according to the ledger: none is built before its partitions are published."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

from ducklake_flows.datasets.partitions import partition_at, position
from ducklake_flows.lake.ledger import latest
from ducklake_flows.project import get_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset


def ready(
    batch: Sequence[tuple[datetime, datetime]], con: DuckDBPyConnection, key: str
) -> list[tuple[datetime, datetime]]:
    """The intervals for which every partition of the dataset has been published at least once.

    Interval and grain may differ: a day over hourly data has 24 partitions, an hour over daily data has one.
    Partitions before the dataset's ``start`` or after its ``end`` are not required. An interval completely outside
    that range is ready only if its partitions were published nevertheless.

    Args:
        batch: Intervals, start included and end excluded, UTC.
        con: A connection with the lake attached. The ledger is read once, for the range of the batch.
        key: The dataset that the model reads.
    """
    dataset = get_dataset(key)
    wanted = [_overlapping(dataset, start, end) for start, end in batch]
    bounds = [partition_at(moment, dataset.grain).key for pair in wanted for moment in pair]
    published = sorted(partition for (_, partition), entry in latest(con, key, bounds).items() if entry.attempt_id)

    def complete(first: datetime, last: datetime) -> bool:
        low = bisect_left(published, partition_at(first, dataset.grain).key)
        high = bisect_right(published, partition_at(last, dataset.grain).key)
        return high - low == position(last, dataset.grain) - position(first, dataset.grain) + 1

    return [interval for interval, pair in zip(batch, wanted, strict=True) if complete(*pair)]


def _overlapping(dataset: Dataset, start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The first and last moment of an interval within the dataset's range; the whole interval if they don't overlap."""
    last = end - timedelta(microseconds=1)
    since = max(start, _midnight(dataset.start)) if dataset.start else start
    until = min(last, _midnight(dataset.end) + timedelta(days=1, microseconds=-1)) if dataset.end else last
    return (since, until) if since <= until else (start, last)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
