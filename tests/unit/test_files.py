"""The files source: globs, versions, types, and invalid landing files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.partitions import Partition
from ducklake_flows.errors import BadInput, NoSource, SourceError
from ducklake_flows.sources.files import Files, Format

if TYPE_CHECKING:
    from pathlib import Path

CONTRACT = Contract(columns={"id": "bigint", "name": "text", "at": "timestamp"}, schema_contract="freeze")
DAY = Partition("2024-01-01")
GOOD = "id,name,at\n1,NA,2024-01-01T10:00:00Z\n2,b,2024-01-01T12:00:00+01:00\n"


@pytest.fixture(autouse=True)
def landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKE_LANDING", str(tmp_path))
    (tmp_path / "d").mkdir()
    return tmp_path


def read(pattern: str, kind: Format, contract: Contract = CONTRACT) -> list[dict[str, object]]:
    batches = Files(pattern, kind, nulls=("NA", "")).read(DAY, contract)
    return [row for batch in batches for row in batch.to_pylist()]


def test_csv_values_have_the_declared_types(landing: Path) -> None:
    (landing / "d/2024-01-01.csv").write_text(GOOD)
    assert read("d/{partition}.csv", "csv") == [
        {"id": 1, "name": None, "at": datetime(2024, 1, 1, 10, tzinfo=UTC)},
        {"id": 2, "name": "b", "at": datetime(2024, 1, 1, 11, tzinfo=UTC)},
    ]


def test_json_lines_and_parquet_have_the_same_types(landing: Path) -> None:
    (landing / "d/2024-01-01.jsonl").write_text(
        '{"id": 1, "name": null, "at": "2024-01-01T10:00:00Z"}\n{"id": 2, "name": "b"}\n'
    )
    table = pa.table({"id": pa.array([1], pa.int32()), "name": ["a"], "at": [datetime(2024, 1, 1, tzinfo=UTC)]})
    pq.write_table(table, landing / "d/2024-01-01.parquet")
    assert read("d/{partition}.jsonl", "jsonl")[0]["at"] == datetime(2024, 1, 1, 10, tzinfo=UTC)
    assert read("d/{partition}.jsonl", "jsonl")[1]["at"] is None
    schema = next(iter(Files("d/{partition}.parquet", "parquet").read(DAY, CONTRACT))).schema
    assert schema.field("id").type == pa.int64()
    assert schema.field("at").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("id,name\n1,a\n", "wrong header: lacks at"),
        ("id,name,at,more\n1,a,,2\n", "has more, which the contract does not declare"),
        ("a,b,c\n1,2,3\n", "wrong header"),
        ("id,id,name,at\n1,2,a,\n", "names a column twice"),
        (GOOD[:-1], "truncated"),
        (GOOD[:-4], "truncated"),
        (GOOD + "3,c\n", "line 4: it has 2 columns instead of 3"),
        (GOOD + "x,c,2024-01-01T10:00:00Z\n", "line 4: column id: 'x' cannot be bigint"),
        (GOOD + "3,c,yesterday\n", "line 4: column at: 'yesterday' cannot be timestamp\n"),
        (GOOD + "3,c,2024-01-01T10:00:00\n", "it has no zone, and the contract sets no timezone"),
    ],
)
def test_a_bad_csv_file_is_one_clear_error(landing: Path, content: str, says: str) -> None:
    (landing / "d/2024-01-01.csv").write_text(content)
    with pytest.raises(SourceError, match=says) as caught:
        read("d/{partition}.csv", "csv")
    assert "d/2024-01-01.csv" in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    "content",
    [b"", b'{"id": 1, "na', b'{"id": "x"}\n', b"[1]\n", b'{"id": 1, "more": 2}\n', b"\xff\xfe\x00", b"\x1f\x8b\x00"],
)
def test_a_bad_json_file_is_one_clear_error(landing: Path, content: bytes) -> None:
    (landing / "d/2024-01-01.jsonl").write_bytes(content)
    with pytest.raises(SourceError, match=r"d/2024-01-01\.jsonl"):
        read("d/{partition}.jsonl", "jsonl")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
def test_a_bad_parquet_file_is_one_clear_error(landing: Path, content: bytes) -> None:
    (landing / "d/2024-01-01.parquet").write_bytes(content)
    with pytest.raises(SourceError, match=r"d/2024-01-01\.parquet"):
        read("d/{partition}.parquet", "parquet")


def test_missing_files_are_no_source(landing: Path) -> None:
    with pytest.raises(NoSource):
        read("d/{partition}.csv", "csv")
    with pytest.raises(NoSource):
        read("nowhere/{partition}/*.csv", "csv")


def test_versions_change_exactly_when_the_files_change(landing: Path) -> None:
    files = Files("d/{partition}/*.csv", "csv")
    days = [Partition("2024-01-01"), Partition("2024-01-02")]
    assert files.versions(days) == {}
    (landing / "d/2024-01-01").mkdir()
    (landing / "d/2024-01-01/a.csv").write_text(GOOD)
    (landing / "d/2024-01-01/ignored.txt").write_text(GOOD)
    first = files.versions(days)
    assert list(first) == ["2024-01-01"]
    assert files.versions(days) == first
    (landing / "d/2024-01-01/b.csv").write_text(GOOD)
    assert files.versions(days) != first
    assert len([row for batch in files.read(days[0], CONTRACT) for row in batch.to_pylist()]) == 4


def test_a_partition_does_not_match_files_that_share_only_a_prefix(landing: Path) -> None:
    (landing / "d/2024-01-01.csv").write_text(GOOD)
    (landing / "d/2024-01-01.csv.partial").write_text("half")
    (landing / "d/2024-01.csv").write_text("id\n")
    assert list(Files("d/{partition}.csv", "csv").versions([DAY])) == ["2024-01-01"]


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../x/{partition}.csv", "d/../../{partition}"])
def test_a_pattern_cannot_leave_the_landing_zone(pattern: str) -> None:
    with pytest.raises(BadInput, match="leaves the landing zone"):
        Files(pattern, "csv")
