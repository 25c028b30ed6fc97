"""The freshness flow: reports the datasets that have become overdue, and those that no longer are."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from ducklake_flows.orchestration import reporting
from ducklake_flows.project import all_datasets, broken_datasets
from ducklake_flows.report.overdue import overdue
from ducklake_flows.settings import load_settings


@flow(name="freshness", flow_run_name="freshness")
def freshness() -> dict[str, Any]:
    """Look for datasets whose newest partitions are not published within their `freshness`.

    It needs no load to have happened, and asks no source. An event is sent only when a dataset has become overdue, or
    no longer is; a run that finds an overdue dataset does not fail.

    Returns:
        The summary: the overdue datasets, and which of them were reported now, or as fresh.

    Raises:
        CatalogError: the catalog cannot be opened.
    """
    settings, logger, datasets = load_settings(), get_run_logger(), all_datasets()
    for error in broken_datasets().values():
        logger.warning("not checked: %s", error.message)
    late = overdue(settings, datasets.values())
    for each in late:
        logger.warning("%s (%s)", each.line, each.cause)
    reported = reporting.report(late, datasets.values())
    return {
        "overdue": [each.to_json() for each in late],
        "reported_overdue": reported.overdue,
        "reported_fresh": reported.fresh,
    }
