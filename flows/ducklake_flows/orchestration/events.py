"""The Prefect events: partitions were published or fail, new source data has arrived, a dataset is overdue."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event

from ducklake_flows.lake.builds import is_read
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import PROD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ducklake_flows.lake.publish import Published
    from ducklake_flows.report.causes import Cause
    from ducklake_flows.report.overdue import Overdue
    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Receipt

PUBLISHED = "lake.partitions.published"
FAILING = "lake.partitions.failed"
ARRIVED = "lake.source.arrived"
OVERDUE = "lake.dataset.overdue"
FRESH = "lake.dataset.fresh"

TRANSFORM = "lake.transform"
"""A label of the resource of `PUBLISHED`: the transform deployment's trigger needs the value ``wanted``."""

SOON = timedelta(minutes=1)
"""A transform that is due within this time builds what is published now."""

_follows: ContextVar[bool] = ContextVar("transform_follows", default=False)


@contextlib.contextmanager
def transform_follows(environment: str = PROD) -> Iterator[None]:
    """What is published in this block triggers no transform, because the run itself transforms afterwards.

    Only if it transforms this environment: the trigger is about production.
    """
    token = _follows.set(environment == PROD)
    try:
        yield
    finally:
        _follows.reset(token)


def published(result: Published, settings: Settings) -> None:
    """Emit one event per dataset with the partitions just published. It may trigger the transform deployment.

    The label `TRANSFORM` tells whether it does: ``wanted``; ``follows`` (the same run transforms afterwards);
    ``unread`` (no model reads the dataset); ``waits`` (a transform that will read the ledger is waiting already).
    """
    by_dataset: dict[str, list[Receipt]] = {}
    for receipt in result.receipts:
        by_dataset.setdefault(receipt.dataset, []).append(receipt)
    for dataset, receipts in by_dataset.items():
        emit_event(
            PUBLISHED,
            resource=_resource(dataset) | {TRANSFORM: _transform(dataset, settings)},
            payload={
                "dataset": dataset,
                "partitions": [r.partition for r in receipts],
                "attempt_ids": [r.attempt_id for r in receipts],
                "snapshot_id": result.snapshot_id,
                "rows": sum(r.rows for r in receipts),
            },
        )


def failing(causes: Iterable[Cause]) -> None:
    """Emit an event for the first failure of each cause in a run, so that an alert is sent while the run goes on."""
    for cause in causes:
        emit_event(
            FAILING,
            resource=_resource(cause.dataset),
            payload={
                "dataset": cause.dataset,
                "cause": cause.line,
                "partitions": list(cause.partitions),
                "next": cause.next_step,
            },
        )


def _transform(dataset: str, settings: Settings) -> str:
    """The value of the label `TRANSFORM`."""
    if _follows.get():
        return "follows"
    if settings.models is None or not is_read(settings.models, get_dataset(dataset)):
        return "unread"
    return "waits" if transform_waits() else "wanted"


def transform_waits() -> bool:
    """Whether a production run of the transform deployment waits for its slot or its start.

    Such a run has not read the ledger yet.
    """
    from prefect.client.orchestration import get_client

    scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["transform"])),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=["transform"])),
                flow_run_filter=FlowRunFilter(state=scheduled),
            )
            waiting = [run for run in found if run.expected_start_time and _is_soon(run.expected_start_time)]
            waiting = [run for run in waiting if run.parameters.get("environment", PROD) == PROD]
        except httpx.HTTPError:
            return False  # one transform too many does no harm
    return bool(waiting)


def _is_soon(moment: datetime) -> bool:
    return moment <= datetime.now(UTC) + SOON


def arrived(dataset: str, partitions: Sequence[str]) -> None:
    """Announce new source data for these partitions, in one event. It triggers one run of the `arrived` deployment.

    Raises:
        BadInput: the dataset or a partition is unknown.
    """
    known = get_dataset(dataset)
    _send(ARRIVED, dataset, {"partitions": [known.partition(key).key for key in partitions]})


def overdue(late: Overdue) -> None:
    """Report that a dataset has become overdue. The server has the event when this returns."""
    _send(OVERDUE, late.dataset, {"line": late.line, "cause": late.cause, **late.to_json()})


def fresh(dataset: str, since: str) -> None:
    """Report that a dataset is published in time again. The server has the event when this returns.

    Args:
        dataset: The dataset's key.
        since: When it had become overdue.
    """
    _send(FRESH, dataset, {"since": since})


def _send(event: str, dataset: str, payload: Mapping[str, Any]) -> None:
    """Send an event. Not `emit_event`, which sends in the background: the caller must know that the server has it."""
    from prefect.client.orchestration import get_client

    body = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": _resource(dataset),
        "payload": {"dataset": dataset, **payload},
    }
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[body]).raise_for_status()


def _resource(dataset: str) -> dict[str, str]:
    return {"prefect.resource.id": f"lake.dataset.{dataset}", "prefect.resource.name": dataset}
