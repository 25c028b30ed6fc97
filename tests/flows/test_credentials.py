"""A backfill and a transform on S3 whose tokens expire several times in the middle."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest

from ducklake_flows import credentials
from ducklake_flows.ingest import ingest
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.orchestration import gate
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import load_settings
from ducklake_flows.storage import check
from ducklake_flows.transform import transform
from tests.conftest import DATASETS, DEMO, Lake, make_project
from tests.flows.test_ingest import flights

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tokens import TokenStore

EXPIRING = '''
"""A day is found in the landing zone, and read only after a token that was used has expired."""

import json
import time
import urllib.request
from datetime import date

from ducklake_flows import Dataset
from ducklake_flows.settings import load_settings
from ducklake_flows.storage import open_storage


def expired(settings):
    with urllib.request.urlopen(f"http://{settings.s3_endpoint}/expired") as answer:
        return int(answer.read())


def expiring(partition):
    settings = load_settings()
    landing = open_storage(settings.landing, settings)
    before = expired(settings)
    assert landing.find(f"expiring/{partition.key}.json")
    while expired(settings) == before:
        time.sleep(0.05)
    with landing.fs.open_input_stream(landing.path(f"expiring/{partition.key}.json")) as stream:
        yield from json.loads(stream.read())


DATASET = Dataset("expiring", expiring, partition_column="day", start=date(2024, 1, 1), end=date(2024, 1, 8))
'''


@pytest.fixture
def token_lake(store: TokenStore, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """An initialised lake in the store, for a web identity with short-lived tokens."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "expiring.py").write_text(EXPIRING)
    monkeypatch.setenv("LAKE_PROJECT", str(make_project(tmp_path / "project", DEMO, DATASETS, tmp_path / "more")))
    (tmp_path / "identity").write_text(store.identity)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "identity"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/lake")
    lake = Lake(load_settings())
    check(lake.settings)
    bootstrap(lake.settings, list(all_datasets().values()))
    gate.ensure()
    return lake


def test_a_backfill_outlives_its_tokens(token_lake: Lake, store: TokenStore) -> None:
    """Eight partitions on two workers: while each is read, a token of the run or of a worker expires."""
    lake = token_lake
    days = [f"2024-01-{day:02}" for day in range(1, 9)]
    for day in days:
        lake.land(f"expiring/{day}.json", [{"id": day, "of": n} for n in range(3)])
    store.life = 6
    credentials.forget()
    summary = ingest(["expiring"], date(2024, 1, 1), date(2024, 1, 8), workers=2)
    assert (summary["published"], summary["failed"], summary["rows"]) == (8, [], 24)
    assert store.expired() >= 4, "two may be read at a time"
    assert [request for request in store.seen if request.refusal] == []
    assert lake.column("SELECT DISTINCT day::VARCHAR FROM raw.expiring ORDER BY 1") == days
    assert lake.errors() == []
    for client in ("MinIO", "aws-sdk-cpp", "duckdb"):
        assert len({request.key_id for request in store.seen if request.client == client}) > 1, client


def test_models_are_built_while_tokens_expire(token_lake: Lake, store: TokenStore) -> None:
    """A build in a process of its own, on one connection: each key lives for a part of it only."""
    lake = token_lake
    store.life = 6
    credentials.forget()
    # Not by `ingest`: its workers come from a fork server, which has the address of the first test's store.
    for day in range(1, 6):
        lake.land(f"flights/2013-01-{day:02}.csv", flights(day, 3))
    assert lake.load("flights", *(f"2013-01-{day:02}" for day in range(1, 6))).receipts
    before = store.used()
    assert transform()["models"]
    assert len(store.used() - before) > 1
    assert [request for request in store.seen if request.refusal] == []
    assert lake.column("SELECT sum(flights) FROM gold.carrier_daily") == [15]
    assert lake.errors() == []
