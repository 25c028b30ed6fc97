"""SIGKILL at a moment that the seed selects; ``--seed N`` replays one."""

from __future__ import annotations

import itertools
import os
import random
import signal
from typing import TYPE_CHECKING

from tests.faults.conftest import Killer, found, staged, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Lake

DAYS = [f"2024-01-{day:02}" for day in range(1, 6)]


def publish_for_ever(lake: Lake, first: int) -> None:
    """Replace all days repeatedly, in groups of any size."""
    publisher = lake.publisher()
    for number in itertools.count(first):
        seed = random.Random(number)
        receipts = [staged(lake, day, seed.randint(1, 50), number) for day in DAYS]
        cut = seed.randint(0, len(DAYS))
        for group in (receipts[:cut], receipts[cut:]):
            publisher.publish(group)


def test_a_kill_at_any_moment_leaves_whole_partitions_and_the_next_run_works(
    lake: Lake, kill: Killer, seeds: Callable[[int, int], list[int]], record_property: Callable[[str, object], None]
) -> None:
    chosen = seeds(2, 100)
    record_property("cases", len(chosen))
    lake.publish([staged(lake, day, 5, 0) for day in DAYS])
    for number in chosen:
        process = kill.start(publish_for_ever, 1000 * number + 1)
        before = told(lake)
        while told(lake) == before:
            assert process.is_alive()
        # The process publishes now; the seed selects the moment of the kill.
        process.join(random.Random(number).uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        here = found(lake)
        assert {day: rows for day, (rows, _) in here.items()} == told(lake), f"seed {number}"
        assert lake.errors() == [], f"seed {number}"
        lake.publish([staged(lake, day, number % 7 + 1, -number) for day in DAYS])
        assert found(lake) == dict.fromkeys(DAYS, (number % 7 + 1, -number)), f"seed {number}"
