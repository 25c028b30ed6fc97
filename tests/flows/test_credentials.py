"""A backfill and a transform on S3 whose tokens expire several times in the middle."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows import credentials
from ducklake_flows.errors import RunFailed
from ducklake_flows.ingest import ingest
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.orchestration import gate
from ducklake_flows.orchestration.server import until
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import load_settings
from ducklake_flows.storage import check
from ducklake_flows.transform import transform
from tests.conftest import DATASETS, DEMO, Lake, make_project
from tests.flows.test_ingest import flights

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
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


DATASET = Dataset("expiring", expiring, partition_column="day", start=date(2024, 1, 1), end=date(2024, 1, 6))
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
    """Six partitions on two workers: while each is read, a token of the run or of a worker expires."""
    lake = token_lake
    days = [f"2024-01-{day:02}" for day in range(1, 7)]
    for day in days:
        lake.land(f"expiring/{day}.json", [{"id": day, "of": n} for n in range(3)])
    store.life = 10
    credentials.forget()
    summary = ingest(["expiring"], date(2024, 1, 1), date(2024, 1, 6), workers=2)
    assert (summary["published"], summary["failed"], summary["rows"]) == (6, [], 18)
    assert store.expired() >= 3, "two may be read at a time"
    assert [request for request in store.seen if request.refusal] == []
    assert lake.column("SELECT DISTINCT day::VARCHAR FROM raw.expiring ORDER BY 1") == days
    assert lake.errors() == []
    for client in ("MinIO", "aws-sdk-cpp", "duckdb"):
        assert len({request.key_id for request in store.seen if request.client == client}) > 1, client


@pytest.mark.soak
def test_models_are_built_while_tokens_expire(
    token_lake: Lake, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build in a process of its own, on one connection: its key expires while it waits for the gate."""
    lake = token_lake
    store.life = 6
    credentials.forget()
    # Not by `ingest`: its workers come from a fork server, which has the address of the first test's store.
    for day in range(1, 6):
        lake.land(f"flights/2013-01-{day:02}.csv", flights(day, 3))
    assert lake.load("flights", *(f"2013-01-{day:02}" for day in range(1, 6))).receipts
    before, hold = store.used(), gate.hold
    waited: list[set[str]] = []

    def late(*given: Any, **more: Any) -> AbstractContextManager[None]:
        """The gate, once each key that the build used has expired."""
        if (used := store.used() - before) and len(waited) < 3:
            before.update(used)
            waited.append(used)
            assert until(lambda: all(store.keys[key_id].is_expired for key_id in used), 60)
        return hold(*given, **more)

    monkeypatch.setattr(gate, "hold", late)
    assert transform()["models"]
    assert waited
    assert [request for request in store.seen if request.refusal] == []
    assert lake.column("SELECT sum(flights) FROM gold.carrier_daily") == [15]
    assert lake.errors() == []

    # Keys that cannot be renewed: one cause, with its next step.
    lake.land("flights/2013-01-06.csv", flights(6, 3))
    lake.load("flights", "2013-01-06")
    key_id, key = store.issue()
    for name, value in {"KEY_ID": key_id, "SECRET": key.secret, "SESSION_TOKEN": key.token}.items():
        monkeypatch.setenv(f"LAKE_S3_{name}", value)

    def expired(*given: Any, **more: Any) -> AbstractContextManager[None]:
        if any(request.key_id == key_id and "/bronze" in request.path for request in store.seen):
            store.keys[key_id] = replace(key, expires=datetime.now(UTC))
        return hold(*given, **more)

    monkeypatch.setattr(gate, "hold", expired)
    with pytest.raises(RunFailed, match="the credentials have expired") as caught:
        transform()
    assert key.token not in str(caught.value)
    for name in ("KEY_ID", "SECRET", "SESSION_TOKEN"):
        monkeypatch.delenv(f"LAKE_S3_{name}")
    assert transform()["models"]
    assert lake.column("SELECT sum(flights) FROM gold.carrier_daily") == [18]
