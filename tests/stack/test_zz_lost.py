"""Runs last: a lost run is detected only after minutes, and the other tests run meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.stack.conftest import Running


def test_a_run_that_was_killed_is_marked_as_crashed(running: Running, killed: str) -> None:
    assert running.ended(killed)[killed]["state_name"] == "Crashed"
