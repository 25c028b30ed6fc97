"""The repair flow: recomputes catalog statistics from the files where they would cause wrong query results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from ducklake_flows.lake.repair import repair as repair_statistics
from ducklake_flows.orchestration import gate
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.settings import load_settings


@flow(name="repair", flow_run_name="repair")
def repair() -> dict[str, Any]:
    """Correct the statistics that `lake verify` reports as wrong.

    Returns:
        The summary: each changed value, with its table, its subject, and the values before and after.

    Raises:
        CommitConflict: another writer committed first in every retry.
        CatalogError: the catalog or a file cannot be read.
    """
    settings, logger = load_settings(), get_run_logger()
    check(settings)
    with gate.hold():
        changes = [asdict(change) for change in repair_statistics(settings)]
    for change in changes:
        logger.info("%(table)s %(subject)s: %(before)s -> %(after)s", change)
    if changes:
        create_table_artifact(changes, key="repaired-statistics", description="statistics before and after the repair")
    return {"changes": changes}
