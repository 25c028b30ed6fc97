"""Tell somebody of failed runs: a Prefect notification block, and the automation that uses it."""

from __future__ import annotations

from typing import Any

from flows.settings import Settings

NAME = "lake-failed-run"
TAG = "lake"
"""On every deployment of this project, and so on its runs."""

_SUBJECT = "{{ flow_run.name }} {{ flow_run.state.name }}"
_BODY = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"


def ensure(settings: Settings) -> list[str]:
    """Make the block and the automation for LAKE_NOTIFY_URL, or bring them up to date. Safe to repeat.

    The address is a secret (whoever knows it can post there): it lies in the block's secret values.

    Returns:
        What was made; nothing where LAKE_NOTIFY_URL is not set.
    """
    if settings.notify_url is None:
        return []
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.client.orchestration import get_client

    block = CustomWebhookNotificationBlock(
        name=NAME,
        url="{{address}}",
        headers=None,
        cookies=None,
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets={"address": settings.notify_url.get_secret_value()},  # type: ignore[arg-type]
    )
    block_id = block.save(NAME, overwrite=True)
    wanted = _automation(str(block_id))
    with get_client(sync_client=True) as client:
        asked = client.request("POST", "/automations/filter", json={"automations": {"name": {"any_": [NAME]}}})
        found = asked.raise_for_status().json()
        for automation in found:
            there = {"id": automation["id"]}
            client.request("PUT", "/automations/{id}", path_params=there, json=wanted).raise_for_status()
        if not found:
            client.request("POST", "/automations/", json=wanted).raise_for_status()
    return [] if found else [f"the automation {NAME}"]


def _automation(block_id: str) -> dict[str, Any]:
    return {
        "name": NAME,
        "description": "Tells LAKE_NOTIFY_URL of every failed or crashed run of the lake's deployments.",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": ["prefect.flow-run.Failed", "prefect.flow-run.Crashed"],
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"},
            "threshold": 1,
            "within": 0,
        },
        "actions": [
            {"type": "send-notification", "block_document_id": block_id, "subject": _SUBJECT, "body": _BODY},
        ],
    }
