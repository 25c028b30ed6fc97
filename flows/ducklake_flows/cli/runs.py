"""Commands that load and build: plan, backfill, transform, environments, replay, emit."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ducklake_flows.cli.common import (
    DEFAULT_WORKERS,
    AsJson,
    End,
    Environment,
    EnvironmentName,
    Names,
    PlanMode,
    Start,
    Workers,
    app,
    day_range,
    echo,
    end_of_plan,
    finish,
    keys_of,
    modes_of,
    plan_row,
    planned_of,
    print_json,
    say_if_not_served,
    start_server,
)
from ducklake_flows.errors import BadInput
from ducklake_flows.settings import load_settings
from ducklake_flows.states import Mode, Order

PANEL = "Load and build"

environments_app = typer.Typer(no_args_is_help=False)
app.add_typer(environments_app, name="environments", rich_help_panel=PANEL)


@app.command(rich_help_panel=PANEL)
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

    first, last = day_range(start, end)
    settings, datasets = load_settings(), get_datasets(names or [])
    with connected(settings, read_only=True) as con:
        planned, left_out = planned_of(names, first, last, mode, con=con)
        changes = schema_changes(con, datasets, table_columns(con))
    if as_json:
        print_json([plan_row(p) for p in planned])
    else:
        from ducklake_flows.cli import show

        there = {p.dataset for p in planned}
        show.plan(planned, strays([d for d in datasets if d.key in there]))
        if changes:
            from ducklake_flows.models.lineage import readers

            show.schema(changes, readers(settings, {(c.table, c.column) for c in changes if c.before}))
    end_of_plan(left_out)


@app.command(rich_help_panel=PANEL)
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
    first, last = day_range(start, end)
    modes = modes_of(mode)
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
    start_server(load_settings(), local_workers=not at_most_one(datasets, first, last, partition, limit))
    from ducklake_flows.ingest import ingest
    from ducklake_flows.orchestration.root_run import BACKFILL

    run = partial(ingest, keys, first, last, modes, workers, partition, order, limit, reason, force)
    summary = finish(run, as_json, BACKFILL)
    if not as_json:
        from ducklake_flows.cli import show

        show.ingested(summary)


@app.command(rich_help_panel=PANEL)
def transform(environment: Environment = "prod", as_json: AsJson = False) -> None:
    """Build the model intervals whose input changed, and everything downstream of them."""
    start_server(load_settings())
    from ducklake_flows.transform import transform as flow

    summary = finish(lambda: flow(environment), as_json)
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
        print_json([asdict(e) for e in listed])
    else:
        from ducklake_flows.cli import show

        show.environments(listed)


@environments_app.command()
def promote(name: EnvironmentName, as_json: AsJson = False) -> None:
    """Build prod from the models that this environment was built with, if nothing in it is refused or outdated."""
    settings = load_settings()
    start_server(settings)
    from ducklake_flows.orchestration.environments import check_promotion
    from ducklake_flows.transform import transform as flow

    check_promotion(settings, name)
    summary = finish(lambda: flow("prod"), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.transformed(summary)


@environments_app.command()
def drop(name: EnvironmentName) -> None:
    """Drop an environment's tables and views. prod and the raw tables are not touched."""
    settings = load_settings()
    start_server(settings)
    from ducklake_flows.orchestration.environments import drop as do

    do(settings, name)
    echo(f"Dropped {name}. Build it again with: lake transform --environment {name}")


@app.command(rich_help_panel=PANEL)
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
            print_json({})
        else:
            echo(f"Nothing of {name} is in quarantine.")
        return
    start_server(settings, local_workers=len(keys) > 1)
    from ducklake_flows.ingest import ingest
    from ducklake_flows.orchestration.root_run import BACKFILL

    run = partial(ingest, [name], None, None, Mode.all, workers, keys, Order.newest, None, reason)
    summary = finish(run, as_json, BACKFILL)
    if not as_json:
        from ducklake_flows.cli import show

        show.ingested(summary)
        show.quarantine(name, read(settings, datasets[0], keys, 0))


@app.command(rich_help_panel=PANEL)
def emit(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    partitions: Annotated[list[str], typer.Argument(metavar="PARTITION...", help="Partitions that have arrived.")],
) -> None:
    """Emit an event that partitions have arrived at their source; it starts the ingest deployment."""
    settings = load_settings()
    keys_of([name])
    start_server(settings)
    from ducklake_flows.orchestration.events import arrived

    arrived(name, partitions)
    echo(f"Emitted: {name} {', '.join(partitions)}.")
    say_if_not_served(settings)
