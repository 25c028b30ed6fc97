"""Partitions and datasets, and invalid definitions."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.names import column_name
from ducklake_flows.datasets.partitions import Grain, Partition, parse_partition, partition_at, partitions_between
from ducklake_flows.errors import BadInput

DAYS = st.dates(date(1990, 1, 1), date(2090, 1, 1))


@settings(deadline=None)
@given(DAYS, st.integers(0, 400), st.sampled_from([grain for grain in Grain if grain is not Grain.full]))
def test_partitions_of_a_range_are_adjacent_and_cover_it(start: date, length: int, grain: Grain) -> None:
    end = start + timedelta(days=length % 20 if grain is Grain.hour else length)
    found = partitions_between(grain, start, end)
    assert found[0].start.date() <= start
    assert found[-1].end.date() > end
    for before, after in pairwise(found):
        assert before.end == after.start
        assert before.key < after.key
    for partition in found:
        assert parse_partition(partition.key, grain) == partition
        assert partition_at(partition.start, grain) == partition


def test_a_reversed_range_is_refused() -> None:
    with pytest.raises(BadInput, match=r"ends .* before it starts"):
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


def test_an_incomplete_partition_is_planned_only_on_request() -> None:
    def planned(grain: Grain, **more: Any) -> list[Partition]:
        first = today - timedelta(days=70)
        return Dataset("a", lambda p: [], grain, "day", start=first, **more).partitions()

    today = datetime.now(UTC).date()
    for grain in (Grain.hour, Grain.day, Grain.month):
        before = datetime.now(UTC).replace(tzinfo=None)
        for end in (None, today, today + timedelta(days=400)):
            last = planned(grain, end=end)[-1]
            after = datetime.now(UTC).replace(tzinfo=None)
            assert before < partition_at(last.end, grain).end, "no complete one is left out"
            assert last.end <= after
        assert planned(grain, end=today - timedelta(days=40))[-1].start.date() <= today - timedelta(days=40)
        asked = Dataset("a", lambda p: [], grain, "day", start=today).partitions(end=today)
        assert asked[-1].end > before
    assert Dataset("a", lambda p: [], partition_column="day", start=today).partitions() == []
    assert Dataset("a", lambda p: [], partition_column="day", start=today + timedelta(days=9)).partitions() == []


def test_a_grain_may_be_text_and_an_unknown_grain_is_refused() -> None:
    monthly = Dataset("a", lambda p: [], grain="month", partition_column="m", start=date(2024, 1, 1))  # type: ignore[arg-type]
    assert [p.key for p in monthly.partitions(end=date(2024, 2, 1))] == ["2024-01", "2024-02"]
    with pytest.raises(BadInput, match="'monthly' is not a grain"):
        Dataset("a", lambda p: [], grain="monthly", partition_column="m")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"end is datetime\.datetime.*, not a day"):
        Dataset("a", lambda p: [], partition_column="m", end=datetime(2024, 1, 1))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"columns": {"Order ID": "text"}}, "'Order ID' is not a column name"),
        ({"columns": {"v": "string"}}, "'string' is not a column type"),
        ({"columns": {"v": "decimal(39,2)"}}, "is not a column type"),
        ({"columns": {"v": "decimal(5,6)"}}, "is not a column type"),
        ({"columns": {"v": 5}}, "is not a column type"),
        ({"schema_contract": "x"}, "schema_contract='x' is not known"),
        ({"schema_contract": {"rows": "freeze"}}, "schema_contract: 'rows' is not known"),
        ({"schema_contract": {"data_type": "discard_value"}}, "data_type cannot be 'discard_value'"),
        ({"rename": {"a": "B c"}}, "cannot become 'B c'"),
        ({"timezone": "Mars/Olympus"}, "is not a time zone"),
    ],
)
def test_an_invalid_contract_is_refused_where_it_is_defined(more: Any, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        Contract(**more)
    assert says in caught.value.message
    assert caught.value.fix


def test_a_primary_key_missing_from_the_contract_is_refused() -> None:
    with pytest.raises(BadInput, match="the contract lacks columns of the primary key: nope"):
        Dataset("a", lambda p: [], partition_column="day", primary_key=("nope",), contract=Contract({"id": "bigint"}))
    Dataset("a", lambda p: [], partition_column="day", primary_key=("day", "id"), contract=Contract({"id": "bigint"}))


NAMES = {
    "id": "id",
    "class_": "class_",
    "_dlt_id": "_dlt_id",
    "ID": "id",
    "orderId": "order_id",
    "Order ID": "order_id",
    "größe": "größe",
    "日期": "日期",
    "Amount €": "amount",
    "a-b.c": "a_b_c",
    "2x": "_2x",
    "€": "",
    "": "",
    " a ": "a",
    "HTTPServer": "httpserver",
    "utm_source": "utm_source",
    "हिन्दी": "हिन्दी",
    "a__b": "a__b",
}


@pytest.mark.parametrize("source", NAMES)
def test_a_source_name_becomes_a_column_name(source: str) -> None:
    assert column_name(source) == NAMES[source]


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_column_name_does_not_change_again(source: str) -> None:
    column = column_name(source)
    assert column_name(column) == column
    assert '"' not in column
    assert " " not in column


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"primary_key": "order_id"}, "primary_key is 'order_id'"),
        ({"primary_key": ("Order ID",)}, "'Order ID' is not a column name"),
        ({"primary_key": ("nope",), "contract": Contract({"id": "bigint"})}, "lacks columns of the primary key: nope"),
        ({"partition_column": "Day"}, "'Day' is not a column name"),
        ({"contract": Contract({"day": "text"})}, "the partition column day is declared as text"),
        ({"contract": Contract({"day": "date"}), "grain": "hour"}, "the partition column day is declared as date"),
    ],
)
def test_a_wrong_key_or_partition_column_is_an_error_where_the_dataset_is_defined(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        Dataset("a", lambda partition: [], **{"partition_column": "day", **given})


@pytest.mark.parametrize(
    ("given", "means"),
    [("7 days", 7 * 24), ("1 hour", 1), ("2weeks", 14 * 24), (3, 72), (timedelta(hours=5), 5)],
)
def test_a_recheck_window_is_written_as_text_days_or_a_timedelta(given: Any, means: int) -> None:
    dataset = Dataset("a", lambda _: [], partition_column="day", recheck=given)
    assert dataset.recheck == timedelta(hours=means)
    end = parse_partition("2024-01-01", Grain.day).end
    assert dataset.is_rechecked(Partition("2024-01-01"), end + timedelta(hours=means))
    assert not dataset.is_rechecked(Partition("2024-01-01"), end + timedelta(hours=means, seconds=1))
    whole = Dataset("b", lambda _: [], Grain.full, recheck=given)
    assert whole.is_rechecked(Partition("full", Grain.full), datetime(2024, 1, 1))
    assert not Dataset("c", lambda _: [], Grain.full).is_rechecked(Partition("full", Grain.full), end)


@pytest.mark.parametrize(
    ("grain", "last", "hours_later", "late"),
    [
        (Grain.day, None, 25, []),
        (Grain.day, None, 26, ["2024-01-01"]),
        (Grain.day, None, 24 + 26, ["2024-01-01", "2024-01-02"]),
        (Grain.day, "2024-01-01", 24 + 25, []),
        (Grain.day, "2024-01-01", 24 + 26, ["2024-01-02"]),
        # The newest is published: a gap before it is missing, but the dataset is not overdue.
        (Grain.day, "2024-01-03", 1000, []),
        # It has ended: nothing later is expected.
        (Grain.day, "2024-01-02", 1000, ["2024-01-03"]),
        (Grain.hour, "2024-01-01T23", 26 + 3, ["2024-01-02T00", "2024-01-02T01", "2024-01-02T02"]),
        (Grain.month, None, 30 * 24 + 25, []),
        (Grain.month, None, 30 * 24 + 26, ["2024-01"]),
    ],
)
def test_a_partition_is_late_once_it_and_all_newer_ones_are_unpublished_for_too_long(
    grain: Grain, last: str | None, hours_later: int, late: list[str]
) -> None:
    dataset = Dataset(
        "a", lambda _: [], grain, "at", start=date(2024, 1, 1), end=date(2024, 1, 3), freshness=timedelta(hours=26)
    )
    newest = parse_partition(last, grain) if last else None
    now = datetime(2024, 1, 2) + timedelta(hours=hours_later)
    assert [p.key for p in dataset.overdue(newest, now)] == late


def test_freshness_without_a_start_counts_from_the_first_published_partition() -> None:
    dataset = Dataset("a", lambda _: [], partition_column="day", end=date(2024, 1, 3), freshness="26 hours")
    assert dataset.overdue(None, datetime(2024, 2, 1)) == []
    assert [p.key for p in dataset.overdue(Partition("2024-01-02"), datetime(2024, 2, 1))] == ["2024-01-03"]
    with pytest.raises(BadInput, match="one of grain 'full' has none"):
        Dataset("a", lambda _: [], Grain.full, freshness="1 day")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("recheck", "freshness")
            for value in ("7", "a week", "0 days", -1, 0, timedelta(0), 1.5, True)
        ),
        *(("retries", value) for value in (-1, 11, 1.5, None, "2")),
        *(("retry_delay", value) for value in (-1, 61, float("nan"), None)),
        *(("timeout", value) for value in (0, -5, "1 hour")),
    ],
)
def test_a_wrong_time_or_number_of_retries_is_refused_with_an_example(name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=f"a: {name} is ") as caught:
        Dataset("a", lambda _: [], partition_column="day", **{name: value})
    assert caught.value.fix
