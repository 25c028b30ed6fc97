"""Files as users have them. Each case once lost or changed data silently, or was refused without need."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import BadInput, SourceError
from ducklake_flows.sources.files import Files
from ducklake_flows.storage import open_storage
from tests.cases import DAYS, Case, case

if TYPE_CHECKING:
    from tests.conftest import Lake

CSV = {"id": "bigint", "v": "text"}


def files(lake: Lake, kind: Any = "csv", contract: Any = None, key: str = "things", **more: Any) -> Case:
    """A dataset with one file a day; ``more`` holds options of the source and of the contract."""
    mine = {name: more.pop(name) for name in ("rename", "timezone", "schema_contract") if name in more}
    end = more.pop("end", "")
    return case(lake, key, Files(f"{key}/{{partition}}.{kind}{end}", kind, **more), contract, **mine)


def land(things: Case, *contents: str | bytes, end: str = "") -> list[str]:
    """Land and publish one file a day, one day at a time; return the error of each."""
    said = []
    for day, content in zip(DAYS, contents, strict=False):
        source: Any = things.dataset.source
        things.lake.land(source.pattern.replace("{partition}", day), content)
        result = things.load(day)
        said.append(result.failures[0].error if result.failures else "")
    return said


def error_of(things: Case, content: str | bytes) -> str:
    (error,) = land(things, content)
    assert error
    assert things.columns == {} or things.lake.column(f"SELECT count(*) FROM {things.dataset.table}") == [0]
    return error


def parquet(table: pa.Table, **more: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **more)
    return sink.getvalue()


def test_an_unclosed_quote_is_refused_with_its_line(lake: Lake) -> None:
    """Former fault: two rows were lost."""
    assert "things/2024-01-01.csv: line 2: a quote is not closed" in error_of(
        files(lake, contract=CSV), 'id,v\n1,"a\n2,b\n3,c\n'
    )


@pytest.mark.parametrize("text", ["1e400", "12345678901234567890.12", "1e-400"])
def test_a_number_that_a_double_cannot_represent_is_refused(lake: Lake, text: str) -> None:
    """Former fault: it became inf or lost digits."""
    assert f"line 3: column v: '{text}' cannot be double" in error_of(
        files(lake, contract={"v": "double"}), f"v\n1.5\n{text}\n"
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_long_numbers_are_exact_or_text(lake: Lake, kind: str) -> None:
    """Former fault: they were read as doubles, so that two ids were equal (duckdb#22750)."""
    numbers = ["12345678901234567890", "12345678901234567891", "9223372036854775808", "18446744073709551615"]
    decimals = ["12345678901234567890.12", "0.10", "-1.5", "2"]
    lines = [f"{a},{b}" for a, b in zip(numbers, decimals, strict=True)]
    content = "a,b\n" + "\n".join(lines) + "\n"
    if kind == "jsonl":
        content = "".join(f'{{"a": {n}, "b": 12345678901234567890.12}}\n' for n in numbers)
    things = files(lake, kind)
    assert land(things, content) == [""]
    assert things.values("a", "rowid") == [int(n) for n in numbers]
    wanted = [Decimal(d) for d in decimals] if kind == "csv" else [Decimal(decimals[0])] * 4
    assert things.values("b", "rowid") == wanted


def test_ids_with_leading_zeros_are_text_on_every_day(lake: Lake) -> None:
    """Former fault: 00501 became 501, and the day with K1A 0B1 was refused (duckdb#10218)."""
    things = files(lake)
    assert land(things, "zip\n00501\n", "zip\nK1A 0B1\n", "zip\n10001\n") == ["", "", ""]
    assert things.values("zip") == ["00501", "K1A 0B1", "10001"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,v\n1,é\n".encode("latin-1"), "line 2: it is not UTF-8"),
        ("id,v\n1,é\n".encode("utf-16"), "is UTF-16, not text"),
        (b"id;v\n1;a\n", "separated by ';'"),
        (b"id\tv\n1\ta\n", "separated by '\\t'"),
        (b"PK\x03\x04id,v\n1,a\n", "is a zip archive"),
        (gzip.compress(b"id,v\n1,a\n", mtime=0), "is gzip"),
        (b"id,v\n1,a\nid,v\n2,b\n", "the header is repeated among the rows"),
        (b"id,v\n1,a\n2,b", "truncated"),
        (b"", "is empty (0 bytes)"),
        (b"\n\n", "the header line is blank"),
        (b"id,v\n1,a,b\n", "line 2: it has 3 columns instead of 2"),
        (b"id,id\n1,2\n", "names a column twice: 'id'"),
        (b",v\n0,a\n", "no column name can be derived from ''"),
    ],
)
def test_a_file_that_is_not_valid_csv_is_refused(lake: Lake, content: bytes, says: str) -> None:
    """Former fault: without a contract these were read as bytes, one column, no rows, or rows of text."""
    assert says in error_of(files(lake), content)


def test_the_dataset_declares_the_csv_dialect(lake: Lake) -> None:
    things = files(
        lake, delimiter=";", quote="'", escape="\\", encoding="latin-1", decimal=",", comment="#", skip=1, nulls=("-",)
    )
    content = "exported today\n# a note\nid;Größe;Name\n1;2,50;'O\\'Hara; Ltd.'\n# another\n2;-;é\n"
    assert land(things, content.encode("latin-1")) == [""]
    assert lake.sql("SELECT id, größe, name FROM raw.things ORDER BY id") == [
        {"id": 1, "größe": 2.5, "name": "O'Hara; Ltd."},
        {"id": 2, "größe": None, "name": "é"},
    ]


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_compressed_files_are_read_and_truncation_is_detected(lake: Lake, end: str) -> None:
    """Former fault: a .csv.gz that was truncated in its last line was published."""

    def packed(text: str) -> bytes:
        if end == ".gz":
            return gzip.compress(text.encode())
        found: bytes = pa.compress(text.encode(), "zstd", asbytes=True)
        return found

    things = files(lake, end=end)
    assert land(things, packed("id,v\n1,a\n")) == [""]
    assert things.values() == ["a"]
    cut = files(lake, key="cut", end=end)
    assert "truncated" in error_of(cut, packed("id,v\n1,a\n2,b"))
    assert "cut" in error_of(files(lake, key="half", end=end), packed("id,v\n" + "1,a\n" * 9999)[:-20]).replace(
        "Truncated", "cut"
    )


@pytest.mark.parametrize("name", ["things/{partition}.CSV", "things/{partition}.txt"])
def test_truncation_of_a_csv_file_is_detected_for_any_file_extension(lake: Lake, name: str) -> None:
    things = case(lake, source=Files(name, "csv"))
    assert "truncated" in error_of(things, "id,v\n1,a\n2,b")


def test_line_breaks_in_values_of_a_large_file_are_read(lake: Lake) -> None:
    """Former fault: half of such files over 8 MiB were refused (pandas#59009).

    tests/unit/test_csv_files.py tests every alignment.
    """
    things = files(lake)
    assert land(things, "id,v,more\n" + "".join(f'{n},"a\nb",{"x" * 40}\n' for n in range(180_001))) == [""]
    assert lake.sql("SELECT count(*) AS n, count(DISTINCT id) AS ids, min(v) AS v FROM raw.things") == [
        {"n": 180_001, "ids": 180_001, "v": "a\nb"}
    ]


def test_a_quoted_line_break_at_the_end_of_a_block_is_kept(lake: Lake) -> None:
    """Former fault: a CRLF whose CR was the last byte of a block lost its LF (apache/arrow#51368)."""
    start = 'id,v\n1,"'
    content = start + "x" * ((8 << 20) - len(start) - 1) + '\r\nB"\n'
    things = files(lake, contract=CSV)
    assert land(things, content) == [""]
    assert lake.column("SELECT right(v, 4) FROM raw.things") == ["x\r\nB"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_first_value_after_8_mib_and_a_longer_row_are_read(lake: Lake, kind: str) -> None:
    """Former fault: a column whose first value came after 8 MiB, and a row over 8 MiB, were refused (duckdb#7448)."""
    pad = "x" * 1000
    rows: list[dict[str, Any]] = [{"id": n, "late": None, "pad": pad} for n in range(9_000)]
    rows += [{"id": 9_000, "late": 1.5, "pad": "y" * (9 << 20), "key": 1}]
    if kind == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        content = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    things = files(lake, kind)
    assert land(things, content) == [""]
    assert lake.sql(
        "SELECT count(*) AS n, sum(late) AS late, sum(key) AS key, max(length(pad)) AS pad FROM raw.things"
    ) == [{"n": 9_001, "late": 1.5, "key": 1, "pad": 9 << 20}]


def test_a_blank_line_in_a_single_column_file_is_a_null(lake: Lake) -> None:
    things = files(lake)
    assert land(things, "v\na\n\nb\n") == [""]
    assert things.values(order="rowid") == ["a", None, "b"]


def test_a_file_that_changes_while_it_is_read_is_refused(lake: Lake) -> None:
    """Former fault: rows of the old and the new file were published, and the partition was not planned again."""
    things = files(lake)
    things.lake.land(f"things/{DAYS[0]}.csv", "v\n1\n")
    source: Any = things.dataset.source
    read = source.read(parse_partition(DAYS[0], Grain.day), things.dataset.contract)
    assert next(read).num_rows == 1
    things.lake.land(f"things/{DAYS[0]}.csv", "v\n1\n2\n")
    with pytest.raises(Exception, match="changed while it was read"):
        next(read)


@pytest.mark.parametrize("lake", ["sqlite+folder"], indirect=True)
def test_a_large_file_overwritten_during_the_read_is_refused_and_read_by_the_next_run(lake: Lake) -> None:
    """Former fault: one partition held old and new rows, and no run with the default mode loaded it again."""
    things = files(lake, contract={"v": "bigint"})
    lake.land(f"things/{DAYS[0]}.csv", "v\n" + "1\n" * 1_000_000)
    source: Any = things.dataset.source
    partition = parse_partition(DAYS[0], Grain.day)
    read = source.read(partition, things.dataset.contract)
    next(read)
    with Path(lake.settings.landing, f"things/{DAYS[0]}.csv").open("r+") as file:
        file.write("v\n" + "2\n" * 1_000_000)
    with pytest.raises(SourceError, match="changed while it was read"):
        list(read)
    assert not things.load(DAYS[0]).failures
    assert lake.column("SELECT DISTINCT v FROM raw.things") == [2]


def test_tab_separated_and_utf_16_files_are_read(lake: Lake) -> None:
    tabs = files(lake, key="tabs", delimiter="\t")
    assert land(tabs, "id\tname\n1\ta;b,c\n") == [""]
    assert lake.sql("SELECT id, name FROM raw.tabs") == [{"id": 1, "name": "a;b,c"}]
    wide = files(lake, key="wide", encoding="utf-16")
    assert land(wide, "id,name\n1,größe 金\n".encode("utf-16")) == [""]
    assert lake.sql("SELECT id, name FROM raw.wide") == [{"id": 1, "name": "größe 金"}]


def test_a_parquet_file_is_cast_exactly_to_its_contract_or_refused(lake: Lake) -> None:
    """Former faults: a timestamp was silently cut to its day; a struct was never stored as JSON."""
    table = pa.table({"day_of": [datetime(2024, 1, 1, 10)], "j": [{"a": 1, "b": ["x"]}]})
    things = files(lake, "parquet", contract={"day_of": "date", "j": "json"})
    assert "column day_of" in error_of(things, parquet(table))
    midnight = table.set_column(0, "day_of", pa.array([datetime(2024, 1, 2)]))
    assert land(things, parquet(midnight)) == [""]
    assert lake.sql("SELECT day_of, j FROM raw.things") == [{"day_of": date(2024, 1, 2), "j": '{"a":1,"b":["x"]}'}]


def test_int96_timestamps_of_spark_are_read_exactly_in_every_year(lake: Lake) -> None:
    """Former fault: an INT96 9999-12-31 silently became 1816-03-30."""

    def spark(*values: Any, unit: str = "us") -> bytes:
        sink = io.BytesIO()
        table = pa.table({"n": range(len(values)), "v": pa.array(values, pa.timestamp(unit))})
        pq.write_table(table, sink, use_deprecated_int96_timestamps=True)
        return sink.getvalue()

    things = files(lake, "parquet")
    moments = [datetime(1, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999999), None, datetime(9999, 12, 31, 23, 59, 59)]
    assert land(things, spark(*moments)) == [""]
    assert things.values("v", "n") == moments
    others = files(lake, "parquet", key="others")
    assert "row 2: column v: a timestamp has digits below the microsecond" in error_of(others, spark(0, 1, unit="ns"))
    many = files(lake, "parquet", key="many")
    sink = io.BytesIO()
    hours = pa.array(range(200_000), pa.int64()).cast(pa.timestamp("us"))
    table = pa.table({"n": range(200_000), "v": hours})
    pq.write_table(table, sink, use_deprecated_int96_timestamps=True, row_group_size=70_000)
    assert land(many, sink.getvalue()) == [""]
    assert lake.column("SELECT count(*) FROM raw.many WHERE epoch_us(v) = n") == [200_000]
    nested = pa.table({"v": [[datetime(2024, 1, 1)]]})
    sink = io.BytesIO()
    pq.write_table(nested, sink, use_deprecated_int96_timestamps=True)
    assert "column v: INT96 timestamps within lists" in error_of(others, sink.getvalue())


def test_ducklake_1308_files_of_int32_then_int64_give_correct_answers(lake: Lake) -> None:
    """duckdb/ducklake#1308, from files in the landing zone."""
    things = files(lake, "parquet")
    days = (pa.array([1000, 2000], pa.int32()), pa.array([5, 6]), pa.array([9]))
    assert land(things, *(parquet(pa.table({"id": array})) for array in days)) == ["", "", ""]
    assert things.values("id", "id") == [5, 6, 9, 1000, 2000]
    assert lake.column("SELECT id FROM raw.things WHERE id = 1000") == [1000]
    assert len(lake.sql("SELECT id FROM raw.things GROUP BY id")) == 5
    assert things.errors() == []


def test_a_chinese_csv_header_gives_chinese_column_names(lake: Lake) -> None:
    things = files(lake)
    assert land(things, "日期,金额\n2024-01-01,1.5\n") == [""]
    assert lake.sql("SELECT 日期, 金额 FROM raw.things") == [{"日期": date(2024, 1, 1), "金额": 1.5}]


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_a_file_has_the_same_time_in_a_listing_of_many_and_of_one(lake: Lake) -> None:
    """Some S3 servers round a HEAD's time up.

    Former fault: half of all partitions with several files "changed while read".
    """
    names = [f"things/{DAYS[0]}/{number:02}.csv" for number in range(20)]
    for number, name in enumerate(names):
        lake.land(name, f"v\n{number}\n")
    landing = open_storage(lake.settings.landing, lake.settings)
    assert {landing.relative(file.path): file for file in landing.list()} == {n: landing.find(n) for n in names}
    things = case(lake, source=Files("things/{partition}/*.csv", "csv"))
    assert things.load(DAYS[0]).failures == []
    assert things.values() == list(range(20))


def test_nested_json_is_the_same_from_a_file_and_from_a_function(lake: Lake) -> None:
    """Former fault: it was STRUCT(TIMESTAMP, DOUBLE) from a file and text from a function."""
    value = {"o": {"d": "2024-01-05", "n": 12345678901234567890}}
    file, function = files(lake, "jsonl"), case(lake, "function")
    assert land(file, json.dumps(value) + "\n") + function.each([value]) == ["", ""]
    assert file.values("o") == function.values("o") == ['{"d":"2024-01-05","n":12345678901234567890}']
    assert file.types() == function.types() == {"o": "JSON"}


def test_json_values_are_converted_to_every_contract_type(lake: Lake) -> None:
    """Former faults: date, time and json were always refused.

    The same binary value was four letters from a file and two bytes from a function.
    """
    contract = {
        "d": "date",
        "t": "time",
        "j": "json",
        "n": "decimal(10,2)",
        "b": "binary",
        "at": "timestamp",
        "f": "double",
        "i": "bigint",
        "s": "text",
    }
    row = {"d": "2024-01-05", "t": "10:00:00", "j": {"a": [1]}, "n": 1.50, "b": "AAE=", "at": "2024-01-05T10:00:00Z"}
    row |= {"f": 2, "i": 3, "s": "x"}
    file, function = files(lake, "jsonl", contract), case(lake, "function", contract=contract)
    assert land(file, json.dumps(row) + "\n") + function.each([row]) == ["", ""]
    for things in (file, function):
        found = lake.sql(f"SELECT * EXCLUDE day FROM {things.dataset.table}")[0]
        at = found.pop("at")
        assert at.astimezone(UTC) == datetime(2024, 1, 5, 10, tzinfo=UTC)
        assert found == {
            "d": date(2024, 1, 5),
            "t": found["t"],
            "j": '{"a":[1]}',
            "n": Decimal("1.50"),
            "b": b"\x00\x01",
            "f": 2.0,
            "i": 3,
            "s": "x",
        }
        assert str(found["t"]) == "10:00:00"


def test_times_without_a_zone_in_csv_need_one_in_the_contract(lake: Lake) -> None:
    """Former fault: they were refused with advice from Arrow, and no setting solved it."""
    content = "at\n2024-01-05T10:00:00\n2024-01-05 10:00:00+01:00\n"
    contract = {"at": "timestamp"}
    assert "line 2: column at" in error_of(files(lake, contract=contract), content)
    things = files(lake, contract=contract, key="zoned", timezone="Europe/Berlin")
    assert land(things, content) == [""]
    assert [at.astimezone(UTC).hour for at in things.values("at", "rowid")] == [9, 9]
    plain = files(lake, key="plain")
    assert land(plain, "at\n2024-01-05T10:00:00\n") == [""]
    assert plain.types() == {"at": "TIMESTAMP"}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("jsonl", '{"day": "2024-01-01", "v": 1}\n', '{"day": "2024-01-01T10:00:00", "v": 1}\n'),
        ("csv", "day,v\n2024-01-01 00:00:00,1\n", "day,v\n2024-01-01 10:00:00,1\n"),
        (
            "parquet",
            parquet(pa.table({"day": ["2024-01-01"], "v": [1]})),
            parquet(pa.table({"day": ["monday"], "v": [1]})),
        ),
    ],
)
def test_a_partition_column_in_the_file_is_cast_if_exact_else_refused(
    lake: Lake, kind: str, good: str | bytes, bad: str | bytes
) -> None:
    """Former fault: the first day broke `verify` permanently, and the second was refused."""
    things = files(lake, kind)
    other = (
        good.replace("01-01", "01-02")
        if isinstance(good, str)
        else parquet(pa.table({"day": ["2024-01-02"], "v": [1]}))
    )
    assert land(things, good, other) == ["", ""]
    assert things.values("day", "day") == [date(2024, 1, 1), date(2024, 1, 2)]
    assert things.errors() == []
    assert "day" in error_of(files(lake, kind, key="bad"), bad)


def test_header_names_are_matched_to_contract_columns(lake: Lake) -> None:
    """Former fault: `Order ID` was refused as a wrong header in CSV and became a column of nulls in JSON."""
    contract = {"order_id": "bigint", "größe": "double", "total": "double"}
    for kind, content in (
        ("csv", "Order ID,größe,Amount €\n1,2.5,3\n"),
        ("jsonl", '{"orderId": 1, "größe": 2.5, "Amount €": 3}\n'),
    ):
        things = files(lake, kind, contract, key=f"of_{kind}", rename={"Amount €": "total"}, schema_contract="freeze")
        assert land(things, content) == [""]
        assert lake.sql(f"SELECT order_id, größe, total FROM {things.dataset.table}") == [
            {"order_id": 1, "größe": 2.5, "total": 3.0}
        ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"v": "\xff"}\n', "line 1 is not UTF-8"),
        (b'{"v": 1}\n{"v": \n', "line 2 is not JSON"),
        (b'{"v": 1, "v": 2}\n', "line 1 has the key 'v' twice"),
        (b'{"v": 1}\n[2]\n', "line 2 is not a JSON object"),
        (b"[1]\n", "element 1 is not a JSON object"),
    ],
)
def test_bad_json_is_refused_with_its_line(lake: Lake, content: bytes, says: str) -> None:
    """Former faults: invalid UTF-8 gave "the audits do not fit the rows"; of two equal keys the last one won."""
    assert says in error_of(files(lake, "jsonl"), content)


def test_a_json_array_is_read_and_an_empty_file_only_if_the_dataset_allows_it(lake: Lake) -> None:
    things = files(lake, "json", empty=True)
    assert land(things, '[{"v": 1},\n {"v": 2}]', "", "\n \n") == ["", "", ""]
    assert things.values() == [1, 2]
    assert "is empty" in error_of(files(lake, "json", key="strict"), "")


AMONG_FILES = {
    "integers and doubles": (pa.array([3]), pa.array([2.5]), "DOUBLE"),
    "decimals": (
        *(pa.array([Decimal("1.50")], pa.decimal128(10, 2)), pa.array([Decimal("2.25")], pa.decimal128(18, 2))),
        "DECIMAL(18,2)",
    ),
    "a struct with a field more": (
        *(pa.array([{"a": 1}]), pa.array([{"a": 2, "b": "x"}])),
        "STRUCT(a BIGINT, b VARCHAR)",
    ),
    "an empty list": (pa.array([["x"]]), pa.array([[]], pa.list_(pa.null())), "VARCHAR[]"),
    "text and integers": (pa.array(["A7"]), pa.array([12]), ""),
    "structs and integers": (pa.array([{"a": 1}]), pa.array([12]), ""),
}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("mix", AMONG_FILES)
def test_files_of_a_partition_are_combined_in_one_exact_type_or_refused(lake: Lake, mix: str, first: int) -> None:
    """The same rule as between partitions.

    Former fault: the types of the first file were applied to all, and the error named no file.
    """
    *arrays, data_type = AMONG_FILES[mix]
    things = case(lake, source=Files("things/{partition}/*.parquet", "parquet"))
    for name, array in zip("ab", (arrays[first], arrays[1 - first]), strict=True):
        lake.land(f"things/{DAYS[0]}/{name}.parquet", parquet(pa.table({"id": [name], "v": array})))
    failures = things.load(DAYS[0]).failures
    if not data_type:
        assert f"first in things/{DAYS[0]}/a.parquet, then" in failures[0].error
        assert f"in things/{DAYS[0]}/b.parquet; declare it" in failures[0].error
        assert "column v" in failures[0].error
        return
    assert not failures
    assert things.types()["v"] == data_type
    assert sorted(things.values("id")) == ["a", "b"]
    assert lake.column("SELECT count(*) FROM raw.things WHERE v IS NULL") == [0]
    assert things.errors() == []


def test_files_of_a_partition_are_cast_to_one_type(lake: Lake) -> None:
    """Former fault: "Schema at index 1 was different", without the name of a file."""
    things = case(lake, source=Files("things/{partition}/*.parquet", "parquet"))
    for name, array in {
        "a": pa.array([1], pa.int32()),
        "b": pa.array([1 << 40], pa.int64()),
        "c": pa.array([5], pa.int8()),
    }.items():
        lake.land(
            f"things/{DAYS[0]}/{name}.parquet", parquet(pa.table({"v": array, "at": pa.array([1], pa.timestamp("ms"))}))
        )
    lake.land(
        f"things/{DAYS[0]}/d.parquet", parquet(pa.table({"at": pa.array([1000], pa.timestamp("ns")), "w": [1.5]}))
    )
    assert not things.load(DAYS[0]).failures
    assert things.values(order="v") == [1, 5, 1 << 40, None]
    assert things.types() == {"v": "BIGINT", "at": "TIMESTAMP", "w": "DOUBLE"}
    assert things.errors() == []


def test_parquet_written_by_pandas_is_read_unchanged(lake: Lake) -> None:
    sink = io.BytesIO()
    pd.DataFrame({"v": [1.5, None], "s": pd.Categorical(["a", "b"])}).to_parquet(sink)
    things = files(lake, "parquet")
    assert land(things, sink.getvalue()) == [""]
    assert things.values("v", "rowid") == [1.5, None]


PATTERNS = {
    "things/{partition}*.csv": "things/2024-01-05_a.csv",
    "things/{partition}-*.csv": "things/2024-01-05-x.csv",
    "*{partition}*": "x-2024-01-05.csv",
    "things/year=%Y/month=%m/day=%d/*.csv": "things/year=2024/month=01/day=05/a.csv",
    "things/%Y%m%d.csv": "things/20240105.csv",
    "%Y/%m/{partition}.csv": "2024/01/2024-01-05.csv",
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_finds_its_files(lake: Lake, pattern: str) -> None:
    """Former fault: its partitions stayed "no source"."""
    things = case(lake, source=Files(pattern, "csv"))
    lake.land(PATTERNS[pattern], "v\n1\n")
    lake.land("other/2024-01-06.csv", "v\n2\n")
    days = [parse_partition(f"2024-01-0{n}", Grain.day) for n in (4, 5)]
    assert list(things.dataset.versions(days)) == ["2024-01-05"]
    assert not things.load("2024-01-05").failures
    assert things.values() == [1]


@pytest.mark.parametrize(
    ("pattern", "kind", "more", "says"),
    [
        ("a/**/{partition}.csv", "csv", {}, r"'\*\*' is not supported in a pattern"),
        ("a/{partition}?.csv", "csv", {}, "'?' is not supported"),
        ("a/%j.csv", "csv", {}, "% must be followed by"),
        ("a/{day}.csv", "csv", {}, "'{day}' is not a known placeholder"),
        ("a/all.csv", "csv", {}, "does not say which day"),
        ("a/%Y-%m.csv", "csv", {}, "does not say which day"),
        ("a/{partition}.tsv", "tsv", {}, "not a file format"),
        ("a/{partition}.csv", "csv", {"encoding": "klingon"}, "not an encoding"),
        ("a/{partition}.csv", "csv", {"delimiter": ""}, "not a valid delimiter"),
        ("a/{partition}.csv", "csv", {"nulls": "NA"}, "nulls must be a tuple of texts"),
    ],
)
def test_an_invalid_pattern_or_option_is_refused_when_the_dataset_is_defined(
    lake: Lake, pattern: str, kind: Any, more: Any, says: str
) -> None:
    """Former fault: every day got the same file, or no file was ever found."""
    import re

    with pytest.raises(BadInput, match=re.escape(says.replace("\\", ""))):
        case(lake, source=Files(pattern, kind, **more))


def test_files_that_belong_to_no_partition_are_listed(lake: Lake) -> None:
    things = case(lake, source=Files("things/{partition}.csv", "csv"))
    for name in (DAYS[0], "2024-1-2", "2024-13-01", "2023-12-31", "2099-01-01", "notes"):
        lake.land(f"things/{name}.csv", "v\n1\n")
    lake.land("things/2024-01-03.CSV", "v\n1\n")
    source: Any = things.dataset.source
    days = [parse_partition(day, Grain.day) for day in DAYS]
    assert source.unmatched(days) == [
        f"things/{name}" for name in ("2023-12-31.csv", "2024-01-03.CSV", "2024-1-2.csv", "2024-13-01.csv", "notes.csv")
    ]


def test_hidden_files_are_never_data(lake: Lake) -> None:
    things = case(lake, source=Files("things/{partition}/*", "csv"))
    for name in ("a.csv", "_SUCCESS", ".b.csv.partial"):
        lake.land(f"things/{DAYS[0]}/{name}", "v\n1\n")
    lake.land("things/2024-1-2/a.csv", "v\n1\n")
    assert not things.load(DAYS[0]).failures
    assert things.values() == [1]
    source: Any = things.dataset.source
    assert source.unmatched([parse_partition(DAYS[0], Grain.day)]) == ["things/2024-1-2/a.csv"]
    # A dataset of one file says nothing about its neighbours.
    lake.land("codes.csv", "v\n1\n")
    assert Files("codes.csv", "csv").unmatched([parse_partition("full", Grain.full)]) == []
