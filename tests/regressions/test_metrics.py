"""`/metrics`: what Prometheus' own parser reads of a lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ducklake_flows.cli.main import app
from ducklake_flows.errors import BadInput
from ducklake_flows.report import metrics
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Failure

if TYPE_CHECKING:
    from tests.conftest import Lake


def parsed(text: str) -> dict[tuple[str, ...], float]:
    """Each sample's value by its name and its labels' values."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def test_the_metrics_are_the_ledgers_figures(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in ("2024-01-01", "2024-01-02"):
        lake.land(f"readings/{day}.jsonl", [{"n": 1}, {"n": 2}])
    lake.load("readings", "2024-01-01", "2024-01-02")
    lake.publish([Failure("readings", "2024-01-03", new_attempt(), "failed", "down", profile={"extract": 1.5})])
    monkeypatch.setattr(metrics, "CACHE_SECONDS", 600.0)
    with metrics.serving(lake.settings, 0) as url:
        assert url.startswith("http://127.0.0.1:")
        port = int(url.rpartition(":")[2].partition("/")[0])
        answer = httpx.get(url)
        assert answer.headers["content-type"].startswith("text/plain")
        found = parsed(answer.text)
        with pytest.raises(BadInput, match=f"Port {port} cannot be used"), metrics.serving(lake.settings, port):
            pass
        with pytest.raises(BadInput, match="--host needs --port"):
            app(["metrics", "--host", "localhost"], standalone_mode=False)
        with metrics.serving(lake.settings, 0, "localhost") as other:
            assert parsed(httpx.get(other).text)["lake_up",] == 1
        lake.publish([Failure("readings", "2024-01-04", new_attempt(), "failed", "down")])
        assert parsed(httpx.get(url).text) == found, "read again within the given seconds"
    assert found["lake_up",] == 1
    states = {key[2]: value for key, value in found.items() if key[:2] == ("lake_partitions", "readings")}
    assert (states["published"], states["failed"]) == (2, 1)
    assert sum(states.values()) == 31
    assert found["lake_rows", "readings"] == 4
    assert found["lake_attempts_total", "readings", "failed"] == 1
    assert found["lake_models_behind_partitions", "readings"] == 2
    assert found["lake_catalog_snapshots",] == lake.column("SELECT count(*) - 1 FROM lake.snapshots()")[0]
    (since,) = lake.column("SELECT epoch(now()) - epoch(TIMESTAMPTZ '2024-01-03 00:00:00+00')")
    assert 0 <= since - found["lake_freshness_seconds", "readings"] < 600
    spent = lake.column(
        "SELECT sum((profile->>'extract')::DOUBLE) FROM ops.ledger WHERE dataset = 'readings' AND profile <> '{}'"
    )
    assert found["lake_stage_seconds_total", "readings", "extract"] == pytest.approx(spent[0])
    assert spent[0] > 1.5

    now = parsed(metrics.metrics(lake.settings).decode())
    assert now["lake_attempts_total", "readings", "failed"] == 2
    assert lake.settings.catalog_file is not None
    lake.settings.catalog_file.unlink()
    assert parsed(metrics.metrics(lake.settings).decode()) == {("lake_up",): 0}
