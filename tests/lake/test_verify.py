"""Verify finds each kind of deliberate damage."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest

from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.verify import verify
from tests.conftest import Lake, receipts, write

pytestmark = pytest.mark.short("sqlite+folder", "postgres+s3")

DAY = "2024-01-01"


@pytest.fixture
def loaded(lake: Lake) -> Lake:
    lake.land(f"readings/{DAY}.jsonl", [{"id": i} for i in range(10)])
    lake.load("readings", DAY)
    assert list(verify(lake.settings)) == []
    return lake


def damage(lake: Lake, *statements: str) -> list[str]:
    con = connect(lake.settings)
    for statement in statements:
        con.execute(statement)
    con.close()
    return lake.errors()


def test_rows_missing_from_the_ledger_are_found(loaded: Lake) -> None:
    found = damage(loaded, "INSERT INTO raw.readings (id, day) VALUES (99, '2024-01-01'), (1, '2024-02-01')")
    assert found == [
        "rows: readings 2024-01-01: has 11 rows, but the ledger says 10",
        "rows: readings 2024-02-01: has 1 rows that are not in the ledger",
    ]


def test_changed_rows_with_an_unchanged_count_are_found(loaded: Lake) -> None:
    found = damage(loaded, "UPDATE raw.readings SET id = 77 WHERE id = 3")
    assert found == ["rows: readings 2024-01-01: has rows that differ from the staged ones"]


def test_deleted_rows_are_found(loaded: Lake) -> None:
    found = damage(loaded, "DELETE FROM raw.readings")
    assert found == ["rows: readings 2024-01-01: has 0 rows, but the ledger says 10"]


def test_a_file_registered_twice_is_found(loaded: Lake) -> None:
    path = loaded.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")[0]
    found = damage(
        loaded,
        f"CALL ducklake_add_data_files('lake', 'readings', '{path}', schema => 'raw', hive_partitioning => true)",
    )
    assert any("registered 2 times" in f for f in found)
    assert any("has 20 rows, but the ledger says 10" in f for f in found)


@pytest.mark.parametrize("how", ["missing", "unreadable"])
def test_a_missing_or_unreadable_file_is_found(loaded: Lake, how: str) -> None:
    path = loaded.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")[0]
    data, relative = loaded.data, path.removeprefix(loaded.data.url)
    if how == "missing":
        data.fs.delete_file(data.path(relative))
        assert any("is missing" in f for f in loaded.errors())
    else:
        write(data, relative, b"x" * len(data.fs.open_input_stream(data.path(relative)).read()))
        assert any("file readable" in f for f in loaded.errors())


def test_a_path_with_the_wrong_partition_is_found(loaded: Lake) -> None:
    loaded.land("readings/2024-01-02.jsonl", [{"id": 1}])
    receipt = receipts(loaded.extract("readings", "2024-01-02"))[0]
    data, staged = loaded.data, receipt.files[0]
    liar = staged.replace("day=2024-01-02", "day=2024-01-05")
    with data.fs.open_input_stream(data.path(staged)) as stream:
        write(data, liar, stream.read())
    path = data.url + liar
    found = damage(
        loaded,
        f"CALL ducklake_add_data_files('lake', 'readings', '{path}', schema => 'raw', hive_partitioning => true)",
    )
    assert any(f.startswith("partition column: raw.readings") for f in found)


def test_only_partitions_recorded_since_a_given_time_are_verified(loaded: Lake) -> None:
    loaded.land("readings/2024-01-02.jsonl", [{"id": 1}])
    loaded.load("readings", "2024-01-02")
    moment = loaded.sql("SELECT max(recorded_at) AS it FROM ops.ledger")[0]["it"]
    assert list(verify(loaded.settings, moment)) == []
    damage(loaded, "INSERT INTO raw.readings (id, day) VALUES (99, '2024-01-01'), (99, '2024-01-02')")
    assert {f.subject for f in verify(loaded.settings)} == {"readings 2024-01-01", "readings 2024-01-02"}
    assert [f.subject for f in verify(loaded.settings, moment)] == ["readings 2024-01-02"]
    assert list(verify(loaded.settings, moment + timedelta(seconds=1))) == []


def test_a_lake_that_an_earlier_release_can_write_is_found(loaded: Lake) -> None:
    (found,) = damage(loaded, "CREATE TABLE ops.fence (token BIGINT)")
    assert found.startswith("release: the lake: This lake was last written by an earlier release")


def test_a_ledger_row_without_a_snapshot_is_found(loaded: Lake) -> None:
    found = damage(loaded, "UPDATE ops.ledger SET token = 999")
    assert any("no snapshot has token 999" in f for f in found)


def test_staged_files_of_a_killed_run_are_a_note_and_not_an_error(loaded: Lake) -> None:
    loaded.land("readings/2024-01-02.jsonl", [{"id": 1}])
    loaded.extract("readings", "2024-01-02")
    assert [(f.severity, f.check) for f in verify(loaded.settings)] == [("note", "orphans")]


def test_publishing_over_a_lost_file_replaces_the_partition(loaded: Lake) -> None:
    """DuckLake reads a file before it deletes its rows: every publish of the partition failed."""
    path = loaded.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")[0]
    relative = path.removeprefix(loaded.data.url)
    # Arrow deletes the file, then puts a marker in place of its folder. With a marker, the S3 server takes no new file,
    # and it refuses the marker while the folder has another file.
    write(loaded.data, f"{relative.rpartition('/')[0]}/other", b"x")
    with contextlib.suppress(OSError):
        loaded.data.fs.delete_file(loaded.data.path(relative))
    (found,) = [f for f in verify(loaded.settings) if f.severity == "error"]
    assert (found.check, found.subject, found.fix) == ("file exists", f"readings {DAY}", "lake repair")
    loaded.land(f"readings/{DAY}.jsonl", [{"id": i} for i in range(12)])
    assert [f.error for f in loaded.load("readings", DAY).failures] == []
    assert loaded.column("SELECT count(id) FROM raw.readings") == [12]
    assert loaded.errors() == []
