"""Concurrent runs on the real services: overlapping runs complete, and the lake is correct."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.orchestration import gate, leases
from ducklake_flows.orchestration.server import SERVER_SETTINGS, until
from tests.flows.test_ingest import flights

if TYPE_CHECKING:
    from tests.stack.conftest import Running

HELD = """
import sys, signal

from ducklake_flows.orchestration import gate, leases
with gate.hold():
    print("held", flush=True)
    signal.pause()
"""


def test_three_partitions_that_once_hung_load_in_three_concurrent_runs(running: Running) -> None:
    """2024-10-13, -14 and -15 into raw.records on Postgres and S3: three flow runs that do not wait for each other."""
    days = {"2024-10-13": 40, "2024-10-14": 50, "2024-10-15": 60}
    for day, count in days.items():
        rows = [{"id": f"{day}/{n}", "amount": n / 4} for n in range(count)]
        running.land(f"records/{day}.json", json.dumps(rows))

    def load(day: str) -> dict[str, int]:
        return dict(json.loads(running.lake("backfill", "records", "--start", day, "--end", day, "--json")))

    with ThreadPoolExecutor(3) as at_once:
        summaries = list(at_once.map(load, days))
    assert [s["published"] for s in summaries] == [1, 1, 1]
    found = running.sql(
        "SELECT record_date::VARCHAR AS d, count(*) AS n, sum(amount) AS a FROM raw.records "
        "WHERE record_date >= '2024-10-01' GROUP BY ALL ORDER BY d"
    )
    assert found == [{"d": d, "n": n, "a": sum(range(n)) / 4} for d, n in days.items()]
    assert running.errors() == []


def test_overlapping_runs_a_transform_and_maintenance_complete_concurrently(running: Running) -> None:
    wanted = {}
    for day in range(1, 16):
        running.land(f"flights/2013-02-{day:02}.csv", flights(day, day + 1).replace("2013,1,", "2013,2,"))
        wanted[day] = day + 1
    runs = [
        running.start("pipeline", datasets=["flights"], start="2013-02-01", end="2013-02-10"),
        running.start("ingest", datasets=["flights"], start="2013-02-05", end="2013-02-15"),
        running.start("ingest", datasets=["flights"], start="2013-02-03", end="2013-02-12", mode="all"),
        running.start("transform"),
        running.start("maintain", retention_days=0),
    ]
    ended = running.ended(*runs)
    assert {r["state_name"] for r in ended.values()} == {"Completed"}, running.failed(ended)
    running.quiet()
    in_february = "FROM raw.flights WHERE month(flight_date) = 2 GROUP BY 1 ORDER BY 1"
    raw = running.sql(f"SELECT day(flight_date) AS d, count(*) AS n {in_february}")
    assert {r["d"]: r["n"] for r in raw} == wanted
    gold = "SELECT day(flight_date) AS d, sum(flights)::INT AS n FROM gold.carrier_daily"

    def in_gold() -> dict[int, int]:
        return {r["d"]: r["n"] for r in running.sql(f"{gold} WHERE month(flight_date) = 2 GROUP BY 1")}

    # The events of the runs trigger the transforms that bring the rest to gold.
    assert until(lambda: in_gold() == wanted, 120, every=1), in_gold()
    assert running.errors() == []


@pytest.mark.soak
def test_a_rollback_is_restated_down_to_gold(running: Running) -> None:
    running.quiet()
    for rows in (5, 9):
        running.land("flights/2013-03-01.csv", flights(1, rows).replace("2013,1,", "2013,3,"))
        running.lake("backfill", "flights", "--start", "2013-03-01", "--end", "2013-03-01", "--mode", "all")
    running.lake("transform")
    gold = "SELECT sum(flights)::INT AS n FROM gold.carrier_daily WHERE flight_date = '2013-03-01'"
    assert running.sql(gold) == [{"n": 9}]
    assert "is rolled back to 5 rows" in running.lake("rollback", "flights", "--partition", "2013-03-01")
    assert running.sql(gold) == [{"n": 5}]
    assert running.errors() == []


def test_the_gate_is_freed_after_its_holder_is_killed_and_the_server_restarted(running: Running) -> None:
    """Within the lease (60 s) plus the reaper's period (5 s); the slot does not leak across a restart."""
    running.quiet()
    holder = subprocess.Popen(
        [sys.executable, "-c", HELD],
        env={**running.stack.environment, "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    running.stack.server.stop()
    running.stack.server.start()

    def taken() -> int:
        found = running.api.get(f"v2/concurrency_limits/{gate.NAME}").raise_for_status().json()
        return int(found["active_slots"])

    assert taken() == 1
    period = int(SERVER_SETTINGS["PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS"])
    # A few extra seconds for the server start and for polling.
    assert until(lambda: taken() == 0, leases.LEASE_SECONDS + period + 10)
    running.lake("init")


def test_a_wrong_number_of_slots_is_named_and_repaired_by_init(running: Running) -> None:
    slots = f"v2/concurrency_limits/{gate.NAME}"
    running.api.patch(slots, json={"limit": 3}).raise_for_status()
    assert "has 3 slots instead of one" in running.lake("backfill", "flights", check=False)
    assert gate.NAME in running.lake("init")
    running.api.delete(slots).raise_for_status()
    assert "does not exist" in running.lake("transform", check=False)
    assert gate.NAME in running.lake("init")
    assert running.api.get(slots).json()["limit"] == 1
