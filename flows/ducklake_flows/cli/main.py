"""The `lake` command: parses, calls the flows or reads the lake, prints. It holds no logic of its own."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from ducklake_flows.errors import BadInput, LakeError, RunFailed, redacted
from ducklake_flows.settings import PROD, Settings, load_settings, project_settings
from ducklake_flows.states import Mode, Order

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from ducklake_flows.lake.builds import RefusedInterval
    from ducklake_flows.lake.checks import Warned
    from ducklake_flows.plan import LeftOut, Planned
    from ducklake_flows.report.overdue import Overdue

app = typer.Typer(
    help="A partitioned lakehouse: plan, backfill, transform, query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

environments_app = typer.Typer(no_args_is_help=False)
app.add_typer(environments_app, name="environments")

Names = Annotated[list[str] | None, typer.Argument(metavar="DATASET...", help="Datasets; default: all.")]
Start = Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD; default: each dataset's start.")]
End = Annotated[str | None, typer.Option(help="Last day, included; default: each dataset's end.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Machine-readable output on stdout.", callback=lambda asked: asked and _keep_stdout()),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes of the local Dask cluster.")]
MODES = ", ".join(mode.option for mode in Mode)
PlanMode = Annotated[str, typer.Option(metavar="MODE[,MODE...]", help=f"Which partitions to run: {MODES}; or several.")]
Environment = Annotated[str, typer.Option(help="The environment of models: prod, or one of `lake environments`.")]
EnvironmentName = Annotated[str, typer.Argument(metavar="NAME", help="The environment.")]

UNITS = ("hour", "day", "week", "month", "quarter", "year")

SOURCES = ("files", "rest_api", "sql_database")

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in shells."""

DEFAULT_WORKERS = min(os.cpu_count() or 2, 4)


@app.command()
def demo(
    start: Start = None,
    end: End = None,
    workers: Workers = DEFAULT_WORKERS,
) -> None:
    """Run real data from files to gold: New York's flights of 2013. In an empty folder, write the project first."""
    first, last = _range(start, end)
    settings = load_settings()
    if settings.project is None and not settings.datasets:
        from ducklake_flows import templates

        folder = Path.cwd()
        if any(folder.iterdir()):
            raise BadInput(f"{folder} is no project, and not empty.", "run it in an empty folder, or in a project")
        templates.write_project(folder, name="demo", demo=True)
        _echo(f"Wrote the demo's project into {folder}.")
        settings = project_settings(folder)
        os.environ |= settings.environment()
    from ducklake_flows.orchestration import server

    # A server's first start is slow: it begins before anything else is imported.
    api = server.begin(settings)
    from ducklake_flows.cli.demo import run

    run(settings, api, first, last, workers)


@app.command()
def new(
    what: Annotated[str, typer.Argument(metavar="NAME | dataset NAME | model LAYER.NAME", help="What to write.")],
    name: Annotated[str | None, typer.Argument(hidden=True)] = None,
    with_demo: Annotated[bool, typer.Option("--demo", help="A project with the demo's datasets and models.")] = False,
    source: Annotated[str, typer.Option(help=f"What is read: {', '.join(SOURCES)}.")] = SOURCES[0],
) -> None:
    """Write a project into a new folder, or add a dataset or a model to this one."""
    if source not in SOURCES:
        raise BadInput(f"--source {source!r} is not known.", f"choose from {', '.join(SOURCES)}")
    from ducklake_flows import templates

    kind = cast("templates.SourceKind", source)
    if name is None:
        folder = Path(what).absolute()
        written = templates.write_project(folder, demo=with_demo, source=kind)
        _echo(f"Wrote {len(written)} files into {folder}.")
        _echo(templates.next_steps(what, demo=with_demo, source=kind))
    elif what == "dataset":
        path = templates.write_dataset(_project().datasets[0], name, kind)
        _echo(f"Wrote {path}.\nNext: edit it, then: lake plan {name}")
    elif what == "model":
        from ducklake_flows.project import get_dataset

        project = _project()
        path = templates.write_model(project, name, get_dataset(name.partition(".")[2]))
        _echo(f"Wrote {path}.\nNext: edit it, then: lake transform")
    else:
        raise BadInput(f"{what!r} is nothing that can be added.", "lake new dataset NAME, or lake new model LAYER.NAME")


@app.command()
def serve() -> None:
    """Serve the lake until Ctrl-C: Prefect's UI, schedules, triggers, `lake emit`, metrics. Creates what is missing."""
    settings = _project()
    from ducklake_flows.orchestration.serve import serve as run
    from ducklake_flows.project import all_datasets, broken_datasets

    for error in broken_datasets().values():
        _tell(error)
    _echo("Starting Prefect and a worker ...")
    run(settings, list(all_datasets().values()), _echo)
    _echo("Stopped.")


@app.command()
def up() -> None:
    """Start the local Prefect server if it does not run, and print its address."""
    settings = load_settings()
    _echo(f"Prefect is at {_server(settings)}")
    _say_if_not_served(settings)


@app.command()
def down() -> None:
    """Stop `lake serve` and the local Prefect server."""
    from ducklake_flows.orchestration import serve, server

    settings = load_settings()
    served = serve.stop(settings)
    _echo("Stopped." if server.stop(settings) or served else "It was not running.")


@app.command()
def deploy() -> None:
    """Create the work pool and the deployments; update what the project's files changed, and nothing else."""
    settings = _project()
    _server(settings)
    from ducklake_flows.orchestration.deploy import deploy as run

    done = run(settings)
    for change in done.changes:
        _echo(f"{change[0].upper()}{change[1:]}.")
    for kept in done.kept:
        _echo(f"Kept as it is: {kept}.")
    if not done.changes:
        _echo("Nothing changed.")


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="Where; made if missing. Keep it as you keep a password.")],
) -> None:
    """Make the TLS certificates of a Dask cluster, unless valid ones are there, and print Dask's settings."""
    from ducklake_flows.orchestration import certificates as tls

    folder = folder.absolute()
    made = tls.ensure(folder)
    typer.echo(f"{'Made' if made else 'Kept'} the certificates in {folder}.", err=True)
    for name, value in tls.environment(folder).items():
        _echo(f"export {name}={shlex.quote(value)}")


@app.command()
def init() -> None:
    """Create the catalog, its tables, the landing zone and the gate. Safe to repeat."""
    settings = load_settings()
    from ducklake_flows.project import all_datasets, broken_datasets

    datasets = list(all_datasets().values())
    _server(settings)
    from ducklake_flows.orchestration.bootstrap import initialise

    made = initialise(settings, datasets)
    _echo(f"Created {', '.join(made)}." if made else "Everything exists already.")
    _end(broken_datasets().values())


@app.command()
def plan(
    names: Names = None,
    start: Start = None,
    end: End = None,
    mode: PlanMode = Mode.missing_failed.option,
    as_json: AsJson = False,
) -> None:
    """Show what a backfill would do, and why. Changes nothing."""
    from ducklake_flows.lake.connect import connected
    from ducklake_flows.lake.contracts import schema_changes
    from ducklake_flows.lake.schema import table_columns
    from ducklake_flows.plan import strays
    from ducklake_flows.project import get_datasets

    first, last = _range(start, end)
    settings, datasets = load_settings(), get_datasets(names or [])
    with connected(settings, read_only=True) as con:
        planned, left_out = _plan(names, first, last, mode, con=con)
        changes = schema_changes(con, datasets, table_columns(con))
    if as_json:
        _json([_row(p) for p in planned])
    else:
        from ducklake_flows.cli import show

        there = {p.dataset for p in planned}
        show.plan(planned, strays([d for d in datasets if d.key in there]))
        if changes:
            from ducklake_flows.models.lineage import readers

            show.schema(changes, readers(settings, {(c.table, c.column) for c in changes if c.before}))
    _end_of_plan(left_out)


@app.command()
def backfill(
    names: Names = None,
    start: Start = None,
    end: End = None,
    mode: PlanMode = Mode.missing_failed.option,
    partition: Annotated[
        list[str] | None,
        typer.Option(help='Only this partition, by key, or those of the range that match: "eu/*". May be repeated.'),
    ] = None,
    order: Annotated[Order, typer.Option(help="Which partitions come first.")] = Order.newest,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many partitions, the first ones in this order.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why it is run; kept in the ledger.")] = "",
    workers: Workers = DEFAULT_WORKERS,
    force: Annotated[
        bool, typer.Option("--force", help="Publish again, even if the rows are unchanged; implies --mode all.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Extract and publish partitions. Runs started by a schedule or an event go first on a shared cluster."""
    first, last = _range(start, end)
    modes = _modes(mode)
    if partition and not names:
        raise BadInput("--partition needs the name of a dataset.", f"lake backfill DATASET --partition {partition[0]}")
    if partition and (start or end) and not any("*" in key for key in partition):
        raise BadInput(
            "--start and --end belong to a pattern of partitions, not to a single one.",
            f'lake backfill {(names or [""])[0]} --partition "{partition[0]}"',
        )
    from ducklake_flows.plan import at_most_one
    from ducklake_flows.project import get_datasets

    datasets = get_datasets(names or [])
    keys = [d.key for d in datasets] if names else None
    _server(load_settings(), local_workers=not at_most_one(datasets, first, last, partition, limit))
    from ducklake_flows.ingest import ingest
    from ducklake_flows.orchestration.root_run import BACKFILL

    run = partial(ingest, keys, first, last, modes, workers, partition, order, limit, reason, force)
    summary = _finish(run, as_json, BACKFILL)
    if not as_json:
        from ducklake_flows.cli import show

        show.ingested(summary)


@app.command()
def transform(environment: Environment = "prod", as_json: AsJson = False) -> None:
    """Build the model intervals whose input changed, and everything downstream of them."""
    _server(load_settings())
    from ducklake_flows.transform import transform as flow

    summary = _finish(lambda: flow(environment), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.transformed(summary)


@environments_app.callback(invoke_without_command=True)
def environments(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the environments of models; promote or drop one."""
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from ducklake_flows.lake.builds import environments as found

    listed = found(load_settings())
    if as_json:
        _json([asdict(e) for e in listed])
    else:
        from ducklake_flows.cli import show

        show.environments(listed)


@environments_app.command()
def promote(name: EnvironmentName, as_json: AsJson = False) -> None:
    """Build prod from the models that this environment was built with, if nothing in it is refused or outdated."""
    settings = load_settings()
    _server(settings)
    from ducklake_flows.orchestration.environments import check_promotion
    from ducklake_flows.transform import transform as flow

    check_promotion(settings, name)
    summary = _finish(lambda: flow("prod"), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.transformed(summary)


@environments_app.command()
def drop(name: EnvironmentName) -> None:
    """Drop an environment's tables and views. prod and the raw tables are not touched."""
    settings = load_settings()
    _server(settings)
    from ducklake_flows.orchestration.environments import drop as do

    do(settings, name)
    _echo(f"Dropped {name}. Build it again with: lake transform --environment {name}")


@app.command()
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
    first, last = _range(start, end)
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
            plan = _plan(names, first, last, Mode.missing_failed.option, recorded=True, con=con)
            late, aside = overdue_in(con, datasets), counts(con, datasets)
            return *plan, refused_of(con, name), late, aside, warnings(con, tables)

    planned, left_out, refused, late, aside, warned = read()
    if as_json:
        from ducklake_flows.report import causes

        why = {(c.dataset, key): c.text for c in causes.failures(planned) for key in c.partitions}
        lacks = {each.dataset: each.to_json() for each in late}
        _json(
            [
                {
                    **_row(p),
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
    _end_of_plan(left_out)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("lake-report.html"),
    start: Start = None,
    end: End = None,
    check: Annotated[bool, typer.Option("--verify", help="Also run `lake verify` and show what it finds.")] = False,
) -> None:
    """Write one HTML page about the lake: grids, rows, durations, growth, failures. It needs no network."""
    settings = load_settings()
    first, last = _range(start, end)
    planned, left_out = _plan(None, first, last, Mode.missing_failed.option, recorded=True)
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
    _echo(f"Wrote {out} ({len(page.encode()) / 1000:,.0f} kB).")
    _end_of_plan(left_out)


@app.command()
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
        _echo(f"Metrics are at {url}")
        Event().wait()


@app.command()
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
        _json(found)
    else:
        from ducklake_flows.cli import show

        show.lineage(found)


@app.command()
def verify(
    since: Annotated[
        str | None, typer.Option(help="Check only what was recorded since this day or time (UTC); default: everything.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every promise about the lake; exit with 1 if one is broken."""
    from dataclasses import asdict

    from ducklake_flows import storage
    from ducklake_flows.lake.verify import verify as check
    from ducklake_flows.project import broken_datasets

    settings, moment = load_settings(), _moment(since)
    storage.check(settings)
    found = list(check(settings, moment))
    if as_json:
        _json([asdict(f) for f in found])
    else:
        from ducklake_flows.cli import show

        show.verified(found, moment)
    _end(broken_datasets().values())
    if any(f.severity == "error" for f in found):
        raise typer.Exit(1)


@app.command()
def maintain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    retention_days: Annotated[
        int | None,
        typer.Option(min=0, help="Expire snapshots older than this many days; default: LAKE_RETENTION_DAYS."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compact files, expire snapshots, delete unreferenced files. Never touches files in flight."""
    _server(load_settings())
    from ducklake_flows.maintain import maintain as flow

    summary = _finish(lambda: flow(dry_run, retention_days), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.maintained(summary)


@app.command()
def rollback(
    name: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="The dataset; with --to, none means the whole lake.")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help='The partition\'s key, as in `lake status --json`; with --to also "eu/*".')
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="A snapshot or a moment (UTC): what was published then. Default: an attempt back."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be rolled back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish earlier rows again, as one new commit, and rebuild the models from them."""
    if to is None and (name is None or partition is None):
        raise BadInput("Roll back what?", "lake rollback DATASET --partition KEY, or: lake rollback --to SNAPSHOT")
    if name is not None:
        _keys([name])
    _server(load_settings())
    from ducklake_flows.rollback import rollback as flow

    summary = _finish(lambda: flow(name, partition, to, dry_run), as_json)
    if as_json:
        return
    from ducklake_flows.cli import show

    show.rolled_back(summary, to, dry_run)


@app.command()
def migrate(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Rename a column. May be repeated.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Drop a column. May be repeated.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Undo the last migration of the table instead.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Drop what a stopped migration has left; the table is as before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check that every value fits, and say what.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a filled table the types of its contract; rename or drop columns. Readers see all of it or nothing."""
    if undo + abandon + bool(rename or drop) > 1:
        raise BadInput("--undo, --abandon and changes cannot be combined.", "choose one")
    pairs = [text.partition("=") for text in rename or ()]
    if wrong := [old + sep + new for old, sep, new in pairs if not (old and new)]:
        raise BadInput(f"--rename {wrong[0]!r} names no new column.", "--rename old_name=new_name")
    _keys([name])
    _server(load_settings())
    from ducklake_flows.migrate import migrate as flow

    names = {old: new for old, _, new in pairs}
    summary = _finish(lambda: flow(name, names, drop or [], undo, abandon, dry_run), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.migrated(name, summary, dry_run)


@app.command("drop")
def drop_rows(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset, also one that is no longer defined.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger.")],
    partition: Annotated[
        str | None, typer.Option(help='Only this partition, by key, or those that match: "eu/*".')
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be dropped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is published, as one commit, and rebuild the models without it. Earlier snapshots keep it."""
    if as_json and not (yes or dry_run):
        raise BadInput("--json cannot ask.", "add --yes, or --dry-run")
    _server(load_settings())
    from ducklake_flows.cli import show
    from ducklake_flows.drop import drop as flow

    if not (yes or dry_run):
        show.dropped(flow(name, reason, partition, True), dry_run=True)
        typer.confirm("Drop it?", abort=True, err=True)
    summary = _finish(lambda: flow(name, reason, partition, dry_run), as_json)
    if not as_json:
        show.dropped(summary, dry_run)


@app.command()
def move(
    to: Annotated[Path, typer.Option(metavar="FILE", help="The target's settings, in the form of .env.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be copied.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the lake with its whole history to another catalog and data path; it stays as it is. Goes on if stopped."""
    _server(load_settings())
    from ducklake_flows.move import move as flow

    summary = _finish(lambda: flow(str(to.absolute()), dry_run), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.moved(summary, dry_run)


@app.command()
def repair(
    names: Names = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the damaged partitions and files.")] = False,
    workers: Workers = DEFAULT_WORKERS,
    as_json: AsJson = False,
) -> None:
    """Repair what `lake verify` finds: publish lost rows again, correct statistics."""
    keys = _keys(names) if names else None
    _server(load_settings())
    from ducklake_flows.repair import repair as flow

    summary = _finish(lambda: flow(keys, dry_run, workers), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.repaired(summary)


@app.command()
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
        _json({"partitions": found.partitions, "reasons": reasons, "rows": found.sample})
    else:
        from ducklake_flows.cli import show

        show.quarantine(name, found)


@app.command()
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
        _json(_plain(asdict(found)))
    else:
        from ducklake_flows.cli import show

        show.diff(what, found, html)


@app.command()
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
            _echo(json.dumps(_plain(change), default=str))
    sys.stdout.flush()
    if cursor is not None:
        part = cursor.with_name(f".{cursor.name}.part")
        part.write_text(f"{seen}\n")
        part.replace(cursor)
    else:
        typer.echo(f"next:  lake changes {name} --since {seen}", err=True)


@app.command()
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
        _json({"audits": found.names, "results": found.found})
    else:
        from ducklake_flows.cli import show

        show.checks(name, found, history)


@app.command()
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
        _json(_plain(asdict(found)))
        return
    from ducklake_flows.cli import show

    show.rejected(f"{name} {partition}", found)


@app.command()
def replay(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    partition: Annotated[list[str] | None, typer.Option(help="Only this partition. May be repeated.")] = None,
    reason: Annotated[str, typer.Option(help="Why it is run; kept in the ledger.")] = "replay",
    workers: Workers = DEFAULT_WORKERS,
    as_json: AsJson = False,
) -> None:
    """Load the partitions with rows in quarantine again, after a fix of the source, the contract or the audits."""
    from ducklake_flows.lake.quarantine import read
    from ducklake_flows.project import get_datasets

    settings, datasets = load_settings(), get_datasets([name])
    keys = list(read(settings, datasets[0], partition or (), 0).partitions)
    if not keys:
        if as_json:
            _json({})
        else:
            _echo(f"Nothing of {name} is in quarantine.")
        return
    _server(settings, local_workers=len(keys) > 1)
    from ducklake_flows.ingest import ingest
    from ducklake_flows.orchestration.root_run import BACKFILL

    run = partial(ingest, [name], None, None, Mode.all, workers, keys, Order.newest, None, reason)
    summary = _finish(run, as_json, BACKFILL)
    if not as_json:
        from ducklake_flows.cli import show

        show.ingested(summary)
        show.quarantine(name, read(settings, datasets[0], keys, 0))


@app.command()
def emit(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    partitions: Annotated[list[str], typer.Argument(metavar="PARTITION...", help="Partitions that have arrived.")],
) -> None:
    """Emit an event that partitions have arrived at their source; it starts the ingest deployment."""
    settings = load_settings()
    _keys([name])
    _server(settings)
    from ducklake_flows.orchestration.events import arrived

    arrived(name, partitions)
    _echo(f"Emitted: {name} {', '.join(partitions)}.")
    _say_if_not_served(settings)


@app.command()
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
        _json([_plain(row) for row in found.dicts()])
        return
    from ducklake_flows.cli import show

    if as_csv:
        show.csv(found.columns, found.rows, sys.stdout)
    else:
        show.answer(found.columns, found.rows)


def main() -> None:
    """Run the command. A known error prints one message and the next step, and exits with 1."""
    # The terminal shows the run's own lines; Prefect's log is in its UI.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Searching tens of thousands of partitions for reference cycles takes a third of `lake status`.
    gc.set_threshold(100_000)
    try:
        app()
    except LakeError as error:
        _fail(error)
    except OSError as error:
        _fail(_file_error(error))
    except SystemExit as ended:
        # Typer turns Ctrl-C into this exit, without a message.
        if ended.code == INTERRUPTED:
            _tell(LakeError("Stopped. What was published stays published.", "run the same command again to continue"))
        raise
    except Exception as error:
        # Not imported here: a command that has not used DuckDB cannot raise its errors.
        duckdb = sys.modules.get("duckdb")
        if duckdb is None or not isinstance(error, duckdb.Error):
            raise
        from ducklake_flows.lake.connect import service_error

        _fail(service_error(error, load_settings()))


def _file_error(error: OSError) -> LakeError:
    """The user's error for a file of this host."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return LakeError(
        f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
        "free space on the disk, then run the same command again" if full else "check the path and its permissions",
    )


def _fail(error: LakeError) -> None:
    _tell(error)
    sys.exit(1)


def _tell(error: LakeError) -> None:
    typer.echo(f"error: {redacted(error.message)}", err=True)
    if error.fix:
        typer.echo(f"next:  {error.fix}", err=True)


def _end(errors: Iterable[LakeError]) -> None:
    """Print these errors, if there are any, and exit with 1."""
    distinct = {str(error): error for error in errors}
    for error in distinct.values():
        _tell(error)
    if distinct:
        raise typer.Exit(1)


def _end_of_plan(left_out: Sequence[LeftOut]) -> None:
    for left in left_out:
        if not left.is_fault:
            typer.echo(f"skipped: {left.error.message} ({left.error.fix})", err=True)
    _end(left.error for left in left_out if left.is_fault)


def _finish(run: Callable[[], dict[str, Any]], as_json: bool, *more_tags: str) -> dict[str, Any]:
    """Run a flow; with --json, print its summary even if a part of it failed."""
    from prefect import tags

    from ducklake_flows.orchestration.automations import TAG

    try:
        with tags(TAG, *more_tags):
            summary = run()
    except RunFailed as error:
        if as_json:
            _json(error.summary)
        raise
    if as_json:
        _json(summary)
    return summary


def _project() -> Settings:
    settings = load_settings()
    if settings.project is None:
        raise BadInput("There is no project here.", "lake new NAME makes one; or change to its folder")
    return settings


def _server(settings: Settings, *, local_workers: bool = False) -> str:
    from ducklake_flows.orchestration import forkserver, server

    url = server.begin(settings)
    if local_workers:
        forkserver.prepare_workers(settings)
    server.wait(settings, url)
    return server.ui_url(url)


def _say_if_not_served(settings: Settings) -> None:
    """Say that deployments do not run, if the server is the lake's own and no worker belongs to it."""
    from ducklake_flows.orchestration import serve, server

    if server.running(settings) and not serve.serving(settings):
        _echo(
            "Nothing runs the deployments (the UI's Run button, schedules, triggers, `lake emit`); for that: lake serve"
        )


def _keys(names: list[str] | None) -> list[str]:
    from ducklake_flows.project import get_datasets

    return [d.key for d in get_datasets(names or [])]


def _plan(
    names: list[str] | None,
    first: date | None,
    last: date | None,
    mode: str,
    *,
    recorded: bool = False,
    con: DuckDBPyConnection | None = None,
) -> tuple[list[Planned], list[LeftOut]]:
    from ducklake_flows.plan import LeftOut, plan_each
    from ducklake_flows.project import broken_datasets, get_datasets

    planned, left_out = plan_each(
        load_settings(),
        get_datasets(names or []),
        first,
        last,
        _modes(mode),
        named=bool(names),
        recorded=recorded,
        con=con,
    )
    if not names:
        left_out += [LeftOut(key, error, is_fault=True) for key, error in broken_datasets().items()]
    return planned, left_out


def _modes(text: str) -> list[Mode]:
    try:
        return [Mode(name.strip()) for name in text.split(",")]
    except ValueError:
        raise BadInput(f"--mode {text!r} is not known.", f"choose from {MODES}; several: a,b") from None


def _range(start: str | None, end: str | None) -> tuple[date | None, date | None]:
    first, last = _day(start, "--start"), _day(end, "--end")
    if first and last and last < first:
        raise BadInput(f"The range ends ({last}) before it starts ({first}).", "swap --start and --end")
    return first, last


def _day(text: str | None, option: str) -> date | None:
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError:
        raise BadInput(f"{option} {text!r} is not a day.", "write it like this: 2013-01-31") from None


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text is not None else None
    except ValueError:
        raise BadInput(
            f"--since {text!r} is not a day or a moment.", "write it like this: 2013-01-31 or 2013-01-31T18:00"
        ) from None
    return moment.replace(tzinfo=UTC) if moment and not moment.tzinfo else moment


def _row(planned: Planned) -> dict[str, Any]:
    entry = planned.entry
    return {
        "dataset": planned.dataset,
        "partition": planned.partition,
        "state": planned.state.value,
        "runs": planned.runs,
        "why": planned.why,
        "rows": entry.rows if entry else None,
        "bytes": entry.bytes if entry else None,
        "attempt_id": entry.attempt_id if entry else None,
        "error": entry.error if entry else None,
        "recorded_at": entry.recorded_at if entry else None,
    }


_stdout: TextIO = sys.stdout


def _keep_stdout() -> bool:
    """Reserve stdout for the JSON: redirect what this process and its workers print to stderr."""
    global _stdout  # noqa: PLW0603 - the process has one stdout
    _stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return True


def _json(value: Any) -> None:
    print(json.dumps(value, default=str, indent=1), file=_stdout, flush=True)


def _plain(value: Any) -> Any:
    """A value that JSON can hold: keys of maps, NaN and infinities become text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _echo(text: str) -> None:
    typer.echo(text)


if __name__ == "__main__":
    main()
