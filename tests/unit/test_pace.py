"""The pace of a chunk, which may change while it waits."""

from __future__ import annotations

import itertools

import pytest

from ducklake_flows.extract.pace import Pace


class Stop(Exception):
    """Ends a wait."""


def test_a_wait_ends_when_the_pace_becomes_faster() -> None:
    told = itertools.chain([3600.0, 3600.0, 3600.0], itertools.repeat(0.001))
    pace = Pace(lambda: next(told), lambda: None)
    assert pace.seconds == 3600
    pace.wait()
    assert pace.seconds == 0.001


def test_a_wait_becomes_longer_when_the_pace_becomes_slower_and_ends_when_the_chunk_stops() -> None:
    told = itertools.chain([0.5], itertools.repeat(3600.0))
    left = iter(range(3))

    def go_on() -> None:
        if next(left, None) is None:
            raise Stop

    pace = Pace(lambda: next(told), go_on)
    with pytest.raises(Stop):
        pace.wait()
    assert pace.seconds == 3600


def test_without_a_pace_nothing_is_waited_for() -> None:
    pace = Pace(lambda: 0.0, lambda: pytest.fail("it waited"))
    for _ in range(3):
        pace.wait()
        pace.asked()


def test_a_token_that_was_not_used_is_the_next_partitions() -> None:
    told, waited = 0.001, 0

    def go_on() -> None:
        nonlocal waited
        waited += 1
        if told == 3600:
            raise Stop

    pace = Pace(lambda: told, go_on)
    pace.wait()
    told, before = 3600, waited
    pace.wait()
    assert waited == before
    pace.asked()
    with pytest.raises(Stop):
        pace.wait()
