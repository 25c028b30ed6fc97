"""Names of flow runs, from their parameters; also of those that wait."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run

from ducklake_flows.settings import PROD

log = logging.getLogger(__name__)

DUE = "@due "
"""How a text begins that stands for the datasets with a schedule: ``@due 0 6 * * * Europe/Brussels``."""

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date


def range_name(start: date | None, end: date | None) -> str:
    """A range of days, for the names of runs."""
    return f"{start or 'first'}..{end or 'last'}"


def names_of(datasets: Sequence[str] | None) -> str:
    """Datasets, for the names of runs."""
    return "+".join(datasets).removeprefix("@") if datasets else "all"


def ingest_name(given: Mapping[str, Any] | None = None) -> str:
    """The name of an ingest run: its datasets, and its range or partitions.

    Args:
        given: The run's parameters; None means those of the current run.
    """
    parameters = flow_run.parameters if given is None else given
    span = range_name(parameters.get("start"), parameters.get("end"))
    if partitions := parameters.get("partitions"):
        span = partitions[0] if len(partitions) == 1 else f"{partitions[0]} and {len(partitions) - 1} more"
    limit = f", at most {parameters['limit']}" if parameters.get("limit") else ""
    return f"ingest {names_of(parameters.get('datasets'))} {span}{limit}"


def pipeline_name(given: Mapping[str, Any] | None = None) -> str:
    """The name of a pipeline run: its datasets and its range; see `ingest_name`."""
    parameters = flow_run.parameters if given is None else given
    span = range_name(parameters.get("start"), parameters.get("end"))
    return f"pipeline {names_of(parameters.get('datasets'))} {span}"


def transform_name(given: Mapping[str, Any] | None = None) -> str:
    """The name of a transform run: its environment; see `ingest_name`."""
    return f"transform {(flow_run.parameters if given is None else given).get('environment', PROD)}"


NAMES = {"ingest": ingest_name, "pipeline": pipeline_name, "transform": transform_name}
"""How runs are named, by their flow."""


def name_waiting() -> None:
    """Name the runs that wait for a slot or a worker, as they will be named when they start.

    Prefect gives a run of a schedule or a trigger a random name until it starts (PrefectHQ/prefect#20267). Called after
    each publish, it asks the server at most every `NAMING_SECONDS`. An error is only logged: no run depends on a name.
    """
    now = time.monotonic()
    if _named and now - _named[-1] < NAMING_SECONDS:
        return
    _named[:] = [now]
    soon = FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC) + timedelta(minutes=1)})
    scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    ours = FlowFilter(name=FlowFilterName(any_=list(NAMES)))
    try:
        with get_client(sync_client=True) as client:
            waiting = client.read_flow_runs(
                flow_filter=ours, flow_run_filter=FlowRunFilter(state=scheduled, expected_start_time=soon)
            )
            flows = {flow.id: flow.name for flow in client.read_flows(flow_filter=ours)} if waiting else {}
            for run in waiting:
                name = NAMES[flows[run.flow_id]](run.parameters)
                if run.name != name:
                    client.set_flow_run_name(run.id, name)
    except httpx.HTTPError as error:
        log.debug("waiting runs are not named: %s", error)


NAMING_SECONDS = 30.0
"""Minimum seconds between two looks for waiting runs."""

_named: list[float] = []
"""When this process last looked for them."""
