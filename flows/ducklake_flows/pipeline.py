"""The pipeline flow: runs ingest, then transform, even if some partitions failed."""

from __future__ import annotations

from datetime import date
from typing import Any

from prefect import flow

from ducklake_flows.errors import RunFailed
from ducklake_flows.ingest import ingest
from ducklake_flows.models import runner
from ducklake_flows.orchestration.names import pipeline_name
from ducklake_flows.settings import load_settings
from ducklake_flows.states import Mode
from ducklake_flows.transform import transform


@flow(name="pipeline", flow_run_name=pipeline_name)
def pipeline(
    datasets: list[str] | None = None,
    start: date | None = None,
    end: date | None = None,
    mode: Mode | list[Mode] = Mode.missing_failed,
    workers: int = 2,
    environment: str = "prod",
) -> dict[str, Any]:
    """Publish partitions, then bring the models up to date.

    Args:
        datasets: Keys of the datasets; default: all.
        start: First day; default: each dataset's start.
        end: Last day, included; default: each dataset's end.
        mode: Which partitions: missing, failed, missing-failed, stale or all; or several of them.
        workers: Processes of the local Dask cluster.
        environment: SQLMesh's environment.

    Returns:
        The summaries of both flows, under ``ingest`` and ``transform``.

    Raises:
        RunFailed: some partitions or models failed; all others are done.
    """
    failure: RunFailed | None = None
    with runner.prepared(load_settings(), environment):
        try:
            ingested = ingest(datasets, start, end, mode, workers)
        except RunFailed as error:
            failure, ingested = error, error.summary
        summary = {"ingest": ingested, "transform": transform(environment)}
    if failure is not None:
        raise RunFailed(failure.message, failure.fix, summary)
    return summary
