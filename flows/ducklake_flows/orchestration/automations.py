"""The automations: mark a lost run as crashed, and report failed runs to a webhook."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, SendNotification
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

if TYPE_CHECKING:
    from ducklake_flows.settings import Settings

FAILED = "lake-failed-run"
LOST = "lake-lost-run"
TAG = "lake"
"""On every deployment of a project, and so on its runs; and on the runs of the `lake` command."""

LOST_SECONDS = 180
"""Seconds without heartbeat (sent every 30 s) before a run is marked Crashed."""

_SUBJECT = "{{ flow_run.name }} {{ flow_run.state.name }}"
_BODY = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
_ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")}
_HEARTBEAT = "prefect.flow-run.heartbeat"
_OURS: dict[str, Any] = {
    "match": {"prefect.resource.id": "prefect.flow-run.*"},
    "match_related": {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"},
    "threshold": 1,
}


def ensure(settings: Settings) -> list[str]:
    """Create the automations, or update them. Safe to repeat.

    Without the first one, a run whose process was killed (by a stopped worker, for example) stays "Running" for ever.
    The second needs LAKE_NOTIFY_URL. The address is a secret, since whoever knows it can post there: it is kept in the
    secret values of a block.

    Returns:
        What was created.
    """
    made = _save(_lost())
    if settings.notify_url is None:
        return made
    block = CustomWebhookNotificationBlock(
        name=FAILED,
        url="{{address}}",
        headers=None,
        cookies=None,
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets={"address": settings.notify_url.get_secret_value()},  # type: ignore[arg-type]
    )
    return made + _save(_failed(UUID(str(block.save(FAILED, overwrite=True)))))


def _save(wanted: AutomationCore) -> list[str]:
    """Create an automation, or update the one of its name. Returns what was created."""
    with get_client(sync_client=True) as client:
        if found := client.read_automations_by_name(wanted.name):
            client.update_automation(found[0].id, wanted)
            return []
        client.create_automation(wanted)
    return [f"the automation {wanted.name}"]


def _lost() -> AutomationCore:
    return AutomationCore(
        name=LOST,
        description=f"Marks a run of the lake as crashed that has been silent for {LOST_SECONDS} s.",
        trigger=EventTrigger(
            **_OURS,
            posture=Posture.Proactive,
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *_ENDED},
            for_each={"prefect.resource.id"},
            within=timedelta(seconds=LOST_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message="Its process is gone. What it published stays published: run it again.",
            )
        ],
    )


def _failed(block_id: UUID) -> AutomationCore:
    return AutomationCore(
        name=FAILED,
        description="Tells LAKE_NOTIFY_URL of every failed or crashed run of the lake.",
        trigger=EventTrigger(
            **_OURS,
            posture=Posture.Reactive,
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            within=timedelta(0),
        ),
        actions=[SendNotification(block_document_id=block_id, subject=_SUBJECT, body=_BODY)],
    )
