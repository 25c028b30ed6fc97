"""The migrate flow: gives a filled raw table other columns, atomically for readers, then transforms the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from ducklake_flows.errors import RunFailed
from ducklake_flows.lake.migrate import migrator, undoing
from ducklake_flows.orchestration import gate
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.chunks import GROUP
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import load_settings
from ducklake_flows.transform import transform

if TYPE_CHECKING:
    from ducklake_flows.lake.migrate import Migrator


def _flow_run_name() -> str:
    return f"migrate {flow_run.parameters.get('dataset')}"


@flow(name="migrate", flow_run_name=_flow_run_name)
@ends_failed
def migrate(
    dataset: str,
    rename: dict[str, str] | None = None,
    drop: list[str] | None = None,
    undo: bool = False,
    abandon: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Give a filled raw table the types that its contract declares, and rename or drop columns.

    Readers see the table wholly before or wholly after. A run that was stopped goes on where it was; until its end,
    partitions are published into the table as it was.

    Args:
        dataset: The dataset's key.
        rename: The new name of columns, by the old one.
        drop: Columns to drop.
        undo: Undo the table's last migration instead.
        abandon: Drop what a stopped migration has left instead.
        dry_run: Check that every value fits, and change nothing.

    Returns:
        The summary: ``changes`` in words (none if nothing is to do), ``partitions``, ``rows``, the non-null values of
        dropped columns (``dropped``), the ``snapshot_id``, and the transform's summary.

    Raises:
        BadInput: a column is none of the table's, must stay, or is declared otherwise; or a value does not fit.
        RunFailed: some models failed; the table is migrated nevertheless.
    """
    settings = load_settings()
    check(settings)
    one, run = get_dataset(dataset), str(flow_run.id)
    plan = undoing(settings, one, run) if undo else migrator(settings, one, rename or {}, drop or [], run)
    if abandon:
        with gate.hold():
            return {"abandoned": plan.abandon()}
    if not plan.migration:
        return {"changes": []}
    found = plan.survey()
    summary: dict[str, Any] = {"changes": plan.migration.lines, "dropped": {n: found[n] for n in plan.migration.drop}}
    summary |= {"partitions": found["partitions"], "rows": found["rows"]}
    if dry_run:
        return summary
    if plan.migration.rewrites:
        summary["snapshot_id"] = _rewritten(plan)
    else:
        with gate.hold():
            summary["snapshot_id"] = plan.alter()
    get_run_logger().info("%s: %s", dataset, "; ".join(plan.migration.lines))
    try:
        return {**summary, "transform": transform()}
    except RunFailed as error:
        raise RunFailed(
            f"{dataset} is migrated, but {error.message}", error.fix, {**summary, "transform": error.summary}
        ) from error


def _rewritten(plan: Migrator) -> int:
    """Copy all partitions into new files, then let them take the table's place. Returns the snapshot."""
    with gate.hold():
        plan.prepare()
    while True:
        pending = plan.pending()
        for first in range(0, len(pending), GROUP):
            copies = plan.copy(pending[first : first + GROUP])
            with gate.hold():
                plan.add(copies)
            get_run_logger().info("copied %d of %d partitions", first + len(copies), len(pending))
        plan.check()
        with gate.hold():
            snapshot = plan.swap()
        if snapshot is not None:
            return snapshot
