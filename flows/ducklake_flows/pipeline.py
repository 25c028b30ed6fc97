"""The pipeline flow: runs ingest, then transform, even if some partitions failed."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from ducklake_flows.errors import RunFailed
from ducklake_flows.ingest import ingest
from ducklake_flows.models import runner
from ducklake_flows.orchestration import events
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.orchestration.names import pipeline_name
from ducklake_flows.settings import load_settings
from ducklake_flows.states import Mode, Order
from ducklake_flows.transform import transform


@flow(name="pipeline", flow_run_name=pipeline_name)
@ends_failed
def pipeline(
    datasets: list[str] | None = None,
    start: date | None = None,
    end: date | None = None,
    mode: Mode | list[Mode] = Mode.missing_failed,
    workers: Annotated[int, Field(ge=1)] = 2,
    environment: str = "prod",
    partitions: list[str] | None = None,
    order: Order = Order.newest,
    limit: Annotated[int, Field(ge=1)] | None = None,
    reason: str = "",
) -> dict[str, Any]:
    """Publish partitions, then bring the models up to date.

    What it publishes triggers no other transform. If the run is lost in between, the next transform (daily, or after
    the next publish) builds it: what is to be built is in the ledger.

    Args:
        datasets: Keys of the datasets; default: all.
        start: First day; default: each dataset's start.
        end: Last day, included; default: each dataset's end.
        mode: Which partitions: missing, failed, missing_failed, stale or all; or several of them.
        workers: Processes of the local Dask cluster.
        environment: SQLMesh's environment.
        partitions: Only these partitions, by key, instead of a range.
        order: Which partitions come first: the newest or the oldest.
        limit: Do at most this number of partitions, the first ones in this order.
        reason: Why the run was started; kept in the ledger.

    Returns:
        The summaries of both flows, under ``ingest`` and ``transform``.

    Raises:
        RunFailed: some partitions or models failed; all others are done.
    """
    failure: RunFailed | None = None
    with runner.prepared(load_settings(), environment):
        try:
            with events.transform_follows(environment):
                ingested = ingest(datasets, start, end, mode, workers, partitions, order, limit, reason)
        except RunFailed as error:
            failure, ingested = error, error.summary
        summary = {"ingest": ingested, "transform": transform(environment)}
    if failure is not None:
        raise RunFailed(failure.message, failure.fix, summary)
    return summary
