"""Settings: the one place that reads the environment (prefix ``LAKE_``) and ``.env``."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.errors import BadInput

LAKE = "lake"
"""The alias every reader and writer attaches the lake under; SQLMesh writes it into its views."""

PROJECT = Path(__file__).resolve().parent.parent / "sqlmesh_project"


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
    datasets: Path | None = None
    dask_address: str | None = None
    s3_endpoint: str | None = None
    s3_key_id: SecretStr | None = None
    s3_secret: SecretStr | None = None
    s3_region: str = "us-east-1"
    s3_use_ssl: bool = True

    @field_validator("home", "datasets")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("catalog")
    @classmethod
    def _known_catalog(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:", "postgres:")):
            raise ValueError("must start with sqlite: or postgres:")
        if "password=" in value:
            raise ValueError("must not hold the password; put it into LAKE_CATALOG_PASSWORD")
        return value

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

    def environment(self) -> dict[str, str]:
        """The plain (not secret) settings as environment variables, for a child process in any folder."""
        names = ("home", "catalog", "data_path", "landing", "state", "datasets")
        return {f"LAKE_{n.upper()}": str(getattr(self, n)) for n in names if getattr(self, n) is not None}


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
        what = "; ".join(f"LAKE_{'_'.join(str(p) for p in e['loc']).upper()} {e['msg']}" for e in error.errors())
        raise BadInput(f"Bad settings: {what}", "mend the environment or .env") from None
