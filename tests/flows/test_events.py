"""The label of a publish event, which decides whether it triggers a transform; on a real Prefect server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import get_client
from prefect.states import Running, Scheduled

from ducklake_flows.ingest import ingest
from ducklake_flows.lake.publish import Published
from ducklake_flows.orchestration import events, names
from ducklake_flows.pipeline import pipeline
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
        client.delete_flow_run(waiting.id)
        assert label() == "wanted"
        client.delete_deployment(deployment)


def test_waiting_runs_are_named_as_they_will_be_when_they_start(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon, late = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (15, 3 * 3600))
    given: list[tuple[Any, dict[str, Any], datetime, str]] = [
        (ingest, {"datasets": ["@due 0 6 * * * UTC"]}, soon, "ingest due 0 6 * * * UTC first..last"),
        (ingest, {"datasets": ["flights"], "partitions": ["2013-01-01"]}, soon, "ingest flights 2013-01-01"),
        (ingest, {"start": "2013-01-01", "limit": 5}, soon, "ingest all 2013-01-01..last, at most 5"),
        (pipeline, {"datasets": ["flights"]}, soon, "pipeline flights first..last"),
        (transform, {}, soon, "transform prod"),
        (transform, {"environment": "dev"}, late, ""),
    ]
    with get_client(sync_client=True) as client:
        deployments = [client.create_deployment(client.create_flow(f), "named", parameters={}) for f, *_ in given]
        made = [
            client.create_flow_run_from_deployment(id_, state=Scheduled(scheduled_time=when), parameters=parameters)
            for id_, (_, parameters, when, _) in zip(deployments, given, strict=True)
        ]
        monkeypatch.setattr(names, "_named", [])
        names.name_waiting()
        found = [client.read_flow_run(run.id).name for run in made]
        assert found[:-1] == [name for *_, name in given[:-1]]
        assert found[-1] == made[-1].name, "a run of a later time keeps its name"
        client.set_flow_run_name(made[0].id, "other")
        names.name_waiting()
        assert client.read_flow_run(made[0].id).name == "other", "not again within seconds"
        for id_ in set(deployments):
            client.delete_deployment(id_)  # and their runs
