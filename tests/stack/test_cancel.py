"""Stopping a run leaves whole partitions, a free gate, and no worker that still works for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.orchestration.chunks import CHUNK_SECONDS
from ducklake_flows.orchestration.server import until

if TYPE_CHECKING:
    from tests.stack.conftest import Running


def test_a_cancel_from_the_ui_stops_the_run_and_its_chunks(running: Running) -> None:
    with running.endless() as run:
        running.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        assert running.ended(run)[run]["state_name"] == "Cancelled"
        running.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("month", "state"),
    [
        ("2023-03", {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}),  # the button
        pytest.param("2023-04", {"type": "PAUSED", "name": "Paused"}, marks=pytest.mark.soak),
    ],
)
def test_a_suspended_run_publishes_what_is_in_flight_and_the_resumed_run_does_the_rest(
    running: Running, month: str, state: dict[str, Any]
) -> None:
    """Prefect would let it go on until the lease of its slot expires, and then mark it as crashed."""
    home = Path(running.stack.environment["LAKE_HOME"])

    def published() -> list[str]:
        query = f"SELECT partition FROM ops.ledger WHERE dataset = 'waiting' AND partition LIKE '{month}%' ORDER BY 1"
        return [row["partition"] for row in running.sql(query)]

    with running.endless(month) as run:
        running.post(f"flow_runs/{run}/set_state", {"state": state})
        # Each of the two chunks uses up its time budget within its first partition, so it returns the second.
        newest = max(path.stat().st_mtime for path in home.glob("asked-*"))
        assert until(lambda: time.time() - newest > CHUNK_SECONDS + 1)
    assert until(lambda: published() == [f"{month}-02", f"{month}-04"], 60), published()
    left = {"event": {"name": ["lake.run.suspended"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    assert until(lambda: running.post("events/filter", {"filter": left})["events"], 60)
    assert running.runs(id={"any_": [run]})[0]["state_name"] == "Suspended"
    running.post(f"flow_runs/{run}/resume", {})
    assert running.ended(run)[run]["state_name"] == "Completed"
    assert published() == [f"{month}-0{day}" for day in range(1, 5)]
    assert running.errors() == []


def test_a_stopped_worker_leaves_no_chunk_running(running: Running, killed: str) -> None:
    """And the next run completes. The fixture checks what was left; tests/stack/test_zz_lost.py shares it."""
    run = running.start("ingest", datasets=["waiting"], start="2024-02-01", end="2024-02-02")
    assert running.ended(run)[run]["state_name"] == "Completed"
    assert running.sql("SELECT day::VARCHAR AS day FROM raw.waiting WHERE day > '2024-01-31' ORDER BY 1") == [
        {"day": "2024-02-01"},
        {"day": "2024-02-02"},
    ]
