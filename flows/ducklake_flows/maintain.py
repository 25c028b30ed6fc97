"""The maintain flow: keeps the lake small and fast in short gated steps, concurrently with other runs."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from ducklake_flows.errors import BadInput, CommitConflict, GateBusy, RunFailed
from ducklake_flows.lake.builds import built_environments
from ducklake_flows.lake.maintenance import figures, steps
from ducklake_flows.models import runner
from ducklake_flows.orchestration import gate
from ducklake_flows.orchestration.artifacts import show_table, show_text
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.settings import Settings, load_settings


def _flow_run_name() -> str:
    return "maintain (dry run)" if flow_run.parameters["dry_run"] else "maintain"


@flow(name="maintain", flow_run_name=_flow_run_name)
@ends_failed
def maintain(dry_run: bool = False, retention_days: Annotated[int, Field(ge=0)] | None = None) -> dict[str, Any]:
    """Flush, merge, rewrite, expire and clean up; never touches files that a run has in flight.

    Each step holds the gate separately. Two things are postponed to the next run and reported: SQLMesh's janitor while
    a transform runs, and a step that conflicts with another writer.

    Args:
        dry_run: Only report what would be done.
        retention_days: Snapshots older than this are expired; default: ``LAKE_RETENTION_DAYS``.

    Returns:
        The summary: figures before and after, what each step found and did, and what was postponed and why.

    Raises:
        BadInput: LAKE_RETENTION_DAYS is below 0.
        RunFailed: SQLMesh's janitor failed; all other steps are done.
    """
    settings, logger = load_settings(), get_run_logger()
    days = settings.retention_days if retention_days is None else retention_days
    if days < 0:
        raise BadInput(f"The snapshot retention cannot be {days} days.", "give 0 or more days")
    check(settings)
    began = time.monotonic()
    before = figures(settings)
    done: list[dict[str, Any]] = []
    left: list[str] = []
    # SQLMesh's janitor runs first, so that the tables it drops can be expired below.
    cleaned, failure = (True, None) if dry_run else _clean_models(settings)
    for step in steps(settings, timedelta(days=days)):
        entry = {"step": step.name, "subject": step.subject, "found": step.todo, "unit": step.unit, "done": 0}
        if step.todo and not dry_run:
            try:
                with gate.hold():
                    entry["done"] = step.run()
            except CommitConflict as error:
                left.append(f"{step.name} {step.subject}: {error.message}")
            logger.info("%(step)s %(subject)s: %(done)d of %(found)d %(unit)s", entry)
        done.append(entry)
    if not cleaned:
        cleaned, failure = _clean_models(settings)
    if not cleaned:
        left.append("SQLMesh's janitor: a transform is running.")
    for text in left:
        logger.warning("postponed to the next run: %s", text)
    summary = {
        "flow_run": flow_run.name,
        "dry_run": dry_run,
        "steps": done,
        "left": left,
        "before": before,
        "after": before if dry_run else figures(settings),
        "seconds": round(time.monotonic() - began, 3),
    }
    _artifacts(summary)
    if failure is not None:
        failure.summary = summary
        raise failure
    return summary


def _clean_models(settings: Settings) -> tuple[bool, RunFailed | None]:
    """Run SQLMesh's janitor unless a transform runs.

    Returns:
        Whether it ran, and its error if it failed.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(gate.hold(gate.TRANSFORM, 0))
        except GateBusy:
            return False, None
        try:
            for environment in built_environments(settings):
                runner.run({"janitor": True, "environment": environment}, settings, [], gate.hold, get_run_logger())
        except RunFailed as error:
            return True, error
    return True, None


def _artifacts(summary: dict[str, Any]) -> None:
    """Create the run's artifacts in the Prefect UI: every step, and the figures before and after."""
    if summary["steps"]:
        show_table("maintenance-steps", summary["steps"], "what each step found and did")
    lines = [
        f"## {summary['flow_run']}",
        "",
        "| | before | after |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {value:,} | {summary['after'][name]:,} |" for name, value in summary["before"].items()),
        *(f"\nPostponed to the next run: {text}" for text in summary["left"]),
    ]
    show_text("maintenance-summary", lines, summary["flow_run"])
