"""Commands of a project: begin one, add to it, serve and deploy it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, cast

import typer

from ducklake_flows.cli.common import (
    DEFAULT_WORKERS,
    End,
    Start,
    Workers,
    app,
    day_range,
    echo,
    end_with,
    own_project,
    say_if_not_served,
    start_server,
    tell,
)
from ducklake_flows.errors import BadInput
from ducklake_flows.settings import load_settings, project_settings

SOURCES = ("files", "rest_api", "sql_database")

PANEL = "Project"


@app.command(rich_help_panel=PANEL)
def demo(
    start: Start = None,
    end: End = None,
    workers: Workers = DEFAULT_WORKERS,
) -> None:
    """Run real data from files to gold: New York's flights of 2013. In an empty folder, write the project first."""
    first, last = day_range(start, end)
    settings = load_settings()
    if settings.project is None and not settings.datasets:
        from ducklake_flows import templates

        folder = Path.cwd()
        if any(folder.iterdir()):
            raise BadInput(f"{folder} is no project, and not empty.", "run it in an empty folder, or in a project")
        templates.write_project(folder, name="demo", demo=True)
        echo(f"Wrote the demo's project into {folder}.")
        settings = project_settings(folder)
        os.environ |= settings.environment()
    from ducklake_flows.orchestration import server

    # A server's first start is slow: it begins before anything else is imported.
    api = server.begin(settings)
    from ducklake_flows.cli.demo import run

    run(settings, api, first, last, workers)


@app.command(rich_help_panel=PANEL)
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
        echo(f"Wrote {len(written)} files into {folder}.")
        echo(templates.next_steps(what, demo=with_demo, source=kind))
    elif what == "dataset":
        path = templates.write_dataset(own_project().datasets[0], name, kind)
        echo(f"Wrote {path}.\nNext: edit it, then: lake plan {name}")
    elif what == "model":
        from ducklake_flows.project import get_dataset

        project = own_project()
        path = templates.write_model(project, name, get_dataset(name.partition(".")[2]))
        echo(f"Wrote {path}.\nNext: edit it, then: lake transform")
    else:
        raise BadInput(f"{what!r} is nothing that can be added.", "lake new dataset NAME, or lake new model LAYER.NAME")


@app.command(rich_help_panel=PANEL)
def serve() -> None:
    """Serve the lake until Ctrl-C: Prefect's UI, schedules, triggers, `lake emit`, metrics. Creates what is missing."""
    settings = own_project()
    from ducklake_flows.orchestration.serve import serve as run
    from ducklake_flows.project import all_datasets, broken_datasets

    for error in broken_datasets().values():
        tell(error)
    echo("Starting Prefect and a worker ...")
    run(settings, list(all_datasets().values()), echo)
    echo("Stopped.")


@app.command(rich_help_panel=PANEL)
def up() -> None:
    """Start the local Prefect server if it does not run, and print its address."""
    settings = load_settings()
    echo(f"Prefect is at {start_server(settings)}")
    say_if_not_served(settings)


@app.command(rich_help_panel=PANEL)
def down() -> None:
    """Stop `lake serve` and the local Prefect server."""
    from ducklake_flows.orchestration import serve, server

    settings = load_settings()
    served = serve.stop(settings)
    echo("Stopped." if server.stop(settings) or served else "It was not running.")


@app.command(rich_help_panel=PANEL)
def deploy() -> None:
    """Create the work pool and the deployments; update what the project's files changed, and nothing else."""
    settings = own_project()
    start_server(settings)
    from ducklake_flows.orchestration.deploy import deploy as run

    done = run(settings)
    for change in done.changes:
        echo(f"{change[0].upper()}{change[1:]}.")
    for kept in done.kept:
        echo(f"Kept as it is: {kept}.")
    if not done.changes:
        echo("Nothing changed.")


@app.command(rich_help_panel=PANEL)
def certificates(
    folder: Annotated[Path, typer.Argument(help="Where; made if missing. Keep it as you keep a password.")],
) -> None:
    """Make the TLS certificates of a Dask cluster, unless valid ones are there, and print Dask's settings."""
    from ducklake_flows.orchestration import certificates as tls

    folder = folder.absolute()
    made = tls.ensure(folder)
    typer.echo(f"{'Made' if made else 'Kept'} the certificates in {folder}.", err=True)
    for name, value in tls.environment(folder).items():
        echo(f"export {name}={shlex.quote(value)}")


@app.command(rich_help_panel=PANEL)
def init() -> None:
    """Create the catalog, its tables, the landing zone and the gate. Safe to repeat."""
    settings = load_settings()
    from ducklake_flows.project import all_datasets, broken_datasets

    datasets = list(all_datasets().values())
    start_server(settings)
    from ducklake_flows.orchestration.bootstrap import initialise

    made = initialise(settings, datasets)
    echo(f"Created {', '.join(made)}." if made else "Everything exists already.")
    end_with(broken_datasets().values())
