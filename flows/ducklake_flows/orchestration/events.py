"""The two events: what a publish tells the world, and what tells us that a source has something new."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

from prefect.events import emit_event

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.lake.publish import Published
from ducklake_flows.project import get_dataset
from ducklake_flows.staging.receipt import Receipt

PUBLISHED = "lake.partitions.published"
ARRIVED = "lake.source.arrived"


def published(result: Published) -> None:
    """One event per dataset with what was just published. It triggers the transform deployment."""
    by_dataset: dict[str, list[Receipt]] = {}
    for receipt in result.receipts:
        by_dataset.setdefault(receipt.dataset, []).append(receipt)
    for dataset, receipts in by_dataset.items():
        emit_event(
            PUBLISHED,
            resource=_resource(dataset),
            payload={
                "dataset": dataset,
                "partitions": [r.partition for r in receipts],
                "attempt_ids": [r.attempt_id for r in receipts],
                "snapshot_id": result.snapshot_id,
                "rows": sum(r.rows for r in receipts),
            },
        )


def arrived(dataset: str, partitions: Sequence[str]) -> None:
    """Say that a source has something for these partitions. Each is an event that triggers the ingest deployment.

    Raises:
        BadInput: the dataset or a partition is unknown.
    """
    from prefect.client.orchestration import get_client

    grain = get_dataset(dataset).grain
    events = [
        {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": ARRIVED,
            "resource": _resource(dataset),
            "payload": {"dataset": dataset, "partition": parse_partition(key, grain).key},
        }
        for key in partitions
    ]
    with get_client(sync_client=True) as client:
        # Not `emit_event`, which hands the event to a thread: the caller is told when the server has it.
        client.request("POST", "/events", json=events).raise_for_status()


def _resource(dataset: str) -> dict[str, str]:
    return {"prefect.resource.id": f"lake.dataset.{dataset}", "prefect.resource.name": dataset}
