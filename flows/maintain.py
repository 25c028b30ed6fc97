"""The maintain flow: keep the lake small and fast, a short gated step at a time, beside whatever else runs."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows import builder, gate
from flows.lake.maintain import figures, steps
from flows.settings import load_settings
from flows.setup import check


def _flow_run_name() -> str:
    return "maintain (dry run)" if flow_run.parameters["dry_run"] else "maintain"


@flow(name="maintain", flow_run_name=_flow_run_name)
def maintain(dry_run: bool = False, retention_days: int | None = None) -> dict[str, Any]:
    """Flush, merge, rewrite, expire and clean up; nothing that a run has in flight is touched.

    Args:
        dry_run: Only say what would be done.
        retention_days: Snapshots older than this are expired; ``LAKE_RETENTION_DAYS`` when left open.

    Returns:
        The summary: figures before and after, and each step with what it did.

    Raises:
        RunFailed: SQLMesh's janitor failed.
    """
    settings, logger = load_settings(), get_run_logger()
    check(settings)
    began = time.monotonic()
    before = figures(settings)
    done: list[dict[str, Any]] = []
    if not dry_run:
        with gate.hold(gate.TRANSFORM):
            # The models' own janitor first: what it drops can then be expired.
            builder.run({"janitor": True}, settings, [])
    days = settings.retention_days if retention_days is None else retention_days
    for step in steps(settings, timedelta(days=days)):
        entry = {"step": step.name, "subject": step.subject, "found": step.todo, "unit": step.unit, "done": 0}
        if step.todo and not dry_run:
            with gate.hold():
                entry["done"] = step.run()
            logger.info("%(step)s %(subject)s: %(done)d of %(found)d %(unit)s", entry)
        done.append(entry)
    summary = {
        "flow_run": flow_run.name,
        "dry_run": dry_run,
        "steps": done,
        "before": before,
        "after": before if dry_run else figures(settings),
        "seconds": round(time.monotonic() - began, 3),
    }
    _artifacts(summary)
    return summary


def _artifacts(summary: dict[str, Any]) -> None:
    """What the Prefect UI shows: every step, and the figures before and after."""
    if summary["steps"]:
        create_table_artifact(summary["steps"], key="maintenance-steps", description="what each step found and did")
    lines = [
        f"## {summary['flow_run']}",
        "",
        "| | before | after |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {value:,} | {summary['after'][name]:,} |" for name, value in summary["before"].items()),
    ]
    create_markdown_artifact("\n".join(lines), key="maintenance-summary", description=summary["flow_run"])
