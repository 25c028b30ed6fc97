"""Maintenance in a loop next to writers deletes no file in flight, and finally deletes every orphan."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ducklake_flows.lake.maintenance import figures, steps
from ducklake_flows.staging.layout import attempt_of
from tests.faults.conftest import PROCESSES, Killer, found, staged

if TYPE_CHECKING:
    from tests.conftest import Lake

DAYS = [f"2024-01-{day:02}" for day in range(1, 4)]
ROUNDS = 12


def publish_late(lake: Lake, gate: Any, looped: Any) -> None:
    """Stage one round ahead of the published one, so that files are always in flight.

    The last round waits until maintenance has run more than once.
    """
    publisher = lake.publisher()
    waiting = [staged(lake, day, 5, 0) for day in DAYS]
    for number in range(1, ROUNDS + 1):
        ahead = [staged(lake, day, 5 + number, number) for day in DAYS]
        if number == ROUNDS:
            looped.wait(300)
        with gate:
            publisher.publish(waiting)
        waiting = ahead
    publisher.close()


def maintain(lake: Lake, gate: Any, now: datetime | None = None) -> None:
    for step in steps(lake.settings, timedelta(0), now):
        if step.todo:
            with gate:
                step.run()


def test_maintenance_in_a_loop_deletes_no_file_in_flight_and_finally_every_orphan(lake: Lake, kill: Killer) -> None:
    gate = PROCESSES.Lock()  # stands in for Prefect's limit
    looped = PROCESSES.Event()
    process = kill.start(publish_late, gate, looped)
    loops = 0
    while process.is_alive():
        maintain(lake, gate)
        loops += 1
        if loops > 1:
            looped.set()
    process.join()
    assert process.exitcode == 0
    assert loops > 1
    assert found(lake) == dict.fromkeys(DAYS, (5 + ROUNDS - 1, ROUNDS - 1))
    assert lake.errors() == []
    # The last round was never published: its files are orphans, and are kept until they are a day old.
    assert figures(lake.settings)["orphans"] == len(DAYS)
    maintain(lake, gate, datetime.now(UTC) + timedelta(days=2))
    left = {lake.data.url + lake.data.relative(info.path) for info in lake.data.list("raw/readings")}
    assert not any(map(attempt_of, left)), "what was merged or replaced, and the orphans, are gone"
    both = "SELECT unnest([data_file, delete_file]) FROM ducklake_list_files('lake', 'readings', schema => 'raw')"
    assert left == set(lake.column(both)) - {None}
    assert found(lake) == dict.fromkeys(DAYS, (5 + ROUNDS - 1, ROUNDS - 1))
    assert lake.errors() == []
