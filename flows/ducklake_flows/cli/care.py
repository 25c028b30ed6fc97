"""Commands that keep the lake right or change what is in it: verify, repair, rollback, migrate, drop, move."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ducklake_flows.cli.common import (
    DEFAULT_WORKERS,
    AsJson,
    Names,
    Workers,
    app,
    end_with,
    finish,
    keys_of,
    moment_of,
    print_json,
    start_server,
)
from ducklake_flows.errors import BadInput
from ducklake_flows.settings import load_settings

PANEL = "Keep right, change, move"


@app.command(rich_help_panel=PANEL)
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

    settings, moment = load_settings(), moment_of(since)
    storage.check(settings)
    found = list(check(settings, moment))
    if as_json:
        print_json([asdict(f) for f in found])
    else:
        from ducklake_flows.cli import show

        show.verified(found, moment)
    end_with(broken_datasets().values())
    if any(f.severity == "error" for f in found):
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
def maintain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    retention_days: Annotated[
        int | None,
        typer.Option(min=0, help="Expire snapshots older than this many days; default: LAKE_RETENTION_DAYS."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compact files, expire snapshots, delete unreferenced files. Never touches files in flight."""
    start_server(load_settings())
    from ducklake_flows.maintain import maintain as flow

    summary = finish(lambda: flow(dry_run, retention_days), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.maintained(summary)


@app.command(rich_help_panel=PANEL)
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
        keys_of([name])
    start_server(load_settings())
    from ducklake_flows.rollback import rollback as flow

    summary = finish(lambda: flow(name, partition, to, dry_run), as_json)
    if as_json:
        return
    from ducklake_flows.cli import show

    show.rolled_back(summary, to, dry_run)


@app.command(rich_help_panel=PANEL)
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
    keys_of([name])
    start_server(load_settings())
    from ducklake_flows.migrate import migrate as flow

    names = {old: new for old, _, new in pairs}
    summary = finish(lambda: flow(name, names, drop or [], undo, abandon, dry_run), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.migrated(name, summary, dry_run)


@app.command("drop", rich_help_panel=PANEL)
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
    start_server(load_settings())
    from ducklake_flows.cli import show
    from ducklake_flows.drop import drop as flow

    if not (yes or dry_run):
        show.dropped(flow(name, reason, partition, True), dry_run=True)
        typer.confirm("Drop it?", abort=True, err=True)
    summary = finish(lambda: flow(name, reason, partition, dry_run), as_json)
    if not as_json:
        show.dropped(summary, dry_run)


@app.command(rich_help_panel=PANEL)
def move(
    to: Annotated[Path, typer.Option(metavar="FILE", help="The target's settings, in the form of .env.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be copied.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the lake with its whole history to another catalog and data path; it stays as it is. Goes on if stopped."""
    start_server(load_settings())
    from ducklake_flows.move import move as flow

    summary = finish(lambda: flow(str(to.absolute()), dry_run), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.moved(summary, dry_run)


@app.command(rich_help_panel=PANEL)
def repair(
    names: Names = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the damaged partitions and files.")] = False,
    workers: Workers = DEFAULT_WORKERS,
    as_json: AsJson = False,
) -> None:
    """Repair what `lake verify` finds: publish lost rows again, correct statistics."""
    keys = keys_of(names) if names else None
    start_server(load_settings())
    from ducklake_flows.repair import repair as flow

    summary = finish(lambda: flow(keys, dry_run, workers), as_json)
    if not as_json:
        from ducklake_flows.cli import show

        show.repaired(summary)
