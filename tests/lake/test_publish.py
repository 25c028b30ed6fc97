"""The publish protocol, on every combination of catalog and data."""

from __future__ import annotations

import contextlib
import itertools
import threading
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from ducklake_flows.datasets.partitions import Grain, partition_at
from ducklake_flows.errors import CommitConflict
from ducklake_flows.lake import connect as connections
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.files import full_paths, short_names
from ducklake_flows.lake.ledger import latest
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Failure
from tests.cases import case
from tests.conftest import Lake, receipts

if TYPE_CHECKING:
    from pathlib import Path

CONFLICT = (
    "TransactionContext Error: Failed to commit: Failed to commit DuckLake transaction.\n"
    'Transaction conflict - attempting to insert into table with index "19" - but another transaction has altered it'
)
LOST = (
    "TransactionContext Error: Failed to commit: Failed to commit DuckLake transaction.\n"
    'Failed to commit: Failed to execute query "COMMIT": server closed the connection unexpectedly\n'
)

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")


def land(lake: Lake, day: str, rows: int, value: object = 1) -> None:
    lake.land(f"readings/{day}.jsonl", [{"id": i, "value": value} for i in range(rows)])


def test_a_group_is_one_snapshot_with_its_ledger_rows(lake: Lake) -> None:
    for number, day in enumerate(DAYS):
        land(lake, day, 10 + number)
    result = lake.load("readings", *DAYS)
    assert lake.sql("SELECT strftime(day, '%Y-%m-%d') d, count(*) n FROM raw.readings GROUP BY ALL ORDER BY d") == [
        {"d": "2024-01-01", "n": 10},
        {"d": "2024-01-02", "n": 11},
        {"d": "2024-01-03", "n": 12},
    ]
    ledger = lake.sql("SELECT * FROM ops.ledger ORDER BY partition")
    assert [(r["partition"], r["state"], r["rows_published"]) for r in ledger] == [
        ("2024-01-01", "published", 10),
        ("2024-01-02", "published", 11),
        ("2024-01-03", "published", 12),
    ]
    assert {r["attempt_id"] for r in ledger} == {r.attempt_id for r in result.receipts}
    before = f"AT (VERSION => {result.snapshot_id})"
    assert lake.column(f"SELECT count(*) FROM raw.readings {before}") == [33]
    assert lake.column(f"SELECT count(*) FROM ops.ledger {before}") == [3]
    assert lake.column(f"SELECT count(*) FROM ops.ledger AT (VERSION => {result.snapshot_id - 1})") == [0]  # type: ignore[operator]
    message = lake.sql(f"SELECT author, commit_message FROM lake.snapshots() WHERE snapshot_id = {result.snapshot_id}")
    assert message == [{"author": "ducklake-flows", "commit_message": "publish 3"}]
    assert lake.errors() == []


def test_readers_see_a_replaced_partition_entirely_before_or_entirely_after(lake: Lake) -> None:
    land(lake, DAYS[0], 100)
    land(lake, DAYS[1], 5)
    lake.load("readings", *DAYS[:2])
    seen: set[int] = set()
    stop, ready = threading.Event(), threading.Event()

    def read() -> None:
        con = connect(lake.settings, read_only=True)
        while not stop.is_set():
            seen.add(con.execute("SELECT count(*) FROM raw.readings WHERE day = '2024-01-01'").fetchall()[0][0])
            ready.set()
        con.close()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(30)
        for rows in (70, 100, 70):
            land(lake, DAYS[0], rows)
            lake.load("readings", DAYS[0])
    finally:
        stop.set()
        reader.join()
    assert seen <= {100, 70}
    assert lake.column("SELECT count(*) FROM raw.readings WHERE day = '2024-01-02'") == [5]
    changes = lake.column("SELECT changes FROM lake.snapshots() ORDER BY snapshot_id DESC LIMIT 1")[0]
    assert {"tables_inserted_into", "tables_deleted_from"} <= changes.keys()
    assert lake.errors() == []


def test_a_replace_deletes_whole_files_and_writes_none(lake: Lake) -> None:
    land(lake, DAYS[0], 100)
    lake.load("readings", DAYS[0])
    land(lake, DAYS[0], 50)
    lake.load("readings", DAYS[0])
    files = lake.sql("SELECT delete_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")
    assert files == [{"delete_file": None}]


def test_unchanged_content_changes_no_rows_and_no_files(lake: Lake) -> None:
    land(lake, DAYS[0], 10)
    first = lake.load("readings", DAYS[0])
    snapshots = lake.column("SELECT count(*) FROM lake.snapshots()")
    again = lake.load("readings", DAYS[0])
    assert (again.snapshot_id, len(again.receipts), len(again.unchanged)) == (None, 0, 1)
    assert lake.column("SELECT count(*) FROM lake.snapshots()") == snapshots

    # The source wrote the same rows again: the ledger records its new version, and the rows do not change.
    land(lake, DAYS[0], 10)
    files = lake.sql("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")
    touched = lake.load("readings", DAYS[0])
    assert len(touched.unchanged) == 1
    assert lake.sql("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')") == files
    assert lake.column("SELECT DISTINCT attempt_id FROM ops.ledger") == [first.receipts[0].attempt_id]


def test_a_receipt_is_published_once_however_often_it_is_submitted(lake: Lake) -> None:
    land(lake, DAYS[0], 10)
    outcomes = lake.extract("readings", DAYS[0])
    lake.publish(outcomes)
    land(lake, DAYS[0], 20)
    lake.load("readings", DAYS[0])
    again = lake.publish(outcomes)
    assert again.receipts == outcomes
    assert again.snapshot_id is None
    assert lake.column("SELECT count(*) FROM raw.readings") == [20]
    assert lake.errors() == []


@pytest.mark.parametrize("fence", [True, False])
def test_two_publishers_of_an_empty_partition_cannot_both_commit(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, fence: bool
) -> None:
    """Both fill their transactions before either commits. On Postgres only the fence stops the second one."""
    land(lake, DAYS[1], 1)
    lake.load("readings", DAYS[1])
    land(lake, DAYS[0], 10)
    first, second = lake.extract("readings", DAYS[0]), lake.extract("readings", DAYS[0])
    if not fence:
        monkeypatch.setattr(connections, "NO_RETRY", "SET GLOBAL ducklake_max_retry_count = 10")  # the default
    one, two = lake.publisher(), lake.publisher()
    for publisher, outcomes in ((one, first), (two, second)):
        publisher._connection().execute("BEGIN")
        publisher._fill(publisher._connection(), outcomes)
    one._connection().execute("COMMIT")
    if fence or lake.settings.embedded:
        # SQLite allows one writer, with or without the fence: the second one's snapshot is out of date.
        with pytest.raises(duckdb.Error):
            two._connection().execute("COMMIT")
        wanted = 10
    else:
        two._connection().execute("COMMIT")
        wanted = 20
    one.close()
    two.close()
    assert lake.column("SELECT count(*) FROM raw.readings WHERE day = '2024-01-01'") == [wanted]


def test_a_conflict_is_retried_until_it_is_published(lake: Lake) -> None:
    land(lake, DAYS[0], 10)
    outcomes = lake.extract("readings", DAYS[0])
    publisher = lake.publisher()
    con = _Faulty(publisher._connection(), fail_on="COMMIT", times=2, error=CONFLICT)
    publisher._con = con  # type: ignore[assignment]
    assert len(publisher.publish(outcomes).receipts) == 1
    publisher.close()
    assert con.failed == 2
    assert lake.column("SELECT count(*) FROM raw.readings") == [10]


def test_persistent_conflicts_are_an_error_and_keep_the_old_rows(lake: Lake) -> None:
    land(lake, DAYS[0], 10)
    lake.load("readings", DAYS[0])
    land(lake, DAYS[0], 20)
    outcomes = lake.extract("readings", DAYS[0])
    publisher = lake.publisher()
    publisher._con = _Faulty(publisher._connection(), "COMMIT", 99, CONFLICT)  # type: ignore[assignment]
    with pytest.raises(CommitConflict, match="Another writer"):
        publisher.publish(outcomes)
    publisher.close()
    assert lake.column("SELECT count(*) FROM raw.readings") == [10]
    assert lake.errors() == []


class _Faulty:
    """A connection on which a statement fails, either before it reaches the database or after (a lost answer)."""

    def __init__(self, con: Any, fail_on: str, times: int, error: str, after: bool = False) -> None:
        self.con, self.fail_on, self.times, self.error, self.after = con, fail_on, times, error, after
        self.failed = 0

    def execute(self, sql: str, *args: Any) -> Any:
        if sql == self.fail_on and self.failed < self.times:
            self.failed += 1
            if self.after:
                self.con.execute(sql, *args)
            raise duckdb.TransactionException(self.error)
        return self.con.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.con, name)


@pytest.mark.parametrize("after", [True, False], ids=["committed", "not committed"])
def test_a_commit_whose_answer_is_lost_is_resolved_by_the_ledger(lake: Lake, after: bool) -> None:
    land(lake, DAYS[0], 10)
    outcomes = lake.extract("readings", DAYS[0])
    publisher = lake.publisher()
    lost = _Faulty(publisher._connection(), "COMMIT", 1, LOST, after)
    publisher._con = lost  # type: ignore[assignment]
    result = publisher.publish(outcomes)
    publisher.close()
    assert lost.failed == 1
    assert result.receipts == outcomes
    assert lake.column("SELECT count(*) FROM raw.readings") == [10]
    assert lake.column("SELECT count(*) FROM ops.ledger") == [1]
    assert lake.errors() == []


def test_a_receipt_whose_file_is_gone_does_not_stop_its_group(lake: Lake) -> None:
    for day in DAYS:
        land(lake, day, 10)
    outcomes = lake.extract("readings", *DAYS)
    lake.data.fs.delete_file(lake.data.path(receipts(outcomes)[1].files[0]))
    result = lake.publish(outcomes)
    assert [r.partition for r in result.receipts] == [DAYS[0], DAYS[2]]
    assert [(f.partition, f.state) for f in result.failures] == [(DAYS[1], "failed")]
    assert lake.column("SELECT count(*) FROM raw.readings") == [20]
    assert lake.sql("SELECT state, error IS NOT NULL AS why FROM ops.ledger WHERE partition = '2024-01-02'") == [
        {"state": "failed", "why": True}
    ]
    assert lake.errors() == []


def test_a_failure_is_recorded_and_the_published_rows_stay(lake: Lake) -> None:
    land(lake, DAYS[0], 10)
    lake.load("readings", DAYS[0])
    lake.land(f"readings/{DAYS[0]}.jsonl", "{half")
    outcomes = lake.extract("readings", DAYS[0])
    assert isinstance(outcomes[0], Failure)
    lake.publish(outcomes)
    assert lake.column("SELECT count(*) FROM raw.readings") == [10]
    assert lake.column("SELECT state FROM ops.ledger ORDER BY token") == ["published", "failed"]
    assert lake.errors() == []

    # The source returns the old content again: the published rows stay, and the partition is no longer failed.
    land(lake, DAYS[0], 10)
    assert len(lake.load("readings", DAYS[0]).unchanged) == 1
    assert lake.column("SELECT state FROM ops.ledger ORDER BY token DESC LIMIT 1") == ["published"]


def test_an_empty_partition_is_published_with_no_rows_and_no_file(lake: Lake) -> None:
    land(lake, DAYS[0], 10)
    lake.load("readings", DAYS[0])
    lake.land("records/2024-01-01.json", [])
    result = lake.load("records", DAYS[0])
    assert [r.files for r in result.receipts] == [()], result
    assert lake.column("SELECT rows_published FROM ops.ledger WHERE dataset = 'records'") == [0]
    assert lake.errors() == []


@pytest.mark.parametrize("dataset", ["readings", "hourly"])
def test_the_files_of_a_chunk_are_registered_by_one_pattern_unless_there_are_others(
    lake: Lake, dataset: str, tmp_path: Path
) -> None:
    keys = DAYS if dataset == "readings" else ("2024-01-01T05", "2024-01-01T06", "2024-02-01T06")
    for key in keys:
        if dataset == "readings":
            land(lake, key, 2)
        else:
            lake.land(f"hourly/{key}/a.csv", "name,count\na,1\nb,2\n")
    staged = lake.extract(dataset, *keys)
    paths = [path for receipt in receipts(staged) for path in receipt.files]
    whole = full_paths(lake.settings, paths)
    with contextlib.closing(connect(lake.settings)) as con:
        (pattern,) = short_names(con, lake.settings, paths)
        assert pattern.endswith("/*/*.parquet")
        assert sorted(con.execute("SELECT file FROM glob(?)", [pattern]).fetchall()) == sorted((f,) for f in whole)
        assert short_names(con, lake.settings, paths[1:]) == whole[1:], "the first one is not to be published"
        tmp_path.joinpath("other.parquet").write_bytes(b"not Parquet")
        lake.data.put(tmp_path / "other.parquet", paths[0].rpartition("/")[0] + "/other.parquet")
        assert short_names(con, lake.settings, paths) == whole
        alone = receipts(lake.extract(dataset, keys[0]))[0].files
        assert short_names(con, lake.settings, alone) == full_paths(lake.settings, alone)
    assert len(lake.publish(staged[1:]).receipts) == 2
    again = lake.extract(dataset, *keys)
    result = lake.publish(again)
    assert (len(result.receipts), len(result.unchanged)) == (1, 2)
    assert lake.column(f"SELECT count(*) FROM raw.{dataset}") == [6]
    assert len(lake.column(f"FROM ducklake_list_files('lake', '{dataset}', schema => 'raw')")) == 3
    assert lake.errors() == []


def test_staged_files_survive_a_cleanup_during_a_run(lake: Lake) -> None:
    """Staged files are under the data path. The age guard set by `lake init` protects them even from a CHECKPOINT."""
    for day in DAYS[:2]:
        land(lake, day, 10)
    lake.load("readings", DAYS[0])
    staged = lake.extract("readings", DAYS[1])
    con = connect(lake.settings)
    con.execute("CHECKPOINT lake")
    con.close()
    assert len(lake.publish(staged).receipts) == 1
    assert lake.column("SELECT count(*) FROM raw.readings") == [20]
    assert lake.errors() == []


def test_every_grain_is_replaced_by_partition(lake: Lake) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for hour in ("2024-01-01T00", "2024-01-01T23"):
        lake.land(f"hourly/{hour}/a.csv", "name,count\na,1\n")
        lake.land(f"hourly/{hour}/b.csv", "name,count\nb,2\n")
    lake.load("hourly", "2024-01-01T00", "2024-01-01T23")
    lake.land("hourly/2024-01-01T23/b.csv", "name,count\nb,5\n")
    lake.load("hourly", "2024-01-01T23")
    assert lake.sql("SELECT hour_at::VARCHAR AS h, sum(count)::INT AS n FROM raw.hourly GROUP BY ALL ORDER BY h") == [
        {"h": "2024-01-01 00:00:00", "n": 3},
        {"h": "2024-01-01 23:00:00", "n": 6},
    ]
    for month in ("2023-12", "2024-01"):
        parquet = pa.BufferOutputStream()
        pq.write_table(pa.table({"name": ["a"], "total": [1.5]}), parquet)
        lake.land(f"monthly/{month}.parquet", parquet.getvalue().to_pybytes())
    lake.load("monthly", "2023-12", "2024-01")
    assert lake.column("SELECT month_from::VARCHAR FROM raw.monthly ORDER BY 1") == ["2023-12-01", "2024-01-01"]
    lake.land("airlines.csv", "carrier,name\nAA,American\n")
    lake.load("airlines", "full")
    lake.land("airlines.csv", "carrier,name\nAA,American\nUA,United\n")
    lake.load("airlines", "full")
    assert lake.column("SELECT carrier FROM raw.airlines ORDER BY 1") == ["AA", "UA"]
    assert lake.errors() == []


def test_a_query_for_one_partition_reads_one_file(lake: Lake) -> None:
    for day in DAYS:
        land(lake, day, 10)
    lake.load("readings", *DAYS)
    plan = str(lake.sql("EXPLAIN ANALYZE SELECT * FROM raw.readings WHERE day = '2024-01-02'"))
    assert "Total Files Read: 1" in plan


def test_a_publishers_cached_entries_match_the_ledger(lake: Lake) -> None:
    """If another publisher commits in between, the ledger is read again."""
    one, two = lake.publisher("one"), lake.publisher("two")

    def down(day: str) -> Failure:
        return Failure("readings", day, new_attempt(), "failed", "the source is down", "v2")

    day, other, third = DAYS
    land(lake, day, 1)
    land(lake, other, 2)
    (first,), (later,) = lake.extract("readings", day), lake.extract("readings", other)
    land(lake, day, 3)
    (replaced,) = lake.extract("readings", day)
    for publisher, group in (
        (one, [first]),
        (one, [down(third)]),
        (one, [down(day)]),
        (two, [later]),
        (two, [down(other)]),
        (one, [replaced, down(other)]),
        (one, [first]),  # already published, but no longer the current attempt
        (two, [later]),
    ):
        publisher.publish(group)
        with connect(lake.settings, read_only=True) as con:
            there = latest(con)
        kept = publisher._ledger.entries
        assert kept, group
        assert kept == {key: there[key] for key in kept}, group
    assert there["readings", day].attempt_id == replaced.attempt_id
    assert there["readings", day].error == ""
    assert lake.column("SELECT count(*) FROM raw.readings") == [5]
    assert lake.errors() == []
    one.close()
    two.close()


@pytest.mark.parametrize("grain", [grain for grain in Grain if grain is not Grain.full])
def test_a_partition_of_every_grain_is_replaced_alone_and_after_a_merge(lake: Lake, grain: Grain) -> None:
    first = partition_at(datetime(2024, 12, 27), grain)
    keys = [p.key for p in itertools.accumulate(range(4), lambda p, _: partition_at(p.end, grain), initial=first)]
    things = case(lake, grain=grain)
    for number, key in enumerate(keys):
        things.given[key] = [{"v": number}]
    assert len(things.load(*keys).receipts) == len(keys)
    things.given[keys[1]] = [{"v": 10}, {"v": 11}]
    assert things.load(keys[1]).receipts
    for step in steps(lake.settings, timedelta(30)):
        if step.name == "merge" and step.todo:
            step.run()
    things.given[keys[2]] = [{"v": 20}]
    assert things.load(*keys).unchanged
    found = lake.sql(
        "SELECT day::TIMESTAMP AS start, list(v ORDER BY v) AS v FROM raw.things GROUP BY ALL ORDER BY ALL"
    )
    assert [(partition_at(row["start"], grain).key, row["v"]) for row in found] == list(
        zip(keys, [[0], [10, 11], [20], [3], [4]], strict=True)
    )
    assert things.errors() == []
