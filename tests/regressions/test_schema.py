"""Raw tables whose columns differ from the next partition's.

The table is widened exactly, or the partition is refused with the column.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.lake.restore import stage_previous
from ducklake_flows.lake.schema import bootstrap
from tests.cases import DAYS, Case, case
from tests.conftest import Lake
from tests.regressions.staged import check_reads, publish, staged

ONE, TWO, THREE, FOUR = DAYS


def values(sql_type: str, *found: Any) -> str:
    """A query that returns values of one type as the column ``v``."""
    rows = ", ".join("(NULL)" if value is None else f"('{value}')" for value in found)
    return f"SELECT CAST(v AS {sql_type}) AS v FROM (VALUES {rows}) AS t(v)"


@pytest.mark.parametrize(
    ("first", "second", "table"),
    [
        (("INTEGER", 1000, 2000, None), ("BIGINT", 5, 5_000_000_000), "BIGINT"),
        (("FLOAT", 100, 2.5), ("DOUBLE", 9, 0.1), "DOUBLE"),
        (("BIGINT", 1000, 3), ("DOUBLE", 2.5, 9), "DOUBLE"),
        (("DOUBLE", 2.5, 1000), ("BIGINT", 3, 9), "DOUBLE"),
        (("DECIMAL(10,2)", Decimal("1.25"), 1000), ("DECIMAL(18,4)", Decimal("12.3456"), 9), "DECIMAL(18,4)"),
        (("BIGINT", 1000, 3), ("DECIMAL(10,2)", Decimal("1.25"), 9), "DECIMAL(21,2)"),
        (("UBIGINT", 2**64 - 1), ("TINYINT", -5, 9), "DECIMAL(20,0)"),
    ],
    ids=lambda given: given if isinstance(given, str) else given[0],
)
def test_ducklake_1308_a_widened_column_is_found_by_every_operator(
    lake: Lake, first: tuple[Any, ...], second: tuple[Any, ...], table: str
) -> None:
    """https://github.com/duckdb/ducklake/issues/1308: 1000 was no longer found, and ORDER BY gave wrong numbers."""
    things = case(lake)
    days = [(ONE, values(*first)), (TWO, values(*second)), (THREE, values(*first)), (FOUR, values(first[0], 7))]
    assert publish(things, *days) == [""] * 4
    assert things.types() == {"v": table}
    check_reads(things, "v", [*first[1:], *second[1:], *first[1:], 7])


def test_columns_in_another_order_and_case_are_the_same_columns(lake: Lake) -> None:
    things = case(lake)
    said = publish(
        things,
        (ONE, "SELECT 1000::INTEGER AS v, 'a' AS note"),
        (TWO, "SELECT 'b' AS NOTE, 5::BIGINT AS V"),
        (THREE, "SELECT 'c' AS note, 7::SMALLINT AS v, 1 AS more"),
    )
    assert said == ["", "", ""]
    assert things.types() == {"v": "BIGINT", "note": "VARCHAR", "more": "INTEGER"}
    check_reads(things, "v", [1000, 5, 7])
    check_reads(things, "note", ["a", "b", "c"])
    check_reads(things, "more", [None, None, 1])


def test_two_columns_that_differ_only_in_case_are_refused_with_both_names(lake: Lake) -> None:
    things = case(lake)
    receipt = staged(things, ONE, "SELECT 1 AS a")
    both = replace(receipt, columns={**receipt.columns, "A": "BIGINT"})
    assert [f.error for f in things.publish([both]).failures] == [
        "columns a and A differ in case only: a table cannot hold both"
    ]


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("{'a': 1}", "{'b': 'x', 'a': 5000000000}", "{'a': 2}"),
        ("['x']", "[]::VARCHAR[]", "NULL::VARCHAR[]"),
        ("[{'a': 1}]", "[{'a': 1.5::DOUBLE, 'b': ['x']}]", "[{'a': 2}, NULL]"),
        ("MAP {'k': 1}", "MAP {'k': 1.5::DOUBLE}", "MAP {'l': 2}"),
    ],
    ids=["a struct gains a field", "an empty list", "a struct in a list", "a map"],
)
def test_dlt_2788_nested_types_can_be_extended(lake: Lake, first: str, second: str, third: str) -> None:
    things = case(lake)
    assert publish(things, *((d, f"SELECT {q} AS v") for d, q in zip(DAYS, (first, second, third), strict=False))) == [
        "",
        "",
        "",
    ]
    kind = things.types()["v"]
    rows = ", ".join(f"(CAST({query} AS {kind}))" for query in (first, second, third))
    wanted = lake.column(f"SELECT v FROM (VALUES {rows}) AS t(v)")
    assert things.values() == wanted
    assert things.damaged() == []


def test_an_integer_that_a_double_cannot_represent_is_refused_with_its_value(lake: Lake) -> None:
    things = case(lake)
    large = 2**53 + 1
    assert publish(things, (ONE, values("BIGINT", 1, large))) == [""]
    (said,) = publish(things, (TWO, values("DOUBLE", 1.5)))
    assert f"{large} (BIGINT), which DOUBLE cannot hold exactly" in said
    assert '"v": "bigint"' in said
    assert things.types() == {"v": "BIGINT"}

    others = case(lake, "others")
    assert publish(others, (ONE, values("DOUBLE", 1.5)), (TWO, values("BIGINT", 3))) == ["", ""]
    (said,) = publish(others, (THREE, values("BIGINT", 1, large)))
    assert f"column v holds {large} (BIGINT), which DOUBLE in raw.others cannot hold exactly: 1 row" in said
    check_reads(others, "v", [1.5, 3.0])


def test_incompatible_types_are_refused_with_both_types_and_the_contract_line_to_add(lake: Lake) -> None:
    things = case(lake)
    assert publish(things, (ONE, values("BIGINT", 1))) == [""]
    (said,) = publish(things, (TWO, values("VARCHAR", "A7")))
    assert said.startswith(
        "column v is VARCHAR in this partition, but BIGINT in raw.things; declare it in the contract"
    )
    assert '"v": "text"' in said
    (said,) = publish(things, (TWO, "SELECT {'a': 1} AS v"))
    assert '"v": "json"' in said
    check_reads(things, "v", [1])


def test_a_group_of_several_numeric_types_creates_a_table_of_their_common_type(lake: Lake) -> None:
    things = case(lake)
    group = [
        staged(things, day, values(*given))
        for day, given in zip(DAYS, (("INTEGER", 1000), ("DOUBLE", 2.5), ("VARCHAR", "x"), ("BIGINT", 3)), strict=True)
    ]
    result = things.publish([*group])
    assert [(f.partition, f.state) for f in result.failures] == [(THREE, "rejected")]
    assert things.types() == {"v": "DOUBLE"}
    check_reads(things, "v", [1000.0, 2.5, 3.0])


def test_a_partition_of_a_widened_table_can_be_rolled_back_and_read_at_an_earlier_snapshot(lake: Lake) -> None:
    """The earlier rows have another fingerprint in the wider type; the ledger records it."""
    things = case(lake)
    publish(things, (ONE, values("BIGINT", 1, 2)), (TWO, values("BIGINT", 7)))
    before = lake.column("SELECT max(snapshot_id) FROM lake.snapshots()")[0]
    assert publish(things, (ONE, values("DOUBLE", 2.5))) == [""]
    assert lake.sql(f"SELECT v, typeof(v) AS t FROM raw.things AT (VERSION => {before}) ORDER BY v")[0] == {
        "v": 1,
        "t": "BIGINT",
    }
    check_reads(things, "v", [2.5, 7.0])
    receipt = stage_previous(lake.settings, things.dataset, things.dataset.partitions(*_day(ONE))[0])
    assert things.publish([receipt]).receipts
    check_reads(things, "v", [1.0, 2.0, 7.0])
    # The same rows in the narrower type count as unchanged.
    assert len(things.publish([staged(things, TWO, values("BIGINT", 7))]).unchanged) == 1


def _day(key: str) -> Any:
    from datetime import date

    return date.fromisoformat(key), date.fromisoformat(key)


def test_a_float_that_becomes_a_double_is_found_by_its_value(lake: Lake) -> None:
    """DuckLake stores the bounds of a FLOAT as text; 0.2::FLOAT as a DOUBLE is outside of them."""
    things = case(lake)
    tenths = "SELECT (n / 10)::FLOAT AS v FROM range(1, 4) t(n)"
    assert publish(things, (ONE, tenths), (TWO, "SELECT 0.7::DOUBLE AS v"), (THREE, tenths)) == ["", "", ""]
    assert things.types() == {"v": "DOUBLE"}
    assert lake.column("SELECT count(*) FROM raw.things WHERE v = 0.2::FLOAT::DOUBLE") == [2]
    assert lake.column("SELECT count(*) FROM raw.things WHERE v > 0.25") == [3]
    assert things.errors() == []


def test_widening_a_damaged_table_does_not_hide_the_damage(lake: Lake) -> None:
    from ducklake_flows.lake.connect import connect

    things = case(lake)
    publish(things, (ONE, values("BIGINT", 1, 2)))
    with connect(lake.settings) as con:
        con.execute("UPDATE raw.things SET v = 3 WHERE v = 2")
    assert publish(things, (TWO, values("DOUBLE", 2.5))) == [""]
    assert things.damaged() == [ONE]


def test_a_column_added_to_a_frozen_contract_is_added_to_the_table(lake: Lake) -> None:
    things = case(lake, contract={"v": "bigint"}, schema_contract="freeze")
    things.publish([staged(things, ONE, values("BIGINT", 1))])
    (said,) = publish(things, (TWO, "SELECT 2::BIGINT AS v, 'x' AS w"))
    assert said == "column w is not in the contract"
    _declare(things, {"v": "bigint", "w": "text"}, schema_contract="freeze")
    assert publish(things, (TWO, "SELECT 2::BIGINT AS v, 'x' AS w")) == [""]
    check_reads(things, "w", [None, "x"])


def _declare(things: Case, contract: dict[str, str], **more: Any) -> None:
    things.dataset = replace(things.dataset, contract=Contract(contract, **more))


@pytest.mark.parametrize("init", [True, False], ids=["lake init", "publish"])
def test_an_empty_table_takes_the_changed_types_of_its_contract(lake: Lake, init: bool) -> None:
    things = case(lake, contract={"v": "bigint"})
    bootstrap(lake.settings, [things.dataset])
    _declare(things, {"v": "text"})
    if init:
        assert bootstrap(lake.settings, [things.dataset]) == ["raw.things (recreated from its new contract)"]
        assert bootstrap(lake.settings, [things.dataset]) == []
    assert publish(things, (ONE, values("VARCHAR", "A7"))) == [""]
    assert things.types() == {"v": "VARCHAR"}
    check_reads(things, "v", ["A7"])


def test_a_table_with_rows_takes_a_changed_contract_if_exact_else_names_the_next_step(lake: Lake) -> None:
    things = case(lake, contract={"v": "bigint"})
    things.publish([staged(things, ONE, values("BIGINT", 1000))])
    _declare(things, {"v": "double"})
    assert publish(things, (TWO, values("DOUBLE", 2.5))) == [""]
    check_reads(things, "v", [1000.0, 2.5])
    _declare(things, {"v": "text"})
    (said,) = publish(things, (THREE, values("VARCHAR", "A7")))
    assert said.startswith("column v is VARCHAR in the contract, but DOUBLE in raw.things, which has rows")
    assert "lake migrate things" in said


def test_a_parent_folder_named_like_a_hive_partition_changes_no_value(
    lake: Lake, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ducklake_flows.settings import load_settings

    monkeypatch.setenv("LAKE_HOME", str(tmp_path / "name=zzz" / "day=2020-01-01" / "home"))
    settings = load_settings()
    bootstrap(settings, [])
    things = case(Lake(settings))
    assert publish(things, (ONE, "SELECT 'a' AS name"), (TWO, "SELECT 'b' AS name")) == ["", ""]
    check_reads(things, "name", ["a", "b"])
    assert things.lake.column("SELECT count(*) FROM raw.things WHERE day = '2024-01-02'") == [1]
