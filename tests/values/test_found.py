"""Bugs found by the property tests: the smallest example of each."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.partitions import Partition
from ducklake_flows.errors import SourceError
from ducklake_flows.sources.files import Files
from ducklake_flows.sources.rows import column_of
from ducklake_flows.sources.values import Unfit, conform

DAY = Partition("2024-01-01")


@pytest.fixture(autouse=True)
def landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKE_LANDING", str(tmp_path))
    return tmp_path


def read_csv(content: bytes, contract: dict[str, str] | None = None, **dialect: Any) -> list[dict[str, Any]]:
    Path("2024-01-01.csv").write_bytes(content)
    tables = Files("{partition}.csv", "csv", **dialect).read(DAY, Contract(contract or {}))
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("content", "dialect"),
    [
        (b'"a\nb",c\r\n1,2\r\n', {}),
        (b'"a\nb",c\r1,2\r', {}),
        (b'"a\r\nb",c\n1,2\n', {}),
        (b'made by a tool\n"a\nb",c\r\n1,2\r\n', {"skip": 1}),
        (b'# made by a tool\r\n"a\nb",c\r\n1,2\r\n', {"comment": "#"}),
        (b'\xef\xbb\xbf"a\nb",c\n1,2\n', {}),
    ],
)
def test_a_line_break_in_a_header_loses_no_row(content: bytes, dialect: dict[str, Any]) -> None:
    assert read_csv(content, **dialect) == [{"a_b": 1, "c": 2}]


@pytest.mark.parametrize(
    "content", [b"made by a tool\na,b\r\n1,2\r\n3,4\r\n", b"x\r\na,b\n1,2\n3,4\n", b"\na,b\r1,2\r3,4\r"]
)
def test_skipped_lines_with_other_line_endings_lose_no_row(content: bytes) -> None:
    assert read_csv(content, skip=1) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_line_numbers_are_correct_after_the_header_is_rewritten() -> None:
    with pytest.raises(SourceError, match="line 5: column a_b: 'x' cannot be bigint"):
        read_csv(b'skipped\n"a\nb",c\r\n1,2\r\nx,4\r\n', {"a_b": "bigint", "c": "text"}, skip=1)
    with pytest.raises(SourceError, match="line 4: it has 3 columns instead of 2"):
        read_csv(b'"a\nb",c\r\n1,2\r\n3,4,5\r\n')


def test_a_comment_after_a_byte_order_mark_is_a_comment() -> None:
    assert read_csv(b"\xef\xbb\xbf# made by a tool\na,b\n1,2\n", comment="#") == [{"a": 1, "b": 2}]


def test_only_a_whole_line_is_a_comment() -> None:
    content = b'# one\na,b\n1,#a\n# two, 3\n2,x#y\n"# no\n# comment",4\n5,"""\n# x"\n#\n'
    assert [row["b"] for row in read_csv(content, comment="#")] == ["#a", "x#y", "4", '"\n# x']
    assert read_csv(b"a\n1\n# two\n\n3\n", comment="#") == [{"a": 1}, {"a": None}, {"a": 3}]
    with pytest.raises(SourceError, match="line 5: column a: 'x' cannot be bigint"):
        read_csv(b"# one\na,b\n1,2\n# two\nx,3\n", {"a": "bigint", "b": "text"}, comment="#")


def test_a_delimiter_may_have_several_characters() -> None:
    assert read_csv(b'"a||b"||c\n1||2\n', delimiter="||") == [{"a_b": 1, "c": 2}]


def test_an_undeclared_column_of_nulls_is_read() -> None:
    assert read_csv(b"a,b\n1,\n2,\n") == [{"a": 1, "b": None}, {"a": 2, "b": None}]


def test_a_double_in_pythons_notation_is_read_exactly() -> None:
    # It has 16 digits and is halfway between two other numbers of 16 digits.
    assert read_csv(b"a,b\n5.960464477539063e-08,1\n") == [{"a": 5.960464477539063e-08, "b": 1}]


def test_doubles_among_decimals_become_decimals_exactly_as_written() -> None:
    Path("2024-01-01.jsonl").write_text('{"v": 0.1}\n{"v": 12345678901234567.89}\n{"v": 3}\n')
    (table,) = Files("{partition}.jsonl", "jsonl").read(DAY, Contract())
    assert table.column("v").to_pylist() == [Decimal("0.1"), Decimal("12345678901234567.89"), Decimal(3)]


def test_a_number_of_any_length_is_text_if_the_contract_says_so() -> None:
    assert column_of([10**40, 5, None], "v", Contract({"v": "text"})).to_pylist() == [str(10**40), "5", None]
    assert column_of([Decimal("1.50"), Decimal("1E+50")], "v", Contract({"v": "text"})).to_pylist() == [
        "1.50",
        f"1{'0' * 50}",
    ]
    with pytest.raises(Unfit, match="39 digits are needed, but a decimal has 38; declare the column as text"):
        column_of([10**38], "v", Contract())


def test_missing_values_of_pandas_are_null_in_nested_values() -> None:
    given = [{"a": pd.NaT, "b": np.int64(3), "c": np.array([[1], [2]])}]
    assert column_of(given, "v", Contract()).to_pylist() == ['{"a":null,"b":3,"c":[[1],[2]]}']


def test_a_map_is_an_object_in_json() -> None:
    table = pa.table({"v": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32()))})
    assert conform(table, Contract({"v": "json"})).column("v").to_pylist() == ['{"a":1}', "{}"]


def test_a_parquet_interval_is_refused() -> None:
    import duckdb

    duckdb.connect().execute("COPY (SELECT 1 AS id, INTERVAL 3 MONTH AS v) TO '2024-01-01.parquet'")
    with pytest.raises(SourceError, match="column v: the type INTERVAL cannot be stored"):
        list(Files("{partition}.parquet", "parquet").read(DAY, Contract()))


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", None, "a\0b"]),
        pa.array([["a"], ["a\0b"]]),
        pa.array([{"a": None}, {"a": "\0"}]),
        pa.array([[("a\0", 1)]], pa.map_(pa.string(), pa.int32())),
    ],
)
def test_a_nul_in_text_is_refused(values: pa.Array) -> None:
    # After a day with "x" was published, `v = 'a\0b'` found nothing: the table's statistics contained only "x".
    with pytest.raises(Unfit, match="column v: text with a NUL character"):
        conform(pa.table({"v": values}), Contract())


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_in_a_json_column_is_json_text_for_every_arrow_string_type(kind: pa.DataType) -> None:
    """Arrow's string views, which polars uses, became JSON strings: {"a":1} was stored as "{\\"a\\":1}"."""
    contract = Contract({"v": "json"})
    texts = ['{"a":1}', "1", None]
    assert conform(pa.table({"v": pa.array(texts, kind)}), contract, {})["v"].to_pylist() == texts
    with pytest.raises(Unfit, match="it is not JSON"):
        conform(pa.table({"v": pa.array(["a"], kind)}), contract, {})
