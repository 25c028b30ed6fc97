"""Repair corrects statistics in one commit or not at all, for open and new connections and concurrent writers."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from ducklake_flows.lake import repair as repairing
from ducklake_flows.lake import statistics
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.fence import META, claim_snapshot
from ducklake_flows.lake.repair import repair
from tests.faults.conftest import staged

if TYPE_CHECKING:
    from pathlib import Path

    from ducklake_flows.testing.failpoints import Point
    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder", "postgres+s3")

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
VALUES = (0, 1, 1000)
WRONG = f"""UPDATE {META}.ducklake_table_column_stats SET min_value = '1000', max_value = '1000'
    WHERE table_id = (SELECT table_id FROM {META}.ducklake_table WHERE table_name = 'readings') AND column_id = 2"""
"""The result of ducklake#1308: the table statistics of a column cover only the last file."""


@pytest.fixture
def right(lake: Lake) -> Lake:
    """Three days with one row each: the values 0, 1 and 1000."""
    lake.publish([staged(lake, day, 1, value) for day, value in zip(DAYS, VALUES, strict=True)])
    return lake


@pytest.fixture
def wrong(right: Lake) -> Lake:
    """The same rows, with statistics that contain only 1000."""
    con = connect(right.settings)
    con.execute(WRONG)
    con.close()
    assert looked_up(right) != [*VALUES]
    return right


def looked_up(lake: Lake) -> list[int]:
    """The values found, with one lookup per value."""
    return [found for value in VALUES for found in lake.column(f"SELECT value FROM raw.readings WHERE value = {value}")]


def test_wrong_statistics_are_found_in_the_catalog_and_by_query_results(wrong: Lake) -> None:
    found = wrong.errors()
    assert "statistics: raw.readings: column value: the table's min is 1000, but a file's is smaller: 0" in found
    assert "answers: raw.readings: column value: = 0 gives 0, but a scan gives 1" in found
    assert {f.partition(":")[0] for f in found} == {"statistics", "answers"}


def test_a_repair_is_one_labelled_snapshot_that_open_connections_see(wrong: Lake) -> None:
    reader = connect(wrong.settings, read_only=True)
    query = "SELECT count(*) FROM raw.readings WHERE value = 0"
    assert reader.execute(query).fetchall() == [(0,)]
    before = wrong.column("SELECT max(snapshot_id) FROM lake.snapshots()")[0]
    changed = repair(wrong.settings)
    assert [(c.table, c.subject, c.before, c.after) for c in changed] == [
        ("raw.readings", "value", "min 1000, max 1000, no nulls", "min 0, max 1000, no nulls")
    ]
    last = wrong.sql("SELECT * FROM lake.snapshots() ORDER BY snapshot_id DESC LIMIT 1")[0]
    assert (last["snapshot_id"], last["commit_message"]) == (before + 1, "repair")
    assert list(last["changes"]) == ["tables_altered"]
    assert reader.execute(query).fetchall() == [(1,)]
    reader.close()
    assert looked_up(wrong) == [*VALUES]
    assert wrong.errors() == []
    assert repair(wrong.settings) == []  # the second repair reports and commits nothing
    assert wrong.column("SELECT max(snapshot_id) FROM lake.snapshots()") == [before + 1]


def test_publishing_continues_after_a_repair(wrong: Lake) -> None:
    publisher = wrong.publisher()
    try:
        publisher.tables()  # opens the connection and reads the old statistics
        repair(wrong.settings)
        assert len(publisher.publish([staged(wrong, DAYS[1], 1, 2000)]).receipts) == 1
    finally:
        publisher.close()
    assert wrong.column("SELECT value FROM raw.readings ORDER BY value") == [0, 1000, 2000]
    assert wrong.errors() == []


@pytest.mark.parametrize("commits", ["first", "last"])
def test_a_concurrent_writer_does_not_bring_the_old_statistics_back(
    wrong: Lake, commits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the gate: both read the statistics before the other commits."""
    writer = connect(wrong.settings)
    tried: list[tuple[Any, ...]] = []

    def fence_late(con: duckdb.DuckDBPyConnection, *arguments: Any) -> None:
        if not tried:
            writer.execute("COMMIT")
        tried.append(arguments)
        claim_snapshot(con, *arguments)

    writer.execute("BEGIN")
    writer.execute("INSERT INTO raw.readings (id, value, day) VALUES (0, 1, '2024-01-09')")
    if commits == "first":
        monkeypatch.setattr(repairing, "claim_snapshot", fence_late)
        repairing.repair(wrong.settings)
        assert len(tried) == 2
    else:
        repairing.repair(wrong.settings)
        with pytest.raises(duckdb.Error, match=r"altered it|locked|duplicate key"):
            writer.execute("COMMIT")
    writer.close()
    assert looked_up(wrong) == ([0, 1, 1, 1000] if commits == "first" else [*VALUES])
    con = connect(wrong.settings, read_only=True)
    statistics.load(con)
    assert statistics.wrong_columns(con) == []
    con.close()


@pytest.mark.parametrize("point", ["before COMMIT", "repair committed"])
def test_a_killed_repair_is_applied_entirely_or_not_at_all(wrong: Lake, tmp_path: Path, point: Point) -> None:
    switch = tmp_path / "kill-at"
    switch.write_text(point)
    work = (
        "import sys; from pathlib import Path; from ducklake_flows.testing.failpoints import arm; "
        "from ducklake_flows.lake.repair import repair; from ducklake_flows.settings import load_settings; "
        "arm(Path(sys.argv[1])); repair(load_settings())"
    )
    killed = subprocess.run([sys.executable, "-c", work, str(switch)], check=False)
    assert killed.returncode == -signal.SIGKILL
    done = point == "repair committed"
    assert looked_up(wrong) == ([*VALUES] if done else [VALUES[-1]])
    assert len(repair(wrong.settings)) == (0 if done else 1)
    assert looked_up(wrong) == [*VALUES]
    assert wrong.errors() == []


LIES = (
    "UPDATE {meta}.ducklake_table_stats SET record_count = 1 WHERE table_id = {table}",
    "UPDATE {meta}.ducklake_data_file SET record_count = 5 WHERE data_file_id = {file}",
    "UPDATE {meta}.ducklake_file_column_stats SET max_value = '-1' WHERE data_file_id = {file} AND column_id = 2",
    "UPDATE {meta}.ducklake_file_column_stats SET null_count = 1, value_count = 0 WHERE data_file_id = {file} "
    "AND column_id = 2",
    "UPDATE {meta}.ducklake_table_column_stats SET min_value = '-5' WHERE table_id = {table} AND column_id = 2",
)


@pytest.mark.short("sqlite+folder")
def test_each_kind_of_wrong_statistic_is_found_and_repaired(right: Lake) -> None:
    for lie in LIES:
        con = connect(right.settings)
        table, file = con.execute(
            f"SELECT table_id, min(data_file_id) FROM {META}.ducklake_data_file GROUP BY ALL"
        ).fetchall()[0]
        con.execute(lie.format(meta=META, table=table, file=file))
        con.close()
        assert repair(right.settings), lie
        assert repair(right.settings) == [], lie
    assert right.errors() == []


def test_inlined_rows_count_in_repaired_statistics(lake: Lake) -> None:
    """If DuckLake inlines rows, there is no file: the statistics must be computed from the rows."""
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
