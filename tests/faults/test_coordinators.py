"""Two coordinators publish concurrently without a gate: the limit was deleted, or a lease expired."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.errors import CommitConflict
from ducklake_flows.lake import connect as connections
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Receipt
from tests.faults.conftest import PROCESSES, Killer, found, staged, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.conftest import Lake

RETRY = "SET GLOBAL ducklake_max_retry_count = 10"
"""DuckLake's default."""

DAYS = [f"2024-01-{day:02}" for day in range(1, 9)]


def groups(receipts: Sequence[Receipt], seed: random.Random) -> list[list[Receipt]]:
    """Split the receipts into groups of random size, from one to all."""
    cut: list[list[Receipt]] = []
    left = list(receipts)
    while left:
        size = seed.randint(1, len(left))
        cut.append(left[:size])
        left = left[size:]
    return cut


def coordinate(lake: Lake, inbox: object, outbox: object) -> None:
    """A coordinator in a separate process: publishes the groups it receives and reports the outcome."""
    publisher = lake.publisher()
    patch = pytest.MonkeyPatch()
    while (work := inbox.get()) is not None:  # type: ignore[attr-defined]
        fence, cut = work
        if not fence:
            patch.setattr(connections, "NO_RETRY", RETRY)
            publisher.close()
        try:
            for group in cut:
                publisher.publish(group)
            outbox.put("published")  # type: ignore[attr-defined]
        except CommitConflict:
            publisher.close()
            outbox.put("lost")  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 - reported to the test, which fails on it
            outbox.put(f"{type(error).__name__}: {error}")  # type: ignore[attr-defined]
    publisher.close()


def days_of(kind: str, who: int) -> list[str]:
    if kind == "overlapping":
        return DAYS[:5] if who == 0 else DAYS[3:]
    return DAYS[:4]


@contextlib.contextmanager
def two(lake: Lake, kill: Killer) -> Iterator[Callable[..., list[str]]]:
    """Two coordinators, and a function that makes both publish at the same moment."""
    pipes = [(PROCESSES.Queue(), PROCESSES.Queue()) for _ in range(2)]
    processes = [kill.start(coordinate, inbox, outbox) for inbox, outbox in pipes]

    def at_once(work: Sequence[Sequence[Sequence[Receipt]]], fence: bool = True) -> list[str]:
        for (inbox, _), cut in zip(pipes, work, strict=True):
            inbox.put((fence, cut))
        return [outbox.get(timeout=120) for _, outbox in pipes]

    try:
        yield at_once
    finally:
        for (inbox, _), process in zip(pipes, processes, strict=True):
            inbox.put(None)
            process.join(60)


def empty(lake: Lake) -> None:
    """Publish every day with no rows: nothing is deleted, so only the fence makes two writers conflict."""
    lake.publish([Receipt("readings", day, new_attempt(), (), 0, 0, {}, "empty", "", 0.0, 0) for day in DAYS])


def test_two_coordinators_without_a_gate_leave_each_day_as_one_of_them_wrote_it(
    lake: Lake, kill: Killer, seeds: Callable[[int, int], list[int]], record_property: Callable[[str, object], None]
) -> None:
    """The seed selects an empty, a full or overlapping ranges.

    The rows of a day are those of one attempt, and the ledger names that attempt.
    """
    chosen = seeds(4, 500)
    record_property("cases", len(chosen))
    with two(lake, kill) as at_once:
        for number in chosen:
            seed = random.Random(number)
            kind = seed.choice(["empty", "full", "overlapping"])
            if kind == "empty":
                empty(lake)
            work = [
                [staged(lake, day, seed.randint(1, 30), 2 * number + who) for day in days_of(kind, who)]
                for who in range(2)
            ]
            said = at_once([groups(receipts, seed) for receipts in work])
            assert set(said) <= {"published", "lost"}, f"seed {number}: {said}"
            assert "published" in said, f"seed {number}: nobody won"
            here, ledger = found(lake), told(lake)
            for day in {r.partition for receipts in work for r in receipts}:
                name = f"seed {number} ({kind}): {day}"
                rows, value = here.get(day, (0, -1))
                assert rows == ledger[day], f"{name} has {rows} rows, the ledger says {ledger[day]}"
                sure = [w for w in range(2) if said[w] == "published" and day in days_of(kind, w)]
                assert not sure or value in (2 * number, 2 * number + 1), f"{name} has rows of neither"
    assert lake.errors() == []


@pytest.mark.parametrize("lake", ["postgres+s3"], indirect=True)
def test_without_the_fence_the_test_above_fails(lake: Lake, kill: Killer) -> None:
    """Only on Postgres: SQLite has one writer with or without the fence (tests/lake/test_publish.py)."""
    empty(lake)

    def is_doubled(number: int) -> bool:
        day = DAYS[0]
        lake.publish([Receipt("readings", day, new_attempt(), (), 0, 0, {}, f"empty {number}", "", 0.0, 0)])
        at_once([[[staged(lake, day, 10, 2 * number)]], [[staged(lake, day, 10, 2 * number + 1)]]], fence=False)
        return lake.column(f"SELECT count(*) FROM raw.readings WHERE day = '{day}'") == [20]

    with two(lake, kill) as at_once:
        assert any(is_doubled(number) for number in range(50))
