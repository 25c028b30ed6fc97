"""The lattice of types, compared with what DuckDB does with values."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ducklake_flows.staging.lattice import contract_line, exact, is_untyped, join

if TYPE_CHECKING:
    from collections.abc import Iterator

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
OTHERS = ("FLOAT", "DOUBLE", "VARCHAR", "JSON", "BOOLEAN", "DATE", "TIME", "BLOB", "UUID", '"NULL"')
MOMENTS = ("TIMESTAMP", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE")


@st.composite
def decimals(draw: st.DrawFn) -> str:
    precision = draw(st.integers(1, 38))
    return f"DECIMAL({precision},{draw(st.integers(0, precision))})"


scalars = st.one_of(st.sampled_from(INTEGERS), st.sampled_from([*OTHERS, *MOMENTS]), decimals())


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    fields = st.dictionaries(st.sampled_from(["a", "b", "C", "order"]), inner, min_size=1)
    return st.one_of(
        inner.map(lambda t: f"{t}[]"),
        inner.map(lambda t: f"MAP(VARCHAR, {t})"),
        fields.map(lambda f: "STRUCT(" + ", ".join(f'"{n}" {t}' for n, t in f.items()) + ")"),
    )


types = st.recursive(scalars, nested, max_leaves=4).map(lambda text: str(duckdb.sqltype(text)))


@settings(derandomize=True, deadline=None)
@given(types, types)
def test_a_join_holds_both_types_in_either_order_and_is_idempotent(one: str, other: str) -> None:
    assert join(one, one) == one
    joined, swapped = join(one, other), join(other, one)
    assert (joined is None) == (swapped is None)
    if joined is not None and swapped is not None:
        assert join(joined, one) == join(joined, other) == joined
        # They differ at most in the order of fields and in the name of the text type (JSON).
        assert join(joined, swapped) == joined
        assert exact("v", joined, swapped) == "true" or "VARCHAR" in joined


def values(data_type: str) -> st.SearchStrategy[Any]:
    """Python values of a type that DuckDB accepts."""
    if data_type in INTEGERS:
        bits = {"TINY": 8, "SMALL": 16, "INTEGER": 32, "BIG": 64}[data_type.removeprefix("U").removesuffix("INT")]
        low, high = (0, 2**bits - 1) if data_type.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return st.one_of(st.integers(low, high), st.sampled_from([low, high, 0, 1]))
    if data_type == "FLOAT":
        return st.floats(width=32)
    if data_type == "DOUBLE":
        return st.floats()
    if data_type.startswith("DECIMAL"):
        precision, scale = map(int, data_type[8:-1].split(","))
        return st.integers(-(10**precision) + 1, 10**precision - 1).map(lambda n: Decimal(n).scaleb(-scale))
    return st.datetimes().map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str, Any]:
    numbers = st.one_of(st.sampled_from([*INTEGERS, "FLOAT", "DOUBLE"]), decimals())
    kinds = draw(st.sampled_from([numbers, st.sampled_from(["TIMESTAMP", "TIMESTAMP_MS", "TIMESTAMP_NS"])]))
    one, other = draw(kinds), draw(kinds)
    return one, other, draw(values(one))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(pairs(), st.booleans())
def test_a_cast_reported_as_exact_keeps_the_value(pair: tuple[str, str, Any], inside: bool) -> None:
    one, other, value = pair
    if inside:
        one, other, value = f"STRUCT(a {one})[]", f"STRUCT(b VARCHAR, a {other})[]", [{"a": value}]
    joined = join(one, other)
    if joined is None:
        return
    con = duckdb.default_connection()
    con.execute(f"CREATE OR REPLACE TEMP TABLE t (v {one})")
    try:
        con.execute("INSERT INTO t VALUES (?)", [value])
    except duckdb.Error:
        return  # a time outside the range of this type
    holds = con.execute(f"SELECT {exact('v', one, joined)} FROM t").fetchall()[0][0]
    before = con.execute("SELECT v FROM t").fetchall()[0][0]
    if holds:
        after = con.execute(f"SELECT CAST(v AS {joined}) FROM t").fetchall()[0][0]
        assert list(flat(after)) == list(flat(before)), (one, joined)
    else:
        assert "BIGINT" in one or "HUGEINT" in one or "TIMESTAMP" in one, f"{value} is no loss from {one} to {joined}"


def flat(value: Any) -> Iterator[Any]:
    """The nested values without nulls. A NaN is text, since it does not equal itself."""
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from flat(inner)
    elif value is not None:
        yield "nan" if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize(
    ("there", "new", "joined"),
    [
        ("INTEGER", "BIGINT", "BIGINT"),
        ("UBIGINT", "TINYINT", "DECIMAL(20,0)"),
        ("HUGEINT", "BIGINT", "DECIMAL(38,0)"),
        ("BIGINT", "DOUBLE", "DOUBLE"),
        ("FLOAT", "DOUBLE", "DOUBLE"),
        ("DECIMAL(10,2)", "DECIMAL(18,4)", "DECIMAL(18,4)"),
        ("DECIMAL(10,2)", "BIGINT", "DECIMAL(21,2)"),
        ("DECIMAL(38,20)", "BIGINT", None),
        ("DECIMAL(10,2)", "DOUBLE", None),
        ("VARCHAR", "BIGINT", None),
        ("VARCHAR", "JSON", "VARCHAR"),
        ("JSON", "VARCHAR", "JSON"),
        ("BOOLEAN", "BIGINT", None),
        ("DATE", "TIMESTAMP", None),
        ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE", None),
        ("TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP_NS"),
        ('"NULL"[]', "VARCHAR[]", "VARCHAR[]"),
        ("STRUCT(a INTEGER)", "STRUCT(b VARCHAR, A BIGINT)", "STRUCT(a BIGINT, b VARCHAR)"),
        ("STRUCT(a INTEGER)", "BIGINT", None),
        ("MAP(VARCHAR, INTEGER)", "MAP(VARCHAR, DOUBLE)", "MAP(VARCHAR, DOUBLE)"),
    ],
)
def test_the_lattice_gives_the_expected_joins(there: str, new: str, joined: str | None) -> None:
    assert join(there, new) == joined


def test_an_integer_outside_the_exact_range_of_a_double_is_not_exact() -> None:
    for value, survives in ((2**53, True), (2**53 + 1, False), (2**63 - 1, False), (-(2**63), False)):
        assert duckdb.execute(f"SELECT {exact(f'({value})::BIGINT', 'BIGINT', 'DOUBLE')}").fetchall() == [(survives,)]
    inside = exact("v", "BIGINT[]", "DOUBLE[]")
    rows = f"(VALUES ([1, {2**53 + 1}]), ([NULL, 5]), (NULL)) AS t(v)"
    assert duckdb.execute(f"SELECT list({inside}) FROM {rows}").fetchall() == [([False, True, True],)]
    assert exact("v", "INTEGER", "DOUBLE") == "true"


def test_the_contract_line_names_the_type() -> None:
    for data_type, line in {
        "SMALLINT": '"v": "bigint"',
        "UBIGINT": '"v": "decimal(20,0)"',
        "DECIMAL(18,4)": '"v": "decimal(18,4)"',
        "TIMESTAMP": '"v": "timestamp_ntz"',
        "TIMESTAMP WITH TIME ZONE": '"v": "timestamp"',
        "STRUCT(a INTEGER)": '"v": "json"',
        "UUID": '"v": "text"',
    }.items():
        assert contract_line("v", data_type) == line


def test_a_column_of_nulls_is_untyped() -> None:
    assert is_untyped('"NULL"')
    assert not is_untyped('"NULL"[]')
