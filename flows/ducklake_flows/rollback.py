"""The rollback flow: restores a partition's previous attempt in a new commit, then transforms the models."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from ducklake_flows.errors import LakeError, RunFailed
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.restore import stage_previous
from ducklake_flows.orchestration import events, gate
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import load_settings
from ducklake_flows.transform import transform


def _flow_run_name() -> str:
    return f"rollback {flow_run.parameters['dataset']} {flow_run.parameters['partition']}"


@flow(name="rollback", flow_run_name=_flow_run_name)
@ends_failed
def rollback(dataset: str, partition: str) -> dict[str, Any]:
    """Publish a partition's previous attempt again, and restate the models built from the partition.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.

    Returns:
        The summary: rows, the restored attempt, the new attempt, its snapshot, and the transform's summary.

    Raises:
        BadInput: there is no previous attempt, or its snapshot has expired.
        LakeError: the previous attempt could not be published.
        RunFailed: some models failed; the partition is rolled back nevertheless.
    """
    settings = load_settings()
    definition = get_dataset(dataset)
    key = definition.partition(partition)
    check(settings)
    receipt = stage_previous(settings, definition, key)
    publisher = Publisher(settings, [definition], str(flow_run.id))
    try:
        with gate.hold():
            result = publisher.publish([receipt])
    finally:
        publisher.close()
    if result.failures:
        raise LakeError(f"{dataset} {partition} could not be rolled back: {result.failures[0].error}", "lake verify")
    get_run_logger().info("%s %s is rolled back to attempt %s", dataset, partition, receipt.restores)
    with events.transform_follows():
        events.published(result, settings)
    summary: dict[str, Any] = {
        "dataset": dataset,
        "partition": partition,
        "rows": receipt.rows,
        "restores": receipt.restores,
        "attempt_id": receipt.attempt_id,
        "snapshot_id": result.snapshot_id,
    }
    try:
        return {**summary, "transform": transform()}
    except RunFailed as error:
        raise RunFailed(error.message, error.fix, {**summary, "transform": error.summary}) from error
