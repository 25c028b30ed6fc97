"""A lake that an older release has written is read, checked, published to, rolled back and maintained by this one."""

from __future__ import annotations

import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.errors import CatalogError
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.ledger import latest
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.restore import stage_previous
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.project import all_datasets, get_dataset
from ducklake_flows.settings import load_settings
from tests.conftest import Lake, make_project

HERE = Path(__file__).parent
RELEASES = sorted(path.name for path in HERE.iterdir() if (path / "catalog.sqlite").exists())


@pytest.fixture(params=RELEASES)
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A copy of a lake, at another path than where it was written."""
    home = tmp_path / "home"
    shutil.copytree(HERE / request.param, home)
    with sqlite3.connect(home / "catalog.sqlite") as catalog:
        catalog.execute("UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'", [f"{home}/data/"])
    catalog.close()
    monkeypatch.setenv("LAKE_HOME", str(home))
    monkeypatch.setenv("LAKE_PROJECT", str(make_project(tmp_path / "project")))
    monkeypatch.chdir(tmp_path)
    return Lake(load_settings())


def contents(lake: Lake) -> list[tuple[str, int, float]]:
    """The rows and the sum of the values of each day."""
    query = "SELECT day::VARCHAR AS day, count(*) AS n, sum(value)::DOUBLE AS total FROM raw.readings GROUP BY ALL"
    return [(row["day"], row["n"], row["total"]) for row in lake.sql(f"{query} ORDER BY day")]


def test_there_is_a_lake_of_an_older_release() -> None:
    assert RELEASES


def test_it_is_read_and_right(old: Lake) -> None:
    with connected(old.settings, read_only=True) as con:
        states = {key: entry.state for (_, key), entry in latest(con, "readings").items()}
    assert states == {
        "2024-01-01": "rolled_back",
        "2024-01-02": "published",
        "2024-01-03": "published",
        "2024-01-04": "published",
        "2024-01-05": "failed",
    }
    assert contents(old) == [("2024-01-01", 3, 3), ("2024-01-02", 1, 8.5), ("2024-01-03", 3, 9), ("2024-01-04", 3, 12)]
    assert [error.partition(":")[0] for error in old.errors()] == ["release"]


def test_it_is_written_only_after_lake_init(old: Lake) -> None:
    """A writer of the release that wrote it would not be fenced against one of this release."""
    old.land("readings/2024-01-05.jsonl", [{"id": 5, "value": 5}])
    with pytest.raises(CatalogError, match="last written by an earlier release") as caught:
        old.load("readings", "2024-01-05")
    assert caught.value.fix == "stop all runs of the earlier release, then: lake init"
    with connected(old.settings, read_only=True) as con:
        assert latest(con, "readings")["readings", "2024-01-05"].state == "failed"


def test_this_release_goes_on_with_it(old: Lake) -> None:
    settings, readings = old.settings, get_dataset("readings")
    bootstrap(settings, list(all_datasets().values()))
    (written,) = old.column("SELECT max(token) FROM ops.ledger")
    old.land("readings/2024-01-05.jsonl", [{"id": 5, "value": 5}])
    assert [r.partition for r in old.load("readings", "2024-01-05", "2024-01-03").receipts] == ["2024-01-05"]
    old.land("readings/2024-01-04.jsonl", [{"id": 4, "value": 0.5}])
    assert old.load("readings", "2024-01-04").receipts
    assert old.column("SELECT min(token) FROM ops.ledger WHERE recorded_at > now() - INTERVAL 1 HOUR")[0] > written
    old.publish([stage_previous(settings, readings, parse_partition("2024-01-04", readings.grain))])
    for step in steps(settings, timedelta(0)):
        if step.todo:
            step.run()
    assert contents(old) == [
        ("2024-01-01", 3, 3),
        ("2024-01-02", 1, 8.5),
        ("2024-01-03", 3, 9),
        ("2024-01-04", 3, 12),
        ("2024-01-05", 1, 5),
    ]
    assert old.errors() == []
