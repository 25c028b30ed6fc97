"""A backfill leaves room on the cluster: a daily run overtakes its queued chunks, and few are queued."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from distributed import Client

from ducklake_flows.orchestration.chunks import BACKFILL_SECONDS, IN_FLIGHT
from ducklake_flows.orchestration.server import until

if TYPE_CHECKING:
    from tests.stack.conftest import Running

DAYS = [f"2023-05-{day:02}" for day in range(1, 17)]
SLOTS = 2


@pytest.mark.soak
def test_a_daily_run_is_published_while_most_of_a_backfill_waits(running: Running) -> None:
    running.quiet()
    home = Path(running.stack.environment["LAKE_HOME"])
    home.mkdir(exist_ok=True)
    held = {day: home / f"wait-{day}" for day in DAYS}
    asked = {day: home / f"asked-{day}" for day in DAYS}

    def running_days() -> list[str]:
        return [day for day in DAYS if asked[day].exists() and held[day].exists()]

    def done(dataset: str) -> int:
        query = f"SELECT count(*) AS n FROM ops.ledger WHERE dataset = '{dataset}' AND partition LIKE '2023-05%'"
        return int(running.sql(query)[0]["n"])

    for file in held.values():
        file.touch()
    try:
        address = running.stack.environment["LAKE_DASK_ADDRESS"]
        with Client(address, security=running.security()) as dask:  # type: ignore[no-untyped-call]

            def tasks() -> int:
                return int(dask.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

            backfill = running.start("backfill", datasets=["waiting"], start=DAYS[0], end=DAYS[-1])
            assert until(lambda: len(running_days()) == SLOTS, 60)
            # The first two chunks use up their time budget within a partition; the others are cut into small chunks.
            newest = max(asked[day].stat().st_mtime for day in running_days())
            assert until(lambda: time.time() - newest > BACKFILL_SECONDS + 1)
            for day in running_days():
                held[day].unlink()
            assert until(lambda: len(running_days()) == SLOTS and tasks() == IN_FLIGHT * SLOTS, 60), tasks()

            for day in DAYS[:3]:
                running.land(f"records/{day}.json", json.dumps([{"id": day, "amount": 1}]))
            daily = running.start("ingest", datasets=["records"], start=DAYS[0], end=DAYS[2])
            assert until(lambda: tasks() == IN_FLIGHT * SLOTS + SLOTS, 60), tasks()
            for day in running_days():
                held[day].unlink()
            # The chunks that the backfill has queued would not end: only if the daily run's go first, it completes.
            assert running.ended(daily)[daily]["state_name"] == "Completed"
            assert done("records") == 3
            assert until(lambda: done("waiting") == 2 * SLOTS, 60), done("waiting")
            assert tasks() <= IN_FLIGHT * SLOTS
    finally:
        for file in (*held.values(), *asked.values()):
            file.unlink(missing_ok=True)
    assert running.ended(backfill)[backfill]["state_name"] == "Completed"
    assert done("waiting") == len(DAYS)
