"""The automations: mark lost and stuck runs as crashed, and report to a webhook what an operator must know."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, SendNotification
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

from ducklake_flows.orchestration.events import FAILING, FRESH, OVERDUE

if TYPE_CHECKING:
    from ducklake_flows.settings import Settings

FAILED = "lake-failed-run"
LOST = "lake-lost-run"
STUCK = "lake-stuck-run"
LATE = "lake-late-run"
CAUSE = "lake-failed-partitions"
SKIPPED = "lake-skipped-maintenance"
IDLE = "lake-no-worker"
LATE_DATA = "lake-overdue-dataset"
LATE_DATA_ENDED = "lake-fresh-dataset"
TAG = "lake"
"""On every deployment of a project, and so on its runs; and on the runs of the `lake` command."""

POOL = "lake"
"""The work pool of the deployments."""

SUSPENDED = "lake.run.suspended"
"""The last event of a suspended run's process: it sends no more heartbeats."""

LOST_SECONDS = 180
"""Seconds without heartbeat (sent every 30 s) before a run is marked Crashed."""

STUCK_SECONDS = 900
"""Seconds between the submission of a run and its start before it is marked Crashed."""

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

    Without `LOST`, a run whose process was killed (by a stopped worker, for example) stays "Running" for ever; without
    `STUCK`, one that a worker took and never started stays "Pending". The others need LAKE_NOTIFY_URL. The address is
    a secret, since whoever knows it can post there: it is kept in the secret values of a block.

    Returns:
        What was created.
    """
    made = _save(_lost()) + _save(_stuck())
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
    block_id = UUID(str(block.save(FAILED, overwrite=True)))
    return made + [name for alert in _alerts(block_id) for name in _save(alert)]


def _save(wanted: AutomationCore) -> list[str]:
    """Create an automation, or update the one of its name if it differs. Returns what was created.

    An update would make Prefect forget the runs that a proactive trigger watches.
    """
    with get_client(sync_client=True) as client:
        if found := client.read_automations_by_name(wanted.name):
            if _content(found[0]) != _content(wanted):
                client.update_automation(found[0].id, wanted)
            return []
        client.create_automation(wanted)
    return [f"the automation {wanted.name}"]


def _content(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does, without ids and without whether it is enabled."""
    content = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    content["trigger"].pop("id", None)
    for names in ("after", "expect", "for_each"):
        content["trigger"][names] = sorted(content["trigger"][names])
    return content


def _lost() -> AutomationCore:
    return _crashes(
        LOST,
        f"Marks a run of the lake as crashed that has been silent for {LOST_SECONDS} s.",
        "Its process is gone. What it published stays published: run it again.",
        after={_HEARTBEAT},
        expect={_HEARTBEAT, SUSPENDED, "prefect.flow-run.Suspended", *_ENDED},
        within=timedelta(seconds=LOST_SECONDS),
    )


def _stuck() -> AutomationCore:
    return _crashes(
        STUCK,
        f"Marks a run of the lake as crashed that was submitted and has not started for {STUCK_SECONDS} s.",
        "It was submitted, but never started. See the worker's log, then run it again.",
        after={f"prefect.flow-run.{name}" for name in ("Pending", "Submitting")},
        expect=_ENDED | {f"prefect.flow-run.{name}" for name in ("Running", "Scheduled", "AwaitingConcurrencySlot")},
        within=timedelta(seconds=STUCK_SECONDS),
    )


def _crashes(name: str, description: str, message: str, **trigger: Any) -> AutomationCore:
    """Mark a run as crashed for which an expected event does not follow in time."""
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(**{**_OURS, **trigger}, posture=Posture.Proactive, for_each={"prefect.resource.id"}),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, force=False, message=message)],
    )


def _alerts(block_id: UUID) -> list[AutomationCore]:
    """What LAKE_NOTIFY_URL is told."""

    def alert(name: str, description: str, subject: str, body: str, **trigger: Any) -> AutomationCore:
        return AutomationCore(
            name=name,
            description=description,
            trigger=EventTrigger(**{"posture": Posture.Reactive, "threshold": 1, "within": timedelta(0), **trigger}),
            actions=[SendNotification(block_document_id=block_id, subject=subject, body=body)],
        )

    run = (_SUBJECT, _BODY)
    return [
        alert(
            FAILED,
            "Tells LAKE_NOTIFY_URL of every failed or crashed run of the lake.",
            *run,
            **_OURS,
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        ),
        alert(
            LATE,
            "Tells LAKE_NOTIFY_URL of every run of the lake that did not start at its time.",
            *run,
            **_OURS,
            expect={"prefect.flow-run.Late"},
        ),
        alert(
            SKIPPED,
            "Tells LAKE_NOTIFY_URL when maintenance was cancelled, also by another one that still runs.",
            *run,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.name": "maintain", "prefect.resource.role": "flow"},
            expect={"prefect.flow-run.Cancelled"},
        ),
        alert(
            CAUSE,
            "Tells LAKE_NOTIFY_URL of the first failure of each cause, while the run goes on.",
            "{{ event.payload.dataset }}: partitions fail",
            "{{ event.payload.cause }}\nNext: {{ event.payload.next }}",
            match={"prefect.resource.id": "lake.dataset.*"},
            expect={FAILING},
        ),
        alert(
            LATE_DATA,
            "Tells LAKE_NOTIFY_URL once when a dataset has become overdue.",
            "{{ event.payload.dataset }} is overdue",
            "{{ event.payload.line }}\n{{ event.payload.cause }}\nNext: {{ event.payload.next }}",
            match={"prefect.resource.id": "lake.dataset.*"},
            expect={OVERDUE},
        ),
        alert(
            LATE_DATA_ENDED,
            "Tells LAKE_NOTIFY_URL once when a dataset is no longer overdue.",
            "{{ event.payload.dataset }} is no longer overdue",
            "It was overdue since {{ event.payload.since }}.",
            match={"prefect.resource.id": "lake.dataset.*"},
            expect={FRESH},
        ),
        alert(
            IDLE,
            "Tells LAKE_NOTIFY_URL when no worker of the pool answers any more.",
            "The work pool {{ work_pool.name }} has no worker",
            "Its runs wait until a worker starts: lake serve, make stack, or the container prefect-worker.",
            match={"prefect.resource.id": "prefect.work-pool.*", "prefect.resource.name": POOL},
            expect={"prefect.work-pool.not-ready"},
        ),
    ]
