"""What the commands share: the app, options, the flows' server, what is printed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ducklake_flows.errors import BadInput, LakeError, RunFailed, redacted
from ducklake_flows.settings import Settings, load_settings
from ducklake_flows.states import Mode

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from ducklake_flows.plan import LeftOut, Planned

app = typer.Typer(
    help="A partitioned lakehouse: plan, backfill, transform, query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

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

DEFAULT_WORKERS = min(os.cpu_count() or 2, 4)


def tell(error: LakeError) -> None:
    """Print an error and its next step to stderr."""
    typer.echo(f"error: {redacted(error.message)}", err=True)
    if error.fix:
        typer.echo(f"next:  {error.fix}", err=True)


def end_with(errors: Iterable[LakeError]) -> None:
    """Print these errors, if there are any, and exit with 1."""
    distinct = {str(error): error for error in errors}
    for error in distinct.values():
        tell(error)
    if distinct:
        raise typer.Exit(1)


def end_of_plan(left_out: Sequence[LeftOut]) -> None:
    """Print why datasets were left out of a plan; exit with 1 if one of them is at fault."""
    for left in left_out:
        if not left.is_fault:
            typer.echo(f"skipped: {left.error.message} ({left.error.fix})", err=True)
    end_with(left.error for left in left_out if left.is_fault)


def finish(run: Callable[[], dict[str, Any]], as_json: bool, *more_tags: str) -> dict[str, Any]:
    """Run a flow; with --json, print its summary even if a part of it failed."""
    from prefect import tags

    from ducklake_flows.orchestration.automations import TAG

    try:
        with tags(TAG, *more_tags):
            summary = run()
    except RunFailed as error:
        if as_json:
            print_json(error.summary)
        raise
    if as_json:
        print_json(summary)
    return summary


def own_project() -> Settings:
    """The settings of the project that this folder is in.

    Raises:
        BadInput: there is none.
    """
    settings = load_settings()
    if settings.project is None:
        raise BadInput("There is no project here.", "lake new NAME makes one; or change to its folder")
    return settings


def start_server(settings: Settings, *, local_workers: bool = False) -> str:
    """Wait for the flows' Prefect server, start it if it is the lake's own, and return the address of its UI.

    Args:
        settings: Where the lake is.
        local_workers: Also prepare the processes of a local Dask cluster, while the server starts.
    """
    from ducklake_flows.orchestration import forkserver, server

    url = server.begin(settings)
    if local_workers:
        forkserver.prepare_workers(settings)
    server.wait(settings, url)
    return server.ui_url(url)


def say_if_not_served(settings: Settings) -> None:
    """Say that deployments do not run, if the server is the lake's own and no worker belongs to it."""
    from ducklake_flows.orchestration import serve, server

    if server.running(settings) and not serve.serving(settings):
        echo(
            "Nothing runs the deployments (the UI's Run button, schedules, triggers, `lake emit`); for that: lake serve"
        )


def keys_of(names: list[str] | None) -> list[str]:
    """The keys of datasets by name; of all datasets if none is named."""
    from ducklake_flows.project import get_datasets

    return [d.key for d in get_datasets(names or [])]


def planned_of(
    names: list[str] | None,
    first: date | None,
    last: date | None,
    mode: str,
    *,
    recorded: bool = False,
    con: DuckDBPyConnection | None = None,
) -> tuple[list[Planned], list[LeftOut]]:
    """The plan of datasets by name, and what was left out; without names also the files that cannot be loaded."""
    from ducklake_flows.plan import LeftOut, plan_each
    from ducklake_flows.project import broken_datasets, get_datasets

    planned, left_out = plan_each(
        load_settings(),
        get_datasets(names or []),
        first,
        last,
        modes_of(mode),
        named=bool(names),
        recorded=recorded,
        con=con,
    )
    if not names:
        left_out += [LeftOut(key, error, is_fault=True) for key, error in broken_datasets().items()]
    return planned, left_out


def modes_of(text: str) -> list[Mode]:
    """The modes in a text such as ``missing,stale``."""
    try:
        return [Mode(name.strip()) for name in text.split(",")]
    except ValueError:
        raise BadInput(f"--mode {text!r} is not known.", f"choose from {MODES}; several: a,b") from None


def day_range(start: str | None, end: str | None) -> tuple[date | None, date | None]:
    """First and last day of a range."""
    first, last = _day(start, "--start"), _day(end, "--end")
    if first and last and last < first:
        raise BadInput(f"The range ends ({last}) before it starts ({first}).", "swap --start and --end")
    return first, last


def _day(text: str | None, option: str) -> date | None:
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError:
        raise BadInput(f"{option} {text!r} is not a day.", "write it like this: 2013-01-31") from None


def moment_of(text: str | None) -> datetime | None:
    """A moment, UTC if it has no zone."""
    try:
        moment = datetime.fromisoformat(text) if text is not None else None
    except ValueError:
        raise BadInput(
            f"--since {text!r} is not a day or a moment.", "write it like this: 2013-01-31 or 2013-01-31T18:00"
        ) from None
    return moment.replace(tzinfo=UTC) if moment and not moment.tzinfo else moment


def plan_row(planned: Planned) -> dict[str, Any]:
    """A planned partition as a row for JSON."""
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


def print_json(value: Any) -> None:
    """Print a value as JSON; see `AsJson`."""
    print(json.dumps(value, default=str, indent=1), file=_stdout, flush=True)


def plain(value: Any) -> Any:
    """A value that JSON can hold: keys of maps, NaN and infinities become text."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def echo(text: str) -> None:
    """Print a line."""
    typer.echo(text)
