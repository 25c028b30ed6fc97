"""`lake deploy` on a real Prefect server: it creates what is missing, and keeps what an operator set."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from ducklake_flows.errors import BadInput
from ducklake_flows.orchestration import automations
from ducklake_flows.orchestration.deploy import JOB_TEMPLATE, Deployed, deploy
from ducklake_flows.settings import Settings, load_settings
from tests.conftest import ROOT, make_project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect.client.orchestration import SyncPrefectClient


class Project:
    """A project with this repository's deployments, under other names: tests share the server."""

    def __init__(self, folder: Path, client: SyncPrefectClient, name: str) -> None:
        self.file = make_project(folder) / "deployments" / "prefect.yaml"
        self.file.parent.mkdir()
        self.client, self.pool, self.prefix = client, f"pool-{name}", name
        text = (ROOT / "deployments" / "prefect.yaml").read_text()
        text = text.replace("- name: ", f"- name: {name}-")
        found = yaml.safe_load(text.replace("name: lake-", f"name: {name}-"))
        # One deployment with a schedule and a trigger.
        (arrived,) = (d for d in found["deployments"] if d["name"] == f"{name}-arrived")
        found["deployments"][0]["triggers"] = arrived["triggers"]
        found["deployments"].remove(arrived)
        for deployment in found["deployments"]:
            deployment["work_pool"] = {**deployment["work_pool"], "name": self.pool}
        self.file.write_text(yaml.safe_dump(found))

    def deploy(self) -> Deployed:
        return deploy(load_settings())

    def change(self, **fields: Any) -> None:
        """Change the ingest deployment in the file."""
        found = yaml.safe_load(self.file.read_text())
        found["deployments"][0] |= fields
        self.file.write_text(yaml.safe_dump(found))

    def ingest(self) -> dict[str, Any]:
        return self.client.read_deployment_by_name(f"ingest/{self.prefix}-ingest").model_dump(mode="json")

    def patch(self, path: str, **body: Any) -> None:
        """Change something as the UI does."""
        self.client._client.patch(path, json=body).raise_for_status()

    def triggers(self) -> dict[str, tuple[bool, str]]:
        """The triggers by name: whether each is enabled, and the deployment that it starts."""
        found = [a for a in self.client.read_automations() if a.name.startswith(f"{self.prefix}-")]
        names = {d.id: d.name for d in self.client.read_deployments()}
        return {a.name: (a.enabled, names[a.actions[0].deployment_id]) for a in found}  # type: ignore[union-attr,index]


@pytest.fixture
def project(
    tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Project]:
    monkeypatch.setenv("LAKE_PROJECT", str(tmp_path))
    with get_client(sync_client=True) as client:
        made = Project(tmp_path, client, f"t{abs(hash(request.node.name)) % 10**8}")
        yield made
        for name in made.triggers():
            client.delete_automation(client.read_automations_by_name(name)[0].id)
        with contextlib.suppress(ObjectNotFound):
            client.delete_work_pool(made.pool)


def test_an_upgrade_keeps_what_an_operator_set(project: Project) -> None:
    due = {"datasets": ["@due 0 6 * * * UTC"]}
    project.change(schedules=[{"slug": "daily", "cron": "0 6 * * *", "timezone": "UTC", "parameters": due}])
    first = project.deploy()
    name = f"ingest/{project.prefix}-ingest"
    assert f"created the work pool {project.pool}" in first.changes
    assert f"created the deployment {name}" in first.changes
    assert project.deploy() == Deployed(pools=[project.pool])

    # The form offers the datasets and the environments by name.
    pipeline = project.client.read_deployment_by_name(f"pipeline/{project.prefix}-pipeline")
    offered = pipeline.parameter_openapi_schema["properties"]  # type: ignore[index]
    assert {"flights", "readings"} <= set(offered["datasets"]["anyOf"][0]["items"]["enum"])
    assert offered["environment"]["enum"] == ["prod", "dev"]

    # The operator pauses, disables and changes.
    ingest = project.ingest()
    (schedule,) = ingest["schedules"]
    assert ingest["global_concurrency_limit"]["limit"] == 2
    (trigger,) = [t for t, (_, starts) in project.triggers().items() if starts == f"{project.prefix}-ingest"]
    project.client.update_work_pool(project.pool, WorkPoolUpdate(is_paused=True, concurrency_limit=3))
    project.patch(f"/deployments/{ingest['id']}", concurrency_limit=7, paused=True, tags=["mine"])
    mine = {"cron": "0 1 * * *", "timezone": "UTC"}
    project.patch(f"/deployments/{ingest['id']}/schedules/{schedule['id']}", active=False, schedule=mine, parameters={})
    project.client.pause_automation(project.client.read_automations_by_name(trigger)[0].id)

    def as_set() -> tuple[Any, ...]:
        there, pool = project.ingest(), project.client.read_work_pool(project.pool)
        found = there["schedules"][0]
        return (
            (pool.is_paused, pool.concurrency_limit, pool.type, pool.base_job_template),
            (there["paused"], there["global_concurrency_limit"]["limit"], there["tags"]),
            (found["active"], found["schedule"]["cron"], found["parameters"]),
            project.triggers()[trigger][0],
        )

    set_by_hand: tuple[Any, ...] = (
        (True, 3, "process", JOB_TEMPLATE),
        (True, 7, ["mine"]),
        (False, "0 1 * * *", {}),
        False,
    )
    assert as_set() == set_by_hand
    second = project.deploy()
    assert as_set() == set_by_hand
    assert second.changes == []
    assert second.kept == [
        f"the work pool {project.pool} is paused",
        f"{name}: concurrency_limit, tags",
        f"the schedule daily of {name}",
        f"the schedule daily of {name} is paused",
        f"the trigger {trigger} of {name} is disabled",
        f"{name} is paused",
    ]

    # A new release changes the description and the trigger: only these are written, and all stays off.
    entry = yaml.safe_load(project.file.read_text())["deployments"][0]
    project.change(description="A new text.", triggers=[{**entry["triggers"][0], "threshold": 2}])
    third = project.deploy()
    assert third.changes == [f"updated {name}: description", f"updated the trigger {trigger} of {name}"]
    assert project.ingest()["description"] == "A new text."
    assert project.client.read_automations_by_name(trigger)[0].trigger.threshold == 2  # type: ignore[union-attr]
    assert as_set() == set_by_hand

    # A release that changes the limit and the schedule itself has a reason to: they are written, and stay off.
    project.change(
        concurrency_limit={"limit": 4, "collision_strategy": "ENQUEUE"},
        schedules=[
            {
                "slug": "daily",
                "cron": "5 2 * * *",
                "timezone": "UTC",
                "parameters": {"datasets": ["@due 5 2 * * * UTC"]},
            },
            {"slug": "more", "interval": 3600},
        ],
        triggers=[],
    )
    fourth = project.deploy()
    assert fourth.changes == [
        # Without a trigger, the form offers the datasets.
        f"updated {name}: concurrency_limit, parameter_openapi_schema",
        f"updated the schedule daily of {name}",
        f"created the schedule more of {name}",
        f"deleted the trigger {trigger} of {name}",
    ]
    found = {s["slug"]: s for s in project.ingest()["schedules"]}
    assert (found["daily"]["active"], found["daily"]["schedule"]["cron"]) == (False, "5 2 * * *")
    assert project.ingest()["paused"] is True
    assert trigger not in project.triggers()


def test_a_trigger_that_moves_to_another_deployment_stays_disabled(project: Project) -> None:
    project.deploy()
    (trigger,) = [t for t, (_, starts) in project.triggers().items() if starts == f"{project.prefix}-ingest"]
    project.client.pause_automation(project.client.read_automations_by_name(trigger)[0].id)
    found = yaml.safe_load(project.file.read_text())
    arrived = {**found["deployments"][0], "name": f"{project.prefix}-arrived"}
    arrived["work_pool"] = {"name": project.pool, "work_queue_name": "arrived"}
    found["deployments"][0]["triggers"] = []
    found["deployments"].append(arrived)
    project.file.write_text(yaml.safe_dump(found))
    changes = project.deploy().changes
    assert f"the trigger {trigger} now starts ingest/{project.prefix}-arrived" in changes
    assert not [change for change in changes if change.startswith("deleted")]
    assert project.triggers()[trigger] == (False, f"{project.prefix}-arrived")
    there = project.client.read_deployment_by_name(f"ingest/{project.prefix}-arrived")
    assert there.work_queue_name == "arrived"


def test_a_pool_keeps_its_type_and_a_template_that_an_operator_wrote(project: Project) -> None:
    """An open template, as the last release created it, is locked; a hand-written one and another type are kept."""
    default = ProcessWorker.get_default_base_job_template()
    project.client.create_work_pool(WorkPoolCreate(name=project.pool, type="process", base_job_template=default))
    project.deploy()
    assert project.client.read_work_pool(project.pool).base_job_template == JOB_TEMPLATE
    default["job_configuration"]["working_dir"] = "/srv"
    project.client.update_work_pool(project.pool, WorkPoolUpdate(base_job_template=default))
    (kept,) = project.deploy().kept
    assert kept.startswith(f"the job template of the work pool {project.pool}; whoever may start a run")
    assert project.client.read_work_pool(project.pool).base_job_template == default
    project.client.delete_work_pool(project.pool)
    project.client.create_work_pool(WorkPoolCreate(name=project.pool, type="kubernetes", base_job_template=default))
    assert project.deploy().kept == [
        f"the work pool {project.pool} has the type kubernetes; its job template is not changed"
    ]
    assert project.client.read_work_pool(project.pool).type == "kubernetes"


def test_an_automation_that_an_operator_disabled_stays_disabled(prefect_server: str) -> None:
    automations.ensure(Settings())
    with get_client(sync_client=True) as client:
        (found,) = client.read_automations_by_name(automations.LOST)
        client.pause_automation(found.id)
        paused = client.read_automation(found.id)
        automations.ensure(Settings())
        assert client.read_automation(found.id) == paused, "not even written: Prefect would forget whom it watches"
        assert paused.enabled is False  # type: ignore[union-attr]
        client.resume_automation(found.id)


def test_a_wrong_file_is_one_error_and_changes_nothing(project: Project) -> None:
    for text, said in (
        ("deployments: [", "cannot be deployed: ParserError"),
        ("deployments: [{name: x, entrypoint: no.such.flow, work_pool: {name: p}}]", "cannot be deployed"),
        ("deployments: [{name: x, entrypoint: ducklake_flows.ingest.ingest}]", "has no work pool"),
    ):
        project.file.write_text(text)
        with pytest.raises(BadInput, match=said):
            project.deploy()
    project.file.unlink()
    with pytest.raises(BadInput, match=r"prefect\.yaml does not exist"):
        project.deploy()
    with pytest.raises(ObjectNotFound):
        project.client.read_work_pool(project.pool)
