"""The repair flow: statistics by which the lake would answer wrongly, computed again from its files."""

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
    """Put right the statistics that `lake verify` finds wrong.

    Returns:
        The summary: each value that was changed, with its table, its subject, and what stood there before and after.

    Raises:
        CommitConflict: other writers were first, every time.
        CatalogError: the catalog or a file cannot be read.
    """
    settings, logger = load_settings(), get_run_logger()
    check(settings)
    with gate.hold():
        changes = [asdict(change) for change in repair_statistics(settings)]
    for change in changes:
        logger.info("%(table)s %(subject)s: %(before)s -> %(after)s", change)
    if changes:
        create_table_artifact(changes, key="repaired-statistics", description="what stood in the catalog, and stands")
    return {"changes": changes}
