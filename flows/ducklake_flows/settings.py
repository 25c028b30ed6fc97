"""Settings: the only place that reads the environment (prefix ``LAKE_``), ``.env`` and the project's table."""

from __future__ import annotations

import io
import os
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from ducklake_flows.errors import BadInput, redacted

if TYPE_CHECKING:
    from collections.abc import Mapping

LAKE = "lake"
"""The alias under which every reader and writer attaches the lake; SQLMesh writes it into its views."""

TABLE = ("tool", "ducklake-flows")
"""The table of `pyproject.toml` that makes a folder a project."""

AWS_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
"""The variables that name the region if ``LAKE_S3_REGION`` does not; the first that is set counts."""

KEYS = ("datasets", "models", "environments")
"""The table's keys."""


PROD = "prod"
"""The environment of models that everyone reads."""


class Settings(BaseSettings):
    """Where the project and its lake are, and how to reach them. The defaults give the embedded lake in ``.lake``.

    The environment overrides ``.env``, which overrides the files of ``LAKE_SECRETS_DIR`` (one per setting, named like
    its variable in lower case) and the project's table. Relative paths start from the project's
    folder (without a project, from the working directory). After validation all paths are absolute, so that a worker
    in another folder resolves the same paths.
    """

    model_config = SettingsConfigDict(env_prefix="LAKE_", env_file=".env", extra="ignore", frozen=True)

    project: Path | None = None
    datasets: Annotated[tuple[Path, ...], NoDecode] = ()
    models: Path | None = None
    environments: Annotated[tuple[str, ...], NoDecode] = ()
    models_environment: str = PROD
    home: Path = Path(".lake")
    catalog: str = ""
    catalog_password: SecretStr | None = None
    data_path: str = ""
    landing: str = ""
    state: str = ""
    state_password: SecretStr | None = None
    dask_address: str | None = None
    s3_endpoint: str | None = None
    s3_key_id: SecretStr | None = None
    s3_secret: SecretStr | None = None
    s3_session_token: SecretStr | None = None
    s3_region: str = ""
    s3_use_ssl: bool = True
    s3_ca_file: Path | None = None
    notify_url: SecretStr | None = None
    openlineage_url: str | None = None
    retention_days: int = 30
    secrets_dir: Path | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the project's ``.env`` and table if a project is given."""
        project = init_settings.init_kwargs.get("project") if isinstance(init_settings, InitSettingsSource) else None
        if project is not None:
            dotenv_settings = DotEnvSettingsSource(settings_cls, Path(project) / ".env")
        sources = (init_settings, env_settings, dotenv_settings)
        if not (folder := os.environ.get("LAKE_SECRETS_DIR")):
            return sources
        if not (Path(folder).is_absolute() and Path(folder).is_dir()):
            # Absolute: a run and its workers are in other folders.
            raise BadInput(f"LAKE_SECRETS_DIR is no absolute path of a folder: {folder}", "correct or unset it")
        return (*sources, SecretsSettingsSource(settings_cls, secrets_dir=folder))

    @field_validator("datasets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Several folders are a list, or a text with the path separator of the system (``:``) between them."""
        return [path for path in value.split(os.pathsep) if path] if isinstance(value, str) else value

    @field_validator("environments", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name for name in value.split(",") if name] if isinstance(value, str) else value

    @field_validator("models", "s3_ca_file", mode="before")
    @classmethod
    def _no_path_is_none(cls, value: Any) -> Any:
        return value or None

    @field_validator("catalog")
    @classmethod
    def _known_catalog(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:", "postgres:")):
            raise ValueError("must start with sqlite: or postgres:")
        if "password=" in value or "://" in value:
            raise ValueError("must be postgres:host=... dbname=... user=..., the password in LAKE_CATALOG_PASSWORD")
        return value

    @field_validator("state")
    @classmethod
    def _known_state(cls, value: str) -> str:
        if "://" in value and not value.startswith(("postgres://", "postgresql://")):
            raise ValueError("must be a file, or postgres://user@host:port/database")
        if "://" in value and urlsplit(value).password is not None:
            raise ValueError("must not contain the password; put it into LAKE_STATE_PASSWORD")
        return value

    @field_validator("s3_endpoint")
    @classmethod
    def _no_scheme(cls, value: str | None) -> str | None:
        if value and "/" in value:
            raise ValueError("must be host:port; LAKE_S3_USE_SSL sets whether TLS is used")
        return value or None

    @field_validator("openlineage_url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value and (not value.startswith(("http://", "https://")) or "@" in value):
            raise ValueError("must be http://host:port or https://host:port, without a user or password")
        return value or None

    @field_validator("s3_key_id", "s3_secret", "s3_session_token", "catalog_password", "state_password", "notify_url")
    @classmethod
    def _empty_is_none(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is not None and value.get_secret_value() else None

    @model_validator(mode="after")
    def _environment_names(self) -> Self:
        for name in self.environments:
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name) or name == PROD:
                raise ValueError(f"environments: {name!r} is no name: a-z, 0-9 and _, at most 31, not {PROD}")
        return self

    @model_validator(mode="after")
    def _s3_keys_are_whole(self) -> Self:
        if bool(self.s3_key_id) != bool(self.s3_secret) or (self.s3_session_token and not self.s3_key_id):
            raise ValueError("LAKE_S3_KEY_ID and LAKE_S3_SECRET go together, LAKE_S3_SESSION_TOKEN with both")
        return self

    @model_validator(mode="after")
    def _s3_has_a_region(self) -> Self:
        """Without a region, that of AWS's variables counts, unless the keys are in the settings, too."""
        if not self.s3_region:
            found = () if self.s3_key_id else map(os.environ.get, AWS_REGIONS)
            object.__setattr__(self, "s3_region", next(filter(None, found), "us-east-1"))
        return self

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        base = self.project.expanduser().absolute() if self.project is not None else Path.cwd()

        def absolute(path: str | Path) -> Path:
            return Path(os.path.normpath(base / Path(path).expanduser()))

        found: dict[str, Any] = {"home": absolute(self.home), "datasets": tuple(map(absolute, self.datasets))}
        if self.s3_ca_file is not None:
            found["s3_ca_file"] = absolute(self.s3_ca_file)
            if not found["s3_ca_file"].is_file():
                raise ValueError(f"LAKE_S3_CA_FILE is no file: {found['s3_ca_file']}")
        if self.project is not None:
            found["project"] = base
            table = _table(base) or {}
            listed = table.get("datasets", ["datasets"])
            listed = [listed] if isinstance(listed, str) else listed
            found["datasets"] = found["datasets"] or tuple(map(absolute, listed))
            found["models"] = absolute(self.models or table.get("models", "sqlmesh_project"))
            found["environments"] = self.environments or tuple(table.get("environments", ()))
        elif self.models is not None:
            found["models"] = absolute(self.models)
        for name, path in found.items():
            object.__setattr__(self, name, path)
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
                value = str(absolute(value))
            object.__setattr__(self, name, value.rstrip("/") + "/")
        if self.catalog.startswith("sqlite:"):
            object.__setattr__(self, "catalog", f"sqlite:{absolute(self.catalog.removeprefix('sqlite:'))}")
        if "://" not in self.state:
            object.__setattr__(self, "state", str(absolute(self.state)))
        return self

    def check_environment(self, name: str) -> None:
        """Check the name of an environment of models.

        Raises:
            BadInput: it is neither ``prod`` nor declared.
        """
        if name not in (PROD, *self.environments):
            raise BadInput(
                f"There is no environment {name!r}: {', '.join((PROD, *self.environments))}.",
                f'declare it in pyproject.toml, [{".".join(TABLE)}]: environments = ["{name}"]',
            )

    @property
    def embedded(self) -> bool:
        """Whether the catalog is a SQLite file on this machine."""
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
        """The text of every secret, used to redact messages."""
        s3 = (self.s3_key_id, self.s3_secret, self.s3_session_token)
        found = (self.catalog_password, self.state_password, *s3, self.notify_url)
        return [secret.get_secret_value() for secret in found if secret is not None]

    def redact(self, text: str) -> str:
        """Remove the settings' secrets, issued ones and everything that looks like a secret from a text."""
        for secret in filter(None, self.secrets):
            text = text.replace(secret, "***")
        return redacted(text)

    def environment(self) -> dict[str, str]:
        """The settings without secrets as environment variables, for a child process in any folder."""
        names = ("project", "home", "catalog", "data_path", "landing", "state", "models")
        found = {f"LAKE_{n.upper()}": str(getattr(self, n)) for n in names if getattr(self, n) is not None}
        return found | {
            "LAKE_DATASETS": os.pathsep.join(map(str, self.datasets)),
            "LAKE_ENVIRONMENTS": ",".join(self.environments),
        }

    def worker_environment(self) -> dict[str, str]:
        """The environment of an extraction worker: no database passwords and no notification URL."""
        return {**self.environment(), "LAKE_CATALOG_PASSWORD": "", "LAKE_STATE_PASSWORD": "", "LAKE_NOTIFY_URL": ""}


class _OfFile(Settings):
    """Settings of a file alone."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic passes them all
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read neither the environment nor ``.env``."""
        return (init_settings,)


@dataclass(frozen=True)
class Secret:
    """A secret of a source by its name; the text is read where the source is, and is never stored or shown.

    Args:
        name: The name of an environment variable of the run or worker, of a line of the project's ``.env``, or, in
            lower case, of a file in ``LAKE_SECRETS_DIR``. The first that exists counts.
    """

    name: str

    def reveal(self) -> str:
        """The secret's text.

        Raises:
            BadInput: it is not set.
        """
        found = os.environ.get(self.name) or _dotenv(load_settings().project).get(self.name)
        folder = os.environ.get("LAKE_SECRETS_DIR")
        if not found and folder and (file := Path(folder, self.name.lower())).is_file():
            found = file.read_text(encoding="utf-8").strip()
        if not found:
            raise BadInput(
                f"The secret {self.name} is not set.",
                f"set {self.name} in the environment of the run and its workers, or in .env",
            )
        return found


def _dotenv(project: Path | None) -> dict[str, str | None]:
    """The lines of a project's ``.env``; without a project, of the working directory's."""
    return dotenv_values((project or Path.cwd()) / ".env", interpolate=False)


def find_project(folder: Path) -> Path | None:
    """The nearest folder at or above this one whose `pyproject.toml` has the project's table; None if there is none.

    Raises:
        BadInput: a `pyproject.toml` on that path cannot be read, or its table has an unknown key.
    """
    return next((place for place in (folder, *folder.parents) if _table(place) is not None), None)


def _table(folder: Path) -> dict[str, Any] | None:
    """The project's table in a folder's `pyproject.toml`; None if there is none."""
    path = folder / "pyproject.toml"
    try:
        tool = tomllib.loads(path.read_text(encoding="utf-8")).get(TABLE[0])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}", "correct the file") from None
    if not isinstance(tool, dict) or not isinstance(table := tool.get(TABLE[1]), dict):
        return None
    where = f"{path}: [{'.'.join(TABLE)}]"
    if unknown := [key for key in table if key not in KEYS]:
        raise BadInput(
            f"{where} has the unknown key {unknown[0]!r}.",
            "remove the key; the table takes `datasets`, `models` and `environments`, all other settings are LAKE_ "
            "variables in the environment or .env",
        )
    listed = table.get("datasets", [])
    folders = [*(listed if isinstance(listed, list) else [listed]), table.get("models", "")]
    if not all(isinstance(folder, str) for folder in folders):
        raise BadInput(f"{where}: `datasets` is a folder or a list of folders, and `models` a folder.", "correct it")
    names = table.get("environments", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{where}: `environments` is a list of names.", "correct it")
    return table


def load_settings() -> Settings:
    """Read the environment, ``.env`` and the project's table.

    The project is the folder that ``LAKE_PROJECT`` names, or the nearest one at or above the working directory.

    Raises:
        BadInput: a setting is malformed (the message names it, never its value), or ``LAKE_PROJECT`` is not a project.
    """
    read = ((k, v) for k, v in os.environ.items() if k.upper().startswith("LAKE_") or k in AWS_REGIONS)
    return _load(frozenset(read), Path.cwd())


def project_settings(folder: Path) -> Settings:
    """The settings of the project in this folder; the environment overrides them, as in `load_settings`.

    Raises:
        BadInput: as in `load_settings`, or the folder is not a project.
    """
    folder = folder.expanduser().absolute()
    if _table(folder) is None:
        raise BadInput(f"{folder} has no pyproject.toml with [{'.'.join(TABLE)}].", "name a project's folder")
    return _read(folder)


@lru_cache(maxsize=8)
def _load(_environment: frozenset[tuple[str, str]], folder: Path) -> Settings:
    """Cached by environment and folder: reading takes milliseconds, and sources call it for every partition."""
    if named := os.environ.get("LAKE_PROJECT"):
        return project_settings(Path(named))
    return _read(find_project(folder))


def file_settings(file: Path) -> Settings:
    """The settings that a file in the form of ``.env`` gives to this project, whatever the environment says.

    Args:
        file: The file. Its ``LAKE_SECRETS_DIR`` counts, too.

    Raises:
        BadInput: the file cannot be read, or a setting is malformed (the message names it, never its value).
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {error}", "name a file in the form of .env") from None
    values = DotEnvSettingsSource(_OfFile, file)()
    if folder := dotenv_values(stream=io.StringIO(text), interpolate=False).get("LAKE_SECRETS_DIR"):
        if not (Path(folder).is_absolute() and Path(folder).is_dir()):
            raise BadInput(f"LAKE_SECRETS_DIR is no absolute path of a folder: {folder}", f"correct {file}")
        values = SecretsSettingsSource(_OfFile, secrets_dir=folder)() | values
    known = {name: value for name, value in values.items() if name in Settings.model_fields}
    return _read(load_settings().project, f"correct {file}", _OfFile, known)


def _read(
    project: Path | None,
    fix: str = "correct the environment, .env or pyproject.toml",
    kind: type[Settings] = Settings,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> Settings:
    try:
        return kind(**{**values, "project": project})
    except ValidationError as error:
        said = (e["msg"].removeprefix("Value error, ") for e in error.errors())
        names = ("_".join(["LAKE", *map(str, e["loc"])]).upper() if e["loc"] else "" for e in error.errors())
        what = "; ".join(f"{name} {text}".strip() for name, text in zip(names, said, strict=True))
        raise BadInput(f"Bad settings: {what}", fix) from None
