"""The transform flow: finds changed partitions in the ledger and builds the models in a separate SQLMesh process."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from ducklake_flows.errors import RunFailed
from ducklake_flows.lake.builds import AuditedInterval, RefusedInterval, TransformPlan, plan_transform, record
from ducklake_flows.models import runner
from ducklake_flows.orchestration import gate, openlineage
from ducklake_flows.orchestration.artifacts import show_table, show_text
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.orchestration.model_runs import ModelRuns
from ducklake_flows.orchestration.names import transform_name
from ducklake_flows.settings import Settings, load_settings
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

TURN_SECONDS = 6 * 3600.0
"""Maximum seconds that a transform waits for an earlier one."""


@flow(name="transform", flow_run_name=transform_name, **openlineage.HOOKS)
@ends_failed
def transform(environment: str = "prod") -> dict[str, Any]:
    """Build the models whose input changed and their downstream models, only for the affected intervals.

    Args:
        environment: ``prod``, or one of the project's other environments. Those have tables of their own, built from
            the same raw tables.

    Returns:
        The summary: number of changed partitions by dataset, intervals built and refused, seconds.

    Raises:
        RunFailed: an audit or a row refused intervals: these keep their earlier rows, all others are built. Or a model
            failed; intervals that succeeded stay built.
    """
    settings = load_settings()
    settings.check_environment(environment)
    began = time.monotonic()
    summary: dict[str, Any] = {"environment": environment, "flow_run": flow_run.name, "partitions": {}, "models": []}
    check(settings)
    with gate.hold(gate.TRANSFORM, TURN_SECONDS):
        # Read while holding the limit: otherwise the plan could repeat what another transform has just built.
        todo = plan_transform(settings, environment)
        summary["partitions"] = {key: len(partitions) for key, partitions in todo.changed.items()}
        if todo:
            _bring_up_to_date(settings, todo, summary, began)
    summary["seconds"] = round(time.monotonic() - began, 3)
    _artifacts(summary)
    return summary


def _bring_up_to_date(settings: Settings, todo: TransformPlan, summary: dict[str, Any], began: float) -> None:
    """Build the planned intervals, then record the attempts that they were built from."""
    counted = ", ".join(f"{count} of {key}" for key, count in summary["partitions"].items())
    get_run_logger().info("transform: %s", counted or "models")
    request = {
        "environment": todo.environment,
        "changed": todo.changed_keys,
        "replan": todo.replan,
        "refused": [old.request for old in todo.refused],
    }
    audited: list[AuditedInterval] = []
    with ModelRuns(UUID(str(flow_run.id)), todo.environment) as graph:
        try:
            refused = runner.run(
                request, settings, summary["models"], gate.hold, get_run_logger(), graph.report, audited.append
            )
        except RunFailed as error:
            raise _failed(error, summary, began) from None
        failpoint("before the build is recorded")
        built = [(m["model"], *map(datetime.fromisoformat, (m["start"], m["end"]))) for m in summary["models"]]
        with gate.hold():
            graph.assets.snapshot_id = record(settings, todo, str(flow_run.id), refused, built, audited)
    if refused:
        summary["refused"] = [
            {
                "model": r.model,
                "interval": r.span,
                "check": r.name,
                "rows": r.rows,
                "sample": r.sample,
                "error": r.error,
            }
            for r in refused
        ]
        raise _failed(RunFailed(refused_text(refused), refused[0].fix), summary, began)


def _failed(error: RunFailed, summary: dict[str, Any], began: float) -> RunFailed:
    """The error with the run's summary, after its artifacts were created."""
    summary["seconds"] = round(time.monotonic() - began, 3)
    _artifacts(summary, error.message)
    error.summary = summary
    return error


def refused_text(refused: Sequence[RefusedInterval]) -> str:
    """What was refused, one line per interval and audit, at most ten."""
    count = len({(r.model, r.start) for r in refused})
    which = "1 interval keeps its" if count == 1 else f"{count} intervals keep their"
    lines = [f"  {each}" for each in refused[:10]]
    if len(refused) > 10:
        lines.append(f"  and {len(refused) - 10} more; see: lake status")
    return "\n".join([f"{which} earlier rows, also in the models downstream; all others are built.", *lines])


def _artifacts(summary: dict[str, Any], error: str = "") -> None:
    """Create a transform's artifacts in the Prefect UI: the intervals it built, and a summary."""
    if summary["models"]:
        show_table("intervals-built", summary["models"], "every interval of this run")
    lines = [
        f"## {summary['flow_run']}",
        *([f"**failed**\n\n```\n{error}\n```"] if error else []),
        *(f"- `{key}`: {count} changed partitions" for key, count in summary["partitions"].items()),
        f"- {len(summary['models'])} intervals built in {summary['seconds']:.1f} s"
        if summary["models"]
        else "Nothing to do.",
    ]
    show_text("transform-summary", lines, summary["flow_run"])
