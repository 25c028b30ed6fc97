"""Maintenance makes the lake smaller, changes no row, and leaves files in flight alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pytest

from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.maintenance import Step, figures, steps
from ducklake_flows.staging.layout import new_chunk
from tests.faults.conftest import staged

if TYPE_CHECKING:
    from tests.conftest import Lake

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
LATER = datetime.now(UTC) + timedelta(days=3)
"""A time at which all files of these tests are older than every age guard."""


def run(lake: Lake, retention: timedelta = timedelta(days=30), now: datetime | None = None) -> dict[str, int]:
    """Run all steps. Returns the work done per kind of step."""
    done: dict[str, int] = {}
    for step in steps(lake.settings, retention, now):
        if step.todo:
            done[step.name] = done.get(step.name, 0) + step.run()
    return done


def load(lake: Lake, day: str, rows: int) -> None:
    lake.land(f"readings/{day}.jsonl", [{"id": i, "value": 1} for i in range(rows)])
    lake.load("readings", day)


def test_inlined_rows_are_flushed(lake: Lake) -> None:
    load(lake, DAYS[0], 10)
    before = lake.sql("SELECT * FROM ops.ledger")
    # The ledger's row, and one for the table that was created.
    assert figures(lake.settings)["rows in the catalog"] == 2
    assert run(lake)["flush"] == 2
    assert figures(lake.settings)["rows in the catalog"] == 0
    assert lake.sql("SELECT * FROM ops.ledger") == before
    load(lake, DAYS[1], 10)
    assert lake.column("SELECT count(*) FROM ops.ledger") == [2]
    assert lake.errors() == []


def test_small_files_of_a_partition_are_merged_and_time_travel_is_kept(lake: Lake) -> None:
    con = connect(lake.settings)
    con.execute("CREATE SCHEMA bronze")
    con.execute("CREATE TABLE bronze.small (day DATE, n BIGINT)")
    con.execute("ALTER TABLE bronze.small SET PARTITIONED BY (day)")
    for n in range(4):
        con.execute(f"INSERT INTO bronze.small SELECT DATE '2024-01-01' + (i % 2)::INT, {n} FROM range(6) r(i)")
    version = con.execute("SELECT id FROM lake.last_committed_snapshot()").fetchall()[0][0]
    con.close()
    before = lake.sql("SELECT * FROM bronze.small ORDER BY ALL")
    found = [s for s in steps(lake.settings, timedelta(days=30)) if s.name == "merge"]
    assert [(s.subject, s.todo) for s in found] == [("bronze.small", 8)]
    assert run(lake)["merge"] == 8
    assert lake.column("SELECT count(*) FROM ducklake_list_files('lake', 'small', schema => 'bronze')") == [2]
    assert lake.sql("SELECT * FROM bronze.small ORDER BY ALL") == before
    assert lake.sql(f"SELECT * FROM bronze.small AT (VERSION => {version}) ORDER BY ALL") == before


@pytest.mark.parametrize(
    ("rows", "deleted", "rewritten"), [(1_000, 101, True), (1_000, 100, False), (300_000, 20_001, True)]
)
def test_files_with_many_deleted_rows_are_rewritten(lake: Lake, rows: int, deleted: int, rewritten: bool) -> None:
    load(lake, DAYS[0], 100)
    con = connect(lake.settings)
    con.execute(f"CREATE TABLE raw.other AS SELECT range AS n FROM range({rows})")
    con.execute(f"DELETE FROM raw.other WHERE n >= {rows - deleted}")
    con.close()
    assert figures(lake.settings)["delete files"] == 1
    assert run(lake).get("rewrite", 0) == rewritten
    assert figures(lake.settings)["delete files"] == (not rewritten)
    assert lake.sql("SELECT count(*) AS n, max(n) AS m FROM raw.other") == [
        {"n": rows - deleted, "m": rows - deleted - 1}
    ]
    assert lake.errors() == []


def test_files_of_expired_snapshots_are_deleted_only_after_the_age_guard(lake: Lake) -> None:
    for rows in (10, 20, 30):
        load(lake, DAYS[0], rows)
    held = figures(lake.settings)
    assert held["stored files"] == 3
    now = datetime.now(UTC) + timedelta(minutes=1)  # after the snapshots that `run` makes
    assert run(lake, timedelta(0), now)["expire"] > 0
    after = figures(lake.settings)
    assert after["snapshots"] == 1
    # A reader may still use the files that were just released.
    assert (after["files to clean up"], after["stored files"]) == (2, held["stored files"] + 2)
    assert run(lake, timedelta(days=30), LATER)["clean up"] == 2
    assert figures(lake.settings)["files to clean up"] == 0
    assert lake.column("SELECT count(*) FROM raw.readings") == [30]
    assert lake.errors() == []


def test_orphans_are_reclaimed_when_they_are_old_and_never_while_in_flight(lake: Lake) -> None:
    load(lake, DAYS[0], 10)
    lake.land(f"readings/{DAYS[1]}.jsonl", [{"id": 1, "value": 1}])
    in_flight = lake.extract("readings", DAYS[1])
    assert figures(lake.settings)["orphans"] == 1
    assert "orphans" not in run(lake)
    assert len(lake.publish(in_flight).receipts) == 1
    lake.land(f"readings/{DAYS[2]}.jsonl", [{"id": 1, "value": 1}])
    lake.extract("readings", DAYS[2])
    assert run(lake, now=LATER)["orphans"] == 1
    assert figures(lake.settings)["orphans"] == 0
    assert lake.column("SELECT count(*) FROM raw.readings") == [11]
    assert lake.errors() == []


def test_the_folders_of_chunks_without_files_are_removed_when_they_are_old(lake: Lake) -> None:
    chunk, orphan = new_chunk(), new_chunk()
    lake.publish([staged(lake, day, 1, 0, chunk) for day in DAYS])
    staged(lake, DAYS[0], 1, 0, orphan)
    assert run(lake, timedelta(0), datetime.now(UTC) + timedelta(minutes=1))["merge"] == len(DAYS)
    assert lake.data.empty_folders("raw/*/chunk-*") == []
    done = run(lake, timedelta(0), LATER)
    assert (done["clean up"], done["orphans"]) == (len(DAYS), 1)
    assert done.get("folders", 0) == (2 if lake.data.is_local else 0)
    assert {file.path.rpartition("/")[2][:9] for file in lake.data.list("raw/readings")} == {"ducklake-"}
    if lake.data.is_local:
        assert [path.name for path in Path(lake.data.path("raw/readings")).iterdir() if path.is_dir()] == []
    assert lake.errors() == []


@pytest.mark.parametrize("merge_first", [True, False])
def test_a_concurrent_merge_and_replace_cannot_both_commit(lake: Lake, merge_first: bool) -> None:
    """Both transactions begin before either commits, without the gate. Two commits could bring back deleted rows."""
    con, other = connect(lake.settings), connect(lake.settings)
    con.execute("CREATE SCHEMA bronze")
    con.execute("CREATE TABLE bronze.small (n BIGINT)")
    for n in range(3):
        con.execute(f"INSERT INTO bronze.small VALUES ({n})")
    replace = "DELETE FROM bronze.small WHERE n = 1; INSERT INTO bronze.small VALUES (100)"
    merge = "FROM ducklake_merge_adjacent_files('lake', 'small', schema => 'bronze')"
    first, second = (merge, replace) if merge_first else (replace, merge)
    try:
        con.execute("BEGIN")
        con.execute(first)
        other.execute("BEGIN")
        other.execute(second)
        other.execute("COMMIT")
        with pytest.raises(duckdb.Error):
            con.execute("COMMIT")
    finally:
        con.close()
        other.close()
    replaced = [0, 2, 100] if merge_first else [0, 1, 2]
    assert lake.column("SELECT n FROM bronze.small ORDER BY n") == replaced


def test_a_concurrent_flush_and_publish_cannot_both_commit(lake: Lake) -> None:
    load(lake, DAYS[0], 10)
    lake.land(f"readings/{DAYS[0]}.jsonl", [{"id": 1, "value": 1}])
    outcomes = lake.extract("readings", DAYS[0])
    publisher = lake.publisher()
    con = publisher._connection()
    flush = next(s for s in steps(lake.settings, timedelta(days=30)) if s.name == "flush")
    con.execute("BEGIN")
    publisher._fill(con, outcomes)
    assert flush.run() > 0
    with pytest.raises(duckdb.Error):
        con.execute("COMMIT")
    assert len(lake.publish(outcomes).receipts) == 1
    publisher.close()
    assert lake.column("SELECT count(*) FROM raw.readings") == [1]
    assert lake.errors() == []


def test_maintenance_without_work_commits_nothing(lake: Lake) -> None:
    run(lake)
    snapshots = lake.column("SELECT max(snapshot_id) FROM lake.snapshots()")
    found: list[Step] = list(steps(lake.settings, timedelta(days=30)))
    assert [s.name for s in found if s.todo] == []
    assert run(lake) == {}
    assert lake.column("SELECT max(snapshot_id) FROM lake.snapshots()") == snapshots
