"""Whatever speaks Arrow may be yielded or returned; anything else is named."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from tests.cases import case
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
        lambda: duckdb.sql("SELECT unnest([1, 2])::BIGINT AS v"),
        lambda: [[{"v": 1}], [{"v": 2}]],
        lambda: ({"v": n} for n in (1, 2)),
    ],
    ids=["table", "tables", "batches", "reader", "frame", "frame and row", "relation", "lists", "rows"],
)
def test_a_source_may_yield_or_return_it(lake: Lake, given: Any) -> None:
    """A frame had "no attribute 'schema'"."""
    things = case(lake)
    assert things.each(given) == [""]
    assert things.values(order="v") == [1, 2]


@pytest.mark.parametrize("given", [lambda: 5, lambda: "text", lambda: [5], lambda: [[5]]])
def test_what_may_be_yielded_is_named(lake: Lake, given: Any) -> None:
    error = case(lake).refused(given)
    assert "a source" in error


def test_a_dlt_source_of_two_resources_is_refused(lake: Lake) -> None:
    """The rows of both went into one table."""
    import dlt

    @dlt.source
    def two() -> Any:
        return [dlt.resource([{"v": 1}], name="one"), dlt.resource([{"w": 1}], name="other")]

    assert "has 2: one, other" in case(lake).refused(lambda: two())
    things = case(lake, "one")
    assert things.each(lambda: two().with_resources("one")) == [""]
    assert things.values() == [1]


def test_what_pandas_takes_for_missing_is_null_and_a_named_index_is_a_column(lake: Lake) -> None:
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
        (pa.array([1.5, None], pa.float16()), "FLOAT"),
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
    """Some were internal errors of DuckDB, with no column named."""
    things = case(lake)
    assert things.each(lambda: pa.table({"v": array})) == [""]
    assert things.types() == {"v": stored}
    read = lake.column("SELECT v FROM raw.things ORDER BY v IS NULL")
    assert read[1] is None
    assert lake.column("SELECT count(*) FROM raw.things WHERE v IS NULL") == [1]
    assert lake.errors() == []


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
def test_arrow_values_without_an_exact_place_are_refused(lake: Lake, array: pa.Array) -> None:
    assert "column v" in case(lake).refused(lambda: pa.table({"v": array}))
