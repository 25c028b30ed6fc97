"""A source may yield or return any object that supports Arrow; other objects are refused with a clear error."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tests.cases import DAYS, case

if TYPE_CHECKING:
    from tests.conftest import Lake

TABLE = pa.table({"v": [1, 2]})


def _reader() -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches())


@pytest.mark.parametrize(
    "given",
    [
        lambda: TABLE,
        lambda: [TABLE],
        lambda: iter(TABLE.to_batches()),
        _reader,
        lambda: pd.DataFrame({"v": [1, 2]}),
        lambda: [pd.DataFrame({"v": [1]}), {"v": 2}],
        lambda: pl.DataFrame({"v": [1, 2]}),
        lambda: [pl.DataFrame({"v": [1]}), pl.DataFrame({"v": [2]})],
        lambda: duckdb.sql("SELECT unnest([1, 2])::BIGINT AS v"),
        lambda: [[{"v": 1}], [{"v": 2}]],
        lambda: ({"v": n} for n in (1, 2)),
    ],
    ids=[
        *("table", "tables", "batches", "reader", "frame", "frame and row", "polars frame", "polars frames"),
        *("relation", "lists", "rows"),
    ],
)
def test_a_source_may_yield_or_return_any_tabular_object(lake: Lake, given: Any) -> None:
    """Former fault: a data frame failed with "no attribute 'schema'"."""
    things = case(lake)
    assert things.each(given) == [""]
    assert things.values(order="v") == [1, 2]


@pytest.mark.parametrize("given", [lambda: 5, lambda: "text", lambda: [5], lambda: [[5]]])
def test_an_unsupported_object_is_refused_with_what_a_source_may_yield(lake: Lake, given: Any) -> None:
    error = case(lake).refused(given)
    assert "a source" in error


def test_a_dlt_source_of_two_resources_is_refused(lake: Lake) -> None:
    """Former fault: the rows of both went into one table."""
    import dlt

    @dlt.source
    def two() -> Any:
        return [dlt.resource([{"v": 1}], name="one"), dlt.resource([{"w": 1}], name="other")]

    assert "has 2 resources: one, other" in case(lake).refused(two)
    things = case(lake, "one")
    assert things.each(lambda: two().with_resources("one")) == [""]
    assert things.values() == [1]


def test_a_list_of_dlt_resources_is_refused_with_their_names(lake: Lake) -> None:
    import dlt

    resources = [dlt.resource([{"v": 1}], name="one"), dlt.resource([{"w": 1}], name="other")]
    error = case(lake).refused(lambda: resources)
    assert "one, other" in error
    things = case(lake, "one")
    assert things.each(lambda: resources[:1]) == [""]
    assert things.values() == [1]


def test_a_polars_frame_of_every_type_is_stored_exactly(lake: Lake) -> None:
    frame = pl.DataFrame(
        {
            "text": ["a", None],
            "category": pl.Series(["a", None], dtype=pl.Categorical),
            "moment": pl.Series([datetime(2024, 1, 1, 10, tzinfo=UTC), None], dtype=pl.Datetime("us", "UTC")),
            "naive": pl.Series([datetime(2024, 1, 1, 10), None], dtype=pl.Datetime("ns")),
            "day_of": [date(2024, 1, 1), None],
            "price": pl.Series([Decimal("1.50"), None], dtype=pl.Decimal(10, 2)),
            "list": [["x"], None],
            "struct": [{"a": "x"}, None],
            "nothing": pl.Series([None, None], dtype=pl.Null),
            "small": pl.Series([255, None], dtype=pl.UInt8),
        }
    )
    things = case(lake)
    assert things.each(lambda: frame) == [""]
    assert lake.sql("SELECT * EXCLUDE (day) FROM raw.things ORDER BY text NULLS LAST") == [
        {name: value for name, value in row.items() if name != "nothing"} for row in frame.rows(named=True)
    ]
    assert things.types()["price"] == "DECIMAL(10,2)"
    assert "column took" in case(lake, "spans").refused(lambda: pl.DataFrame({"took": [timedelta(seconds=1)]}))


def test_missing_values_of_pandas_are_null_and_a_named_index_is_a_column(lake: Lake) -> None:
    things = case(lake)
    frame = pd.DataFrame(
        {"v": [1.5, math.nan], "w": ["a", None], "o": [{"a": 1}, math.nan], "at": [pd.Timestamp("2024-01-01"), pd.NaT]},
        index=pd.Index([7, 8], name="id"),
    )
    assert things.each(lambda: frame) == [""]
    assert things.values("v", "id") == [1.5, None]
    assert things.values("o", "id") == ['{"a":1}', None]
    assert things.values("at", "id") == [datetime(2024, 1, 1), None]
    assert things.values("id", "id") == [7, 8]


@pytest.mark.parametrize(
    ("array", "stored"),
    [
        (pa.array([1, None], pa.time32("s")), "TIME"),
        (pa.array([1000, None], pa.time64("ns")), "TIME"),
        (pa.array([1.5, None], pa.float16()), "DOUBLE"),
        (pa.array([0.2, None], pa.float32()), "DOUBLE"),
        (pa.array([Decimal("1.50"), None], pa.decimal256(50, 2)), "DECIMAL(38,2)"),
        (pa.array([1000, None], pa.timestamp("ns")), "TIMESTAMP"),
        (
            pa.array([datetime(2024, 1, 1, tzinfo=UTC), None], pa.timestamp("ms", tz="Asia/Tokyo")),
            "TIMESTAMP WITH TIME ZONE",
        ),
        (pa.array(["a", None]).dictionary_encode(), "VARCHAR"),
        (pa.array(["a", None], pa.large_string()), "VARCHAR"),
        (pa.array([Decimal("1.0000000000001"), None]), "DECIMAL(14,13)"),
        (pa.array([(1 << 64) - 1, None], pa.uint64()), "UBIGINT"),
        (pa.array([[1], None]), "BIGINT[]"),
        (
            pa.array([{"a": 1, "b": None}, None], pa.struct([("a", pa.int8()), ("b", pa.string())])),
            "STRUCT(a TINYINT, b VARCHAR)",
        ),
        (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), "MAP(VARCHAR, BIGINT)"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_arrow_types_are_stored_exactly(lake: Lake, array: pa.Array, stored: str) -> None:
    """Former fault: some were internal errors of DuckDB that named no column."""
    things = case(lake)
    assert things.each(lambda: pa.table({"v": array})) == [""]
    assert things.types() == {"v": stored}
    read = lake.column("SELECT v FROM raw.things ORDER BY v IS NULL")
    assert read[1] is None
    assert lake.column("SELECT count(*) FROM raw.things WHERE v IS NULL") == [1]
    assert things.errors() == []


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1], pa.time64("ns")),
        pa.array([1], pa.timestamp("ns")),
        pa.array([1], pa.duration("us")),
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.array([Decimal("1" * 45)], pa.decimal256(50, 0)),
    ],
    ids=lambda value: str(value.type),
)
def test_arrow_values_without_an_exact_column_type_are_refused(lake: Lake, array: pa.Array) -> None:
    assert "column v" in case(lake).refused(lambda: pa.table({"v": array}))


DRIFT = {
    "a double, then an integer": (pa.array([2.5]), pa.array([3]), "DOUBLE", [2.5, 3.0]),
    "an integer, then a double": (pa.array([3]), pa.array([2.5]), "DOUBLE", [3.0, 2.5]),
    "a wider integer": (pa.array([1], pa.int32()), pa.array([1 << 40]), "BIGINT", [1, 1 << 40]),
    "a narrower integer": (pa.array([1 << 40]), pa.array([1], pa.int8()), "BIGINT", [1 << 40, 1]),
    "a longer decimal": (
        *(pa.array([Decimal("1.50")], pa.decimal128(10, 2)), pa.array([Decimal("2.25")], pa.decimal128(18, 2))),
        *("DECIMAL(18,2)", [Decimal("1.50"), Decimal("2.25")]),
    ),
    "an integer, then a decimal": (
        *(pa.array([3]), pa.array([Decimal("2.50")], pa.decimal128(18, 2))),
        *("DECIMAL(21,2)", [Decimal("3.00"), Decimal("2.50")]),
    ),
    "a struct with a field more": (
        *(pa.array([{"a": 1}]), pa.array([{"a": 2, "b": "x"}])),
        *("STRUCT(a BIGINT, b VARCHAR)", [{"a": 1, "b": None}, {"a": 2, "b": "x"}]),
    ),
    "a struct with a field less": (
        *(pa.array([{"a": 2, "b": "x"}]), pa.array([{"a": 1}])),
        *("STRUCT(a BIGINT, b VARCHAR)", [{"a": 2, "b": "x"}, {"a": 1, "b": None}]),
    ),
    "an empty list": (pa.array([["x"]]), pa.array([[]], pa.list_(pa.null())), "VARCHAR[]", [["x"], []]),
    "nothing, then text": (pa.nulls(1), pa.array(["x"]), "VARCHAR", [None, "x"]),
    "text, then nothing": (pa.array(["x"]), pa.nulls(1), "VARCHAR", ["x", None]),
}


@pytest.mark.parametrize("drift", DRIFT)
@pytest.mark.parametrize("together", [True, False])
def test_later_partitions_may_change_a_type_if_one_type_holds_every_value(
    lake: Lake, drift: str, together: bool
) -> None:
    """Former fault: every later day was refused (dlt-hub/dlt#2788, dlt-hub/dlt#1592)."""
    first, later, data_type, values = DRIFT[drift]
    things = case(lake)
    for key, array in zip(DAYS, (first, later), strict=False):
        things.given[key] = [pa.table({"id": [1], "v": array})]
        if not together:
            assert not things.load(key).failures
    if together:
        assert not things.load(*DAYS[:2]).failures
    assert things.types() == {"id": "BIGINT", "v": data_type}
    assert things.values(order="day") == values
    assert things.errors() == []


@pytest.mark.parametrize(
    ("first", "later"),
    [(["A7"], [12]), ([12], ["A7"]), ([[1]], [["x"]]), ([(1 << 53) + 1], [2.5]), ([True], [1])],
    ids=str,
)
def test_an_incompatible_type_in_a_later_partition_is_refused_with_both_types_and_the_contract_line(
    lake: Lake, first: list[Any], later: list[Any]
) -> None:
    things = case(lake)
    error = things.refused(lambda: pa.table({"v": first, "w": [[1]]}), lambda: pa.table({"v": later, "w": [[1]]}))
    assert "column v" in error
    assert '"v": "' in error
    assert things.values(order="day") == first
    assert things.errors() == []


def test_a_struct_is_stored_as_json_if_the_contract_says_so(lake: Lake) -> None:
    things = case(lake, contract={"v": "json"})
    assert things.each(lambda: pa.table({"v": [{"a": 1, "b": [Decimal("1.50")]}, None]})) == [""]
    assert things.values(order="v") == ['{"a":1,"b":[1.50]}', None]


def test_texts_too_long_for_a_files_bounds_are_found(lake: Lake) -> None:
    """Former fault: DuckLake took such a file for nulls, and the next file's bounds for the table's (ducklake#1308)."""
    things = case(lake)
    long, other = "m" * 5000, "z" * 5000
    assert things.each([{"v": long}], [{"v": "b"}], [{"v": other}, {"v": None}]) == [""] * 3
    for text in (long, "b", other):
        assert lake.column(f"SELECT count(*) FROM raw.things WHERE v = '{text}'") == [1]
    assert lake.column("SELECT max(v) FROM raw.things") == [other]
    assert lake.column("SELECT v FROM raw.things ORDER BY v") == ["b", long, other, None]
    assert lake.column("SELECT count(*) FROM raw.things WHERE v IS NULL") == [1]
    assert things.errors() == []
