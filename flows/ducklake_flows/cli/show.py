"""Terminal output with Rich: grids, tables and times. Text is printed literally, never as Rich markup."""

from __future__ import annotations

from datetime import UTC
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ducklake_flows.plan import Planned, counts, stale_left
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ducklake_flows.lake.builds import Environment
    from ducklake_flows.lake.verify import Finding

console = Console(highlight=False, markup=False, emoji=False)

LINES = 100
"""Maximum lines of a dataset's grid."""

PARTLY = "published in part"
"""State of a mark for several partitions: some are published, and the source has no data for the others."""

_MARKS: dict[str, tuple[str, str]] = {
    State.published: ("■", "green"),
    PARTLY: ("▣", "green"),
    State.stale: ("◪", "yellow"),
    State.failed: ("✗", "red"),
    State.rejected: ("✗", "red"),
    State.rolled_back: ("◧", "yellow"),
    State.missing: ("□", "blue"),
    State.no_source: ("·", "dim"),
}


def plan(planned: Sequence[Planned], strays: Mapping[str, Sequence[str]]) -> None:
    """Print what would run: counts, the first 20 partitions that run or are not published, and stray files."""
    todo = [p for p in planned if p.runs]
    _counts(planned)
    noted = [p for p in planned if p.runs or p.state is not State.published]
    if noted:
        table = Table(box=None, header_style="dim")
        for name in ("dataset", "partition", "state", "runs", "why"):
            table.add_column(name)
        for p in noted[:20]:
            table.add_row(p.dataset, p.partition, p.state.label, "yes" if p.runs else "", p.why)
        console.print(table)
        if len(noted) > 20:
            console.print(f"  and {len(noted) - 20} more; --json lists all", style="dim")
    for dataset, names in strays.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        console.print(
            f"{dataset}: {len(names)} files belong to no partition: {', '.join(names[:3])}{more}", style="yellow"
        )
    console.print(f"{len(todo)} partitions to do." if todo else "Nothing to do.")
    for line in stale_left(planned):
        console.print(line, style="yellow", soft_wrap=True)


def status(planned: Sequence[Planned]) -> None:
    """Print the partition grid of each dataset, counts, and the first 10 errors."""
    grid(planned)
    failed = [p for p in planned if p.state in (State.failed, State.rejected)]
    for p in failed[:10]:
        console.print(f"  {p.dataset} {p.partition} {p.state.label}: {p.why}", style="red")
    if len(failed) > 10:
        console.print(f"  and {len(failed) - 10} more; --json lists all", style="red")


def grid(planned: Sequence[Planned]) -> None:
    """Print one mark per partition: one line per month for days, per day for hours, per year for months.

    In a long range, a mark stands for a day, month or year and shows the most severe state of its partitions.
    """
    seen: set[str] = set()
    for dataset, group in groupby(planned, key=lambda p: p.dataset):
        partitions = list(group)
        rows = sum(p.entry.rows for p in partitions if p.entry)
        summary = ", ".join(f"{n} {state}" for state, n in counts(partitions).items())
        console.print(Text.assemble((dataset, "bold"), f"  {summary}, {rows:,} rows"))
        lines = _lines([(p.partition, p.state.value) for p in partitions])
        for label, states in lines.items():
            seen.update(states)
            console.print(Text.assemble(f"  {label:10} ", *(_MARKS[state] for state in states)))
    legend = [
        part for state, shown in _MARKS.items() if state in seen for part in (shown, f" {state.replace('_', ' ')}  ")
    ]
    console.print(Text.assemble(*legend))


_UNITS = (len("2013-01-05T07"), len("2013-01-05"), len("2013-01"), len("2013"))
"""Length of the part of a partition's key that names an hour, a day, a month, a year."""

_NEEDS_A_LOOK: tuple[str, ...] = (
    *(State.failed, State.rejected, State.stale, State.missing),
    *(State.rolled_back, PARTLY, State.published, State.no_source),
)
"""A mark for several partitions shows the first of these states that any of them is in."""


def _lines(partitions: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The grid's states by line label. More than `LINES` lines are combined into coarser units, up to years.

    Args:
        partitions: Key and state of each partition, in order of the keys.
    """
    marks = list(partitions)
    while True:
        unit = len(marks[0][0])
        line = next((u for u in _UNITS if u < unit), unit)
        lines = {label: [state for _, state in group] for label, group in groupby(marks, key=lambda m: m[0][:line])}
        if len(lines) <= LINES or line == _UNITS[-1]:
            return lines
        marks = [(label, _together(set(states))) for label, states in lines.items()]


def _together(states: set[str]) -> str:
    """The state shown for several partitions."""
    if states == {State.published, State.no_source}:
        return PARTLY
    return min(states, key=_NEEDS_A_LOOK.index)


def ingested(summary: Mapping[str, Any]) -> None:
    """Print what a backfill did."""
    if not summary["published"] and not summary["unchanged"] and not summary["older"]:
        console.print(
            "Nothing to do: every partition with a source is published."
            if not summary["stale"]
            else "Nothing to do, except for changed sources."
        )
    else:
        console.print(
            f"Published {summary['published']} partitions, {summary['rows']:,} rows, in {summary['commits']} commits"
            + (f"; {summary['unchanged']} unchanged" if summary["unchanged"] else "")
            + (f"; {summary['older']} dropped because a newer attempt is published" if summary["older"] else "")
            + f"; {summary['seconds']['total']:.1f} s."
        )
    if absent := summary["no_source"]:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        console.print(f"No source (yet): {', '.join(absent[:3])}{more}.", style="dim")
    for left in summary["left_out"]:
        console.print(f"Skipped: {left['error']}", style="dim")
    for line in summary["stale"]:
        console.print(line, style="yellow", soft_wrap=True)


def environments(found: Sequence[Environment]) -> None:
    """Print the environments of models, one line each."""
    table = Table(
        "environment",
        "built at (UTC)",
        "models",
        "changed partitions",
        "refused intervals",
        box=None,
        header_style="dim",
    )
    for e in found:
        built = e.built_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if e.built_at else "not built"
        models = "" if not e.built_at else "current" if e.is_current else "outdated"
        table.add_row(e.name, built, models, f"{e.changed:,}", f"{e.refused:,}")
    console.print(table)


def transformed(summary: Mapping[str, Any]) -> None:
    """Print what a transform did."""
    if not summary["models"]:
        console.print("Nothing to do: the models are up to date.")
        return
    table = Table(box=None, header_style="dim")
    for name in ("model", "from", "to"):
        table.add_column(name)
    table.add_column("seconds", justify="right")
    for m in summary["models"]:
        table.add_row(m["model"], m["start"], m["end"], f"{m['seconds']:.1f}")
    console.print(table)
    console.print(f"Built {len(summary['models'])} intervals in {summary['seconds']:.1f} s.")


def maintained(summary: Mapping[str, Any]) -> None:
    """Print what maintenance found and did, and the lake's figures before and after."""
    table = Table(box=None, header_style="dim")
    for name in ("step", "on"):
        table.add_column(name)
    for name in ("found", "done"):
        table.add_column(name, justify="right")
    table.add_column("")
    for step in summary["steps"]:
        table.add_row(step["step"], step["subject"], f"{step['found']:,}", f"{step['done']:,}", step["unit"])
    console.print(table)
    for name, value in summary["before"].items():
        after = summary["after"][name]
        console.print(f"  {name:20} {value:>14,}" + ("" if after == value else f"  ->  {after:,}"))
    for text in summary["left"]:
        console.print(f"Postponed to the next run: {text}", markup=False)
    console.print("Dry run: nothing was changed." if summary["dry_run"] else f"{summary['seconds']:.1f} s.")


EACH = 3
"""Maximum findings of one kind that are printed."""


def verified(found: Sequence[Finding]) -> None:
    """Print the findings, at most `EACH` of one check, and the commands that repair them."""
    for (severity, check), group in groupby(sorted(found, key=_kind), key=_kind):
        findings = list(group)
        for f in findings[:EACH]:
            console.print(f"{severity}: {f.subject}: {f.message} ({check})", soft_wrap=True)
        if len(findings) > EACH:
            console.print(f"{severity}: {len(findings) - EACH} more of this kind ({check}); --json lists all")
    for fix in dict.fromkeys(f.fix for f in sorted(found, key=_kind)):
        checks = dict.fromkeys(f.check for f in found if f.fix == fix)
        console.print(f"next:  {fix}  ({', '.join(checks)})", soft_wrap=True)


def _kind(finding: Finding) -> tuple[str, str]:
    return finding.severity, finding.check


def repaired(summary: Mapping[str, Any]) -> None:
    """Print what a repair found and did."""
    for row in summary["damaged"]:
        name = f"{row['dataset']} {row['partition']}".rstrip()
        console.print(f"{name}: {row['found']}" + (f"  ->  {row['done']}" if row["done"] else ""), soft_wrap=True)
    for change in summary["changes"]:
        subject = f"{change['table']} {change['subject']}".rstrip()
        console.print(f"{subject}: {change['before']}  ->  {change['after']}", soft_wrap=True)
    count = len(summary["damaged"])
    if summary["dry_run"]:
        console.print(f"{count} damaged. Dry run: nothing was changed, and statistics were not checked.")
    elif count or summary["changes"]:
        console.print(f"{count} partitions and files, {len(summary['changes'])} values of the catalog repaired.")
    else:
        console.print("Nothing to repair.")


def seconds(stages: Mapping[str, float]) -> None:
    """Print the seconds of each stage."""
    table = Table(box=None, header_style="dim")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage, took in stages.items():
        table.add_row(stage, f"{took:.1f}")
    console.print(table)


def rows(found: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print a query's rows under a title."""
    console.print(f"\n{title}", style="bold")
    answer(list(found[0]) if found else [], [list(row.values()) for row in found])


def answer(columns: Sequence[str], found: Sequence[Sequence[Any]]) -> None:
    """Print a query's result as a table, or one line per value if a table would not fit. No value is truncated."""
    if not found:
        console.print("No rows.")
        return
    cells = [[_cell(value) for value in row] for row in found]
    widths = [max(map(_width, texts)) for texts in zip(columns, *cells, strict=True)]
    if sum(widths) + len(widths) > console.width:
        _vertical(columns, cells)
        return
    table = Table(box=None, header_style="dim")
    for name, value in zip(columns, found[0], strict=True):
        numeric = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _vertical(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print one line per value; several rows are numbered."""
    margin = max(map(cell_len, columns))
    for number, row in enumerate(cells, start=1):
        if len(cells) > 1:
            console.print(f"row {number}", style="dim")
        for name, text in zip(columns, row, strict=True):
            label = name + " " * (margin - cell_len(name))
            below = text.replace("\n", "\n" + " " * (margin + 2))
            console.print(Text.assemble((label, "dim"), "  ", below), soft_wrap=True)


def _width(text: str) -> int:
    """The width in terminal cells of a text's longest line."""
    return max(map(cell_len, text.splitlines()), default=0)


def _cell(value: Any) -> str:
    """A value as text. Numbers have no thousands separators, since they may be years or zip codes."""
    return "NULL" if value is None else str(value)


def csv(columns: Sequence[str], found: Sequence[Sequence[Any]], file: TextIO) -> None:
    """Write a query's result as CSV with a header; null is an empty field."""
    from csv import writer

    out = writer(file, lineterminator="\n")
    out.writerow(columns)
    out.writerows(found)


def _counts(planned: Sequence[Planned]) -> None:
    for dataset, group in groupby(planned, key=lambda p: p.dataset):
        found = counts(list(group))
        console.print(
            Text.assemble(
                (f"{dataset:10}", "bold"), "  ".join(f"{n} {state.replace('_', ' ')}" for state, n in found.items())
            )
        )
