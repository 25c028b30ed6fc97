"""Partitions, datasets and what is refused."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.datasets.model import Dataset, Grain, parse_partition, partition_at, partitions_between
from flows.errors import BadInput

DAYS = st.dates(date(1990, 1, 1), date(2090, 1, 1))


@settings(deadline=None)
@given(DAYS, st.integers(0, 400), st.sampled_from([Grain.hour, Grain.day, Grain.month]))
def test_partitions_of_a_range_touch_and_cover_it(start: date, length: int, grain: Grain) -> None:
    end = start + timedelta(days=length % 20 if grain is Grain.hour else length)
    found = partitions_between(grain, start, end)
    assert found[0].start.date() <= start
    assert found[-1].end.date() > end
    for before, after in zip(found, found[1:], strict=False):
        assert before.end == after.start
        assert before.key < after.key
    for partition in found:
        assert parse_partition(partition.key, grain) == partition
        assert partition_at(partition.start, grain) == partition


def test_a_reversed_range_is_refused() -> None:
    with pytest.raises(BadInput, match="ends .* before it starts"):
        partitions_between(Grain.day, date(2024, 1, 2), date(2024, 1, 1))


@pytest.mark.parametrize("key", ["2024-13-01", "x", "2024-01-01T25", "", "2024-1-1; DROP TABLE", "full"])
def test_a_malformed_partition_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match="not a partition"):
        parse_partition(key, Grain.day)


@pytest.mark.parametrize("key", ["Flights", "1day", "a-b", "a;b", "", "a" * 64, 'a"b', "../a"])
def test_a_dataset_key_that_could_reach_sql_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match="not a dataset key"):
        Dataset(key=key, source=lambda p: [], partition_column="day")


def test_only_full_refresh_datasets_have_no_partition_column() -> None:
    with pytest.raises(BadInput, match="partition_column"):
        Dataset(key="a", source=lambda p: [])
    with pytest.raises(BadInput, match="partition_column"):
        Dataset(key="a", source=lambda p: [], grain=Grain.full, partition_column="day")
