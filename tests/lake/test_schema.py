"""Schemas: types agree between partitions and evolve if the contract allows it; otherwise they are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.schema import table_columns

if TYPE_CHECKING:
    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder", "postgres+s3")


def columns(lake: Lake, table: str) -> dict[str, str]:
    with connected(lake.settings, read_only=True) as con:
        return table_columns(con)[table]


def test_a_new_column_is_added_and_older_partitions_read_null(lake: Lake) -> None:
    lake.land("readings/2024-01-01.jsonl", [{"id": 1}])
    lake.load("readings", "2024-01-01")
    lake.land("readings/2024-01-02.jsonl", [{"id": 2, "note": "x"}])
    lake.load("readings", "2024-01-02")
    assert lake.sql("SELECT id, note FROM raw.readings ORDER BY id") == [
        {"id": 1, "note": None},
        {"id": 2, "note": "x"},
    ]
    lake.land("readings/2024-01-03.jsonl", [{"id": 3}])
    lake.load("readings", "2024-01-03")
    assert lake.errors() == []


def test_a_day_with_only_nulls_in_a_column_agrees_with_the_others(lake: Lake) -> None:
    lake.land("records/2024-01-01.json", [{"id": 1, "amount": None}])
    lake.land("records/2024-01-02.json", [{"id": 2, "amount": 1.5}])
    lake.land("records/2024-01-03.json", [{"id": 3, "amount": None}])
    for day in ("2024-01-01", "2024-01-02", "2024-01-03"):
        lake.load("records", day)
    assert columns(lake, "raw.records")["amount"] == "DOUBLE"
    assert lake.column("SELECT amount FROM raw.records ORDER BY id") == [None, 1.5, None]
    assert lake.errors() == []


def test_the_order_of_partitions_does_not_change_the_types(lake: Lake) -> None:
    lake.land("records/2024-01-01.json", [{"id": 1, "amount": 1.5}])
    lake.land("records/2024-01-02.json", [{"id": 2, "amount": 2}])
    lake.load("records", "2024-01-01")
    assert len(lake.load("records", "2024-01-02").receipts) == 1
    assert lake.column("SELECT amount FROM raw.records ORDER BY id") == [1.5, 2.0]


def test_a_type_that_the_table_cannot_hold_is_rejected_with_the_column_named(lake: Lake) -> None:
    lake.land("readings/2024-01-01.jsonl", [{"id": 1, "value": 1}])
    lake.load("readings", "2024-01-01")
    lake.land("readings/2024-01-02.jsonl", [{"id": 2, "value": "much"}])
    result = lake.load("readings", "2024-01-02")
    assert [f.state for f in result.failures] == ["rejected"]
    assert "value" in result.failures[0].error
    assert lake.column("SELECT count(*) FROM raw.readings") == [1]
    assert lake.errors() == []


def test_nested_values_are_stored_as_json_text(lake: Lake) -> None:
    lake.land("records/2024-01-01.json", [{"id": 1, "tags": ["a", "b"], "more": {"x": 1}}])
    lake.load("records", "2024-01-01")
    assert lake.sql("SELECT tags->>0 AS tag, more->>'x' AS x FROM raw.records") == [{"tag": "a", "x": "1"}]


def test_declared_types_do_not_depend_on_the_rows(lake: Lake) -> None:
    lake.land("hourly/2024-01-01T00/a.csv", "name,count\n1,\n")
    lake.load("hourly", "2024-01-01T00")
    assert columns(lake, "raw.hourly") == {"name": "VARCHAR", "count": "BIGINT", "hour_at": "TIMESTAMP"}
    assert lake.sql("SELECT name, count FROM raw.hourly") == [{"name": "1", "count": None}]


@pytest.mark.parametrize("column", ['a"b', "select", "naïve", "x; DROP TABLE raw.records", "_dlt_id"])
def test_hostile_column_names_do_no_harm(lake: Lake, column: str) -> None:
    lake.land("records/2024-01-01.json", [{"id": 1, column: "v"}])
    lake.load("records", "2024-01-01")
    assert lake.column("SELECT count(*) FROM raw.records") == [1]
    assert lake.errors() == []


def test_rows_without_a_column_are_found_by_is_null(lake: Lake) -> None:
    """Files that lack a column: published after the column was added, before it, and in the same group."""
    days = {"2024-01-01": True, "2024-01-02": False, "2024-01-03": True}
    for day, has in days.items():
        lake.land(f"readings/{day}.jsonl", [{"id": i, **({"unit": "mm"} if has else {})} for i in range(3)])
        lake.load("readings", day)
    apart = [*lake.extract("readings", "2024-01-01"), *lake.extract("readings", "2024-01-02")]
    for day in days:
        lake.land(f"readings/{day}.jsonl", [{"id": i, **({"size": 1} if day > "2024-01-02" else {})} for i in range(4)])
    assert not lake.publish(apart).receipts
    lake.publish([outcome for day in days for outcome in lake.extract("readings", day)])
    for column, nulls in (("unit", 12), ("size", 8)):
        assert lake.column(f"SELECT count(*) FROM raw.readings WHERE {column} IS NULL") == [nulls], column
        assert lake.column(f"SELECT count(*) FROM raw.readings WHERE {column} IS NOT NULL") == [12 - nulls], column
    assert lake.errors() == []
