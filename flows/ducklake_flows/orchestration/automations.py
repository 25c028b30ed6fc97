"""The automations: a run that was lost is marked as crashed, and somebody is told of failed runs."""

from __future__ import annotations

from typing import Any

from ducklake_flows.settings import Settings

FAILED = "lake-failed-run"
LOST = "lake-lost-run"
TAG = "lake"
"""On every deployment of this project, and so on its runs; and on those of the `lake` command."""

LOST_SECONDS = 180
"""How long a run may be silent; it says every 30 s that it is there."""

_SUBJECT = "{{ flow_run.name }} {{ flow_run.state.name }}"
_BODY = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
_ENDED = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")]
_HEARTBEAT = "prefect.flow-run.heartbeat"


def ensure(settings: Settings) -> list[str]:
    """Make the automations, or bring them up to date. Safe to repeat.

    Without the first, a run whose process was killed (by a stopped worker, say) is "Running" for ever. The second
    needs LAKE_NOTIFY_URL, which is a secret (whoever knows it can post there): it lies in the block's secret values.

    Returns:
        What was made.
    """
    made = _save(_lost())
    if settings.notify_url is None:
        return made
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    block = CustomWebhookNotificationBlock(
        name=FAILED,
        url="{{address}}",
        headers=None,
        cookies=None,
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets={"address": settings.notify_url.get_secret_value()},  # type: ignore[arg-type]
    )
    return made + _save(_failed(str(block.save(FAILED, overwrite=True))))


def _save(wanted: dict[str, Any]) -> list[str]:
    """Make an automation, or bring the one of its name up to date. Returns what was made."""
    from prefect.client.orchestration import get_client

    name = wanted["name"]
    with get_client(sync_client=True) as client:
        asked = client.request("POST", "/automations/filter", json={"automations": {"name": {"any_": [name]}}})
        found = asked.raise_for_status().json()
        for automation in found:
            there = {"id": automation["id"]}
            client.request("PUT", "/automations/{id}", path_params=there, json=wanted).raise_for_status()
        if not found:
            client.request("POST", "/automations/", json=wanted).raise_for_status()
    return [] if found else [f"the automation {name}"]


_OURS = {
    "type": "event",
    "match": {"prefect.resource.id": "prefect.flow-run.*"},
    "match_related": {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"},
    "threshold": 1,
}


def _lost() -> dict[str, Any]:
    return {
        "name": LOST,
        "description": f"Marks a run of the lake as crashed that has been silent for {LOST_SECONDS} s.",
        "trigger": {
            **_OURS,
            "posture": "Proactive",
            "after": [_HEARTBEAT],
            "expect": [_HEARTBEAT, *_ENDED],
            "for_each": ["prefect.resource.id"],
            "within": LOST_SECONDS,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": "Its process is gone. What it published stays published: run it again.",
            }
        ],
    }


def _failed(block_id: str) -> dict[str, Any]:
    return {
        "name": FAILED,
        "description": "Tells LAKE_NOTIFY_URL of every failed or crashed run of the lake.",
        "trigger": {
            **_OURS,
            "posture": "Reactive",
            "expect": ["prefect.flow-run.Failed", "prefect.flow-run.Crashed"],
            "within": 0,
        },
        "actions": [
            {"type": "send-notification", "block_document_id": block_id, "subject": _SUBJECT, "body": _BODY},
        ],
    }
