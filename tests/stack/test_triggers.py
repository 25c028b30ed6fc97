"""Every way to start a run, on the real services, followed from its trigger to gold rows in the lake."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest

from ducklake_flows.orchestration.server import until
from tests.flows.test_ingest import flights
from tests.stack.conftest import FINAL, Running


def land(running: Running, *days: int, rows: int = 3) -> None:
    for day in days:
        running.land(f"flights/2013-01-{day:02}.csv", flights(day, rows))


def event(name: str, payload: dict[str, Any], **labels: str) -> dict[str, Any]:
    """An event as any HTTP client posts it to the Prefect API."""
    return {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": name,
        "resource": {"prefect.resource.id": f"lake.dataset.{payload['dataset']}", **labels},
        "payload": payload,
    }


def gold(running: Running) -> dict[int, int]:
    """Number of flights in gold by day of January."""
    there = running.sql("SELECT 1 AS x FROM duckdb_views() WHERE schema_name = 'gold' AND view_name = 'carrier_daily'")
    if not there:
        return {}
    found = running.sql(
        "SELECT day(flight_date) AS d, sum(flights)::INT AS n FROM gold.carrier_daily "
        "WHERE month(flight_date) = 1 GROUP BY 1"
    )
    return {row["d"]: row["n"] for row in found}


@pytest.mark.soak
def test_every_trigger_brings_its_rows_to_gold(running: Running) -> None:
    """The command, the UI's button, a schedule, and both ways to report that a source arrived, all concurrently."""
    before = {r["id"] for r in running.runs()}
    days = {day: day + 2 for day in range(1, 6)}
    for day, rows in days.items():
        land(running, day, rows=rows)
    # No trigger waits for another: five runs compete for the gate, the workers and the deployments' slots.
    range_of_day_1 = '{"datasets": ["flights"], "start": "2013-01-01", "end": "2013-01-01"}'
    running.stack.run("prefect", "deployment", "run", "ingest/ingest", "--params", range_of_day_1)
    button = running.start("ingest", datasets=["flights"], start="2013-01-02", end="2013-01-02")
    ingest = running.deployment("ingest")["id"]
    every_minute = {
        "active": True,
        "schedule": {"interval": 60},
        "parameters": {"datasets": ["flights"], "partitions": ["2013-01-03"]},
    }
    schedule = running.post(f"deployments/{ingest}/schedules", [every_minute])[0]
    # Prefect's scheduler only looks again at deployments that changed or have few scheduled runs.
    running.api.patch(f"deployments/{ingest}", json={"paused": False}).raise_for_status()
    running.lake("emit", "flights", "2013-01-04")
    arrived = event("lake.source.arrived", {"dataset": "flights", "partition": "2013-01-05"})
    running.post("events", [arrived])
    try:
        assert until(lambda: gold(running) == days, 300, every=1), (gold(running), running.runs())
    finally:
        running.api.delete(f"deployments/{ingest}/schedules/{schedule['id']}")
    assert running.ended(button)[button]["state_type"] == "COMPLETED"
    running.quiet()
    runs = [r for r in running.runs() if r["id"] not in before and r["state_type"] in FINAL]
    assert {r["state_type"] for r in runs} == {"COMPLETED"}, [(r["name"], r["state_name"]) for r in runs]
    ingests = [r for r in runs if r["name"].startswith("ingest")]
    assert sum(r["auto_scheduled"] for r in ingests) >= 1
    assert len([r for r in ingests if not r["auto_scheduled"]]) == 4
    assert running.errors() == []


def test_events_close_together_become_one_transform(running: Running) -> None:
    """Five publish events within ten seconds start one run after these ten seconds; those that want none do not."""
    running.quiet()
    before = {r["id"] for r in running.runs()}
    for label in ("unread", "waits", "follows", *["wanted"] * 5):
        payload = {"dataset": "flights", "partitions": ["2013-01-01"], "attempt_ids": [], "rows": 0}
        running.post("events", [event("lake.partitions.published", payload, **{"lake.transform": label})])
    transforms: list[Any] = []

    def has_run() -> bool:
        transforms[:] = [r for r in running.runs() if r["id"] not in before and r["name"].startswith("transform")]
        return bool(transforms) and all(r["state_type"] in FINAL for r in transforms)

    assert until(has_run, 120, every=1)
    running.quiet()
    assert has_run()
    assert [r["state_type"] for r in transforms] == ["COMPLETED"]


def test_each_schedule_runs_its_datasets(running: Running) -> None:
    """The deployment's schedule creates its run of yesterday at 6:00: flights and weather, not airlines."""
    running.land("airlines.csv", "carrier,name\nUA,United\n")
    land(running, 11)
    ingest = running.deployment("ingest")
    assert {s["schedule"]["cron"] for s in ingest["schedules"]} == {"0 5 * * *", "0 6 * * *"}
    # Today's run may still be in the future: Prefect has scheduled it already, and it would wait for its hour.
    day = datetime.now(UTC).date() - timedelta(days=1)
    running.post(
        f"deployments/{ingest['id']}/schedule", {"start_time": f"{day}T05:30:00Z", "end_time": f"{day}T06:30:00Z"}
    )
    due = [r for r in running.runs() if r["expected_start_time"].startswith(f"{day}T06:00")]
    assert [r["parameters"].get("datasets") for r in due] == [["@due 0 6 * * * UTC"]]
    assert running.ended(due[0]["id"])[due[0]["id"]]["state_type"] == "COMPLETED"
    assert running.sql("SELECT count(*) AS n FROM raw.flights WHERE flight_date = '2013-01-11'") == [{"n": 3}]
    told = running.sql(f"SELECT DISTINCT dataset FROM ops.ledger WHERE flow_run_id = '{due[0]['id']}'")
    assert "flights" in {row["dataset"] for row in told}
    assert "airlines" not in {row["dataset"] for row in told}


def test_a_failed_run_is_reported_to_the_webhook(running: Running) -> None:
    heard: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep the terminal quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as hook:
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        running.stack.environment["LAKE_NOTIFY_URL"] = f"http://127.0.0.1:{hook.server_port}/secret-path"
        assert "lake-failed-run" in running.lake("init")
        assert "Everything exists already" in running.lake("init")
        refused = running.api.post(
            f"deployments/{running.deployment('ingest')['id']}/create_flow_run",
            json={"parameters": {"datasets": ["no_such_dataset"]}},
        )
        assert (refused.status_code, "no_such_dataset" in refused.text) == (409, True), refused.text
        failed = running.start("arrived", datasets=["no_such_dataset"])
        assert running.ended(failed)[failed]["state_type"] == "FAILED"
        assert until(lambda: heard, 60, every=1)
        assert "Unknown dataset: 'no_such_dataset'" in heard[0]
        # While a run goes on: the first failure of each cause, once for all its partitions.
        heard.clear()
        for day in (21, 22):
            running.land(f"flights/2013-01-{day}.csv", "no,header\n1,2\n")
        failed = running.start("ingest", datasets=["flights"], partitions=["2013-01-21", "2013-01-22"])
        run = running.ended(failed)[failed]
        assert (run["state_type"], "all 2: wrong header" in run["state"]["message"]) == ("FAILED", True)
        assert until(lambda: any("flights: partitions fail" in text for text in heard), 60, every=1), heard
        chunks = running.post("task_runs/filter", {"flow_runs": {"id": {"any_": [failed]}}})
        assert {chunk["state_name"] for chunk in chunks} == {"Failed"}
        hook.shutdown()
    (text,) = [text for text in heard if "flights: partitions fail" in text]
    assert "wrong header" in text
    assert "lake backfill flights --start 2013-01-2" in text
    automations = running.post("automations/filter", {})
    assert "secret-path" not in str(automations)


def test_a_run_that_never_starts_is_marked_as_crashed(running: Running) -> None:
    """O15. Former fault: a run stayed in Submitting for ever. The test shortens the automation's 15 minutes."""
    (stuck,) = running.post("automations/filter", {"automations": {"name": {"any_": ["lake-stuck-run"]}}})
    trigger = {**stuck["trigger"], "within": 10}
    kept = {key: stuck[key] for key in ("name", "description", "enabled", "tags", "actions")}
    changed = running.api.put(f"automations/{stuck['id']}", json={**kept, "trigger": trigger})
    assert changed.is_success, changed.text
    flow = running.deployment("ingest")["flow_id"]
    made = running.post("flow_runs/", {"flow_id": flow, "tags": ["lake"], "state": {"type": "PENDING"}})
    run = running.ended(made["id"])[made["id"]]
    assert (run["state_type"], "never started" in run["state"]["message"]) == ("CRASHED", True)
    running.lake("init")
