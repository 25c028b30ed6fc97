"""Shows the models of a transform as task runs, so that its graph in the Prefect UI has bronze, silver and gold.

The models are built in SQLMesh's process, outside of Prefect's engine. Its reports become task runs of the flow run,
each with the task runs of the models that it reads as inputs; and one asset event per model (`assets.py`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import TaskRunCreate
from prefect.client.schemas.objects import TaskRun, TaskRunResult
from prefect.states import Cancelled, Completed, Failed, Pending, Running, to_state_create

from ducklake_flows.orchestration.assets import ModelAssets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from prefect.client.schemas.objects import State

log = logging.getLogger(__name__)

MOST = 200
"""Maximum task runs of a transform: a graph with more is not readable."""


class ModelRuns:
    """The task runs and assets of one transform. At the end of the block, no task run is left in progress.

    Args:
        flow_run: The id of its flow run.
        environment: The environment of models.
    """

    def __init__(self, flow_run: UUID, environment: str) -> None:
        self.assets = ModelAssets(environment)
        self._flow_run = flow_run
        self._client = get_client(sync_client=True)
        self._count = 0
        self._open: dict[str, UUID] = {}
        self._last: dict[str, UUID] = {}

    def report(self, event: Mapping[str, Any]) -> None:
        """Take a report of the build. The graph is only a picture: a server that does not answer stops no build."""
        self.assets.report(event)
        try:
            if event["event"] == "begun":
                self._begin(event)
            elif event["event"] == "model":
                self._end(event["model"], Completed())
            elif event["event"] == "refused":
                self._end(event["model"], Failed(message="\n".join(r["error"] for r in event["refusals"])))
        except httpx.HTTPError as error:
            log.warning("the run's graph lacks a model: %s", error)

    def __enter__(self) -> ModelRuns:
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._open):
            self.report({"event": "refused", "model": name, "refusals": [{"error": "The build ended before it did."}]})
        self._client.__exit__(None, None, None)
        self.assets.emit()

    def _begin(self, event: Mapping[str, Any]) -> None:
        self._end(event["model"], Cancelled(message="A row was refused, so the stretch is built in parts."))
        if self._count >= MOST:
            return
        self._count += 1
        name = event["model"]
        first, last = event["start"], event["end"]
        read = [TaskRunResult(id=self._last[model]) for model in event["reads"] if model in self._last]
        wanted = TaskRunCreate(
            id=uuid4(),
            name=f"{name} {first}" if first == last else f"{name} {first}..{last}",
            flow_run_id=self._flow_run,
            task_key=name,
            dynamic_key=str(self._count),
            state=to_state_create(Pending()),
            task_inputs={"reads": list(read)},
        )
        answer = self._client.request("POST", "/task_runs/", json=wanted.model_dump(mode="json"))
        answer.raise_for_status()
        made = TaskRun.model_validate(answer.json()).id
        self._client.set_task_run_state(made, Running(), force=True)
        self._open[name] = self._last[name] = made

    def _end(self, name: str, state: State[Any]) -> None:
        run = self._open.pop(name, None)
        if run is not None:
            self._client.set_task_run_state(run, state, force=True)
