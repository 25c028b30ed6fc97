"""CSV: the fast reader for files without quotes returns what DuckDB reads; and column type inference."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.errors import SourceError
from ducklake_flows.sources import csv_files
from ducklake_flows.sources.csv_files import Dialect, Facts, line_of, look

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {"a": "a", "b": "b"}
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6) | st.sampled_from(
    ["", "NA", "0x10", " 1", "1 ", "nan", "é", "\t", "\\", "-", "a\u2028b"]
)


def both(path: Path, dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    for small in (csv_files.SMALL, 0):
        with monkeypatch.context() as patched:
            patched.setattr(csv_files, "SMALL", small)
            try:
                tables = list(csv_files.read(path, dialect, NAMES, path.stat().st_size))
                found.append([row for table in tables for row in table.to_pylist()])
            except SourceError as error:
                found.append(error.message)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    dialect=st.sampled_from([Dialect(), Dialect(delimiter=";", nulls=("NA", "")), Dialect(delimiter="\t", nulls=())]),
)
def test_both_readers_return_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]], end: str, dialect: Dialect
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=dialect.delimiter, lineterminator=end, quoting=csv.QUOTE_MINIMAL)
    writer.writerows([("a", "b"), *rows])
    path = tmp_path / "a.csv"
    path.write_bytes(text.getvalue().encode())
    quick, slow = both(path, dialect, monkeypatch)
    assert quick == slow
    if isinstance(slow, list):
        # Python's csv reader has no nulls and drops only blank lines.
        given = [
            tuple(None if v in dialect.nulls else v for v in row)
            for row in csv.reader(io.StringIO(text.getvalue(), newline=""), delimiter=dialect.delimiter)
        ]
        assert [tuple(None if v == "" and "" in dialect.nulls else v for v in row.values()) for row in slow] == given[
            1:
        ]


@pytest.mark.parametrize("shift", range(8))
def test_quoted_line_breaks_are_read_at_every_block_boundary(tmp_path: Path, shift: int) -> None:
    """Rows of 8 bytes over 8 MiB: 10 of 20 alignments were refused (pandas#59009)."""
    path, rows = tmp_path / "a.csv", (8 << 20) // 8 + 1000
    path.write_text(f"a,b\n{'1' * (shift + 1)},\n" + '1,"a\nb"\n' * rows)
    read = 0
    for table in csv_files.read(path, Dialect(), NAMES, path.stat().st_size):
        read += pc.sum(pc.equal(table["b"], "a\nb")).as_py() or 0
    assert read == rows


@pytest.mark.parametrize(
    ("texts", "data_type"),
    [
        (["1", "-2", "0"], pa.int64()),
        (["007", "1"], pa.string()),
        (["-0"], pa.float64()),
        (["9223372036854775808", "1"], pa.decimal128(38, 0)),
        (["1.5", "2", "1e5", "-0.0"], pa.float64()),
        (["0.1", "12345678901234567890.12"], pa.decimal128(38, 2)),
        (["0.30000000000000004"], pa.float64()),
        (["1e400"], pa.string()),
        (["1e-400"], pa.string()),
        (["nan"], pa.string()),
        (["true", "False"], pa.bool_()),
        (["2024-01-05"], pa.date32()),
        (["2024-02-30"], pa.string()),
        (["2024-01-05T10:00:00", "2024-01-05 10:00"], pa.timestamp("us")),
        (["2024-01-05T10:00:00Z", "2024-01-05T10:00:00+01:00"], pa.timestamp("us", tz="UTC")),
        (["2024-01-05T10:00:00Z", "2024-01-05T10:00:00"], pa.string()),
        (["", ""], pa.null()),
        (["x", ""], pa.string()),
    ],
)
def test_a_columns_type_fits_all_of_its_texts(tmp_path: Path, texts: list[str], data_type: pa.DataType) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "".join(f"{text},x\n" for text in texts))
    facts = Facts()
    look(path, Dialect(), {0: facts}, ["a", "b"], path.stat().st_size)
    assert facts.type_of() == data_type


def test_a_records_line_number_counts_comments_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('skipped\n# note\na,b\n1,"x\ny"\n# note\n\n2,z\n')
    dialect = Dialect(comment="#", skip=1)
    assert [line_of(path, dialect, record, 2) for record in (0, 1)] == [5, 8]


@pytest.mark.parametrize("name", [b"gr\xf6\xdfe", b"gr\xf6\xdfe \xf0\x9f\x98\x80"], ids=["latin-1", "beside an emoji"])
def test_a_header_that_is_not_utf_8_is_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id," + name + b"\n1,2\n")
    with pytest.raises(SourceError, match="the header is not UTF-8"):
        csv_files.header(path, Dialect())
