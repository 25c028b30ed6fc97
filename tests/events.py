"""Events as the Prefect server has stored them."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import get_client

from ducklake_flows.orchestration.server import until


def asset_events(run_name: str, count: int) -> dict[str, tuple[str, set[str], dict[str, Any]]]:
    """The asset materialisations of the latest run with this name, by key: state, upstream keys and metadata.

    Args:
        run_name: The name of the flow run.
        count: How many there are. The server stores events after the run has ended.
    """
    found: list[dict[str, Any]] = []

    def all_there() -> bool:
        with get_client(sync_client=True) as client:
            named = {"flow_runs": {"name": {"any_": [run_name]}}, "sort": "START_TIME_DESC", "limit": 1}
            (run,) = client.request("POST", "/flow_runs/filter", json=named).json()
            wanted = {
                "event": {"prefix": ["prefect.asset.materialization"]},
                "related": {"id": [f"prefect.flow-run.{run['id']}"]},
            }
            found[:] = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 50}).json()["events"]
        return len(found) >= count

    assert until(all_there), found
    assert len(found) == count, "one for each table"
    return {
        event["resource"]["prefect.resource.id"]: (
            event["event"].rpartition(".")[2],
            {r["prefect.resource.id"] for r in event["related"] if r["prefect.resource.role"] == "asset"},
            event["payload"],
        )
        for event in found
    }
