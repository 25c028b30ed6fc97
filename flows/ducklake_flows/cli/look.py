"""Commands that read the lake: its state, its past, its rows."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from ducklake_flows.cli.common import (
    AsJson,
    End,
    Start,
    app,
    day_range,
    echo,
    end_of_plan,
    plain,
    plan_row,
    planned_of,
    print_json,
)
from ducklake_flows.errors import BadInput
from ducklake_flows.settings import PROD, load_settings
from ducklake_flows.states import Mode

if TYPE_CHECKING:
    from ducklake_flows.lake.builds import RefusedInterval
    from ducklake_flows.lake.checks import Warned
    from ducklake_flows.plan import LeftOut, Planned
    from ducklake_flows.report.overdue import Overdue

UNITS = ("hour", "day", "week", "month", "quarter", "year")

PANEL = "Look"


@app.command(rich_help_panel=PANEL)
def status(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="One dataset; default: all.")] = None,
    start: Start = None,
    end: End = None,
    by: Annotated[
        str | None, typer.Option(help=f"What a mark stands for: {', '.join(UNITS)}; default: what fits.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Print again every few seconds, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state of every partition: a grid, counts, what is overdue, the failures by cause."""
    if by is not None and by not in UNITS:
        raise BadInput(f"--by {by!r} is not known.", f"choose from {', '.join(UNITS)}")
    if watch and as_json:
        raise BadInput("--watch and --json cannot be combined.", "choose one")
    from ducklake_flows.lake.builds import refused_of
    from ducklake_flows.lake.checks import warnings
    from ducklake_flows.lake.connect import connected, one_snapshot
    from ducklake_flows.lake.quarantine import counts
    from ducklake_flows.project import get_datasets
    from ducklake_flows.report.overdue import overdue_in

    settings, names = load_settings(), [name] if name else []
    first, last = day_range(start, end)
    datasets = get_datasets(names)

    tables = {table.key for dataset in datasets for table in (dataset, *dataset.members)} if name else None

    def read() -> tuple[
        list[Planned],
        list[LeftOut],
        list[RefusedInterval],
        list[Overdue],
        dict[str, tuple[int, int]],
        list[Warned],
    ]:
        with connected(settings, read_only=True) as con, one_snapshot(con):
            plan = planned_of(names, first, last, Mode.missing_failed.option, recorded=True, con=con)
            late, aside = overdue_in(con, datasets), counts(con, datasets)
            return *plan, refused_of(con, name), late, aside, warnings(con, tables)

    planned, left_out, refused, late, aside, warned = read()
    if as_json:
        from ducklake_flows.report import causes

        why = {(c.dataset, key): c.text for c in causes.failures(planned) for key in c.partitions}
        lacks = {each.dataset: each.to_json() for each in late}
        print_json(
            [
                {
                    **plan_row(p),
                    "cause": why.get((p.dataset, p.partition)),
                    "overdue": lacks.get(p.dataset),
                    "warnings": [w.name for w in warned if w.subject == p.dataset and p.partition in w.partitions],
                }
                for p in planned
            ]
        )
    else:
        from ducklake_flows.cli import show

        def print_once() -> None:
            planned, _, refused, late, aside, warned = read()
            show.status(planned, by, refused, late, aside, warned)

        if watch:
            show.watch(print_once)
            return
        show.status(planned, by, refused, late, aside, warned)
    end_of_plan(left_out)


@app.command(rich_help_panel=PANEL)
def report(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("lake-report.html"),
    start: Start = None,
    end: End = None,
    check: Annotated[bool, typer.Option("--verify", help="Also run `lake verify` and show what it finds.")] = False,
) -> None:
    """Write one HTML page about the lake: grids, rows, durations, growth, failures. It needs no network."""
    settings = load_settings()
    first, last = day_range(start, end)
    planned, left_out = planned_of(None, first, last, Mode.missing_failed.option, recorded=True)
    findings = None
    if check:
        from ducklake_flows.lake.verify import verify as find

        findings = list(find(settings))
    from ducklake_flows.report.page import render

    page = render(settings, planned, left_out, findings)
    written = out.with_name(f".{out.name}.part")
    try:
        written.write_text(page, encoding="utf-8")
        written.replace(out)
    finally:
        written.unlink(missing_ok=True)
    echo(f"Wrote {out} ({len(page.encode()) / 1000:,.0f} kB).")
    end_of_plan(left_out)


@app.command(rich_help_panel=PANEL)
def metrics(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve them at http://HOST:PORT/metrics until Ctrl-C.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at, with --port. Whoever reaches it can read the figures.")
    ] = "127.0.0.1",
) -> None:
    """Print the lake's figures as Prometheus metrics, or serve them. `lake serve` serves them, too."""
    from ducklake_flows.report import metrics as figures

    settings = load_settings()
    if port is None and host != figures.ADDRESS:
        raise BadInput("--host needs --port.", f"lake metrics --host {host} --port 9464")
    if port is None:
        sys.stdout.buffer.write(figures.metrics(settings))
        return
    with figures.serving(settings, port, host) as url, contextlib.suppress(KeyboardInterrupt):
        echo(f"Metrics are at {url}")
        Event().wait()


@app.command(rich_help_panel=PANEL)
def lineage(
    target: Annotated[str, typer.Argument(metavar="TABLE[.COLUMN]", help="Such as gold.carrier_daily.flights.")],
    partition: Annotated[
        str | None, typer.Option(help="Also the raw partitions that overlap this one, such as 2013-01-05 or 2013-W01.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where a value comes from: columns, models, raw partitions, attempts, sources, files, snapshots, runs."""
    from ducklake_flows.report.lineage import lineage as trace

    found = trace(load_settings(), target, partition)
    if as_json:
        print_json(found)
    else:
        from ducklake_flows.cli import show

        show.lineage(found)


@app.command(rich_help_panel=PANEL)
def quarantine(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    partition: Annotated[list[str] | None, typer.Option(help="Only this partition. May be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="The most rows to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the rows of a dataset that are set aside: how many, why, and some of them."""
    from ducklake_flows.lake.quarantine import read
    from ducklake_flows.project import get_datasets

    (dataset,) = get_datasets([name])
    found = read(load_settings(), dataset, partition or (), limit)
    if as_json:
        reasons = [{"column": column, "reason": why, "rows": n} for (column, why), n in found.reasons.items()]
        print_json({"partitions": found.partitions, "reasons": reasons, "rows": found.sample})
    else:
        from ducklake_flows.cli import show

        show.quarantine(name, found)


@app.command(rich_help_panel=PANEL)
def diff(
    what: Annotated[str, typer.Argument(metavar="DATASET | MODEL", help="A dataset, or a model such as gold.sales.")],
    old: Annotated[
        str | None,
        typer.Argument(
            help="A snapshot, an attempt or a moment (UTC); of a model an environment. Default: before the last change."
        ),
    ] = None,
    new: Annotated[str | None, typer.Argument(help="The same. Default: now; of a model prod.")] = None,
    partition: Annotated[str | None, typer.Option(help="Only this partition.")] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="A column that identifies a model's row. May be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="The most rows to show.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Also write what is shown to this HTML file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two states of a dataset, or of a model in two environments."""
    from dataclasses import asdict

    from ducklake_flows.lake.diff import MODEL, diff_dataset, diff_tables, in_environment
    from ducklake_flows.lake.history import NOW
    from ducklake_flows.project import get_dataset

    settings = load_settings()
    if MODEL.fullmatch(what):
        first, last = (name or PROD for name in (old or next(iter(settings.environments), PROD), new))
        for name in (first, last):
            settings.check_environment(name)
        sides = [(name, in_environment(what, name)) for name in (first, last)]
        found = diff_tables(settings, sides[0], sides[1], key or (), limit)
    else:
        found = diff_dataset(settings, get_dataset(what), old, new or NOW, partition, limit)
    if as_json:
        print_json(plain(asdict(found)))
    else:
        from ducklake_flows.cli import show

        show.diff(what, found, html)


@app.command(rich_help_panel=PANEL)
def changes(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    since: Annotated[
        int | None, typer.Option(min=0, help="The snapshot that was seen; default: nothing, so every row is an insert.")
    ] = None,
    cursor: Annotated[
        Path | None, typer.Option(help="A file that keeps the snapshot: read first, written once all lines are out.")
    ] = None,
) -> None:
    """Print the rows that changed since a snapshot, a JSON object a line: change, key, row, before.

    If it ends early, the cursor stays, and the same changes come again: at least once.
    """
    if cursor is not None and since is not None:
        raise BadInput("--since and --cursor both say where to begin.", "give one of them")
    from ducklake_flows.lake.diff import changes as stream

    if cursor is not None and cursor.exists():
        text = cursor.read_text().strip()
        if not text.isdecimal():
            raise BadInput(f"{cursor} holds {text[:40]!r}, not a snapshot.", "correct or delete the file")
        since = int(text)
    with stream(name, since) as (seen, found):
        for change in found:
            echo(json.dumps(plain(change), default=str))
    sys.stdout.flush()
    if cursor is not None:
        part = cursor.with_name(f".{cursor.name}.part")
        part.write_text(f"{seen}\n")
        part.replace(cursor)
    else:
        typer.echo(f"next:  lake changes {name} --since {seen}", err=True)


@app.command(rich_help_panel=PANEL)
def checks(
    name: Annotated[str, typer.Argument(metavar="DATASET | MODEL", help="A dataset, or a model such as gold.sales.")],
    partition: Annotated[
        list[str] | None, typer.Option(help="Only this partition; of a model this day or hour. May be repeated.")
    ] = None,
    check: Annotated[str | None, typer.Option(help="Only this audit.")] = None,
    history: Annotated[
        bool, typer.Option("--history", help="All results, the newest first; default: the last of each partition.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="The most results to show.")] = 20,
    environment: Annotated[str, typer.Option(help="Of a model: the environment.")] = PROD,
    as_json: AsJson = False,
) -> None:
    """Show the results of the audits of a dataset or a model: observed, expected, and rows that break them."""
    from ducklake_flows.lake.checks import read, read_model
    from ducklake_flows.lake.diff import MODEL
    from ducklake_flows.project import get_dataset

    settings = load_settings()
    if MODEL.fullmatch(name):
        settings.check_environment(environment)
        found = read_model(settings, name, environment, partition or (), check, limit, history)
    else:
        found = read(settings, get_dataset(name), partition or (), check, limit, history)
    if as_json:
        print_json({"audits": found.names, "results": found.found})
    else:
        from ducklake_flows.cli import show

        show.checks(name, found, history)


@app.command(rich_help_panel=PANEL)
def inspect(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    partition: Annotated[str, typer.Argument(metavar="PARTITION", help="The partition's key.")],
    where: Annotated[str, typer.Option(help='Only rows that meet this SQL condition: "amount < 0".')] = "",
    limit: Annotated[int, typer.Option(min=0, help="The most rows to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the rows of a partition's last rejected attempt, which are kept for a day."""
    from dataclasses import asdict

    from ducklake_flows.lake.rejected import read
    from ducklake_flows.project import get_dataset

    found = read(load_settings(), get_dataset(name), partition, where, limit)
    if as_json:
        print_json(plain(asdict(found)))
        return
    from ducklake_flows.cli import show

    show.rejected(f"{name} {partition}", found)


@app.command(rich_help_panel=PANEL)
def sql(
    query: Annotated[str, typer.Argument(help="One query: SELECT, FROM, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    allow_export: Annotated[
        bool, typer.Option("--allow-export", help="Also accept COPY (query) TO 'file', for a file outside the lake.")
    ] = False,
) -> None:
    """Run one query on the lake. It cannot change anything or read anything else."""
    if as_json and as_csv:
        raise BadInput("--json and --csv cannot be combined.", "choose one")
    from ducklake_flows.lake.query import answer

    found = answer(load_settings(), query, allow_export=allow_export)
    if as_json:
        print_json([plain(row) for row in found.dicts()])
        return
    from ducklake_flows.cli import show

    if as_csv:
        show.csv(found.columns, found.rows, sys.stdout)
    else:
        show.answer(found.columns, found.rows)
