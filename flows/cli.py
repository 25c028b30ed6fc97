"""The `lake` command: parses, calls the flows or reads the lake, prints. It holds no logic of its own."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.errors import BadInput, LakeError, RunFailed
from flows.plan import Mode
from flows.settings import Settings, load_settings

if TYPE_CHECKING:
    from flows.plan import Planned

app = typer.Typer(
    help="A partitioned lakehouse: plan, backfill, transform, look.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Names = Annotated[list[str] | None, typer.Argument(metavar="DATASET...", help="Datasets; all when none is named.")]
Start = Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD; the dataset's own when left out.")]
End = Annotated[str | None, typer.Option(help="Last day, included; the dataset's own when left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes of the local Dask cluster.")]
PlanMode = Annotated[Mode, typer.Option(help="Which partitions to do.")]
Environment = Annotated[str, typer.Option(help="SQLMesh's environment.")]

INTERRUPTED = 130
"""The exit code of a command that was stopped by Ctrl-C, as shells have it."""

DEFAULT_WORKERS = min(os.cpu_count() or 2, 4)


@app.command()
def demo(
    start: Start = None,
    end: End = None,
    workers: Workers = DEFAULT_WORKERS,
) -> None:
    """Real data, from files to gold: New York's flights and weather of 2013."""
    first, last = _range(start, end)
    from flows.demo import run

    run(load_settings(), first, last, workers)


@app.command()
def up() -> None:
    """Start the local Prefect server, or say where it is."""
    _echo(f"Prefect is at {_server(load_settings())}")


@app.command()
def down() -> None:
    """Stop the local Prefect server."""
    from flows import server

    _echo("Stopped." if server.stop(load_settings()) else "It was not running.")


@app.command()
def init() -> None:
    """Make the catalog, its tables and the gate. Safe to repeat."""
    settings = load_settings()
    from flows.datasets import all_datasets

    datasets = all_datasets().values()
    _server(settings)
    from flows.setup import initialise

    made = initialise(settings, list(datasets))
    _echo(f"Made {', '.join(made)}." if made else "Everything is there already.")


@app.command()
def plan(
    names: Names = None,
    start: Start = None,
    end: End = None,
    mode: PlanMode = Mode.missing_failed,
    as_json: AsJson = False,
) -> None:
    """What a backfill would do, and why; changes nothing."""
    planned = _plan(names, start, end, mode)
    if as_json:
        _json([_row(p) for p in planned])
        return
    from flows import show

    show.plan(planned)


@app.command()
def backfill(
    names: Names = None,
    start: Start = None,
    end: End = None,
    mode: PlanMode = Mode.missing_failed,
    workers: Workers = DEFAULT_WORKERS,
    as_json: AsJson = False,
) -> None:
    """Extract and publish partitions."""
    first, last = _range(start, end)
    keys = _keys(names)
    _server(load_settings(), local_workers=True)
    from flows.ingest import ingest

    summary = _finish(lambda: ingest(keys, first, last, mode, workers), as_json)
    if not as_json:
        from flows import show

        show.ingested(summary)


@app.command()
def transform(environment: Environment = "prod", as_json: AsJson = False) -> None:
    """Build the models whose input changed: just these intervals, and what is downstream."""
    _server(load_settings())
    from flows.transform import transform as flow

    summary = _finish(lambda: flow(environment), as_json)
    if not as_json:
        from flows import show

        show.transformed(summary)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="One dataset; all when left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Where every partition stands: a grid, counts, the last errors."""
    planned = _plan([name] if name else None, None, None, Mode.missing_failed)
    if as_json:
        _json([_row(p) for p in planned])
        return
    from flows import show

    show.status(planned)


@app.command()
def verify(
    since: Annotated[
        str | None, typer.Option(help="Read only what was recorded since this day or moment (UTC); all when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every promise about the lake; exit 1 when one is broken."""
    from dataclasses import asdict

    from flows.lake.verify import verify as check

    found, moment = [], _moment(since)
    for finding in check(load_settings(), moment):
        found.append(finding)
        if not as_json:
            _echo(f"{finding.severity}: {finding.subject}: {finding.message} ({finding.check})")
    errors = sum(f.severity == "error" for f in found)
    if as_json:
        _json([asdict(f) for f in found])
    else:
        _echo(f"{errors} broken." if errors else f"The lake is right{f' since {moment}' if moment else ''}.")
    if errors:
        raise typer.Exit(1)


@app.command()
def maintain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    retention_days: Annotated[
        int | None, typer.Option(min=0, help="Expire snapshots older than this; LAKE_RETENTION_DAYS when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compact, expire, clean; never touches files in flight."""
    _server(load_settings())
    from flows.maintain import maintain as flow

    summary = _finish(lambda: flow(dry_run, retention_days), as_json)
    if not as_json:
        from flows import show

        show.maintained(summary)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    partition: Annotated[str, typer.Option(help="The partition, as `lake status --json` spells it.")],
    as_json: AsJson = False,
) -> None:
    """Back to the attempt before, as a new commit; the models follow."""
    _keys([name])
    _server(load_settings())
    from flows.rollback import rollback as flow

    summary = _finish(lambda: flow(name, partition), as_json)
    if not as_json:
        _echo(f"{name} {partition} is back at {summary['rows']:,} rows (attempt {summary['restores']}).")
        from flows import show

        show.transformed(summary["transform"])


@app.command()
def repair(as_json: AsJson = False) -> None:
    """Compute statistics that `lake verify` finds wrong again, from the files, as a new commit."""
    _server(load_settings())
    from flows.repair import repair as flow

    summary = _finish(flow, as_json)
    if not as_json:
        for change in summary["changes"]:
            subject = f"{change['table']} {change['subject']}".rstrip()
            _echo(f"{subject}: {change['before']}  ->  {change['after']}")
        _echo(f"{len(summary['changes'])} repaired." if summary["changes"] else "Nothing to repair.")


@app.command()
def emit(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    partitions: Annotated[list[str], typer.Argument(metavar="PARTITION...", help="What has arrived.")],
) -> None:
    """Say that a source has something for these partitions: the ingest deployment takes them up."""
    settings = load_settings()
    _keys([name])
    _server(settings)
    from flows.events import arrived

    arrived(name, partitions)
    _echo(f"Told Prefect: {name} {', '.join(partitions)}.")


@app.command()
def sql(query: Annotated[str, typer.Argument(help="One query.")], as_json: AsJson = False) -> None:
    """One query on the attached lake, read-only."""
    from flows.lake.query import query as run

    rows = run(load_settings(), query)
    if as_json:
        _json(rows)
        return
    from flows import show

    show.rows(rows)


def main() -> None:
    """Run the command; every foreseen fault is one message, its next step, and exit code 1."""
    # The terminal shows the run's own lines; Prefect's log goes to its UI.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Tens of thousands of partitions are not in circles: to look for some time and again is a third of `lake status`.
    gc.set_threshold(100_000)
    try:
        app()
    except LakeError as error:
        _fail(error)
    except OSError as error:
        _fail(LakeError(f"{error.strerror or error}: {error.filename or ''}", "free the disk or mend its rights"))
    except SystemExit as ended:
        # Typer makes this of a Ctrl-C, without a word.
        if ended.code == INTERRUPTED:
            _tell(LakeError("Stopped. What was published stays published.", "run the same command again to go on"))
        raise


def _fail(error: LakeError) -> None:
    _tell(error)
    sys.exit(1)


def _tell(error: LakeError) -> None:
    typer.echo(f"error: {error.message}", err=True)
    if error.fix:
        typer.echo(f"next:  {error.fix}", err=True)


def _finish(run: Callable[[], dict[str, Any]], as_json: bool) -> dict[str, Any]:
    """Run a flow; its summary is printed as JSON even when some of it failed."""
    from prefect import tags

    from flows.notify import TAG

    try:
        with tags(TAG):
            summary = run()
    except RunFailed as error:
        if as_json:
            _json(error.summary)
        raise
    if as_json:
        _json(summary)
    return summary


def _server(settings: Settings, *, local_workers: bool = False) -> str:
    from flows import ahead, server

    url = server.begin(settings)
    if local_workers:
        ahead.prepare_workers(settings)
    server.wait(settings, url)
    return server.ui_url(url)


def _keys(names: list[str] | None) -> list[str]:
    from flows.datasets import get_datasets

    return [d.key for d in get_datasets(names or [])]


def _plan(names: list[str] | None, start: str | None, end: str | None, mode: Mode) -> list[Planned]:
    from flows.datasets import get_datasets
    from flows.plan import make_plan

    first, last = _range(start, end)
    return make_plan(load_settings(), get_datasets(names or []), first, last, mode)


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


def _json(value: Any) -> None:
    _echo(json.dumps(value, default=str, indent=1))


def _echo(text: str) -> None:
    typer.echo(text)


if __name__ == "__main__":
    main()
