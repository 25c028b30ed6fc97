"""What a function yields is stored exactly or refused with its column. Each case once failed silently."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.cases import DAYS, case

if TYPE_CHECKING:
    from tests.conftest import Lake, Services


def test_nan_and_infinity_are_values(lake: Lake) -> None:
    """Former fault: they became null, and a column of only such values was dropped."""
    things = case(lake)
    assert things.each([{"v": 1.5}, {"v": math.nan}, {"v": math.inf}], [{"v": math.inf}]) == ["", ""]
    assert str(things.values()) == "[1.5, nan, inf, inf]"
    assert lake.column("SELECT max(v) FROM raw.things WHERE NOT isnan(v)") == [math.inf]
    declared = case(lake, "declared", contract={"v": "double"})
    assert declared.each([{"v": math.nan}, {"v": -math.inf}]) == [""]
    assert str(declared.values()) == "[nan, -inf]"
    assert things.errors() == []


def test_a_column_of_only_infinity_is_kept(lake: Lake) -> None:
    """Former fault: the column was dropped."""
    for key, contract in (("plain", None), ("declared", {"v": "double"})):
        things = case(lake, key, contract=contract)
        assert things.each([{"v": math.inf}]) == [""]
        assert things.types() == {"v": "DOUBLE"}
        assert things.values() == [math.inf]


def test_an_integer_among_doubles_becomes_a_double(lake: Lake) -> None:
    """Former fault: the double went into a second column, v__v_double, and was null in the first."""
    things = case(lake)
    assert things.each([{"v": 1}, {"v": 1.5}]) == [""]
    assert things.values() == [1.0, 1.5]
    assert things.types() == {"v": "DOUBLE"}


@pytest.mark.parametrize(
    ("first", "other"), [(1, "x"), (1, {"a": 1}), (True, 5), (True, 0.5), (True, "no"), ("a", ["b"]), (1.5, 1 << 60)]
)
def test_values_of_incompatible_types_are_refused_with_the_contract_line_to_add(
    lake: Lake, first: Any, other: Any
) -> None:
    """Former fault: the second went into a separate column, or was stored as true (duckdb#25786).

    Both within one day and between two days.
    """
    within = case(lake, "within").refused([{"v": first}, {"v": other}])
    assert "row 2: column v" in within
    later = case(lake, "later").refused([{"v": first}], [{"v": other}])
    assert "column v" in later
    assert '"v": "' in later, later
    assert lake.errors() == []


@pytest.mark.parametrize(
    "names", [("ID", "id"), ("Order ID", "order_id"), ("na!e", "na%e"), ("größe", "Größe"), ("a b", "a-b")]
)
def test_two_names_that_map_to_one_column_are_refused(lake: Lake, names: tuple[str, str]) -> None:
    """Former fault: one of them was lost (dlt-hub/dlt#423)."""
    one, other = names
    error = case(lake).refused([{one: 1, other: 2}])
    assert repr(one) in error
    assert repr(other) in error


def test_names_in_any_script_become_columns(lake: Lake) -> None:
    things = case(lake)
    assert things.each([{"日期": 1, "金额": 2, "数量": 3, "größe": 4, "Amount €": 5, "class_": 6, "_dlt_id": "x"}]) == [
        ""
    ]
    assert things.values("日期") + things.values("金额") + things.values("größe") == [1, 2, 4]
    assert things.types().keys() == {"日期", "金额", "数量", "größe", "amount", "class_", "_dlt_id"}
    assert things.errors() == []


def test_the_contract_can_rename_columns(lake: Lake) -> None:
    things = case(lake, rename={"ID": "upper_id", "": "row"})
    assert things.each([{"ID": 1, "id": 2, "": 3}]) == [""]
    assert (things.values("upper_id"), things.values("id"), things.values("row")) == ([1], [2], [3])
    assert "no column name can be derived from ''" in case(lake, "other").refused([{"": 1}])


@pytest.mark.parametrize("name", ["_dlt_id", "_dlt_load_id", "_lake_partition", "filename", "class_", "lake partition"])
def test_no_column_name_is_reserved_by_the_pipeline(lake: Lake, name: str) -> None:
    """Former faults: columns with names of dlt were dropped.

    The name of the partition mark killed the worker. `filename` broke `lake verify` permanently.
    """
    things = case(lake, contract={name: "text"} if name == "class_" else None)
    column = name.replace(" ", "_")
    for key in DAYS[:2]:
        things.given[key] = [{name: "kept", "v": 1}]
    assert not things.load(*DAYS[:2]).failures
    assert things.values(column) == ["kept", "kept"]
    assert things.errors() == []


def test_a_column_that_first_appears_late_in_a_large_partition_is_read(lake: Lake) -> None:
    """Former fault: dlt started a second file; every partition of the chunk was refused, or a ValueError ended it."""
    things = case(lake)
    for key in DAYS[:2]:
        things.given[key] = [*({"id": n} for n in range(12_000)), *({"id": n, "late": n} for n in range(12_000))]
    assert not things.load(*DAYS[:2]).failures
    assert lake.sql("SELECT count(*) AS n, count(late) AS late, sum(late)::BIGINT AS total FROM raw.things") == [
        {"n": 48_000, "late": 24_000, "total": 2 * sum(range(12_000))}
    ]
    assert things.errors() == []


def test_integers_beyond_64_bits_are_exact(lake: Lake) -> None:
    """Former fault: they were rounded to doubles, so that two ids became equal (duckdb#22750)."""
    things = case(lake)
    ids = [12345678901234567890, 12345678901234567891, 1 << 63, (1 << 64) - 1]
    assert things.each([{"v": i} for i in ids]) == [""]
    assert things.values() == ids
    assert case(lake, "most").refused([{"v": 10**40}]).startswith("row 1: column v")


def test_a_contract_discards_or_refuses_undeclared_columns_as_configured(lake: Lake) -> None:
    rows = [{"a": 1, "b": 2}]
    discarding = case(lake, "discarding", contract={"a": "bigint"}, schema_contract={"columns": "discard_value"})
    assert discarding.each(rows) == [""]
    assert discarding.types() == {"a": "BIGINT"}
    assert "column b: is not in the contract" in case(
        lake, "frozen", contract={"a": "bigint"}, schema_contract="freeze"
    ).refused(rows)


def test_two_thousand_columns_are_read(lake: Lake) -> None:
    """Former fault: DuckDB's "max expression depth" error."""
    things = case(lake)
    assert things.each([{f"c{n}": n for n in range(2_000)}]) == [""]
    assert things.values("c1999") == [1999]
    assert things.errors() == []


def test_a_timestamp_with_a_time_in_a_date_column_is_refused(lake: Lake) -> None:
    """Former fault: the time was cut off."""
    things = case(lake, contract={"v": "date"})
    assert things.each([{"v": datetime(2024, 1, 5)}]) == [""]
    assert "cannot be date" in case(lake, "other", contract={"v": "date"}).refused([{"v": datetime(2024, 1, 5, 10)}])


def test_timestamps_without_a_zone_stay_without_one(lake: Lake) -> None:
    """Former fault: they were interpreted as UTC."""
    things = case(lake)
    assert things.each([{"v": datetime(2024, 1, 5, 10)}]) == [""]
    assert things.types() == {"v": "TIMESTAMP"}
    assert "no zone" in case(lake, "utc", contract={"v": "timestamp"}).refused([{"v": datetime(2024, 1, 5, 10)}])
    zoned = case(lake, "zoned", contract={"v": "timestamp"}, timezone="America/New_York")
    assert zoned.each([{"v": datetime(2024, 1, 5, 10)}, {"v": datetime(2024, 1, 5, 10, tzinfo=UTC)}]) == [""]
    assert [v.astimezone(UTC).hour for v in zoned.values(order="rowid")] == [15, 10]
    twice = case(lake, "twice", contract={"v": "timestamp"}, timezone="America/New_York")
    assert "occurs twice or never" in twice.refused([{"v": datetime(2024, 11, 3, 1, 30)}])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (time(1, tzinfo=UTC), "must not have a zone"),
        (timedelta(1), "is a duration"),
        (Decimal("NaN"), "finite"),
        (object(), "no column type"),
        ({"a": math.nan}, "NaN"),
        ({"a": b"x"}, "bytes"),
        ({1: 2}, "is not text"),
        ("\ud800", "surrogates"),
    ],
)
def test_a_value_without_an_exact_column_type_is_refused(lake: Lake, value: Any, why: str) -> None:
    error = case(lake).refused([{"v": value}])
    assert "column v" in error
    assert why in error


def test_nested_values_are_stored_as_exact_json(lake: Lake) -> None:
    things = case(lake)
    nested = {"d": date(2024, 1, 5), "n": 12345678901234567890, "x": Decimal("0.10000000000000000001"), "é": [1, None]}
    assert things.each([{"v": nested}], [{"v": ["x"]}], [{"v": []}]) == ["", "", ""]
    assert things.types() == {"v": "JSON"}
    assert things.values() == [
        '{"d":"2024-01-05","n":12345678901234567890,"x":0.10000000000000000001,"é":[1,null]}',
        '["x"]',
        "[]",
    ]


def test_a_declared_column_accepts_values_of_several_python_types(lake: Lake) -> None:
    things = case(lake, contract={"t": "text", "n": "decimal(10,2)", "j": "json", "b": "binary"})
    rows = [
        {"t": 1, "n": 1, "j": {"a": 1}, "b": "AAE="},
        {"t": "x", "n": Decimal("2.50"), "j": 5, "b": b"\x00\x01"},
        {"t": None, "n": 0.25, "j": '"text"', "b": None},
    ]
    assert things.each(rows) == [""]
    assert things.values("t", "rowid") == ["1", "x", None]
    assert things.values("n", "rowid") == [Decimal("1.00"), Decimal("2.50"), Decimal("0.25")]
    assert things.values("j", "rowid") == ['{"a":1}', "5", '"text"']
    assert things.values("b", "rowid") == [b"\x00\x01", b"\x00\x01", None]
    for bad in ({"n": 0.125}, {"j": "not json"}, {"b": "not base64!"}, {"n": 10**9}):
        assert f"column {next(iter(bad))}" in case(lake, "bad", contract=things.dataset.contract.columns).refused([bad])


def test_the_columns_of_a_table_are_kept_when_a_day_has_no_value_in_them(lake: Lake) -> None:
    things = case(lake)
    assert things.each([{"v": None, "w": 1}], [{"v": 1.5, "w": 1}], [{"w": 2}], [{"v": None}]) == [""] * 4
    assert things.values() == [None, 1.5, None, None]
    assert things.values("w") == [1, 1, 2, None]
    assert things.errors() == []


def test_values_of_a_postgresql_driver_are_stored_exactly_or_refused(lake: Lake, services: Services) -> None:
    """Former faults: a numeric without a scale was an internal error; a time with a zone silently lost its offset."""
    services.postgres.database("source", services.password)
    url = f"host=127.0.0.1 port={services.postgres.port} dbname=source user=source"

    def rows(query: LiteralString) -> list[dict[str, Any]]:
        with psycopg.connect(url, password=services.password, row_factory=dict_row) as con:
            return con.execute(query).fetchall()

    things = case(lake)
    query = (
        "SELECT 1.5::numeric AS price UNION ALL SELECT 12345678901234567890.123 UNION ALL SELECT NULL",
        "SELECT 2::numeric AS price, timestamp '2024-01-01 10:00' AS naive, "
        "timestamptz '2024-01-01 10:00+02' AS moment",
    )
    assert things.each(*(rows(text) for text in query)) == ["", ""]
    assert things.types() == {
        "price": "DECIMAL(38,3)",
        "naive": "TIMESTAMP",
        "moment": "TIMESTAMP WITH TIME ZONE",
    }
    assert things.values("price") == [Decimal("1.500"), Decimal("12345678901234567890.123"), None, Decimal("2.000")]
    assert things.values("naive") == [None, None, None, datetime(2024, 1, 1, 10)]
    assert lake.column("SELECT epoch(moment) FROM raw.things WHERE moment IS NOT NULL") == [1704096000]
    for name, value in (("span", "interval '1 month 2 days'"), ("clock", "timetz '10:00+02'")):
        assert f"column {name}" in case(lake, name).refused(rows(f"SELECT {value} AS {name}"))


@pytest.mark.parametrize("key", ["con", "select", "table", "lake", "main", "raw", "fence", "things_"])
def test_a_dataset_key_may_be_a_reserved_word(lake: Lake, key: str) -> None:
    """Former fault: a key that is an SQL keyword or a name used in our code failed in every partition."""
    things = case(lake, key)
    assert things.each([{key: 1, "v": None}], [{key: 2, "v": "x"}]) == ["", ""]
    assert lake.column(f'SELECT "{key}" FROM raw."{key}" ORDER BY ALL') == [1, 2]
    assert things.errors() == []
