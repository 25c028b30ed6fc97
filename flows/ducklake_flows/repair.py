"""The repair flow: publishes damaged partitions again, from the source or a snapshot, and corrects statistics."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from ducklake_flows.errors import LakeError, RunFailed
from ducklake_flows.ingest import ingest
from ducklake_flows.lake import repair as lake
from ducklake_flows.lake.damage import find_all, lost_by_models
from ducklake_flows.orchestration import gate
from ducklake_flows.orchestration.artifacts import show_table
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.orchestration.restoring import Restoring
from ducklake_flows.project import get_datasets
from ducklake_flows.settings import load_settings
from ducklake_flows.states import Mode
from ducklake_flows.transform import transform

if TYPE_CHECKING:
    from collections.abc import Mapping


@flow(name="repair", flow_run_name="repair")
@ends_failed
def repair(
    datasets: list[str] | None = None, dry_run: bool = False, workers: Annotated[int, Field(ge=1)] = 2
) -> dict[str, Any]:
    """Repair what `lake verify` finds.

    A partition whose rows or files were lost or changed is published again: from its source, or else from the last
    snapshot that has its rows. A rolled back partition is restored from a snapshot only. Rows of partitions that were
    never published and that the source does not have are deleted. Intervals of models whose files were lost are built
    again. Statistics are corrected for the whole lake.

    Args:
        datasets: Keys of the datasets whose partitions are compared; default: all.
        dry_run: Only report the damaged partitions and files.
        workers: Processes of the local Dask cluster.

    Returns:
        The summary: the damage that was found, with what was done; and each changed value of the catalog, with its
        table, its subject, and the values before and after.

    Raises:
        RunFailed: some partitions could not be repaired; everything else is.
        CommitConflict: another writer committed first in every retry.
        CatalogError: the catalog or a file cannot be read.
    """
    settings, logger = load_settings(), get_run_logger()
    chosen = [one for dataset in get_datasets(datasets or []) for one in (dataset, *dataset.members)]
    check(settings)
    changes: list[lake.Change] = []
    todo = Restoring(settings, find_all(settings, chosen), str(flow_run.id))
    lost = lost_by_models(settings)
    if not dry_run:
        changes += todo.drop_shared()
        _load(todo.loadable(), workers)
        todo.loaded()
        todo.from_snapshots()
        changes += todo.remove_unknown()
        with gate.hold():
            if lost:
                changes += lake.drop(settings, list(lost))
                lake.forget_builds(settings, lost.keys())
            changes += lake.repair(settings, lost=todo.lost)
    damaged = todo.rows() + [
        {"dataset": table, "partition": "", "found": f"{path} is missing", "done": "" if dry_run else "built again"}
        for path, table in lost.items()
    ]
    for row in damaged:
        logger.info("%(dataset)s %(partition)s: %(found)s: %(done)s", row)
    summary: dict[str, Any] = {"dry_run": dry_run, "damaged": damaged, "changes": [asdict(c) for c in changes]}
    for key, rows in {"repaired-partitions": damaged, "repaired-statistics": summary["changes"]}.items():
        if rows:
            show_table(key, rows, "what `lake repair` found and did")
    if lost and not dry_run:
        summary["transform"] = transform()
    if todo.failed and not dry_run:
        lines = [f"  {name}: {why}" for name, why in todo.failed.items()]
        raise RunFailed(
            "\n".join([f"{len(lines)} of {len(damaged)} damaged partitions could not be repaired.", *lines]),
            "make the source right, then run: lake repair; or restore the lake from a backup: docs/operations.md",
            summary,
        )
    return summary


def _load(partitions: Mapping[str, list[str]], workers: int) -> None:
    """Publish partitions from their sources. What fails is repaired in another way."""
    for key, keys in partitions.items():
        try:
            ingest([key], mode=Mode.all, partitions=keys, workers=workers)
        except LakeError as error:
            get_run_logger().warning("%s cannot be loaded from its source: %s", key, error.message)
