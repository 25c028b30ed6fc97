"""The demo's bad days: rows that are set aside, a day that a check rejects, a diff of two attempts, a rollback."""

from __future__ import annotations

import contextlib
from datetime import date
from typing import TYPE_CHECKING, Any

from ducklake_flows.cli import show
from ducklake_flows.errors import RunFailed
from ducklake_flows.plan import make_plan
from ducklake_flows.project import get_dataset
from ducklake_flows.scratch import scratch
from ducklake_flows.states import Mode, State
from ducklake_flows.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ducklake_flows.settings import Settings
    from ducklake_flows.storage import Storage

DAY, NEXT_DAY = "2013-01-01", "2013-01-02"
"""The day whose file is delivered again, and the day whose first flights are in its rejected file."""


def run(settings: Settings, start: date | None, end: date | None) -> dict[str, Any] | None:
    """Show what is set aside; deliver a day of flights again, first wrongly, and roll it back to its first attempt.

    Args:
        settings: Where the lake and its landing zone are.
        start: First day of the demo; None: the dataset's own.
        end: Last day, included; None: the dataset's own.

    Returns:
        The summary of the rollback, whose transform builds the models; None if the day is not among the demo's days,
        or has been rolled back.
    """
    from ducklake_flows.ingest import ingest
    from ducklake_flows.lake.diff import diff_dataset
    from ducklake_flows.lake.quarantine import read
    from ducklake_flows.rollback import rollback

    flights, weather = get_dataset("flights"), get_dataset("weather")
    if (aside := read(settings, weather)).partitions:
        show.command("lake quarantine weather", "A row that no instrument can have measured is set aside:")
        show.quarantine(weather.key, aside)
    landing, day, after = open_storage(settings.landing, settings), *map(date.fromisoformat, (DAY, NEXT_DAY))
    if (start or day) > day or (end or after) < after:
        return None
    (planned,) = make_plan(settings, [flights], day, day)
    if planned.state not in (State.published, State.stale):
        return None
    with _first_file_if_stopped(landing) as lines:
        _deliver(landing, [*lines, *_lines(landing, NEXT_DAY)[1:4]])
        again = f"lake backfill flights --start {DAY} --end {DAY}"
        show.command(f"{again} --mode stale", "The file comes again, with flights of the next day: a check rejects it.")
        try:
            show.ingested(ingest([flights.key], day, day, Mode.stale))
        except RunFailed as error:
            show.error(error)
        first = lines[1].split(",")
        delay = lines[0].split(",").index("dep_delay")
        first[delay] = str(int(first[delay]) + 60)
        _deliver(landing, [lines[0], ",".join(first), *lines[2:-1]])
        show.command(again, "It comes once more. No check can tell that a flight is missing, and one is an hour late:")
        show.ingested(ingest([flights.key], day, day))
    show.command(f"lake diff flights --partition {DAY}", "The two attempts that were published differ:")
    show.diff(flights.key, diff_dataset(settings, flights, partition=DAY))
    show.command(f"lake rollback flights --partition {DAY}", "Back to the first one. The models are built from it:")
    summary = rollback(flights.key, DAY)
    show.rolled_back(summary, None, dry_run=False)
    return summary


@contextlib.contextmanager
def _first_file_if_stopped(landing: Storage) -> Iterator[list[str]]:
    """The lines of the day's file, which is put back if the block does not end: the next demo then runs as this one."""
    lines = _lines(landing, DAY)
    try:
        yield lines
    except BaseException:
        _deliver(landing, lines)
        raise


def _lines(landing: Storage, day: str) -> list[str]:
    with landing.fs.open_input_stream(landing.path(f"flights/{day}.csv")) as stream:
        text: str = stream.read().decode()
    return text.splitlines(keepends=True)


def _deliver(landing: Storage, lines: list[str]) -> None:
    with scratch() as work:
        (file := work / "day.csv").write_text("".join(lines), encoding="utf-8", newline="")
        landing.put(file, f"flights/{DAY}.csv")
