"""Names of flow runs, from their parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.runtime import flow_run

DUE = "@due"
"""In place of datasets: those whose schedule hour (UTC) is the hour for which the run was scheduled."""

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date


def range_name(start: date | None, end: date | None) -> str:
    """A range of days, for the names of runs."""
    return f"{start or 'first'}..{end or 'last'}"


def names_of(datasets: Sequence[str] | None) -> str:
    """Datasets, for the names of runs."""
    return "+".join(datasets).removeprefix("@") if datasets else "all"


def ingest_name() -> str:
    """The name of an ingest run: its datasets, and its range or partitions."""
    parameters = flow_run.parameters
    span = range_name(parameters["start"], parameters["end"])
    if partitions := parameters["partitions"]:
        span = partitions[0] if len(partitions) == 1 else f"{partitions[0]} and {len(partitions) - 1} more"
    limit = f", at most {parameters['limit']}" if parameters["limit"] else ""
    return f"ingest {names_of(parameters['datasets'])} {span}{limit}"


def pipeline_name() -> str:
    """The name of a pipeline run: its datasets and its range."""
    parameters = flow_run.parameters
    return f"pipeline {names_of(parameters['datasets'])} {range_name(parameters['start'], parameters['end'])}"
