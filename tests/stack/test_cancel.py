"""Stopping a run leaves whole partitions, a free gate, and no worker that still works for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.stack.conftest import Running


def test_a_cancel_from_the_ui_stops_the_run_and_its_chunks(running: Running) -> None:
    with running.endless() as run:
        running.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        assert running.ended(run)[run]["state_name"] == "Cancelled"
        running.assert_nothing_is_left()


def test_a_stopped_worker_leaves_no_chunk_running(running: Running, killed: str) -> None:
    """And the next run completes. The fixture checks what was left; tests/stack/test_zz_lost.py shares it."""
    run = running.start("ingest", datasets=["waiting"], start="2024-02-01", end="2024-02-02")
    assert running.ended(run)[run]["state_name"] == "Completed"
    assert running.sql("SELECT day::VARCHAR AS day FROM raw.waiting WHERE day > '2024-01-31' ORDER BY 1") == [
        {"day": "2024-02-01"},
        {"day": "2024-02-02"},
    ]
