"""The partition grid: one mark per partition, or per day, week, month, quarter or year of a long range."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from ducklake_flows.datasets.partitions import Grain, first_day, grain_of
from ducklake_flows.report.words import split
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from ducklake_flows.plan import Planned

PARTLY = "published in part"
"""State of a mark for several partitions: some are published, and the source has no data for the others."""

WARNED = "published with a warning"
"""State of a mark: an audit that only warns fails on published rows."""

UNITS = ("hour", "day", "week", "month", "quarter", "year")
"""What a mark may stand for, from fine to coarse."""

TERMINAL_LINES = dict.fromkeys(UNITS, 60)
"""Maximum lines of a grid in a terminal, by unit."""

PICTURE_LINES = {**TERMINAL_LINES, "hour": 31, "day": 72}
"""Maximum lines of a grid in a picture, by unit: a month of hours, six years of days."""

FEW_SEGMENTS = 12
"""Maximum partitions without time that have a line each."""

_PREFIXES = {"hour": 13, "day": 10, "week": 10, "month": 7, "quarter": 7, "year": 4}
"""The part of a partition's start that determines the mark: its first characters."""

_WIDTHS = {"hour": 24, "day": 31, "week": 53, "month": 12, "quarter": 4, "year": 1}
"""Marks in a line: a line is a day, a month, or a year."""

_NEEDS_A_LOOK: tuple[str, ...] = (
    *(State.failed, State.rejected, State.stale, State.missing),
    *(State.rolled_back, WARNED, PARTLY, State.published, State.no_source),
)
"""A mark for several partitions shows the first of these states that any of them is in."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark of a grid.

    Args:
        line: Label of its line.
        position: Its place in the line, from 0.
        label: What it stands for: a partition's key, or a day, a week, a month or a year.
        state: The most severe state of its partitions.
        counts: Number of its partitions in each state.
    """

    line: str
    position: int
    label: str
    state: str
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """The marks of one dataset, in order.

    Args:
        unit: What a mark stands for: "full" for a dataset of one partition, "segment" for those without time.
        marks: The marks. A place without one has no partition.
    """

    unit: str
    marks: tuple[Mark, ...]

    @property
    def lines(self) -> dict[str, list[str | None]]:
        """State of each place by line label; None where there is no partition."""
        found: dict[str, list[str | None]] = {}
        for mark in self.marks:
            line = found.setdefault(mark.line, [])
            line += [None] * (mark.position - len(line))
            line.append(mark.state)
        return found


def make_grid(
    partitions: Sequence[tuple[str, str]],
    unit: str | None = None,
    max_lines: Mapping[str, int] = PICTURE_LINES,
    max_width: int = 53,
) -> Grid:
    """Arrange partitions as a grid.

    Args:
        partitions: Key and state of each partition, in order of the keys. If all lines of all segments are too many, a
            mark stands for all segments.
        unit: What a mark stands for, or something coarser if the partitions are; None: the finest unit that fits.
        max_lines: Maximum lines by unit, if no unit is given. A line is a day (of hours), a month (of days) or a year.
        max_width: Maximum marks in a line, if no unit is given.
    """
    parts = [split(key) for key, _ in partitions]
    grain = grain_of(parts[0][1]) if parts else Grain.full
    if grain is Grain.full:
        return _segments(partitions)
    # Of weeks and quarters, the first day.
    periods = [first_day(period) if grain in (Grain.week, Grain.quarter) else period for _, period in parts]
    of = defaultdict[str, list[tuple[str, str]]](list)
    for (segment, _), period, (_, state) in zip(parts, periods, partitions, strict=True):
        of[segment.rstrip("/")].append((period, state))
    units = UNITS[UNITS.index(grain) :]
    starts = {segment: {period[: _PREFIXES["day"]] for period, _ in found} for segment, found in of.items()}
    lines = {u: sum(len({_line(start, u) for start in found}) for found in starts.values()) for u in units}
    if unit is None:
        unit = next((u for u in units if lines[u] <= max_lines[u] and _WIDTHS[u] <= max_width), "")
    elif unit not in units:
        unit = grain.value
    if unit and (len(of) == 1 or lines[unit] <= max_lines[unit]):
        return Grid(unit, tuple(mark for segment, found in of.items() for mark in _marks(found, unit, segment)))
    # Too many segments: a mark stands for all of them.
    together_ = sorted(zip(periods, (state for _, state in partitions), strict=True))
    if len(of) > 1:
        return make_grid(together_, unit or None, max_lines, max_width)
    return Grid(units[-1], tuple(_marks(together_, units[-1], next(iter(of), ""))))


def _segments(partitions: Sequence[tuple[str, str]]) -> Grid:
    """The grid of partitions without time: a line for each of a few, otherwise many in a line."""
    width = 1 if len(partitions) <= FEW_SEGMENTS else _WIDTHS["day"]
    marks = (
        Mark(partitions[number - number % width][0], number % width, key, state, ((state, 1),))
        for number, (key, state) in enumerate(partitions)
    )
    return Grid("full" if len(partitions) == 1 else "segment", tuple(marks))


def _marks(partitions: Iterable[tuple[str, str]], unit: str, segment: str) -> Iterator[Mark]:
    """The marks of one segment."""
    prefix = _PREFIXES[unit]
    counted = [
        (_place(key, unit), Counter(map(itemgetter(1), group)))
        for key, group in groupby(partitions, key=lambda p: p[0][:prefix])
    ]
    for (line, position, label), group in groupby(counted, key=itemgetter(0)):
        counts = sum((of_key for _, of_key in group), Counter[str]())
        # Of hours that come twice, one mark stands for both.
        texts = (f"{segment} {line}", f"{segment}/{label}") if segment else (line, label)
        yield Mark(texts[0], position, texts[1], together(set(counts)), tuple(sorted(counts.items())))


def marked(planned: Iterable[Planned], warned: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """Key and state of partitions, as `make_grid` takes them.

    Args:
        planned: The partitions.
        warned: Dataset and key of those whose published rows break an audit that warns.
    """
    return [
        (p.partition, WARNED if p.state is State.published and (p.dataset, p.partition) in warned else p.state.value)
        for p in planned
    ]


def together(states: set[str]) -> str:
    """The state shown for several partitions."""
    if states == {State.published, State.no_source}:
        return PARTLY
    return min(states, key=_NEEDS_A_LOOK.index)


def _place(key: str, unit: str) -> tuple[str, int, str]:
    """Line, position and label of the mark that a partition belongs to, given the part of its start that determines it.

    A week's is a day; the year of a week may differ from the day's.
    """
    if unit == "hour":
        return key[:10], int(key[11:13]), key
    if unit == "day":
        return key[:7], int(key[8:10]) - 1, key
    if unit == "week":
        year, week, _ = date.fromisoformat(f"{key}-01"[:10]).isocalendar()
        return str(year), week - 1, f"{year}-W{week:02}"
    if unit == "month":
        return key[:4], int(key[5:7]) - 1, key
    if unit == "quarter":
        quarter = (int(key[5:7]) + 2) // 3
        return key[:4], quarter - 1, f"{key[:4]}-Q{quarter}"
    return key, 0, key


def _line(start: str, unit: str) -> str:
    """Label of the line of a partition, given the first day or month in its key."""
    return start if unit == "hour" else _place(start[: _PREFIXES[unit]], unit)[0]
