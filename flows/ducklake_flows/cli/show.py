"""Terminal output with Rich: grids, tables and times. Text is printed literally, never as Rich markup."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ducklake_flows.errors import LakeError, redacted
from ducklake_flows.plan import Planned, counts, stale_left
from ducklake_flows.report import causes
from ducklake_flows.report.grid import PARTLY, TERMINAL_LINES, WARNED, make_grid, marked
from ducklake_flows.report.words import count
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from ducklake_flows.lake.builds import Environment, RefusedInterval
    from ducklake_flows.lake.checks import Results, Warned
    from ducklake_flows.lake.contracts import SchemaChange
    from ducklake_flows.lake.diff import Difference
    from ducklake_flows.lake.quarantine import Quarantined
    from ducklake_flows.lake.rejected import RejectedRows
    from ducklake_flows.lake.verify import Finding
    from ducklake_flows.report.overdue import Overdue

console = Console(highlight=False, markup=False, emoji=False)

WATCH_SECONDS = 5.0
"""Seconds between two prints of `lake status --watch`."""

_MARGIN = len("  2013-01-05 ")
"""Width of a grid line's label."""

_MARKS: dict[str, tuple[str, str]] = {
    State.published: ("■", "green"),
    PARTLY: ("▣", "green"),
    WARNED: ("▲", "yellow"),
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
            f"{dataset}: {count(len(names), 'file')} {'belongs' if len(names) == 1 else 'belong'} to no partition: "
            f"{', '.join(names[:3])}{more}",
            style="yellow",
        )
    console.print(f"{count(len(todo), 'partition')} to do." if todo else "Nothing to do.")
    for line in stale_left(planned):
        console.print(line, style="yellow", soft_wrap=True)


def schema(changes: Sequence[SchemaChange], readers: Mapping[tuple[str, str], Sequence[str]]) -> None:
    """Print what the contracts would change in the raw tables, and the models that read these columns."""
    for change in changes:
        console.print(f"schema: {change}", style="red" if change.is_blocked else "yellow", soft_wrap=True)
        if models := readers.get((change.table, change.column)):
            console.print(f"  models that are built from it: {', '.join(models)}", soft_wrap=True, highlight=False)


def status(
    planned: Sequence[Planned],
    unit: str | None = None,
    refused: Sequence[RefusedInterval] = (),
    late: Sequence[Overdue] = (),
    aside: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    warnings: Sequence[Warned] = (),
) -> None:
    """Print the partition grid of each dataset, counts, what is overdue, and the failures by cause with the next steps.

    Args:
        planned: The partitions.
        unit: What a mark stands for (hour, day, week, month, quarter, year); None: the finest unit that fits.
        refused: The intervals of models that were refused.
        late: The datasets that are overdue.
        aside: By dataset, the rows that are set aside, and the number of partitions that have some.
        warnings: The audits that warn of what is published.
    """
    grid(planned, unit, {(each.subject, key) for each in warnings for key in each.partitions})
    for line, step in causes.warning_lines(warnings):
        console.print(f"  {line}\nnext:  {step}", style="yellow", soft_wrap=True)
    for key, (rows, partitions) in aside.items():
        what = f"{key}: {count(rows, 'row')} of {count(partitions, 'partition')} in quarantine"
        console.print(f"  {what}\nnext:  lake quarantine {key}", style="yellow", soft_wrap=True)
    for dataset in late:
        console.print(f"  {dataset.line}\n      {dataset.cause}", style="red", soft_wrap=True)
        console.print(f"next:  {dataset.next_step}", soft_wrap=True)
    for each in refused[: causes.SHOWN]:
        console.print(f"  {each}", style="red", soft_wrap=True)
    if len(refused) > causes.SHOWN:
        console.print(
            f"  and {count(len(refused) - causes.SHOWN, 'more refused interval')}; see: lake verify", style="red"
        )
    for fix in list(dict.fromkeys(each.fix for each in refused))[: causes.SHOWN]:
        console.print(f"next:  {fix}", soft_wrap=True)
    found = causes.failures(planned)
    for line in causes.lines(found):
        console.print(line, style="red", soft_wrap=True)
    if found:
        console.print(f"next:  {causes.next_steps(found)}", soft_wrap=True)


def rolled_back(summary: Mapping[str, Any], to: str | None, dry_run: bool) -> None:
    """Print what a rollback did, or would do."""
    if not summary["partitions"]:
        console.print(f"Nothing to roll back: what was published at {to} is published now.")
        return
    if "restores" in summary:
        what = f"{summary['dataset']} {summary['partition']}"
        console.print(
            f"{what} is rolled back to {count(summary['rows'], 'row')} (attempt {summary['restores']}).", soft_wrap=True
        )
    else:
        for key, partitions in summary["partitions"].items():
            more = f" and {len(partitions) - 3} more" if len(partitions) > 3 else ""
            console.print(f"  {key}: {', '.join(partitions[:3])}{more}", soft_wrap=True, highlight=False)
        number = count(sum(map(len, summary["partitions"].values())), "partition")
        what = "would be rolled back" if dry_run else "rolled back"
        console.print(f"{number} {what} to {count(summary['rows'], 'row')} as of {to}.", soft_wrap=True)
    if "transform" in summary:
        transformed(summary["transform"])


def dropped(summary: Mapping[str, Any], dry_run: bool) -> None:
    """Print what was dropped, or would be."""
    name, partitions, tables = summary["dataset"], summary["partitions"], summary["tables"]
    if not partitions and not tables:
        console.print(f"{name} has no rows.")
        return
    what = count(len(partitions), "partition") if partitions else ", ".join(tables)
    done = "would be dropped" if dry_run else f"dropped, in snapshot {summary['snapshot_id']}"
    console.print(f"{name}: {what} with {count(summary['rows'], 'row')} {done}.", soft_wrap=True, highlight=False)
    if "transform" in summary:
        if partitions:
            console.print(f"To go back: lake rollback {name} --to {summary['snapshot_id'] - 1}", highlight=False)
        transformed(summary["transform"])


def migrated(name: str, summary: Mapping[str, Any], dry_run: bool) -> None:
    """Print what a migration did, or would do."""
    if "abandoned" in summary:
        console.print(f"{name}: {'abandoned; the table is as before' if summary['abandoned'] else 'nothing was left'}.")
        return
    for line in summary["changes"]:
        console.print(f"  {line}", soft_wrap=True, highlight=False)
    for column, values in summary.get("dropped", {}).items():
        console.print(f"  {column} has {count(values, 'value')}", style="yellow", highlight=False)
    if not summary["changes"]:
        console.print(
            f"Nothing to migrate: {name} has the types of its contract. See: lake plan {name}", soft_wrap=True
        )
        return
    size = f"{count(summary['rows'], 'row')} of {count(summary['partitions'], 'partition')}"
    if dry_run:
        console.print(f"Every value fits: {size} would be migrated.", soft_wrap=True)
        return
    console.print(f"{name} is migrated: {size}, in snapshot {summary['snapshot_id']}.", soft_wrap=True)
    console.print(f"To go back: lake migrate {name} --undo", soft_wrap=True, highlight=False)
    transformed(summary["transform"])


def moved(summary: Mapping[str, Any], dry_run: bool) -> None:
    """Print what a move copied, or would copy."""
    if summary["done_before"]:
        console.print(f"The lake is there already, as of snapshot {summary['snapshot']}.")
    elif dry_run:
        size = f"{summary['bytes'] / 1e6:,.1f} MB"
        console.print(f"Snapshot {summary['snapshot']} would be moved: {count(summary['files'], 'file')}, {size}.")
        return
    else:
        size, compared = f"{summary['bytes'] / 1e6:,.1f} MB", summary["compared"]
        there = f" ({summary['kept']:,} were there)" if summary["kept"] else ""
        console.print(
            f"Copied {count(summary['files'], 'file')}, {size}{there}, the catalog as of snapshot "
            f"{summary['snapshot']}, and the state of {count(summary['models'], 'model version')}.",
            soft_wrap=True,
        )
        console.print(
            f"Compared {count(compared['states'], 'state')} of {count(compared['tables'], 'table')}, "
            f"{count(compared['rows'], 'row')}: equal.",
            soft_wrap=True,
        )
    console.print(
        f"Next: use {summary['to']} as .env from now on, then: lake init, lake verify. Do not write to the old lake.",
        soft_wrap=True,
    )


SHOWN_PARTITIONS = 20


def diff(what: str, found: Difference, html: Path | None = None) -> None:
    """Print what differs between two states of a table; write it into an HTML file, too, if one is named."""
    if html is None:
        _diff(console, what, found)
        return
    recorded = Console(record=True, width=max(console.width, 120), file=console.file, force_terminal=False)
    _diff(recorded, what, found)
    html.write_text(recorded.export_html(), encoding="utf-8")


def _diff(out: Console, what: str, found: Difference) -> None:
    out.print(f"{what}: from {found.old} to {found.new}")
    for name, (before, after) in found.columns.items():
        out.print(f"  column {name}: {before or 'missing'} -> {after or 'missing'}", style="yellow", soft_wrap=True)
    if not (found.added or found.removed or found.changed):
        out.print("No row differs.")
        return
    out.print(f"  {found.added:,} added, {found.removed:,} removed, {found.changed:,} changed", style="bold")
    for name, (added, removed, changed) in list(found.by_partition.items())[:SHOWN_PARTITIONS]:
        out.print(f"  {name}: {added:,} added, {removed:,} removed, {changed:,} changed")
    if (more := len(found.by_partition) - SHOWN_PARTITIONS) > 0:
        out.print(f"  and {count(more, 'more partition')}", style="dim")
    for name, number in found.by_column.items():
        out.print(f"  {name}: differs in {count(number, 'row')}")
    signs = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
    for row in found.sample:
        sign, style = signs[row["what"]]
        times = f" ({row['times']} times)" if "times" in row else ""
        if row["what"] == "changed":
            names = [f"{name}: {_value(row['old'][name])} -> {_value(row['new'][name])}" for name in row["new"]]
            text = f"{sign} {_pairs(row['key'])}: {', '.join(names)}"
        else:
            text = f"{sign} {_pairs(row['new'] or row['old'])}{times}"
        out.print(text, style=style, soft_wrap=True, markup=False, highlight=False)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    """A value in a line: text in quotes, so that it is told from a number."""
    return "null" if value is None else repr(value) if isinstance(value, str) else str(value)


def checks(key: str, found: Results, history: bool = False) -> None:
    """Print the results of a dataset's audits: each audit, then the failures, or with `history` all results."""
    if not found.names:
        console.print(f"No results of audits of {key} are recorded.")
        return
    table = Table(box=None, header_style="dim")
    for column in ("audit", "if it fails", "passed", "failed", "last failed"):
        table.add_column(column, justify="right" if column in ("passed", "failed") else "left")
    for row in found.names:
        style = "red" if row["failed"] else None
        numbers = (f"{row['passed']:,}", f"{row['failed']:,}")
        table.add_row(row["name"], row["on_fail"], *numbers, row["last_failed"] or "", style=style)
    console.print(table)
    for row in found.found:
        if row["passed"] and not history:
            continue
        when = f"{row['recorded_at']:%Y-%m-%d %H:%M}  " if history else ""
        what = "passed" if row["passed"] else "failed"
        seen = f": {row['observed']}, expected {row['expected']}" if row["observed"] else ""
        line = f"{when}{row['partition']}  {row['name']} {what}{seen}"
        console.print(line, style=None if row["passed"] else "red", soft_wrap=True, markup=False)
        if row["sample"] not in (None, "[]"):
            console.print(f"  {row['sample']}", soft_wrap=True, markup=False)


def rejected(what: str, found: RejectedRows) -> None:
    """Print the rows of a rejected attempt."""
    console.print(f"{what} was rejected on {found.recorded_at:%Y-%m-%d at %H:%M}: {found.error}", soft_wrap=True)
    console.print(f"{count(found.total, 'row')} in {', '.join(found.files)}", style="dim", soft_wrap=True)
    columns = list(found.rows[0]) if found.rows else []
    answer(columns, [list(row.values()) for row in found.rows])


def quarantine(key: str, found: Quarantined) -> None:
    """Print how many rows of a dataset are set aside, why, and some of them."""
    if not found.partitions:
        console.print(f"Nothing of {key} is in quarantine.")
        return
    rows, partitions = sum(found.partitions.values()), len(found.partitions)
    console.print(f"{key}: {count(rows, 'row')} of {count(partitions, 'partition')} in quarantine", soft_wrap=True)
    for (column, reason), number in found.reasons.items():
        console.print(f"  {number:>8,}  {f'{column}: ' if column else ''}{reason}", soft_wrap=True, markup=False)
    for row in found.sample:
        where = " ".join(
            part for part in (row["partition"], row["file"], row["line"] and f"line {row['line']}") if part
        )
        column = f"{row['column_name']}: " if row["column_name"] else ""
        console.print(f"\n{where}: {column}{row['reason']}", style="yellow", soft_wrap=True, markup=False)
        console.print(f"  {row['content']}", soft_wrap=True, markup=False)
    console.print(
        f"\nnext:  correct the source, the contract or the audit, then run: lake replay {key}", soft_wrap=True
    )


def grid(
    planned: Sequence[Planned], unit: str | None = None, warned: Collection[tuple[str, str]] = frozenset()
) -> None:
    """Print one mark per partition: one line per month for days, per day for hours, per year for months.

    In a long range, a mark stands for a day, week, month or year and shows the most severe state of its partitions.
    """
    seen: set[str] = set()
    for dataset, group in groupby(planned, key=lambda p: p.dataset):
        partitions = list(group)
        rows = sum(p.entry.rows for p in partitions if p.entry)
        summary = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in counts(partitions).items())
        found = make_grid(marked(partitions, warned), unit, TERMINAL_LINES, console.width - _MARGIN)
        coarse = len(found.marks) < len(partitions)
        by = f", one mark per {found.unit}" if coarse else ""
        console.print(Text.assemble((dataset, "bold"), f"  {summary}, {count(rows, 'row')}", (by, "dim")))
        margin = max(10, *map(len, found.lines))
        for label, states in found.lines.items():
            seen.update(state for state in states if state)
            console.print(Text.assemble(f"  {label:{margin}} ", *(_MARKS[state] if state else " " for state in states)))
    legend = [
        part for state, shown in _MARKS.items() if state in seen for part in (shown, f" {state.replace('_', ' ')}  ")
    ]
    console.print(Text.assemble(*legend))


def watch(print_once: Callable[[], None]) -> None:
    """Clear the screen and print, every `WATCH_SECONDS`, until Ctrl-C."""
    try:
        while True:
            with console.capture() as captured:
                print_once()
            console.clear()
            console.out(captured.get(), end="")
            console.print(f"{datetime.now():%H:%M:%S}, every {WATCH_SECONDS:.0f} s; Ctrl-C ends", style="dim")
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


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
            f"Published {count(summary['published'], 'partition')}, {count(summary['rows'], 'row')}, "
            f"in {count(summary['commits'], 'commit')}"
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
    console.print(f"Built {count(len(summary['models']), 'interval')} in {summary['seconds']:.1f} s.")


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


def verified(found: Sequence[Finding], since: datetime | None = None) -> None:
    """Print the findings, at most `EACH` of one check, the commands that repair them, and whether the lake is right."""
    for (severity, check), group in groupby(sorted(found, key=_kind), key=_kind):
        findings = list(group)
        for f in findings[:EACH]:
            console.print(f"{severity}: {f.subject}: {f.message} ({check})", soft_wrap=True)
        if len(findings) > EACH:
            console.print(f"{severity}: {len(findings) - EACH} more of this kind ({check}); --json lists all")
    for fix in dict.fromkeys(f.fix for f in sorted(found, key=_kind)):
        checks = dict.fromkeys(f.check for f in found if f.fix == fix)
        console.print(f"next:  {fix}  ({', '.join(checks)})", soft_wrap=True)
    errors = sum(f.severity == "error" for f in found)
    console.print(f"{errors} broken." if errors else f"The lake is right{f' since {since}' if since else ''}.")


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
    damaged, changes = len(summary["damaged"]), len(summary["changes"])
    if summary["dry_run"]:
        console.print(f"{damaged} damaged. Dry run: nothing was changed, and statistics were not checked.")
    elif damaged or changes:
        console.print(f"Repaired: partitions and files: {damaged}; values of the catalog: {changes}.")
    else:
        console.print("Nothing to repair.")


def lineage(found: Mapping[str, Any]) -> None:
    """Print the tables that a value comes from, then the partitions with their attempts, files and builds."""

    def line(indent: int, *parts: str | tuple[str, str]) -> None:
        console.print(Text.assemble(" " * indent, *parts), soft_wrap=True)

    for step in found["steps"]:
        read = ", ".join(step["rows_from"])
        line(0, (step["table"], "bold"), (f"  built from rows of {read}" if read else "", "dim"))
        for name, sources in step["columns"].items():
            line(2, name, (f"  <-  {', '.join(sources)}" if sources else "", "dim"))
    for part in found.get("partitions", ()):
        line(0)
        line(0, (f"raw.{part['dataset']} {part['partition']}", "bold"))
        for a in part["attempts"]:
            what = f"{count(a['rows'], 'row')}" if a["rows"] is not None else a["error"]
            line(2, f"{a['at']:%Y-%m-%d %H:%M:%S} {a['state'].replace('_', ' ')}: {what}")
            line(
                4,
                ("attempt  ", "dim"),
                a["attempt_id"],
                ("  restores  ", "dim") if a["restores"] else "",
                a["restores"] or "",
            )
            line(
                4, ("source   ", "dim"), a["source"] or "not recorded", f" (version {a['source_version'] or 'unknown'})"
            )
            snapshot = "expired" if a["snapshot_id"] is None else str(a["snapshot_id"])
            line(4, ("snapshot ", "dim"), snapshot, ("  run  ", "dim"), a["flow_run_id"])
        for path in part["files"]:
            line(2, ("file       ", "dim"), path)
        for b in part["builds"]:
            line(2, ("built      ", "dim"), f"into {b['environment']} from attempt {b['attempt_id']}")
            line(13, f"{b['at']:%Y-%m-%d %H:%M:%S}, run {b['flow_run_id']}")
    if "partitions" in found and not found["partitions"]:
        line(0, "No raw partition of this time is in the ledger.")


def seconds(stages: Mapping[str, float]) -> None:
    """Print the seconds of each stage."""
    table = Table(box=None, header_style="dim")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage, took in stages.items():
        table.add_row(stage, f"{took:.1f}")
    console.print(table)


def command(text: str, what: str) -> None:
    """Print what comes next, and the command that prints it."""
    console.print(f"\n{what}", style="bold", soft_wrap=True)
    console.print(f"$ {text}", style="dim", soft_wrap=True)


def error(error: LakeError) -> None:
    """Print an error and its next step, as the command does before it ends."""
    console.print(f"error: {redacted(error.message)}", style="red", soft_wrap=True)
    console.print(f"next:  {error.fix}", soft_wrap=True)


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
