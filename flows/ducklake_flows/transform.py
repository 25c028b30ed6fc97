"""The transform flow: finds changed partitions in the ledger and builds the models in a separate SQLMesh process."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from ducklake_flows.errors import RunFailed
from ducklake_flows.lake.builds import TransformPlan, plan_transform, record
from ducklake_flows.models import runner
from ducklake_flows.orchestration import gate, openlineage
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.settings import Settings, load_settings
from ducklake_flows.testing.failpoints import failpoint

TURN_SECONDS = 6 * 3600.0
"""Maximum seconds that a transform waits for an earlier one."""


def _flow_run_name() -> str:
    return f"transform {flow_run.parameters['environment']}"


@flow(
    name="transform",
    flow_run_name=_flow_run_name,
    on_running=[openlineage.started],
    on_completion=[openlineage.completed],
    on_failure=[openlineage.failed],
    on_crashed=[openlineage.failed],
    on_cancellation=[openlineage.aborted],
)
def transform(environment: str = "prod") -> dict[str, Any]:
    """Build the models whose input changed and their downstream models, only for the affected intervals.

    Args:
        environment: ``prod``, or the name of a development environment.

    Returns:
        The summary: number of changed partitions by dataset, intervals built, seconds.

    Raises:
        RunFailed: a model or an audit failed; intervals that succeeded stay built.
    """
    settings = load_settings()
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
    request = {"environment": todo.environment, "changed": todo.changed_keys, "replan": todo.replan}
    try:
        runner.run(request, settings, summary["models"], gate.hold, get_run_logger())
    except RunFailed as error:
        summary["seconds"] = round(time.monotonic() - began, 3)
        _artifacts(summary, error.message)
        error.summary = summary
        raise
    failpoint("before the build is recorded")
    with gate.hold():
        record(settings, todo, str(flow_run.id))


def _artifacts(summary: dict[str, Any], error: str = "") -> None:
    """Create a transform's artifacts in the Prefect UI: the intervals it built, and a summary."""
    if summary["models"]:
        create_table_artifact(summary["models"], key="intervals-built", description="every interval of this run")
    lines = [
        f"## {summary['flow_run']}",
        *([f"**failed**\n\n```\n{error}\n```"] if error else []),
        *(f"- `{key}`: {count} changed partitions" for key, count in summary["partitions"].items()),
        f"- {len(summary['models'])} intervals built in {summary['seconds']:.1f} s"
        if summary["models"]
        else "Nothing to do.",
    ]
    create_markdown_artifact("\n".join(lines), key="transform-summary", description=summary["flow_run"])
