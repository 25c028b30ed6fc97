"""The verify flow: checks every promise about the lake; a run with a broken one fails, so that an alert is sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run

from ducklake_flows import storage
from ducklake_flows.errors import RunFailed
from ducklake_flows.lake.verify import Finding
from ducklake_flows.lake.verify import verify as check_lake
from ducklake_flows.orchestration.artifacts import show_table
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.project import broken_datasets
from ducklake_flows.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "verify"

OVERLAP = timedelta(minutes=5)
"""How much earlier than the start of the last successful run a run begins: clocks of hosts differ."""


def _flow_run_name() -> str:
    return "verify everything" if flow_run.parameters["whole"] else "verify"


@flow(name=NAME, flow_run_name=_flow_run_name)
@ends_failed
def verify(whole: bool = False, since: datetime | None = None) -> dict[str, Any]:
    """Check the lake: what was published since the last successful run, or everything.

    Args:
        whole: Check everything, also that every registered file exists.
        since: Check only what was recorded since this moment; default: the start of the last run of this flow that
            found nothing. Without such a run, everything is checked.

    Returns:
        The summary: the findings, and since when the lake was checked.

    Raises:
        RunFailed: a promise is broken; the message names each kind of finding with the command that repairs it.
        CatalogError: the catalog cannot be opened.
    """
    settings, logger = load_settings(), get_run_logger()
    moment = None if whole else since or _last_success()
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    storage.check(settings)
    found = list(check_lake(settings, moment))
    for finding in found:
        logger.info("%s: %s: %s (%s)", finding.severity, finding.subject, finding.message, finding.check)
    if found:
        show_table("findings", [asdict(f) for f in found], "what `lake verify` found")
    summary = {"since": moment.isoformat() if moment else None, "findings": [asdict(f) for f in found]}
    for error in broken_datasets().values():
        raise RunFailed(f"A dataset could not be checked: {error.message}", error.fix, summary)
    if errors := [f for f in found if f.severity == "error"]:
        raise RunFailed(findings_text(errors), " or ".join(dict.fromkeys(f.fix for f in errors)), summary)
    return summary


def findings_text(errors: Sequence[Finding]) -> str:
    """The findings, one line per kind with the first of them."""
    lines = [f"{len(errors)} broken."]
    for kind, count in Counter((f.check, f.fix) for f in errors).items():
        first = next(f for f in errors if (f.check, f.fix) == kind)
        more = f" and {count - 1} more" if count > 1 else ""
        lines.append(f"  {kind[0]}: {first.subject}{more}: {first.message}")
    return "\n".join(lines)


def _last_success() -> datetime | None:
    """When the last successful run of this flow began; None if there is none."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [NAME]}}),
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.COMPLETED]}}}),
            sort=FlowRunSort.START_TIME_DESC,
            limit=1,
        )
    return runs[0].start_time - OVERLAP if runs and runs[0].start_time else None
