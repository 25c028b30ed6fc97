"""Deployments: create what is missing on the Prefect server, update what `deployments/prefect.yaml` changed.

`prefect deploy` sets everything to what the file says. Here an operator's changes stay: a field of a deployment is
written only if the file's value differs from the one that was deployed last. Digests of those values are kept on the
server, in one Prefect variable per deployment. Whether a pool, a deployment, a schedule or a trigger is switched on is
written only when it is created.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import yaml
from prefect.automations import AutomationCore
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.deployments.steps.core import run_steps
from prefect.events import DeploymentTriggerTypes
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import apply_values, resolve_block_document_references, resolve_variables
from prefect.workers.process import ProcessWorker
from pydantic import TypeAdapter

from ducklake_flows.errors import BadInput, LakeError, redacted
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import PROD, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation
    from prefect.flows import Flow

    from ducklake_flows.settings import Settings

JOB_TEMPLATE: dict[str, Any] = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
"""The job template of a process pool: a run can choose neither its command nor its environment. `env` is missing on
purpose: a template that has it takes every run's variables, even if it names none."""

_TRIGGERS: TypeAdapter[Any] = TypeAdapter(DeploymentTriggerTypes)
_SCHEDULES = ({"cron", "timezone", "day_or"}, {"interval", "anchor_date", "timezone"}, {"rrule", "timezone"})
_UPDATED = ("concurrency_limit", "concurrency_options")


@dataclass
class Wanted:
    """A deployment as the project's file describes it.

    Args:
        name: Its full name, ``flow/deployment``.
        fields: The fields of Prefect's API, without schedules and triggers.
        schedules: The schedules by slug.
        triggers: The triggers by the name of their automation.
    """

    name: str
    fields: dict[str, Any]
    schedules: dict[str, dict[str, Any]]
    triggers: dict[str, dict[str, Any]]

    def digests(self) -> dict[str, str]:
        """A digest of every part."""
        parts = {**self.fields, **{f"schedule {k}": v for k, v in self.schedules.items()}}
        parts |= {f"trigger {k}": v for k, v in self.triggers.items()}
        return {name: _digest(value) for name, value in parts.items() if name not in ("name", "paused")}


@dataclass
class Deployed:
    """What a deploy did, as lines for the user.

    Args:
        changes: What was created, updated or deleted.
        kept: What differs from the project's file because an operator set it.
        pools: The work pools of the deployments.
    """

    changes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    pools: list[str] = field(default_factory=list)


def deploy(settings: Settings) -> Deployed:
    """Create what is missing and update what the project's files changed. Safe to repeat.

    Raises:
        BadInput: the project has no `deployments/prefect.yaml`, or the file is wrong.
        LakeError: the Prefect server refuses a part of it.
    """
    wanted = read(settings)
    done = Deployed(pools=list(dict.fromkeys(one.fields["work_pool_name"] for one in wanted)))
    with get_client(sync_client=True) as client:
        try:
            for pool in done.pools:
                _deploy_pool(client, pool, done)
            triggers = {name for one in wanted for name in one.triggers}
            for one in wanted:
                _deploy_one(client, one, triggers, done)
        except PrefectHTTPStatusError as error:
            raise LakeError(
                f"The Prefect server refused a deployment: {redacted(error.response.text)[:500]}",
                f"correct {_file(settings)}, then run the same command again",
            ) from None
    return done


def read(settings: Settings) -> list[Wanted]:
    """The deployments of the project's `deployments/prefect.yaml`, with its build steps run and its templates filled.

    Raises:
        BadInput: there is no such file, or it is wrong.
    """
    file = _file(settings)
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        entries = [entry for entry in found["deployments"] if entry.get("name")]
        return [asyncio.run(_wanted(entry, found)) for entry in entries]
    except FileNotFoundError:
        raise BadInput(f"There are no deployments: {file} does not exist.", "lake new NAME writes one") from None
    except BadInput:
        raise
    except Exception as error:  # noqa: BLE001
        # Import errors of an entrypoint, YAML errors, wrong schedules: all of them are errors of the file.
        text = redacted(" ".join(f"{type(error).__name__}: {error}".split()))[:400]
        raise BadInput(f"{file} cannot be deployed: {text}", "correct the file") from None


def _file(settings: Settings) -> Path:
    if settings.project is None:
        raise BadInput("There is no project here.", "change to a project's folder, or set LAKE_PROJECT")
    return settings.project / "deployments" / "prefect.yaml"


async def _wanted(entry: dict[str, Any], file: Mapping[str, Any]) -> Wanted:
    """A deployment of the file, as `prefect deploy` reads it."""
    entry = deepcopy(entry)
    build = entry.pop("build", file.get("build")) or []
    pull = entry.pop("pull", file.get("pull")) or []
    triggers = entry.pop("triggers", None) or []  # they have templates that are filled for each event
    if "prefect." in json.dumps(entry, default=str):
        # Blocks and variables of the server, {{ prefect.variables.name }}: they need a request each.
        entry = await resolve_variables(await resolve_block_document_references(entry))
    entry = cast("dict[str, Any]", apply_values(entry, dict(os.environ), remove_notset=False))
    outputs = await run_steps(build, {}, print_function=lambda *_: None)
    entry = apply_values(entry, outputs, warn_on_notset=True, skip_prefixes=["ctx."])
    flow: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"])
    pool = entry.get("work_pool") or {}
    if not pool.get("name"):
        raise BadInput(f"The deployment {entry['name']} has no work pool.", "set work_pool: {name: lake} in the file")
    limit = entry.get("concurrency_limit")
    options = {k: v for k, v in limit.items() if k != "limit"} if isinstance(limit, dict) else None
    fields = {
        "name": entry["name"],
        "paused": bool(entry.get("paused")),
        "version": entry.get("version") or version("ducklake-flows"),
        "description": entry.get("description") or flow.description,
        "tags": entry.get("tags") or [],
        "parameters": entry.get("parameters") or {},
        "entrypoint": entry["entrypoint"],
        "pull_steps": apply_values(pull, outputs, remove_notset=False),
        "parameter_openapi_schema": _with_choices(
            parameter_schema(flow).model_dump(mode="json", exclude_unset=True), entry, triggered=bool(triggers)
        ),
        "enforce_parameter_schema": entry.get("enforce_parameter_schema", True),
        "work_pool_name": pool["name"],
        "work_queue_name": pool.get("work_queue_name"),
        "job_variables": pool.get("job_variables") or {},
        "concurrency_limit": limit["limit"] if isinstance(limit, dict) else limit,
        "concurrency_options": options or None,
    }
    schedules = {s["slug"]: s for s in map(_schedule, entry.get("schedules") or [], range(1, 100))}
    named = {t.get("name") or f"{entry['name']}__automation_{n}": t for n, t in enumerate(triggers, start=1)}
    for name, trigger in named.items():
        _TRIGGERS.validate_python({**trigger, "name": name})
    return Wanted(f"{flow.name}/{entry['name']}", fields, schedules, named)


def _with_choices(schema: dict[str, Any], entry: Mapping[str, Any], *, triggered: bool) -> dict[str, Any]:
    """The parameters of a deployment, with the names of datasets and environments as choices in the UI's form.

    An event may concern a dataset that was added since, so the datasets of a triggered deployment are not limited.
    """
    properties = schema["properties"]
    if "environment" in properties:
        properties["environment"]["enum"] = [PROD, *load_settings().environments]
    if "datasets" in properties and not triggered:
        listed = next(kind for kind in properties["datasets"]["anyOf"] if kind.get("type") == "array")
        given = {name for s in entry.get("schedules") or [] for name in (s.get("parameters") or {}).get("datasets", [])}
        listed["items"] = {"type": "string", "enum": sorted({*all_datasets(), *given})}
    return schema


def _schedule(entry: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A schedule of the file in the form of Prefect's API."""
    keys = next((keys for keys in _SCHEDULES if keys & entry.keys() & {"cron", "interval", "rrule"}), None)
    if keys is None:
        raise BadInput(f"A schedule has none of cron, interval and rrule: {dict(entry)}.", "correct prefect.yaml")
    return {
        "slug": entry.get("slug") or f"schedule-{number}",
        "active": entry.get("active", True),
        "parameters": entry.get("parameters") or {},
        "schedule": {key: str(v) if key == "anchor_date" else v for key, v in entry.items() if key in keys},
    }


def _deploy_pool(client: SyncPrefectClient, name: str, done: Deployed) -> None:
    """Create a pool, or lock the job template of a process pool unless an operator changed it. Never its type."""
    wanted, key = _digest(JOB_TEMPLATE), f"pool {name}"
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=JOB_TEMPLATE))
        _record(client, key, {"base_job_template": wanted})
        done.changes.append(f"created the work pool {name}")
        return
    if pool.is_paused:
        done.kept.append(f"the work pool {name} is paused")
    if pool.type != "process":
        done.kept.append(f"the work pool {name} has the type {pool.type}; its job template is not changed")
        return
    current, last = _digest(pool.base_job_template), _recorded(client, key).get("base_job_template")
    replaceable = (last, _digest(ProcessWorker.get_default_base_job_template()), _digest({}))
    if wanted not in (current, last) and current in replaceable:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=JOB_TEMPLATE))
        done.changes.append(f"the work pool {name}: its job template takes no command and no environment")
    elif current != wanted:
        done.kept.append(
            f"the job template of the work pool {name}; whoever may start a run may be able to choose its command"
        )
        return
    _record(client, key, {"base_job_template": wanted})


def _deploy_one(client: SyncPrefectClient, wanted: Wanted, triggers: set[str], done: Deployed) -> None:
    """Create a deployment, or write what its file changed since the last deploy."""
    digests, known = wanted.digests(), _recorded(client, wanted.name)
    gone = {k.removeprefix("trigger ") for k in known if k.startswith("trigger ")} - triggers
    try:
        there = client.read_deployment_by_name(wanted.name).model_dump(mode="json")
    except ObjectNotFound:
        flow = client.create_flow_from_name(wanted.name.partition("/")[0])
        body = {**wanted.fields, "flow_id": str(flow), "schedules": list(wanted.schedules.values())}
        made = client.request("POST", "/deployments/", json={k: v for k, v in body.items() if v is not None}).json()
        done.changes.append(f"created the deployment {wanted.name}")
        _set_triggers(client, wanted, {}, made["id"], done)
        _record(client, wanted.name, digests)
        return
    _set_fields(client, wanted, there, known, done)
    _set_schedules(client, wanted, there, known, done)
    _set_triggers(client, wanted, known, there["id"], done)
    for found in client.read_resource_related_automations(f"prefect.deployment.{there['id']}") if gone else []:
        if found.name in gone:
            client.delete_automation(found.id)
            done.changes.append(f"deleted the trigger {found.name} of {wanted.name}")
    if there["paused"] and not wanted.fields["paused"]:
        done.kept.append(f"{wanted.name} is paused")
    _record(client, wanted.name, digests)


def _set_fields(
    client: SyncPrefectClient,
    wanted: Wanted,
    there: dict[str, Any],
    known: dict[str, str],
    done: Deployed,
) -> None:
    limit = there.get("global_concurrency_limit") or {}
    current = {**there, "concurrency_limit": limit.get("limit")}
    options = current.get("concurrency_options") or {}
    current["concurrency_options"] = {k: options[k] for k in wanted.fields["concurrency_options"] or {} if k in options}
    fields = {k: v for k, v in wanted.fields.items() if k not in ("name", "paused")}
    differing = {k for k, v in fields.items() if (current.get(k) or None) != (v or None)} - {"work_queue_name"}
    differing |= {"work_queue_name"} if fields["work_queue_name"] not in (None, current["work_queue_name"]) else set()
    written = {k for k in differing if known.get(k) != _digest(fields[k])}
    if current["work_pool_name"] is None:
        # The pool was deleted, and its deployments lost it.
        written |= {"work_pool_name"}
    if not known:
        # Deployed by another command: nothing tells whether the limit is the file's or an operator's.
        written -= set(_UPDATED)
    if written:
        body = {k: fields[k] for k in written}
        if written & {"work_pool_name", "work_queue_name"}:
            body |= {k: fields[k] for k in ("work_pool_name", "work_queue_name") if fields[k]}
        client.request("PATCH", "/deployments/{id}", path_params={"id": there["id"]}, json=body)
        done.changes.append(f"updated {wanted.name}: {', '.join(sorted(written))}")
    if kept := differing - written - {"parameter_openapi_schema", "version"}:
        done.kept.append(f"{wanted.name}: {', '.join(sorted(kept))}")


def _set_schedules(
    client: SyncPrefectClient, wanted: Wanted, there: dict[str, Any], known: dict[str, str], done: Deployed
) -> None:
    ids = {"id": there["id"]}
    current = {s["slug"]: s for s in there["schedules"] if s["slug"]}
    for slug, schedule in wanted.schedules.items():
        name, found = f"schedule {slug}", current.get(slug)
        if found is None:
            client.request("POST", "/deployments/{id}/schedules", path_params=ids, json=[schedule])
            done.changes.append(f"created the {name} of {wanted.name}")
            continue
        differs = any(found["schedule"].get(k) != v for k, v in schedule["schedule"].items() if v is not None)
        differs |= (found["parameters"] or {}) != schedule["parameters"]
        if differs and known.get(name) not in (None, _digest(schedule)):
            body = {k: v for k, v in schedule.items() if k != "active"}
            one = {**ids, "schedule_id": found["id"]}
            client.request("PATCH", "/deployments/{id}/schedules/{schedule_id}", path_params=one, json=body)
            done.changes.append(f"updated the {name} of {wanted.name}")
        elif differs:
            done.kept.append(f"the {name} of {wanted.name}")
        if schedule["active"] and not found["active"]:
            done.kept.append(f"the {name} of {wanted.name} is paused")
    for slug in current.keys() - wanted.schedules.keys():
        if f"schedule {slug}" in known:
            one = {**ids, "schedule_id": current[slug]["id"]}
            client.request("DELETE", "/deployments/{id}/schedules/{schedule_id}", path_params=one)
            done.changes.append(f"deleted the schedule {slug} of {wanted.name}")


def _set_triggers(
    client: SyncPrefectClient, wanted: Wanted, known: dict[str, str], deployment: str, done: Deployed
) -> None:
    for name, spec in wanted.triggers.items():
        trigger = _TRIGGERS.validate_python({**spec, "name": name})
        trigger.set_deployment_id(UUID(deployment))
        automation = trigger.as_automation()
        found = next(iter(client.read_automations_by_name(name)), None)
        if found is None:
            client.create_automation(automation)
            done.changes.append(f"created the trigger {name} of {wanted.name}")
            continue
        if not found.enabled and automation.enabled:
            done.kept.append(f"the trigger {name} of {wanted.name} is disabled")
        automation.enabled = found.enabled
        if _acts_on(found) != deployment:
            # It starts another deployment, or one that was deleted and created again. An owner cannot be changed.
            client.delete_automation(found.id)
            client.create_automation(automation)
            done.changes.append(f"the trigger {name} now starts {wanted.name}")
        elif known.get(f"trigger {name}") != _digest(spec):
            client.update_automation(found.id, _without_owner(automation))
            done.changes.append(f"updated the trigger {name} of {wanted.name}")


def _without_owner(automation: AutomationCore) -> AutomationCore:
    """The same automation for an update, which refuses an owner."""
    return AutomationCore.model_validate({k: v for k, v in automation if k != "owner_resource"})


def _acts_on(automation: Automation) -> str:
    """The id of the deployment that an automation starts."""
    return next((str(action.deployment_id) for action in automation.actions if action.type == "run-deployment"), "")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _variable(name: str) -> str:
    return "lake_deployed_" + re.sub(r"[^a-z0-9]+", "_", name.lower())


def _recorded(client: SyncPrefectClient, name: str) -> dict[str, str]:
    """The digests of what was deployed last; empty if nothing was, or by another command."""
    found = client.read_variable_by_name(_variable(name))
    return {str(k): str(v) for k, v in found.value.items()} if found and isinstance(found.value, dict) else {}


def _record(client: SyncPrefectClient, name: str, digests: Mapping[str, str]) -> None:
    variable, value = _variable(name), dict(digests)
    if client.read_variable_by_name(variable) is None:
        client.create_variable(VariableCreate(name=variable, value=value))
    elif _recorded(client, name) != value:
        client.update_variable(VariableUpdate(name=variable, value=value))
