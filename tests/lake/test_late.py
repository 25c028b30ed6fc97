"""Rows that come with a later partition of their source: each is stored in its own partition, or refused."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets.dataset import Dataset, Table
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput, NoSource
from ducklake_flows.sources.files import Files
from tests.cases import Case, case

if TYPE_CHECKING:
    from tests.conftest import Lake

FIRST = date(2024, 1, 1)

pytestmark = pytest.mark.short("sqlite+folder")


def key(number: int) -> str:
    return (FIRST + timedelta(days=number)).isoformat()


def row(number: int, value: int, **more: Any) -> dict[str, Any]:
    return {"day": FIRST + timedelta(days=number), "v": value, **more}


def there(things: Case) -> dict[str, list[int]]:
    found = things.lake.sql(
        f"SELECT day::VARCHAR AS day, list(v ORDER BY v) AS v FROM {things.dataset.table} GROUP BY ALL"
    )
    return {item["day"]: item["v"] for item in found}


def late(lake: Lake, name: str = "things", number: int = 2, **divided: Any) -> Case:
    things = case(lake, name, divided={"late": number, **divided})
    inner = things.given

    def source(partition: Any) -> Any:
        if partition.key not in inner:
            raise NoSource(f"nothing for {partition.key}")
        return inner[partition.key]

    things.dataset = Dataset(
        name, source, partition_column="day", late=number, **{k: v for k, v in divided.items() if k != "late"}
    )
    return things


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_a_late_row_is_stored_in_its_own_partition(lake: Lake) -> None:
    things = late(lake)
    things.given[key(0)] = [row(0, 1)]
    assert things.load(key(0)).receipts
    things.given[key(1)] = [row(1, 2), row(0, 3)]
    things.given[key(2)] = [row(2, 4), row(0, 5), row(1, 6)]
    assert not things.load(key(0), key(1), key(2)).failures
    assert there(things) == {key(0): [1, 3, 5], key(1): [2, 6], key(2): [4]}
    # Out of reach: the source's own partition refuses it, and the others do not take it.
    things.given[key(3)] = [row(3, 7), row(0, 8), row(2, 9)]
    result = things.load(*map(key, range(4)))
    assert [f.partition for f in result.failures] == [key(3)]
    assert "day differs from the partition: 1 row" in result.failures[0].error
    assert there(things) == {key(0): [1, 3, 5], key(1): [2, 6], key(2): [4, 9]}
    # So is a row of a later day, and one without a day.
    for wrong in (row(5, 1), {"day": None, "v": 1}):
        things.given[key(3)] = [row(3, 7), wrong]
        assert "day differs from the partition: 1 row" in things.load(key(3)).failures[0].error
    assert things.errors() == []


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(days=st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=5, max_size=5), batch=st.booleans())
def test_no_row_within_reach_is_lost_or_doubled(lake: Lake, days: list[list[int]], batch: bool) -> None:
    things = late(lake, f"t{abs(hash((str(days), batch))) % 10**12}")
    right: dict[str, list[int]] = {}
    for number, delays in enumerate(days):
        rows = [(number - delay, 100 * number + place) for place, delay in enumerate(delays) if delay <= number]
        things.given[key(number)] = [row(*one) for one in rows]
        for of, value in rows:
            right.setdefault(key(of), []).append(value)
    for group in [list(map(key, range(5)))] if batch else [[key(number)] for number in range(5)]:
        assert not things.load(*group).failures
    if right:
        assert there(things) == {day: sorted(values) for day, values in right.items()}
        assert things.damaged() == []


def test_a_file_makes_the_days_before_it_stale(lake: Lake) -> None:
    things = case(
        lake, "days", Files("days/{partition}.csv", "csv"), divided={"late": 1}, contract={"v": "bigint", "day": "date"}
    )
    lake.land(f"days/{key(0)}.csv", f"v,day\n1,{key(0)}\n")
    partitions = [things.dataset.partition(key(number)) for number in range(3)]
    before = things.dataset.versions(partitions)
    assert set(before) == {key(0)}
    things.load(key(0))
    lake.land(f"days/{key(1)}.csv", f"v,day\n2,{key(1)}\n3,{key(0)}\n")
    after = things.dataset.versions(partitions)
    assert set(after) == {key(0), key(1)}
    assert after[key(0)] != before[key(0)]
    assert after[key(0)].startswith(before[key(0)])
    things.load(key(0), key(1))
    assert there(things) == {key(0): [1, 3], key(1): [2]}


def test_elements_of_late_rows_go_with_them(lake: Lake) -> None:
    things = late(lake, "orders", 1, primary_key=("v",), children={"items": Table()})
    things.given[key(0)] = [row(0, 1, items=[{"sku": "a"}])]
    things.given[key(1)] = [row(1, 2, items=[{"sku": "b"}]), row(0, 3, items=[{"sku": "c"}, {"sku": "d"}])]
    assert len(things.load(key(0), key(1)).receipts) == 2
    found = lake.sql("SELECT strftime(day, '%d') AS day, orders_v, sku FROM raw.orders__items ORDER BY ALL")
    assert [tuple(r.values()) for r in found] == [("01", 1, "a"), ("01", 3, "c"), ("01", 3, "d"), ("02", 2, "b")]
    assert things.errors() == []


def test_late_needs_a_time_and_one_resource() -> None:
    for arguments in ({"grain": Grain.full}, {"partition_column": "day", "resources": {"a": Table()}}):
        with pytest.raises(BadInput, match="late needs days or hours"):
            Dataset("a", lambda _: [], late=1, **arguments)
    with pytest.raises(BadInput, match="late is -1"):
        Dataset("a", lambda _: [], partition_column="day", late=-1)
