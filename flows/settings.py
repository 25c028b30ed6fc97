"""Settings: the one place that reads the environment (prefix ``LAKE_``) and ``.env``."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.errors import BadInput, redacted

LAKE = "lake"
"""The alias every reader and writer attaches the lake under; SQLMesh writes it into its views."""

PROJECT = Path(__file__).resolve().parent.parent / "sqlmesh_project"

KILL_AT = os.environ.get("LAKE_KILL_AT", "")
"""Of tests only; see `flows.points`."""


class Settings(BaseSettings):
    """Where the lake is and how to reach it. The defaults give the embedded lake in ``.lake``.

    Every path is absolute after validation, so that a worker in another folder means the same place.
    """

    model_config = SettingsConfigDict(env_prefix="LAKE_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Path(".lake")
    catalog: str = ""
    catalog_password: SecretStr | None = None
    data_path: str = ""
    landing: str = ""
    state: str = ""
    state_password: SecretStr | None = None
    datasets: Path | None = None
    dask_address: str | None = None
    s3_endpoint: str | None = None
    s3_key_id: SecretStr | None = None
    s3_secret: SecretStr | None = None
    s3_region: str = "us-east-1"
    s3_use_ssl: bool = True
    notify_url: SecretStr | None = None
    retention_days: int = 30

    @field_validator("home", "datasets")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("catalog")
    @classmethod
    def _known_catalog(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:", "postgres:")):
            raise ValueError("must start with sqlite: or postgres:")
        if "password=" in value or "://" in value:
            raise ValueError("must be postgres:host=... dbname=... user=..., its password in LAKE_CATALOG_PASSWORD")
        return value

    @field_validator("state")
    @classmethod
    def _known_state(cls, value: str) -> str:
        if "://" in value and not value.startswith(("postgres://", "postgresql://")):
            raise ValueError("must be a file, or postgres://user@host:port/database")
        if "://" in value and urlsplit(value).password is not None:
            raise ValueError("must not hold the password; put it into LAKE_STATE_PASSWORD")
        return value

    @field_validator("s3_endpoint")
    @classmethod
    def _no_scheme(cls, value: str | None) -> str | None:
        if value and "/" in value:
            raise ValueError("must be host:port; LAKE_S3_USE_SSL says whether it speaks TLS")
        return value or None

    @field_validator("s3_key_id", "s3_secret", "catalog_password", "state_password", "notify_url")
    @classmethod
    def _empty_is_none(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is not None and value.get_secret_value() else None

    @model_validator(mode="after")
    def _s3_needs_keys(self) -> Self:
        names = [n for n in ("data_path", "landing") if getattr(self, n).startswith("s3://")]
        if names and not (self.s3_key_id and self.s3_secret):
            raise ValueError(f"LAKE_{names[0].upper()} is in S3, so LAKE_S3_KEY_ID and LAKE_S3_SECRET must be set")
        return self

    @model_validator(mode="after")
    def _defaults_under_home(self) -> Self:
        defaults = {
            "catalog": f"sqlite:{self.home / 'catalog.sqlite'}",
            "data_path": f"{self.home / 'data'}/",
            "landing": f"{self.home / 'landing'}/",
            "state": str(self.home / "sqlmesh.duckdb"),
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        for name in ("data_path", "landing"):
            value = getattr(self, name)
            if not value.startswith("s3://"):
                value = str(Path(value).expanduser().absolute())
            object.__setattr__(self, name, value.rstrip("/") + "/")
        if self.catalog.startswith("sqlite:"):
            path = Path(self.catalog.removeprefix("sqlite:")).expanduser().absolute()
            object.__setattr__(self, "catalog", f"sqlite:{path}")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the catalog is a SQLite file of this machine."""
        return self.catalog.startswith("sqlite:")

    @property
    def catalog_file(self) -> Path | None:
        """The SQLite catalog's file, or None for Postgres."""
        return Path(self.catalog.removeprefix("sqlite:")) if self.embedded else None

    @property
    def in_s3(self) -> bool:
        """Whether the data or the landing zone is in S3."""
        return self.data_path.startswith("s3://") or self.landing.startswith("s3://")

    @property
    def secrets(self) -> list[str]:
        """Every secret's text, to keep it out of messages."""
        found = (self.catalog_password, self.state_password, self.s3_key_id, self.s3_secret, self.notify_url)
        return [secret.get_secret_value() for secret in found if secret is not None]

    def redact(self, text: str) -> str:
        """A text without any secret in it: neither one of the settings, nor what looks like one."""
        for secret in filter(None, self.secrets):
            text = text.replace(secret, "***")
        return redacted(text)

    def environment(self) -> dict[str, str]:
        """The plain (not secret) settings as environment variables, for a child process in any folder."""
        names = ("home", "catalog", "data_path", "landing", "state", "datasets")
        return {f"LAKE_{n.upper()}": str(getattr(self, n)) for n in names if getattr(self, n) is not None}

    def worker_environment(self) -> dict[str, str]:
        """The environment of a worker that extracts: the plain settings, and no password of a database."""
        return {**self.environment(), "LAKE_CATALOG_PASSWORD": "", "LAKE_STATE_PASSWORD": "", "LAKE_NOTIFY_URL": ""}


def load_settings() -> Settings:
    """Read the environment and ``.env``.

    Raises:
        BadInput: a setting is malformed; names it, never its value.
    """
    return _load(frozenset((k, v) for k, v in os.environ.items() if k.upper().startswith("LAKE_")), Path.cwd())


@lru_cache(maxsize=8)
def _load(_environment: frozenset[tuple[str, str]], _folder: Path) -> Settings:
    """Reading takes milliseconds, and sources ask for each partition: once for an environment will do."""
    try:
        return Settings()
    except ValidationError as error:
        said = (e["msg"].removeprefix("Value error, ") for e in error.errors())
        named = ("_".join(["LAKE", *map(str, e["loc"])]).upper() if e["loc"] else "" for e in error.errors())
        what = "; ".join(f"{name} {text}".strip() for name, text in zip(named, said, strict=True))
        raise BadInput(f"Bad settings: {what}", "mend the environment or .env") from None
