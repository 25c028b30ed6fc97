"""The two Prefect events: partitions were published, and new source data has arrived."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from prefect.events import emit_event

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.project import get_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ducklake_flows.lake.publish import Published
    from ducklake_flows.staging.receipt import Receipt

PUBLISHED = "lake.partitions.published"
ARRIVED = "lake.source.arrived"


def published(result: Published) -> None:
    """Emit one event per dataset with the partitions just published. It triggers the transform deployment."""
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
    """Announce new source data for these partitions. Each gets an event, which triggers the ingest deployment.

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
        # Not `emit_event`, which sends in a background thread: the caller must know that the server has the event.
        client.request("POST", "/events", json=events).raise_for_status()


def _resource(dataset: str) -> dict[str, str]:
    return {"prefect.resource.id": f"lake.dataset.{dataset}", "prefect.resource.name": dataset}
