"""S3 credentials as clouds give them: each way, for every client, until and after they expire."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ducklake_flows import credentials
from ducklake_flows.errors import CredentialsError, StorageError
from ducklake_flows.extract.chunk import extract_chunk
from ducklake_flows.lake.connect import connect, renew
from ducklake_flows.lake.query import query
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import load_settings
from ducklake_flows.staging.receipt import Failure
from ducklake_flows.storage import check, open_storage
from tests.conftest import Lake, receipts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from tests.tokens import Key, TokenStore

CLIENTS = {"MinIO", "aws-sdk-cpp", "duckdb"}
"""minio-py, Arrow and DuckDB, by their user agents."""


def profile(path: Path, key_id: str, key: Key) -> None:
    """Write a profile `lake` with these keys, as `aws sso` tools do."""
    lines = ("[lake]", f"aws_access_key_id = {key_id}", f"aws_secret_access_key = {key.secret}")
    path.write_text("\n".join([*lines, f"aws_session_token = {key.token}", ""]))


def give(way: str, store: TokenStore, tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    """Give this process credentials in one of the ways."""
    key_id, key = store.issue()
    match way:
        case "settings":
            here.setenv("LAKE_S3_KEY_ID", key_id)
            here.setenv("LAKE_S3_SECRET", key.secret)
            here.setenv("LAKE_S3_SESSION_TOKEN", key.token)
        case "environment":
            here.setenv("AWS_ACCESS_KEY_ID", key_id)
            here.setenv("AWS_SECRET_ACCESS_KEY", key.secret)
            here.setenv("AWS_SESSION_TOKEN", key.token)
        case "profile":
            profile(tmp_path / "credentials", key_id, key)
            here.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
            here.setenv("AWS_PROFILE", "lake")
        case "process":
            said = {"Version": 1, "AccessKeyId": key_id, "SecretAccessKey": key.secret, "SessionToken": key.token}
            assert key.expires is not None
            (tmp_path / "said.json").write_text(json.dumps({**said, "Expiration": key.expires.isoformat()}))
            command = f"{sys.executable} -c \"print(open('{tmp_path / 'said.json'}').read())\""
            (tmp_path / "config").write_text(f"[profile lake]\ncredential_process = {command}\n")
            here.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
            here.setenv("AWS_PROFILE", "lake")
        case "web identity":
            (tmp_path / "identity").write_text(store.identity)
            here.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "identity"))
            here.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/lake")
        case "container":
            (tmp_path / "identity").write_text(store.identity)
            here.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{store.endpoint}/container")
            here.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "identity"))
        case "instance":
            here.delenv("AWS_EC2_METADATA_DISABLED")
            here.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{store.endpoint}/")
            here.setenv("AWS_EC2_METADATA_V1_DISABLED", "true")


def make_lake() -> Lake:
    """An initialised lake in the store."""
    lake = Lake(load_settings())
    check(lake.settings, create=True)
    bootstrap(lake.settings, list(all_datasets().values()))
    return lake


@pytest.mark.parametrize(
    "way", ["settings", "environment", "profile", "process", "web identity", "container", "instance"]
)
def test_every_client_uses_the_credentials_of_each_way(
    store: TokenStore, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Landing and data in S3; each request is signed with a key and its token that this way gave."""
    give(way, store, tmp_path, monkeypatch)
    lake = make_lake()
    lake.land("readings/2024-01-01.jsonl", [{"id": 1, "value": 1}])
    pq.write_table(pa.table({"name": ["a"], "total": [1.5]}), tmp_path / "month.parquet")
    lake.land("monthly/2024-01.parquet", (tmp_path / "month.parquet").read_bytes())
    assert lake.load("readings", "2024-01-01").receipts
    assert lake.load("monthly", "2024-01").receipts
    assert query(lake.settings, "SELECT total FROM raw.monthly") == [{"total": 1.5}]
    assert lake.errors() == []
    assert {request.client for request in store.seen} == CLIENTS
    assert [request for request in store.seen if request.refusal] == []
    assert all(store.keys[key_id].token for key_id in store.used())
    if way != "instance":  # botocore asks the metadata service twice
        assert len(store.used()) == 1
    # No child process gets them otherwise than by the environment, and no message shows them.
    (used, *_) = store.used()
    key = store.keys[used]
    shown = f"{lake.settings!r} {lake.settings.environment()} {credentials.current(lake.settings)!r}"
    hidden = lake.settings.redact(f"id {used} secret {key.secret} token {key.token}")
    for secret in (used, key.secret, key.token):
        assert secret not in shown
        assert secret not in hidden


def test_a_session_token_of_the_environment_is_not_added_to_keys_of_the_settings(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpfs took AWS_SESSION_TOKEN for the secret's keys, and S3 refused the pair."""
    key_id, key = store.issue(token=False)
    monkeypatch.setenv("LAKE_S3_KEY_ID", key_id)
    monkeypatch.setenv("LAKE_S3_SECRET", key.secret)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stray")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stray")
    lake = make_lake()
    lake.land("readings/2024-01-01.jsonl", [{"id": 1}])
    assert lake.load("readings", "2024-01-01").receipts
    assert lake.column("SELECT id FROM raw.readings") == [1]
    assert {(request.key_id, request.refusal) for request in store.seen} == {(key_id, "")}


def test_without_credentials_the_error_names_what_was_searched(store: TokenStore) -> None:
    settings = load_settings()
    searches: tuple[Callable[[], object], ...] = (
        lambda: check(settings),
        lambda: open_storage(settings.landing, settings).list(),
        lambda: open_storage(settings.landing, settings).fs,
        lambda: connect(settings, create=True),
    )
    for search in searches:
        with pytest.raises(CredentialsError, match="There are no S3 credentials") as caught:
            search()
        for name in ("LAKE_S3_KEY_ID", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "instance"):
            assert name in caught.value.message
        assert "LAKE_S3_KEY_ID" in caught.value.fix
    assert store.seen == []


def test_a_profile_that_is_not_there_is_named(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    with pytest.raises(CredentialsError, match="nowhere") as caught:
        check(load_settings())
    assert caught.value.fix == "check AWS_PROFILE"


@pytest.mark.parametrize("way", ["settings", "environment", "profile"])
def test_an_expired_token_is_one_error_with_its_next_step(
    store: TokenStore, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On workers, in the publisher, in queries and in checks; S3 is not asked again and again."""
    give(way, store, tmp_path, monkeypatch)
    lake = make_lake()
    days = ("2024-01-01", "2024-01-02")
    for day in days:
        lake.land(f"readings/{day}.jsonl", [{"id": 1}])
    lake.load("readings", days[0])
    outcomes = lake.extract("readings", days[1])
    assert receipts(outcomes)
    publisher = lake.publisher()
    publisher.tables()
    (key_id,) = store.used()
    key = store.keys[key_id]
    expire(store, key_id)
    said = {"settings": "LAKE_S3_SESSION_TOKEN", "environment": "AWS_SESSION_TOKEN", "profile": "the profile lake"}
    tries: dict[str, Callable[[], object]] = {
        "check": lambda: check(lake.settings),
        "list": lambda: open_storage(lake.settings.landing, lake.settings).list(),
        "put": lambda: lake.land("readings/2024-01-03.jsonl", [{"id": 1}]),
        "query": lambda: query(lake.settings, "FROM raw.readings"),
        "publish": lambda: publisher.publish(outcomes),
    }
    for name, attempt in tries.items():
        store.seen.clear()
        with pytest.raises(CredentialsError, match=r"ExpiredToken.*have expired") as caught:
            attempt()
        assert said[way] in caught.value.fix, name
        for secret in (key_id, key.secret, key.token):
            assert secret not in str(caught.value)
        assert len(store.seen) <= 16, name
    publisher.close()
    (failed,) = extract_chunk("readings", {days[1]: ""}, lake.settings)
    assert isinstance(failed, Failure)
    assert "have expired" in failed.error
    assert not failed.error.startswith("after"), "it is not read again"
    # Nothing is recorded about the partition: it is published once there are new credentials.
    give(way, store, tmp_path, monkeypatch)
    credentials.forget()
    renewed = Lake(load_settings())
    assert renewed.publish(outcomes).receipts
    assert renewed.errors() == []


def expire(store: TokenStore, key_id: str) -> None:
    """Let a key expire now."""
    store.keys[key_id] = replace(store.keys[key_id], expires=datetime.now(UTC))


def test_a_role_without_a_right_is_told_from_expired_credentials(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give("web identity", store, tmp_path, monkeypatch)
    (tmp_path / "identity").write_text("not the one")
    with pytest.raises(CredentialsError, match="InvalidIdentityToken") as caught:
        check(load_settings())
    assert "AWS_ROLE_ARN" in caught.value.fix
    assert "not the one" not in str(caught.value)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(CredentialsError, match="nowhere"):
        check(load_settings())
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    (tmp_path / "nowhere").write_text("identity")
    with pytest.raises(StorageError, match="does not answer") as unanswered:
        check(load_settings())
    assert not isinstance(unanswered.value, CredentialsError)


def test_credentials_are_renewed_at_half_of_their_life_and_used_until_they_expire(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STS may be away meanwhile."""
    store.life = 4
    give("web identity", store, tmp_path, monkeypatch)
    settings = load_settings()
    first = credentials.current(settings)
    assert credentials.current(settings) is first
    store.refuse_tokens = True
    while not store.keys[first.key_id].is_expired:
        with contextlib.suppress(CredentialsError):  # in the moment at which they expire
            assert credentials.current(settings) == first
    with pytest.raises(CredentialsError, match="InvalidIdentityToken"):
        credentials.current(settings)
    store.refuse_tokens = False
    second = credentials.current(settings)
    assert second.key_id != first.key_id
    while (third := credentials.current(settings)) == second:
        pass
    assert third.key_id != second.key_id
    assert not store.keys[second.key_id].is_expired


def test_a_profile_that_was_written_again_is_used_after_a_refusal(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give("profile", store, tmp_path, monkeypatch)
    lake = make_lake()
    (old,) = store.used()
    expire(store, old)
    profile(tmp_path / "credentials", *store.issue())
    with pytest.raises(CredentialsError, match="ExpiredToken"):
        check(lake.settings)
    assert check(lake.settings) == []
    assert len(store.used()) == 2


def test_a_publisher_outlives_its_tokens(store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection of DuckDB, one landing zone, one stage: the key changes at least three times below them."""
    store.life = 8
    give("web identity", store, tmp_path, monkeypatch)
    lake = make_lake()
    publisher = lake.publisher()
    days = iter(range(1, 366))
    published: list[str] = []
    with connect(lake.settings, read_only=True):
        while store.expired() < 3:
            day = f"2024-{(number := next(days)) // 28 + 1:02}-{number % 28 + 1:02}"
            lake.land(f"readings/{day}.jsonl", [{"id": number}])
            published += [r.partition for r in publisher.publish(lake.extract("readings", day)).receipts]
    publisher.close()
    assert lake.column("SELECT day::VARCHAR FROM raw.readings ORDER BY 1") == published
    assert lake.errors() == []
    assert [request for request in store.seen if request.refusal] == []
    by_client = {client: {r.key_id for r in store.seen if r.client == client} for client in ("MinIO", "duckdb")}
    assert all(len(keys) > 3 for keys in by_client.values()), by_client


def test_a_transaction_gets_the_new_credentials_and_a_rollback_keeps_none(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB 1.5.5: a secret is part of its transaction, so `renew` is called before each one."""
    give("profile", store, tmp_path, monkeypatch)
    lake = make_lake()
    lake.land("readings/2024-01-01.jsonl", [{"id": 1}])
    lake.load("readings", "2024-01-01")

    def reads(con: DuckDBPyConnection) -> set[str]:
        store.seen.clear()
        con.execute("FROM lake.raw.readings").fetchall()
        return store.used()

    con = connect(lake.settings, read_only=True)
    con.execute("SET enable_external_file_cache = false")
    (old,) = reads(con)
    con.execute("BEGIN")
    reads(con)
    profile(tmp_path / "credentials", *(new := store.issue()))
    credentials.forget()
    renew(con, lake.settings)
    assert reads(con) == {new[0]}
    con.execute("ROLLBACK")
    assert reads(con) == {old}
    con.execute("BEGIN")
    reads(con)
    with con.cursor() as other:
        renew(other, lake.settings)
    assert reads(con) == {old}, "it sees what was there when it began"
    con.execute("COMMIT")
    assert reads(con) == {new[0]}
    con.close()


def test_an_upload_of_many_parts_is_signed(store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give("environment", store, tmp_path, monkeypatch)
    settings = load_settings()
    (tmp_path / "big").write_bytes(b"x" * (6 << 20))
    landing = open_storage(settings.landing, settings)
    landing.put(tmp_path / "big", "a b/ü=1.bin")
    landing.get("a b/ü=1.bin", tmp_path / "back")
    assert (tmp_path / "back").stat().st_size == 6 << 20
    with landing.fs.open_input_stream(landing.path("a b/ü=1.bin")) as stream:
        assert io.BytesIO(stream.read(3)).getvalue() == b"xxx"
    assert {request.refusal for request in store.seen} == {""}
    expire(store, *store.used())
    with pytest.raises(CredentialsError, match="cannot be read"):
        landing.get("a b/ü=1.bin", tmp_path / "back")
