"""A dataset whose newest partitions are not published in time: what the lake tells, and when the webhook hears it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from prefect import get_client
from pydantic import SecretStr

from ducklake_flows.cli.main import app
from ducklake_flows.freshness import freshness
from ducklake_flows.orchestration import automations
from ducklake_flows.orchestration.server import until
from ducklake_flows.project import all_datasets
from ducklake_flows.report.metrics import metrics
from ducklake_flows.report.overdue import overdue
from tests.regressions.test_metrics import parsed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Lake

DATASET = """
from datetime import date
from ducklake_flows import Dataset, Files

DATASET = Dataset("sales", Files("sales/{partition}.jsonl", "jsonl"), partition_column="day",
                  start=date(2024, 1, 1), end=date(2024, 1, 4), freshness="26 hours")
"""
NEVER = "nothing was published yet"
NOTHING_YET = f"sales: overdue since 2024-01-03 02:00 UTC: 2024-01-01..04 not published within 26 hours; {NEVER}"
LINE = "sales: overdue since 2024-01-04 02:00 UTC: 2024-01-02..04 not published within 26 hours; the last is 2024-01-01"
NEXT = "lake backfill sales --start 2024-01-02 --end 2024-01-04"


@pytest.fixture
def sales(gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake with a dataset of four days that must be published within 26 hours."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    (folder / "sales.py").write_text(DATASET)
    monkeypatch.setenv("LAKE_DATASETS", str(folder))
    return gated_lake


@pytest.fixture
def heard(gated_lake: Lake) -> Iterator[list[str]]:
    """What the webhook hears. Afterwards its automations are deleted: the server is that of all tests."""
    texts: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep the terminal quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as hook, get_client(sync_client=True) as client:
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        url = SecretStr(f"http://127.0.0.1:{hook.server_port}/hook")
        before = {a.id for a in client.read_automations()}
        automations.ensure(gated_lake.settings.model_copy(update={"notify_url": url}))
        yield texts
        for made in client.read_automations():
            if made.id not in before:
                client.delete_automation(made.id)
        hook.shutdown()


def test_an_overdue_dataset_is_reported_once_and_again_when_it_is_back(
    sales: Lake, heard: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sales.land("sales/2024-01-01.jsonl", [{"n": 1}])
    sales.load("sales", "2024-01-01")
    sales.land("sales/2024-01-03.jsonl", "no json")
    sales.load("sales", "2024-01-03")
    first = freshness()
    assert (first["reported_overdue"], first["reported_fresh"]) == (["sales"], [])
    second = freshness()
    assert (second["reported_overdue"], second["reported_fresh"]) == ([], [])
    assert second["overdue"] == first["overdue"]

    app(["status", "sales"], standalone_mode=False)
    told = capsys.readouterr().out
    assert LINE in told
    assert "last error, 2024-01-03: " in told
    assert f"next:  fix the cause, then: {NEXT}\n" in told
    listed = subprocess.run(
        [sys.executable, "-m", "ducklake_flows.cli.main", "status", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    (lacks,) = {json.dumps(row["overdue"]) for row in json.loads(listed.stdout)}
    assert json.loads(lacks) == first["overdue"][0]
    assert first["overdue"][0]["last_published"] == "2024-01-01"
    assert first["overdue"][0]["since"] == "2024-01-04T02:00:00+00:00"
    app(["report", "--out", str(tmp_path / "page.html")], standalone_mode=False)
    assert LINE in (tmp_path / "page.html").read_text()
    assert f"<code>fix the cause, then: {NEXT}</code>" in (tmp_path / "page.html").read_text()
    found = parsed(metrics(sales.settings).decode())
    assert found["lake_overdue_seconds", "sales"] > 300 * 24 * 3600
    assert found["lake_freshness_limit_seconds", "sales"] == 26 * 3600

    # The newest is published: no longer overdue, although earlier ones are missing.
    sales.land("sales/2024-01-04.jsonl", [{"n": 1}])
    sales.load("sales", "2024-01-04")
    third = freshness()
    assert (third["overdue"], third["reported_overdue"], third["reported_fresh"]) == ([], [], ["sales"])
    assert until(lambda: any("no longer overdue" in text for text in heard), 60), heard
    assert parsed(metrics(sales.settings).decode())["lake_overdue_seconds", "sales"] == 0
    capsys.readouterr()
    app(["status"], standalone_mode=False)
    assert "overdue" not in capsys.readouterr().out
    # Events arrive in order, so a second report would have arrived before the last one.
    late, fresh = [text for text in heard if "overdue" in text]
    assert late.startswith(f"sales is overdue\n{LINE}")
    assert late.endswith(f"Next: fix the cause, then: {NEXT}")
    assert fresh == "sales is no longer overdue\nIt was overdue since 2024-01-04T02:00:00+00:00."


def test_a_dataset_that_was_never_loaded_is_overdue_and_one_without_a_limit_is_forgotten(sales: Lake) -> None:
    (late,) = overdue(sales.settings, all_datasets().values())
    assert late.line == NOTHING_YET
    assert late.cause.startswith("no attempt is recorded")
    first = freshness()
    assert first["reported_overdue"] == ["sales"]
    assert first["overdue"][0]["next"] == "lake backfill sales --start 2024-01-01 --end 2024-01-04"
    file = sales.settings.home.parent / "datasets" / "sales.py"
    file.write_text(DATASET.replace(', freshness="26 hours"', ""))
    sys.modules.pop("lake_datasets.sales")
    assert freshness() == {"overdue": [], "reported_overdue": [], "reported_fresh": []}
