"""The label of a publish event, which decides whether it triggers a transform; on a real Prefect server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import get_client
from prefect.states import Running, Scheduled

from ducklake_flows.lake.publish import Published
from ducklake_flows.orchestration import events
from ducklake_flows.transform import transform

if TYPE_CHECKING:
    import pytest

    from tests.conftest import Lake


def test_a_publish_wants_a_transform_unless_one_waits_or_none_would_do_anything(
    gated_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitted: list[Any] = []
    monkeypatch.setattr(events, "emit_event", lambda event, resource, payload: emitted.append(resource))
    gated_lake.land("airlines.csv", "carrier,name\nUA,United\n")
    read = Published(receipts=gated_lake.load("airlines", "full").receipts)
    gated_lake.land("readings/2024-01-01.jsonl", [{"id": 1}])
    unread = Published(receipts=gated_lake.load("readings", "2024-01-01").receipts)
    assert read.receipts
    assert unread.receipts

    def label(result: Published = read) -> str:
        events.published(result, gated_lake.settings)
        return str(emitted.pop()[events.TRANSFORM])

    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(transform)
        deployment = client.create_deployment(flow_id, "transform", parameters={"environment": "prod"})

        def run(state: Any, **parameters: Any) -> Any:
            return client.create_flow_run_from_deployment(deployment, state=state, parameters=parameters)

        now = datetime.now(UTC)
        assert label() == "wanted"
        assert label(unread) == "unread"
        with events.transform_follows():
            assert label() == "follows"
        with events.transform_follows("dev"):
            assert label() == "wanted"
        run(Scheduled(scheduled_time=now + timedelta(hours=3)))  # the daily one
        run(Scheduled(scheduled_time=now), environment="dev")
        run(Running())
        assert label() == "wanted"
        waiting = run(Scheduled(scheduled_time=now + timedelta(seconds=15)))
        assert label() == "waits"
        assert client.read_flow_run(waiting.id).name == "transform prod"
        client.delete_flow_run(waiting.id)
        assert label() == "wanted"
        client.delete_deployment(deployment)
