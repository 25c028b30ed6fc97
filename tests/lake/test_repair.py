"""Repair puts statistics right in one commit: for open and new connections, beside writers, or not at all."""

from __future__ import annotations

import contextlib

import duckdb
import pytest

from flows.lake import statistics
from flows.lake.connect import connect
from flows.lake.repair import repair
from flows.lake.statistics import META
from flows.points import Point
from tests.conftest import Lake
from tests.faults.conftest import Killer, kill

__all__ = ["kill"]

pytestmark = pytest.mark.short("sqlite+folder", "postgres+s3")

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
WRONG = f"""UPDATE {META}.ducklake_table_column_stats SET min_value = '1000', max_value = '1000'
    WHERE table_id = (SELECT table_id FROM {META}.ducklake_table WHERE table_name = 'readings') AND column_id = 1"""
"""What ducklake#1308 leaves: a table's column of which only the last file is known."""


@pytest.fixture
def wrong(lake: Lake) -> Lake:
    """Three days of ids 0, 1 and 1000, and statistics that know only of 1000."""
    for number, day in enumerate(DAYS):
        lake.land(f"readings/{day}.jsonl", [{"id": (0, 1, 1000)[number], "value": 7}])
    lake.load("readings", *DAYS)
    assert repair(lake.settings) == []
    con = connect(lake.settings)
    con.execute(WRONG)
    con.close()
    assert ids(lake) != [0, 1, 1000]
    return lake


def ids(lake: Lake) -> list[int]:
    """The ids, one lookup each."""
    found = []
    for n in (0, 1, 1000):
        found += lake.column(f"SELECT id FROM raw.readings WHERE id = {n}")
    return found


def repair_it(lake: Lake) -> None:
    repair(lake.settings)


def test_wrong_statistics_are_found_by_what_the_catalog_says_and_by_what_it_answers(wrong: Lake) -> None:
    found = wrong.errors()
    assert (
        "statistics: raw.readings: column id: the table's min is 1000, but a file's is smaller: 0: lake repair" in found
    )
    assert "answers: raw.readings: column id: = 0 gives 0, a scan 1: lake repair" in found
    assert {f.partition(":")[0] for f in found} == {"statistics", "answers"}


def test_a_repair_is_one_snapshot_that_says_so_and_open_connections_see_it(wrong: Lake) -> None:
    reader = connect(wrong.settings, read_only=True)
    query = "SELECT count(*) FROM raw.readings WHERE id = 0"
    assert reader.execute(query).fetchall() == [(0,)]
    before = wrong.column("SELECT max(snapshot_id) FROM lake.snapshots()")[0]
    changed = repair(wrong.settings)
    assert [(c.table, c.subject, c.before, c.after) for c in changed] == [
        ("raw.readings", "id", "min 1000, max 1000, no nulls", "min 0, max 1000, no nulls")
    ]
    last = wrong.sql("SELECT * FROM lake.snapshots() ORDER BY snapshot_id DESC LIMIT 1")[0]
    assert (last["snapshot_id"], last["commit_message"]) == (before + 1, "repair")
    assert list(last["changes"]) == ["tables_altered"]
    assert reader.execute(query).fetchall() == [(1,)]
    reader.close()
    assert ids(wrong) == [0, 1, 1000]
    assert wrong.errors() == []
    assert repair(wrong.settings) == []
    assert wrong.column("SELECT max(snapshot_id) FROM lake.snapshots()") == [before + 1]


def test_publishing_goes_on_after_a_repair(wrong: Lake) -> None:
    publisher = wrong.publisher()
    try:
        publisher.tables()  # its connection is open, and has read the old statistics
        repair(wrong.settings)
        wrong.land(f"readings/{DAYS[1]}.jsonl", [{"id": 2000, "value": 8}])
        assert len(publisher.publish(wrong.extract("readings", DAYS[1])).receipts) == 1
    finally:
        publisher.close()
    assert wrong.column("SELECT id FROM raw.readings ORDER BY id") == [0, 1000, 2000]
    assert wrong.errors() == []


@pytest.mark.parametrize("commits", ["first", "last"])
def test_a_writer_at_the_same_time_does_not_bring_the_old_statistics_back(wrong: Lake, commits: str) -> None:
    """Without the gate: each has read the statistics before the other commits."""
    writer = connect(wrong.settings)
    try:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO raw.readings (id, value, day) VALUES (5, 7, '2024-01-09')")
        if commits == "first":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("flows.lake.repair.reached", lambda point: _commit_once(writer, point))
                repair(wrong.settings)
        else:
            repair(wrong.settings)
            with contextlib.suppress(duckdb.Error):
                writer.execute("COMMIT")
    finally:
        with contextlib.suppress(duckdb.Error):
            writer.execute("ROLLBACK")
        writer.close()
    assert ids(wrong) == [0, 1, 1000]
    con = connect(wrong.settings, read_only=True)
    statistics.load(con)
    assert statistics.wrong_columns(con) == []
    con.close()


def _commit_once(writer: duckdb.DuckDBPyConnection, point: Point) -> None:
    if point == "before the fence":
        with contextlib.suppress(duckdb.Error):  # there is no transaction any more
            writer.execute("COMMIT")


@pytest.mark.parametrize("point", ["after the fence", "before COMMIT", "after COMMIT"])
def test_a_kill_in_a_repair_leaves_all_or_nothing_of_it(wrong: Lake, kill: Killer, point: Point) -> None:
    kill.at(point, repair_it)
    done = point == "after COMMIT"
    assert (wrong.errors() == []) == done
    assert len(repair(wrong.settings)) == (0 if done else 1)
    assert ids(wrong) == [0, 1, 1000]
    assert wrong.errors() == []


@pytest.mark.parametrize("damage", [
    "UPDATE {meta}.ducklake_table_stats SET record_count = 1 WHERE table_id = {table}",
    "UPDATE {meta}.ducklake_data_file SET record_count = 5 WHERE table_id = {table} AND data_file_id = {file}",
    "UPDATE {meta}.ducklake_file_column_stats SET max_value = '-1' WHERE data_file_id = {file} AND column_id = 1",
    "UPDATE {meta}.ducklake_file_column_stats SET null_count = 1, value_count = 0 WHERE data_file_id = {file}"
    " AND column_id = 1",
    "UPDATE {meta}.ducklake_table_column_stats SET min_value = '-5' WHERE table_id = {table} AND column_id = 1",
])  # fmt: skip
def test_each_kind_of_lie_is_found_and_repaired(lake: Lake, damage: str) -> None:
    for day in DAYS:
        lake.land(f"readings/{day}.jsonl", [{"id": 3, "value": 7}])
    lake.load("readings", *DAYS)
    con = connect(lake.settings)
    table, file = con.execute(
        f"SELECT table_id, min(data_file_id) FROM {META}.ducklake_data_file GROUP BY ALL"
    ).fetchall()[0]
    con.execute(damage.format(meta=META, table=table, file=file))
    con.close()
    assert any(f.startswith("statistics: raw.readings") for f in lake.errors())
    assert len(repair(lake.settings)) >= 1
    assert lake.errors() == []


def test_rows_that_lie_in_the_catalog_count_too(lake: Lake) -> None:
    """Where DuckLake inlines rows, only they say what the statistics must contain."""
    con = connect(lake.settings)
    con.execute("CREATE SCHEMA bronze")
    con.execute("CALL lake.set_option('data_inlining_row_limit', '100', schema => 'bronze')")
    con.execute("CREATE TABLE bronze.small (n BIGINT, d DOUBLE, t TIMESTAMPTZ, s VARCHAR)")
    con.execute("INSERT INTO bronze.small VALUES (1, 0.1, '2024-01-01 00:00:00+00', 'x'), (2, NULL, NULL, NULL)")
    con.execute("INSERT INTO bronze.small VALUES (3, 'nan', '2025-01-01 00:00:00+00', 'a')")
    con.execute("DELETE FROM bronze.small WHERE n = 2")
    assert lake.errors() == []
    con.execute(
        f"UPDATE {META}.ducklake_table_column_stats SET max_value = '1' WHERE column_id = 1 AND table_id = "
        f"(SELECT table_id FROM {META}.ducklake_table WHERE table_name = 'small')"
    )
    con.close()
    assert len(lake.errors()) == 1
    assert [c.after for c in repair(lake.settings)] == ["min 1, max 3, no nulls"]
    assert lake.column("SELECT max(n) FROM bronze.small") == [3]
    assert lake.errors() == []
