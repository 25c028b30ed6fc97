"""Settings: paths are absolute, and errors name the setting but never its value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ducklake_flows.errors import BadInput, redacted
from ducklake_flows.settings import file_settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_the_defaults_give_the_embedded_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.embedded
    assert settings.catalog_file == tmp_path / ".lake" / "catalog.sqlite"
    assert settings.data_path == f"{tmp_path}/.lake/data/"
    assert settings.landing == f"{tmp_path}/.lake/landing/"


def test_dotenv_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = "LAKE_S3_KEY_ID=k\nLAKE_S3_SECRET=s\n"
    (tmp_path / ".env").write_text(f"LAKE_HOME=from-file\nLAKE_DATA_PATH=s3://bucket/lake\n{keys}")
    assert load_settings().home == tmp_path / "from-file"
    assert load_settings().data_path == "s3://bucket/lake/"
    monkeypatch.setenv("LAKE_HOME", "from-environment")
    assert load_settings().home == tmp_path / "from-environment"


def test_a_file_of_settings_counts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target of a move: nothing of the source's settings gets into it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LAKE_DATA_PATH=s3://source/lake\nLAKE_RETENTION_DAYS=7\n")
    monkeypatch.setenv("LAKE_CATALOG", "postgres:host=source")
    monkeypatch.setenv("LAKE_CATALOG_PASSWORD", "hunter2")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "lake_state_password").write_text("hunter3")
    file = tmp_path / "target.env"
    file.write_text(f"LAKE_HOME=there\nOTHER=1\nLAKE_SECRETS_DIR={tmp_path / 'secrets'}\n")
    target = file_settings(file)
    assert (target.catalog, target.retention_days) == (f"sqlite:{tmp_path}/there/catalog.sqlite", 30)
    assert target.data_path == f"{tmp_path}/there/data/"
    assert target.secrets == ["hunter3"]
    file.write_text("LAKE_CATALOG=postgres://user:hunter4@host/lake\n")
    with pytest.raises(BadInput, match="LAKE_CATALOG must be") as caught:
        file_settings(file)
    assert "hunter4" not in str(caught.value)
    assert str(file) in caught.value.fix
    with pytest.raises(BadInput, match="cannot be read"):
        file_settings(tmp_path / "none.env")


def test_secrets_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Docker and Kubernetes mount them. The environment wins, and an empty value there means none."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("LAKE_SECRETS_DIR", str(folder))
    (folder / "lake_catalog_password").write_text("hunter2\n")
    (folder / "lake_state_password").write_text("hunter3")
    settings = load_settings()
    assert settings.catalog_password is not None
    assert settings.catalog_password.get_secret_value() == "hunter2"
    assert settings.secrets == ["hunter2", "hunter3"]
    assert "hunter2" not in str(settings.environment())
    for name, value in settings.worker_environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings().secrets == []
    for wrong in (str(tmp_path / "missing"), "secrets"):
        monkeypatch.setenv("LAKE_SECRETS_DIR", wrong)
        with pytest.raises(BadInput, match="LAKE_SECRETS_DIR is no absolute path"):
            load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LAKE_CATALOG", "mysql:x"),
        ("LAKE_CATALOG", "postgres:host=h password=hunter2"),
        ("LAKE_CATALOG", "postgres://user:hunter2@h/lake"),
        ("LAKE_STATE", "postgres://user:hunter2@h/state"),
        ("LAKE_STATE", "mysql://h/state"),
        ("LAKE_S3_ENDPOINT", "http://minio:9000"),
        ("LAKE_S3_KEY_ID", "half-of-a-key"),
        ("LAKE_S3_SESSION_TOKEN", "token-without-a-key"),
    ],
)
def test_a_bad_setting_is_named_without_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=name) as caught:
        load_settings()
    assert value not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_region_is_that_of_aws_unless_the_settings_say_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings().s3_region == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert load_settings().s3_region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert load_settings().s3_region == "eu-central-1"
    monkeypatch.setenv("LAKE_S3_REGION", "eu-north-1")
    assert load_settings().s3_region == "eu-north-1"
    # Keys in the settings are of another store, whose region is there, too.
    monkeypatch.delenv("LAKE_S3_REGION")
    monkeypatch.setenv("LAKE_S3_KEY_ID", "k")
    monkeypatch.setenv("LAKE_S3_SECRET", "s")
    assert load_settings().s3_region == "us-east-1"


def test_secrets_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LAKE_S3_KEY_ID", "LAKE_S3_SECRET", "LAKE_S3_SESSION_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("LAKE_CATALOG_PASSWORD", "hunter2")
    settings = load_settings()
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.environment())
    assert settings.redact("the password is hunter2") == "the password is ***"
    # A Dask worker gets the storage keys but no database password.
    assert settings.worker_environment()["LAKE_CATALOG_PASSWORD"] == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:hunter2@db/x", "postgresql://u:***@db/x"),
        ("cannot reach 's3://key:hunter2@host/b'", "cannot reach 's3://key:***@host/b'"),
        ("redis://:hunter2@h:6379", "redis://:***@h:6379"),
        ("https://u:p@hunter2@h/x and http://h:80/a@b", "https://u:***@h/x and http://h:80/a@b"),
        ("host=h password=hunter2 user=u", "host=h password=*** user=u"),
        ("PGPASSWORD='hunter 2'; next", "PGPASSWORD=***; next"),
        ("AWS_SECRET_ACCESS_KEY=hunter2", "AWS_SECRET_ACCESS_KEY=***"),
        ("AWS_SECRET_ACCESS_KEY: hunter2", "AWS_SECRET_ACCESS_KEY: ***"),
        ("aws_access_key_id = hunter2, region = x", "aws_access_key_id = ***, region = x"),
        ("GET https://h/x?api_key=hunter2&page=2", "GET https://h/x?api_key=***&page=2"),
        ("?X-Amz-Credential=hunter2%2Fus&X-Amz-Signature=hunter2", "?X-Amz-Credential=***&X-Amz-Signature=***"),
        ('{"client_secret": "hunter2", "n": 1}', '{"client_secret": ***, "n": 1}'),
        ("{'Authorization': 'Bearer hunter2'}", "{'Authorization': 'Bearer ***'}"),
        ("authorization: Basic aHVudGVyMg==", "authorization: Basic ***"),
        ("sent Bearer hunter2.hunter2", "sent Bearer ***"),
        (
            "CREATE SECRET (TYPE s3, KEY_ID 'hunter2', SECRET 'hunter2')",
            "CREATE SECRET (TYPE s3, KEY_ID '***', SECRET '***')",
        ),
        # Text that only mentions secrets does not change.
        ("password authentication failed for user u", "password authentication failed for user u"),
        ("column 'token': invalid value 'x'", "column 'token': invalid value 'x'"),
        ("http://127.0.0.1:9000/lake/a=b@c", "http://127.0.0.1:9000/lake/a=b@c"),
        ("the primary_key=id is not unique", "the primary_key=id is not unique"),
    ],
)
def test_text_that_looks_like_a_secret_is_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown
