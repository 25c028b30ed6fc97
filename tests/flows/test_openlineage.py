"""OpenLineage events of real runs, as a receiver gets them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.errors import BadInput, RunFailed
from ducklake_flows.settings import load_settings
from ducklake_flows.transform import transform
from tests.events import asset_events
from tests.flows.test_ingest import land, run
from tests.flows.test_tables import DATASETS
from tests.projects import PUBLISHED, Project, model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Lake


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The events that a receiver has got, which LAKE_OPENLINEAGE_URL names."""
    events: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events.append({"path": self.path, **json.loads(body)})
            self.send_response(201)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("LAKE_OPENLINEAGE_URL", f"http://127.0.0.1:{server.server_port}")
    yield events
    server.shutdown()
    server.server_close()
    thread.join()


def names(datasets: list[dict[str, Any]]) -> list[str]:
    return [dataset["name"] for dataset in datasets]


def test_a_receiver_gets_start_complete_and_fail_with_datasets(
    gated_lake: Lake, received: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(gated_lake, 1, 2)
    gated_lake.land("flights/2013-01-02.csv", "")
    with pytest.raises(RunFailed):
        run("flights", "2013-01-01", "2013-01-02", workers=1)
    start, fail = received
    assert [event["eventType"] for event in received] == ["START", "FAIL"]
    assert {event["path"] for event in received} == {"/api/v1/lineage"}
    assert start["run"]["runId"] == fail["run"]["runId"]
    for event in received:
        assert (event["job"]["namespace"], event["job"]["name"]) == ("project", "ingest")
        (source,), (table,) = event["inputs"], event["outputs"]
        assert source["namespace"] == f"file://{gated_lake.settings.landing}".rstrip("/")
        assert source["name"] == "flights/{partition}.csv"
        assert (table["namespace"], table["name"]) == (f"ducklake:{gated_lake.settings.catalog}", "raw.flights")
    assert fail["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 3
    assert "flights 2013-01-02: flights/2013-01-02.csv: is empty" in fail["run"]["facets"]["errorMessage"]["message"]

    received.clear()
    run("flights", "2013-01-01", "2013-01-01")
    assert [event["eventType"] for event in received] == ["START", "COMPLETE"]
    assert received[1]["outputs"] == [], "nothing was written"

    received.clear()
    project = Project(tmp_path / "models", gated_lake, monkeypatch)
    by_day = "FROM raw.flights WHERE flight_date BETWEEN @start_date AND @end_date"
    published = PUBLISHED.replace("readings", "flights")
    query = f"SELECT flight_date, count(*) AS n {by_day} GROUP BY ALL"
    project.write("models/daily.sql", model("gold.daily", query, "flight_date", published))
    assert transform()["models"]
    start, complete = received
    assert [event["eventType"] for event in received] == ["START", "COMPLETE"]
    assert (names(complete["inputs"]), names(complete["outputs"])) == (["raw.flights"], ["gold.daily"])


def test_the_tables_of_a_dataset_are_written_from_one_source(
    gated_lake: Lake, received: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "several.py").write_text(DATASETS)
    monkeypatch.setenv("LAKE_DATASETS", str(tmp_path / "several"))
    gated_lake.land("orders/2024-01-01.jsonl", [{"id": 1, "items": [{"sku": "a"}, {"sku": "b"}]}])
    run("orders", "2024-01-01", "2024-01-01", workers=1)
    tables = ["raw.orders", "raw.orders__items"]
    for event in received:
        assert (names(event["inputs"]), names(event["outputs"])) == (["orders/{partition}.jsonl"], tables)
    written = [table["outputFacets"]["outputStatistics"]["rowCount"] for table in received[1]["outputs"]]
    assert written == [1, 2]
    events = asset_events("ingest orders 2024-01-01..2024-01-01", 2)
    assert {key: (state, payload["rows"]) for key, (state, _, payload) in events.items()} == {
        "ducklake://lake/raw/orders": ("succeeded", 1),
        "ducklake://lake/raw/orders__items": ("succeeded", 2),
    }


def test_a_receiver_that_is_down_does_not_fail_a_run(gated_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    land(gated_lake, 1)
    gated_lake.load("flights", "2013-01-01")
    monkeypatch.setenv("LAKE_OPENLINEAGE_URL", "http://127.0.0.1:9")  # the discard port: nothing listens
    assert run("flights", "2013-01-01", "2013-01-01")["published"] == 0


@pytest.mark.parametrize("value", ["http://user:hunter2@host", "host:5000", "ftp://host"])
def test_a_bad_address_is_named_without_its_value(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_OPENLINEAGE_URL", value)
    with pytest.raises(BadInput, match="LAKE_OPENLINEAGE_URL must be http") as caught:
        load_settings()
    assert value not in str(caught.value)
