"""The rollback flow: restores earlier rows of partitions in a new commit, then transforms the models."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from ducklake_flows.errors import BadInput, RunFailed
from ducklake_flows.lake.restore import stage_as_of, stage_previous
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.orchestration.restoring import changed_since, publish_together
from ducklake_flows.project import all_datasets, get_dataset
from ducklake_flows.settings import load_settings
from ducklake_flows.transform import transform


def _flow_run_name() -> str:
    asked = [flow_run.parameters.get(name) for name in ("dataset", "partition", "to")]
    return " ".join(["rollback", *(text for text in asked if text)])


@flow(name="rollback", flow_run_name=_flow_run_name)
@ends_failed
def rollback(
    dataset: str | None = None, partition: str | None = None, to: str | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Publish earlier rows again, in one commit, and restate the models built from them.

    Args:
        dataset: The dataset's key; with ``to``, none means all datasets.
        partition: The partition's key; with ``to`` also a pattern such as ``eu/*``, and none means all partitions.
        to: A snapshot's number or a moment (UTC): what was published then. None: the partition's previous attempt.
        dry_run: Change nothing; return the partitions.

    Returns:
        The summary: rows, the partitions by dataset, the snapshot, and the transform's summary. Of one partition's
        previous attempt, also the restored attempt and the new one.

    Raises:
        BadInput: there is no previous attempt or no such snapshot, or it has expired.
        LakeError: the earlier rows could not be published; nothing was changed.
        RunFailed: some models failed; the partitions are rolled back nevertheless.
    """
    settings = load_settings()
    check(settings)
    if to is None:
        if dataset is None or partition is None:
            raise BadInput("Roll back what?", "lake rollback DATASET --partition KEY, or --to a snapshot")
        definition = get_dataset(dataset)
        receipts = [stage_previous(settings, definition, definition.partition(partition))]
    else:
        asked = [get_dataset(dataset)] if dataset is not None else list(all_datasets().values())
        snapshot, found = changed_since(settings, asked, to, partition)
        staged = (stage_as_of(settings, one, key, snapshot, dry_run=dry_run) for one, keys in found for key in keys)
        receipts = [receipt for receipt in staged if receipt is not None]
    summary: dict[str, Any] = {"partitions": {}, "rows": sum(receipt.rows for receipt in receipts)}
    for receipt in receipts:
        summary["partitions"].setdefault(receipt.dataset, []).append(receipt.partition)
    if dry_run or not receipts:
        return summary
    reason = f"rollback to {to}" if to else ""
    result = publish_together(settings, receipts, str(flow_run.id), reason, "Nothing was rolled back")
    for key, partitions in summary["partitions"].items():
        get_run_logger().info("%s: rolled back %s", key, ", ".join(partitions))
    summary |= {"snapshot_id": result.snapshot_id}
    if to is None:
        only = receipts[0]
        summary |= {
            "dataset": dataset,
            "partition": partition,
            "restores": only.restores,
            "attempt_id": only.attempt_id,
        }
    try:
        return {**summary, "transform": transform()}
    except RunFailed as error:
        raise RunFailed(error.message, error.fix, {**summary, "transform": error.summary}) from error
