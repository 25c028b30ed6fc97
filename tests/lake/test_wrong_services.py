"""Misconfigured production services: one clear error each, with its next step and without a secret."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.services import ObjectStore
from ducklake_flows.errors import CatalogError, LakeError, NotInitialised, StorageError
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import Settings
from ducklake_flows.storage import check, open_storage
from tests.conftest import Services, settings_from

Make = Callable[..., Settings]


@pytest.fixture
def settings(services: Services, tmp_path: Path) -> Make:
    """Makes the settings of a lake on Postgres and S3, with some of them changed."""
    environment = services.environment("postgres+s3", tmp_path / "home")
    return lambda **changed: settings_from(environment, **changed)


def test_a_reader_creates_no_lake_in_an_empty_database(settings: Make) -> None:
    with pytest.raises(NotInitialised, match="no lake yet") as caught:
        connect(settings())
    assert caught.value.fix == "lake init"


def test_every_wrong_catalog_setting_is_named(settings: Make, services: Services) -> None:
    right = settings().catalog
    server = f"host=127.0.0.1 port={services.postgres.port}"
    wrong: dict[str, dict[str, str | None]] = {
        "password authentication failed": {"catalog_password": "hunter2"},
        "no password supplied": {"catalog_password": None},
        'database "nowhere" does not exist': {"catalog": right.replace("dbname=", "dbname=nowhere application_name=")},
        "Connection refused": {"catalog": right.replace(server, "host=127.0.0.1 port=1")},
        "could not translate host name": {"catalog": right.replace(server, "host=nowhere.invalid port=1")},
    }
    for says, changed in wrong.items():
        with pytest.raises(CatalogError, match=says) as caught:
            connect(settings(**changed))
        assert caught.value.fix
        assert "hunter2" not in str(caught.value)
        assert services.password not in str(caught.value)


def test_every_wrong_object_store_setting_is_named_before_any_work(settings: Make, services: Services) -> None:
    assert check(settings(), create=True) == [] or check(settings()) == []
    wrong = {
        "There is no bucket 'nowhere'": {"data_path": "s3://nowhere/data/"},
        "refuses access to the bucket 'lake': AccessDenied": {"s3_secret": "hunter2"},
        "refuses access": {"s3_key_id": "nobody"},
        "Connection refused": {"s3_endpoint": "127.0.0.1:1"},
        "SSL": {"s3_use_ssl": "true"},
        "does not answer like an S3 server": {"s3_endpoint": f"127.0.0.1:{services.postgres.port}"},
    }
    for says, changed in wrong.items():
        with pytest.raises(StorageError, match=says) as caught:
            check(settings(**changed))
        assert caught.value.fix
        assert services.secret not in str(caught.value)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(LakeError, match="cannot be listed"):
        open_storage(settings().landing, settings(s3_secret="hunter2")).list()  # noqa: S106


def test_a_catalog_with_another_version_or_data_path_is_refused(settings: Make, services: Services) -> None:
    check(settings(), create=True)
    bootstrap(settings(), list(all_datasets().values()))
    with pytest.raises(CatalogError, match="is not LAKE_DATA_PATH"):
        connect(settings(data_path="s3://lake/elsewhere/"))
    import psycopg

    name = settings().catalog.rpartition("user=")[2]
    with psycopg.connect(
        host="127.0.0.1", port=services.postgres.port, user=name, dbname=name, password=services.password
    ) as con:
        con.execute("UPDATE ducklake_metadata SET value = '0.3' WHERE key = 'version'")
    with pytest.raises(CatalogError, match=r"has DuckLake's format 0\.3, but this release reads and writes 1\.0"):
        connect(settings())


def test_a_file_in_s3_has_one_time_whatever_its_decimals(settings: Make, services: Services, tmp_path: Path) -> None:
    """The listing has a time as 22:13:20.12Z. Arrow took it for 1970, and a published partition was stale."""
    landing = tmp_path / "s3" / settings().landing.removeprefix("s3://")
    landing.mkdir(parents=True)
    for thousandths in (0, 100, 120, 123):
        file = landing / f"{thousandths}.jsonl"
        file.write_text("{}")
        os.utime(file, ns=(0, 1_700_000_000 * 10**9 + thousandths * 10**6))
    with ObjectStore(tmp_path / "s3", tmp_path, services.key_id, services.secret) as server:
        own = settings(s3_endpoint=server.endpoint)
        store = open_storage(own.landing, own)
        listed = {file.path: file.mtime_ns for file in store.list()}
        found = [store.find(Path(path).name) for path in listed]
    assert len(listed) == 4
    assert set(listed.values()) == {1_700_000_000 * 10**9}
    assert {file.path: file.mtime_ns for file in found if file} == listed
