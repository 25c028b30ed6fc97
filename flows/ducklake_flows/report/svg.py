"""Pictures of the report as SVG: the partition grid, bars and lines. Colours are readable on light and dark."""

from __future__ import annotations

from datetime import date
from html import escape
from typing import TYPE_CHECKING

from ducklake_flows.report.grid import PARTLY, WARNED, Grid, Mark
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

COLOURS: dict[str, str] = {
    State.published: "#2da44e",
    PARTLY: "#86c995",
    WARNED: "#bc6c00",
    State.stale: "#d4a017",
    State.rolled_back: "#8957e5",
    State.failed: "#d1242f",
    State.rejected: "#d1242f",
    State.missing: "#4493f8",
    State.no_source: "#8b949e",
}
"""The colour of each state. Failed and rejected marks also have a cross, those with a warning an exclamation mark,
missing ones are hollow."""

_STEP, _SIZE = 12, 10
_LEFT, _TEXT = 52, 12
_GREY = "#7d858d"
_FONT = "font-family='system-ui,-apple-system,Segoe UI,sans-serif' font-size='10'"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_FEW = 30
"""A chart with fewer bars than this does not fill its width."""
_CROSSED = (State.failed, State.rejected)


def grid_svg(grid: Grid, *, tips: bool = False) -> str:
    """A grid as a picture. Days are a calendar, one block of weeks per year; other units have one row per line.

    Args:
        grid: The grid.
        tips: Whether each mark has a tooltip. This makes the picture about ten times as large.
    """
    is_calendar = grid.unit == "day" and "/" not in grid.marks[0].label
    cells, texts, height = _calendar(grid.marks) if is_calendar else _rows(grid)
    width = max([x + _STEP for x, _, _ in cells] + [_LEFT + 60])
    by_state: dict[str, list[tuple[int, int, Mark]]] = {}
    for x, y, mark in cells:
        by_state.setdefault(mark.state, []).append((x, y, mark))
    known = [state for state in COLOURS if state in by_state]
    legend, right, height = _legend(known, max(width, 420), height + 8)
    body = "".join(_marks(state, by_state[state], tips=tips) for state in known)
    width = max(width, right)
    label = escape(", ".join(f"{len(by_state[state])} {state.replace('_', ' ')}" for state in known))
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"role='img' aria-label='{label}' {_FONT}>{''.join(texts)}{body}{legend}</svg>"
    )


def _calendar(marks: Sequence[Mark]) -> tuple[list[tuple[int, int, Mark]], list[str], int]:
    """Place, marks and labels of a calendar: a column is a week, a row a weekday."""
    cells, texts, top, year, month = [], [], 0, "", ""
    for mark in marks:
        day = date.fromisoformat(mark.label)
        if mark.label[:4] != year:
            top += 7 * _STEP + 2 * _TEXT if year else 0
            year = mark.label[:4]
            texts.append(_label(0, top + _TEXT + 4 * _STEP, year, weight=True))
        if mark.line != month:
            month = mark.line
            texts.append(_label(_LEFT + _week(day.replace(day=1)) * _STEP, top + _TEXT - 4, _MONTHS[day.month - 1]))
        cells.append((_LEFT + _week(day) * _STEP, top + _TEXT + day.weekday() * _STEP, mark))
    return cells, texts, top + _TEXT + 7 * _STEP


def _week(day: date) -> int:
    """The column of a day in its year's calendar; weeks begin on Monday."""
    first = date(day.year, 1, 1)
    return ((day - first).days + first.weekday()) // 7


def _rows(grid: Grid) -> tuple[list[tuple[int, int, Mark]], list[str], int]:
    """Place, marks and labels of a grid with one row per line."""
    lines = list(dict.fromkeys(mark.line for mark in grid.marks))
    left = max(_LEFT, 10 + 7 * max(map(len, lines), default=0))
    texts = [_label(0, row * _STEP + _SIZE - 1, line, weight=True) for row, line in enumerate(lines)]
    places = {line: row * _STEP for row, line in enumerate(lines)}
    cells = [(left + mark.position * _STEP, places[mark.line], mark) for mark in grid.marks]
    return cells, texts, len(lines) * _STEP


def _marks(state: str, cells: Sequence[tuple[int, int, Mark]], *, tips: bool) -> str:
    """The marks of one state: one path, or with tooltips one rectangle each."""
    hollow = state == State.missing
    inset, size = (1, _SIZE - 2) if hollow else (0, _SIZE)
    if state == State.no_source:
        inset, size = 3, 4
    style = f"fill='none' stroke='{COLOURS[state]}' stroke-width='1.5'" if hollow else f"fill='{COLOURS[state]}'"
    if tips:
        shapes = "".join(
            f"<rect x='{x + inset}' y='{y + inset}' width='{size}' height='{size}' rx='1.5' pointer-events='all'>"
            f"<title>{escape(_tip(mark))}</title></rect>"
            for x, y, mark in cells
        )
        drawn = f"<g {style}>{shapes}</g>"
    else:
        path = "".join(f"M{x + inset} {y + inset}h{size}v{size}h-{size}z" for x, y, _ in cells)
        drawn = f"<path {style} d='{path}'/>"
    if state in _CROSSED:
        crosses = "".join(f"M{x + 3} {y + 3}l4 4m0-4l-4 4" for x, y, _ in cells)
        drawn += f"<path stroke='#fff' stroke-width='1.5' pointer-events='none' d='{crosses}'/>"
    if state == WARNED:
        signs = "".join(f"M{x + 5} {y + 1.5}v4.5m0 1v1.5" for x, y, _ in cells)
        drawn += f"<path stroke='#fff' stroke-width='1.5' pointer-events='none' d='{signs}'/>"
    return drawn


def _tip(mark: Mark) -> str:
    if not mark.counts:
        return mark.label
    told = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in mark.counts)
    return f"{mark.label}: {told if sum(n for _, n in mark.counts) > 1 else mark.state.replace('_', ' ')}"


def _legend(states: Sequence[str], width: int, top: int) -> tuple[str, int, int]:
    """The legend below a grid, its right edge, and the height of the whole picture."""
    shown, x, right = [], 0, 0
    for state in states:
        name = state.replace("_", " ")
        need = 28 + 6 * len(name)
        if x and x + need > width:
            x, top = 0, top + 16
        mark = Mark("", 0, "", state, ())
        shown.append(_marks(state, [(x, top, mark)], tips=False) + _label(x + 15, top + 9, name))
        x += need
        right = max(right, x)
    return "".join(shown), right, top + 14


def _label(x: int, y: int, text: str, *, weight: bool = False) -> str:
    bold = " font-weight='600'" if weight else ""
    return f"<text x='{x}' y='{y}' fill='{_GREY}'{bold}>{escape(text)}</text>"


def bars_svg(values: Sequence[tuple[str, float]], unit: str, colour: str = "#4493f8") -> str:
    """One bar per value, in order, stretched to its place's width and height. It has no text except the tooltips.

    Args:
        values: Label and value of each bar.
        unit: The unit, for the tooltips.
        colour: Of the bars.
    """
    most = max((value for _, value in values), default=0) or 1
    gap = 0.15 if len(values) <= 200 else 0.0
    bars = "".join(
        f"<rect x='{n + gap / 2:g}' y='{100 - 100 * value / most:.1f}' width='{1 - gap:g}' "
        f"height='{100 * value / most:.1f}'><title>{escape(f'{label}: {number(value)} {unit}')}</title></rect>"
        for n, (label, value) in enumerate(values)
    )
    label = escape(f"{len(values)} bars, at most {number(most)} {unit}")
    width = max(len(values), _FEW)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} 100' preserveAspectRatio='none' "
        f"role='img' aria-label='{label}' fill='{colour}'>{bars}</svg>"
    )


def strip_svg(results: Sequence[tuple[str, str]]) -> str:
    """The last results of an audit, one mark each, with a tooltip.

    Args:
        results: What each says, and a state, see `COLOURS`.
    """
    marks = (Mark("", place, text, state, ()) for place, (text, state) in enumerate(results))
    body = "".join(_marks(m.state, [(m.position * _STEP, 0, m)], tips=True) for m in marks)
    width, label = len(results) * _STEP, f"{len(results)} results"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {_SIZE}' width='{width}' height='{_SIZE}' "
        f"role='img' aria-label='{label}'>{body}</svg>"
    )


def number(value: float) -> str:
    """A number for people: grouped digits, at most two decimals."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"
