"""The result of each partition of a group agrees with the ledger after lost answers, late attempts and damage."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from tenacity import Retrying, stop_after_delay, wait_fixed

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.errors import PublishedInBetween
from ducklake_flows.ingest import ingest
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.faults import Forbidden, UnknownOutcome, explain
from ducklake_flows.lake.ledger import latest
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.restore import stage_previous
from ducklake_flows.orchestration import events, gate
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Failure
from ducklake_flows.states import Mode
from ducklake_flows.storage import open_storage
from tests.cases import DAYS, Case, case
from tests.conftest import Lake, receipts
from tests.faults.conftest import free_the_gate, held
from tests.faults.proxy import Proxy
from tests.lake.test_publish import CONFLICT, LOST, _Faulty
from tests.regressions.staged import check_reads, staged

ONE, TWO, THREE, FOUR = DAYS


def number(case: Case, day: str, value: int) -> Any:
    return staged(case, day, f"SELECT {value}::BIGINT AS v")


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
def test_after_a_lost_commit_answer_every_state_is_read_from_the_ledger(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """Former fault: a failure was dropped, and a rejected partition was reported as published.

    In this test the first reconnect fails, too.
    """
    things = case(lake)
    things.publish([number(things, FOUR, 4)])
    group = [
        number(things, ONE, 1),
        staged(things, TWO, "SELECT 'A7' AS v"),
        Failure("things", THREE, new_attempt(), "failed", "the source is down"),
        number(things, FOUR, 4),
    ]
    publisher = Publisher(lake.settings, [things.dataset], "test")
    publisher._con = _Faulty(publisher._connection(), "COMMIT", 1, LOST, committed)  # type: ignore[assignment]
    refused = iter([True])

    def reconnect(*given: Any) -> Any:
        if next(refused, False):
            raise UnknownOutcome("The Postgres catalog cannot be opened", "start it")
        return connect(*given)

    monkeypatch.setattr("ducklake_flows.lake.publish.connect", reconnect)
    result = publisher.publish(group)
    publisher.close()
    with connect(lake.settings, read_only=True) as con:
        entries = {key: entry.state for (_, key), entry in latest(con, "things").items()}
        newest = con.execute("SELECT max(snapshot_id) FROM lake.snapshots()").fetchall()[0][0]
    assert entries == {ONE: "published", TWO: "rejected", THREE: "failed", FOUR: "published"}
    assert [r.partition for r in result.receipts] == [ONE]
    assert [(f.partition, f.state) for f in result.failures] == [(TWO, "rejected"), (THREE, "failed")]
    assert [r.partition for r in result.unchanged] == [FOUR]
    assert result.snapshot_id == newest
    check_reads(things, "v", [1, 4])


def test_a_missing_file_of_a_dataset_named_conflicts_is_one_failure(lake: Lake) -> None:
    """Former fault: because of the name, a missing file was reported as "another writer changed the lake first"."""
    things = case(lake, "conflicts")
    group = [number(things, day, 1) for day in DAYS]
    lake.data.fs.delete_file(lake.data.path(group[1].files[0]))
    result = things.publish([*group])
    assert [r.partition for r in result.receipts] == [ONE, THREE, FOUR]
    assert [(f.partition, f.state) for f in result.failures] == [(TWO, "failed")]
    check_reads(things, "v", [1, 1, 1])


ONCE = (
    "TransactionContext Error: Failed to commit: Failed to commit DuckLake transaction.\n"
    "Exceeded the maximum retry count of 0 set by the ducklake_max_retry_count setting.\n"
    '. Consider increasing the value with: e.g., "SET ducklake_max_retry_count = 0;"\n'
)
"""How every error of a COMMIT begins, since commits are not repeated."""
SENT = (
    'Failed to flush changes into DuckLake: Failed to execute query "INSERT INTO "public".ducklake_snapshot VALUES '
    '(5, NOW(), 1, 21, 6);UPDATE "public".ducklake_table_stats SET record_count=4 WHERE table_id=17;\n": '
)
TAKEN = (
    'ERROR:  duplicate key value violates unique constraint "ducklake_snapshot_pkey"\n'
    "DETAIL:  Key (snapshot_id)=(5) already exists.\n"
)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (duckdb.TransactionException(CONFLICT), "CommitConflict"),
        (
            duckdb.TransactionException(
                "TransactionContext Error: Failed to commit: Failed to commit DuckLake transaction.\n"
                "Failed to flush changes into DuckLake: database is locked"
            ),
            "CommitConflict",
        ),
        (
            duckdb.TransactionException(f"{ONCE}Failed to flush changes into DuckLake: database is locked"),
            "CommitConflict",
        ),
        (duckdb.TransactionException(f"{ONCE}{SENT}{TAKEN}"), "CommitConflict"),
        (
            duckdb.TransactionException(f"{ONCE}Failed to flush changes into DuckLake: database or disk is full"),
            "UnknownOutcome",
        ),
        (duckdb.TransactionException(f"{ONCE}{SENT}server closed the connection unexpectedly"), "UnknownOutcome"),
        (
            duckdb.TransactionException(f"{ONCE}{SENT}ERROR:  permission denied for table ducklake_snapshot"),
            "Forbidden",
        ),
        (duckdb.TransactionException(f"{ONCE}{SENT}ERROR:  something else"), "None"),
        (duckdb.TransactionException(LOST), "UnknownOutcome"),
        (duckdb.Error('Failed to execute query "ROLLBACK": '), "UnknownOutcome"),
        (
            duckdb.BinderException(
                'Binder Error: Failed to query most recent snapshot for DuckLake: Failed to prepare query "SELECT 1\n'
                '\t\t FROM "public".ducklake_snapshot": server closed the connection unexpectedly\n\tThis probably'
            ),
            "UnknownOutcome",
        ),
        (
            duckdb.IOException(
                "IO Error: Failed to add data files to DuckLake: Could not connect to server error for HTTP HEAD to "
                "'http://127.0.0.1:1/lake/raw/connection/a.parquet'"
            ),
            "UnknownOutcome",
        ),
        (duckdb.Error('Failed to execute query "UPDATE x": ERROR:  permission denied for table x'), "Forbidden"),
        (
            duckdb.IOException(
                'IO Error: Failed to add data files to DuckLake: No files found that match the pattern "/data/'
                'database is locked/raw/conflicts/connection=FATAL: /server closed the connection unexpectedly.parquet"'
            ),
            "None",
        ),
        (duckdb.InvalidInputException('Invalid Input Error: Column "permission denied for " is missing'), "None"),
    ],
)
def test_an_error_is_classified_by_duckdbs_message_and_not_by_names_in_it(
    lake: Lake, error: duckdb.Error, meaning: str
) -> None:
    found = explain(error, lake.settings, committing=False)
    assert (type(found).__name__ if found else "None") == meaning
    assert isinstance(explain(error, lake.settings, committing=True), UnknownOutcome | Forbidden) or meaning[0] == "C"


def test_an_attempt_that_was_extracted_earlier_never_replaces_a_later_one(lake: Lake) -> None:
    things = case(lake)
    early, later = number(things, ONE, 1), number(things, ONE, 2)
    assert things.publish([later]).receipts
    result = things.publish([early])
    assert (result.older, result.receipts, result.unchanged, result.failures) == ([early], [], [], [])
    assert result.snapshot_id is None
    check_reads(things, "v", [2])
    # Also if a later attempt than the one that published the rows has confirmed them.
    confirmed = replace(number(things, ONE, 2), source_version="v2")
    between = replace(number(things, ONE, 3), attempt_id=later.attempt_id[:-1] + "~")
    assert things.publish([confirmed]).unchanged
    assert things.publish([between]).older == [between]
    check_reads(things, "v", [2])


def test_an_attempt_planned_after_the_published_one_is_newer_despite_a_slow_clock(lake: Lake) -> None:
    things = case(lake)
    slow = number(things, ONE, 2)
    published = number(things, ONE, 1)
    things.publish([published])
    planned = {("things", ONE): published.attempt_id}
    publisher = Publisher(lake.settings, [things.dataset], "test", planned=planned)
    assert publisher.publish([slow]).receipts == [slow]
    publisher.close()
    check_reads(things, "v", [2])


def test_a_rollback_is_refused_when_another_attempt_was_published_in_between(lake: Lake) -> None:
    things = case(lake)
    for value in (1, 2):
        things.publish([number(things, ONE, value)])
    receipt = stage_previous(lake.settings, things.dataset, parse_partition(ONE, things.dataset.grain))
    things.publish([number(things, ONE, 3)])
    rows = lake.column("SELECT count(*) FROM ops.ledger")
    with pytest.raises(PublishedInBetween, match="published again after the rollback was staged"):
        things.publish([receipt])
    assert lake.column("SELECT count(*) FROM ops.ledger") == rows
    check_reads(things, "v", [3])
    again = stage_previous(lake.settings, things.dataset, parse_partition(ONE, things.dataset.grain))
    assert things.publish([again]).receipts == things.publish([again]).receipts == [again]
    check_reads(things, "v", [2])


def test_rows_that_were_deleted_by_hand_are_published_again_when_rechecked(lake: Lake) -> None:
    things = case(lake)
    things.publish([number(things, day, 1) for day in (ONE, TWO)])
    with connect(lake.settings) as con:
        con.execute(f"DELETE FROM raw.things WHERE day = '{ONE}'")
    again = [number(things, day, 1) for day in (ONE, TWO)]
    assert len(things.publish([*again]).unchanged) == 2
    assert things.damaged() == [ONE]
    publisher = Publisher(lake.settings, [things.dataset], "test", recheck=True)
    result = publisher.publish(again)
    assert ([r.partition for r in result.receipts], [r.partition for r in result.unchanged]) == ([ONE], [TWO])
    check_reads(things, "v", [1, 1])
    last = publisher.publish([number(things, day, 1) for day in (ONE, TWO)])
    assert (len(last.unchanged), last.snapshot_id) == (2, None)
    publisher.close()


def test_an_emptied_table_takes_its_new_contract_and_is_filled_again(lake: Lake) -> None:
    """The steps of docs/operations.md for changed contract types: `lake init`, then `lake backfill --mode all`."""
    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.lake.schema import bootstrap

    things = case(lake, contract={"v": "bigint"})
    things.publish([number(things, ONE, 1)])
    things.dataset = replace(things.dataset, contract=Contract({"v": "text"}))
    with connect(lake.settings) as con:
        con.execute("DELETE FROM raw.things")
    bootstrap(lake.settings, [things.dataset])
    publisher = Publisher(lake.settings, [things.dataset], "test", recheck=True)
    assert publisher.publish([staged(things, ONE, "SELECT '1' AS v")]).receipts
    publisher.close()
    assert things.types() == {"v": "VARCHAR"}
    check_reads(things, "v", ["1"])


def test_a_staged_file_and_its_folders_are_fsynced_before_a_receipt_names_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    from pathlib import Path

    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    things = case(lake)
    things.given[ONE] = [{"v": 1}]
    (receipt,) = receipts(things.extract(ONE))
    if lake.data.is_local:
        file = Path(lake.data.path(receipt.files[0]))
        assert {str(file), *map(str, file.parents[:4])} <= set(synced)


@pytest.mark.parametrize("verdict", ["500", "cut"])
def test_a_slot_that_cannot_be_released_does_not_fail_the_run(
    gated_lake: Lake, caplog: pytest.LogCaptureFixture, verdict: str
) -> None:
    """Former fault: the run published, then ended in a traceback without its event. The lease expires by itself."""
    port = urlsplit(PREFECT_API_URL.value()).port
    assert port
    with Proxy(port) as proxy:
        through = PREFECT_API_URL.value().replace(f":{port}/", f":{proxy.port}/")
        proxy.fault = lambda data: verdict if b"decrement-with-lease" in data else "pass"
        with temporary_settings({PREFECT_API_URL: through, PREFECT_CLIENT_MAX_RETRIES: 1}), gate.hold():
            assert held() == 1
        assert proxy.count
    assert "could not be released" in caplog.text
    free_the_gate()
    assert held() == 0


def test_a_run_whose_slot_cannot_be_released_succeeds_and_emits_its_event(gated_lake: Lake) -> None:
    gated_lake.land("readings/2024-01-01.jsonl", [{"id": 1, "value": 1}])
    port = urlsplit(PREFECT_API_URL.value()).port
    assert port
    day = date(2024, 1, 1)
    with Proxy(port) as proxy:
        through = PREFECT_API_URL.value().replace(f":{port}/", f":{proxy.port}/")
        proxy.fault = lambda data: "500" if b"decrement-with-lease" in data else "pass"
        with temporary_settings({PREFECT_API_URL: through, PREFECT_CLIENT_MAX_RETRIES: 1}):
            summary = ingest(["readings"], day, day, workers=1)
        assert proxy.count
    assert (summary["published"], summary["failed"]) == (1, [])
    free_the_gate()
    wanted = {"filter": {"event": {"name": [events.PUBLISHED]}}}
    with get_client(sync_client=True) as client:
        for attempt in Retrying(stop=stop_after_delay(30), wait=wait_fixed(0.2)):
            with attempt:  # an event arrives with a short delay
                found = client.request("POST", "/events/filter", json=wanted).json()["events"]
                assert summary["snapshot_id"] in [event["payload"]["snapshot_id"] for event in found]
    assert gated_lake.errors() == []


@pytest.mark.parametrize("lake", ["sqlite+folder", "postgres+s3"], indirect=True)
def test_find_and_list_return_the_same_file_info(lake: Lake) -> None:
    """Former fault: on S3 the times differed, so that a partition was stale whenever it was planned alone."""
    lake.land("things/a.jsonl", "{}")
    landing = open_storage(lake.settings.landing, lake.settings)
    assert [landing.find("things/a.jsonl")] == landing.list("things")
    assert landing.find("things/b.jsonl") is None


def test_an_attempt_published_between_schema_and_row_commits_is_not_replaced_by_an_older_one(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Former fault: the group was compared with the ledger only once, before the schema commit.

    Without the gate that comparison can be stale.
    """
    things = case(lake)
    things.publish([staged(things, ONE, "SELECT 1::INTEGER AS v")])
    older, newer = number(things, ONE, 2), staged(things, ONE, "SELECT 3::INTEGER AS v")
    other = Publisher(lake.settings, [things.dataset], "other")

    def between(point: str) -> None:
        if point == "schema committed":
            assert other.publish([newer]).receipts == [newer]

    monkeypatch.setattr("ducklake_flows.lake.publish.failpoint", between)
    publisher = Publisher(lake.settings, [things.dataset], "test")
    result = publisher.publish([older, number(things, TWO, 4)])
    for one in (publisher, other):
        one.close()
    assert ([r.partition for r in result.receipts], result.older) == ([TWO], [older])
    check_reads(things, "v", [3, 4])


@pytest.mark.parametrize("mode", [Mode.all, [Mode.all], [Mode.missing, Mode.all]], ids=str)
def test_mode_all_compares_with_the_table_as_a_value_or_in_a_list(gated_lake: Lake, mode: Mode | list[Mode]) -> None:
    """`lake backfill --mode all` passes a list. Former fault: a list was compared with the ledger only."""
    gated_lake.land("readings/2024-01-01.jsonl", [{"id": 1, "value": 1}, {"id": 2, "value": 1}])
    day = date(2024, 1, 1)
    assert ingest(["readings"], day, day, workers=1)["published"] == 1
    con = connect(gated_lake.settings)
    con.execute("DELETE FROM raw.readings WHERE id = 1")
    con.close()
    assert ingest(["readings"], day, day, mode, 1)["published"] == 1
    assert gated_lake.column("SELECT count(*) FROM raw.readings") == [2]
    assert gated_lake.errors() == []
