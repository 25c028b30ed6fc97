"""The SQLMesh project's configuration, created from the lake's settings and datasets."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import duckdb
from sqlmesh.core.config import (
    Config,
    DuckDBConnectionConfig,
    GatewayConfig,
    ModelDefaultsConfig,
    PostgresConnectionConfig,
)
from sqlmesh.core.loader import LoadedProject, SqlMeshLoader
from sqlmesh.core.model import create_external_model
from sqlmesh.utils.errors import ConfigError, SQLMeshError

from ducklake_flows.datasets.types import declared_types
from ducklake_flows.errors import LakeError, NotInitialised
from ducklake_flows.lake.builds import Raw, read_raw
from ducklake_flows.models.adapter import check_lake, lake_connection
from ducklake_flows.models.scheduler import LakeContext, command_scheduler
from ducklake_flows.project import all_tables
from ducklake_flows.settings import LAKE, PROD, Settings, find_project, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmesh.core.engine_adapter.base import EngineAdapter
    from sqlmesh.core.model import Model

    from ducklake_flows.datasets.dataset import Dataset


class LakeLoader(SqlMeshLoader):
    """Loads the project and adds every dataset's raw table as an external model."""

    def __init__(self, context: Any, path: Path, *args: Any, **kwargs: Any) -> None:
        # Sets LAKE_PROJECT again: SQLMesh restored the environment variables after it read the configuration.
        lake_settings(path)
        super().__init__(context, path, *args, **kwargs)
        if not isinstance(context, LakeContext):
            # The `sqlmesh` command creates its own context: it, too, commits an interval only after its audits.
            context.create_scheduler = functools.partial(command_scheduler, context)

    def load(self, *args: Any, **kwargs: Any) -> LoadedProject:
        """The project's files and the raw tables.

        Raises:
            ConfigError: a model has the name of a raw table.
            SQLMeshError: the lake cannot be read.
        """
        project: LoadedProject = super().load(*args, **kwargs)
        for model in self._raw_models():
            known = project.models.get(model.fqn)
            if known is not None and not known.kind.is_external:
                raise ConfigError(f"Duplicate model name: {model.name} is the raw table of a dataset.")
            project.models.update({model.fqn: model})  # takes precedence over external_models.yaml
        return project

    def _raw_models(self) -> Iterator[Model]:
        datasets = all_tables()
        try:
            raw = read_raw(load_settings(), datasets)
        except NotInitialised:
            raw = {}  # formatting and linting need no lake; commands that need it report that it is missing
        except LakeError as error:
            raise SQLMeshError(str(error)) from None
        for dataset in datasets:
            found = raw.get(dataset.key, Raw({}, None))
            columns = dict(found.columns) or declared_types(dataset)
            if not columns:
                continue  # columns are unknown until the first partition creates the table
            yield create_external_model(
                f"{LAKE}.{dataset.table}",
                dialect="duckdb",
                columns=columns,
                start=_begin(dataset, found),
                path=Path(__file__),
                project=self.config.project,
                default_catalog=LAKE,
            )


def _begin(dataset: Dataset, raw: Raw) -> str | None:
    """The external model's start, which SQLMesh gives to models of this dataset that declare no ``start``.

    Rounded down to the year's first day: otherwise each earlier first partition would change every model.
    """
    years = [moment.year for moment in (dataset.start, raw.since) if moment]
    return f"{min(years):04}-01-01" if years else None


def lake_settings(folder: Path) -> Settings:
    """The settings of the project that a SQLMesh folder belongs to.

    The project is the one that ``LAKE_PROJECT`` names, else the nearest one at or above the SQLMesh folder. So
    `sqlmesh` works in any working directory with ``--paths``.

    Args:
        folder: The folder of models.
    """
    if "LAKE_PROJECT" not in os.environ and (project := find_project(folder)) is not None:
        os.environ["LAKE_PROJECT"] = str(project)
    return load_settings()


def project_config(settings: Settings) -> Config:
    """SQLMesh's configuration: gateway, state and loader.

    SQLMesh's environments share the tables of equal models, so a build in one would replace intervals of the others.
    Here each environment but prod has a state and a schema of tables that no other uses.
    """
    settings.check_environment(settings.models_environment)
    suffix = _suffix(settings.models_environment)
    # Without a time to live: only `lake environments drop` drops an environment.
    own: dict[str, Any] = {"physical_schema_mapping": {".*": f"sqlmesh_{suffix}"}, "environment_ttl": None}
    return Config(
        default_gateway=LAKE,
        gateways={
            LAKE: GatewayConfig(
                connection=lake_connection(settings),
                state_connection=state_connection(settings),
                state_schema=state_schema(settings.models_environment),
                test_connection=DuckDBConnectionConfig(),
            )
        },
        model_defaults=ModelDefaultsConfig(dialect="duckdb", cron="@daily"),
        loader=LakeLoader,
        cache_dir=str(settings.home / f"sqlmesh-cache{suffix}"),
        disable_anonymized_analytics=True,
        # The models' Python code belongs to this project. Inferring its packages costs a second per plan.
        infer_python_dependencies=False,
        **(own if suffix else {}),
    )


def _suffix(environment: str) -> str:
    return "" if environment == PROD else f"_{environment}"


def state_schema(environment: str) -> str:
    """The schema of an environment's state."""
    # Not "sqlmesh": DuckDB gives the state file's catalog this name, and the reference would be ambiguous.
    return f"state{_suffix(environment)}"


def state_connection(settings: Settings) -> DuckDBConnectionConfig | PostgresConnectionConfig:
    """Where SQLMesh's state is: in a DuckDB file or in PostgreSQL."""
    if "://" not in settings.state:
        return _StateFile(database=settings.state)
    url = urlsplit(settings.state)
    return _StateServer(
        host=url.hostname or "localhost",
        port=url.port or 5432,
        user=unquote(url.username or ""),
        password=settings.state_password.get_secret_value() if settings.state_password else "",
        database=url.path.lstrip("/"),
    )


class _StateFile(DuckDBConnectionConfig):
    """SQLMesh's state in a DuckDB file. Only one process at a time can open it."""

    def create_engine_adapter(self, *args: Any, **kwargs: Any) -> EngineAdapter:
        """The state's adapter, with the file open.

        Raises:
            SQLMeshError: there is no lake, or the file cannot be opened.
        """
        check_lake(load_settings())
        adapter = super().create_engine_adapter(*args, **kwargs)
        try:
            adapter.ping()
        except duckdb.IOException as error:
            raise SQLMeshError(
                f"SQLMesh's state cannot be opened: {' '.join(str(error).split())[:300]}\n"
                "Next: wait until the transform or command that has it open ends, then run the same command again. "
                "For concurrent access, keep the state in PostgreSQL (LAKE_STATE)."
            ) from None
        return adapter


class _StateServer(PostgresConnectionConfig):
    """SQLMesh's state in PostgreSQL."""

    def create_engine_adapter(self, *args: Any, **kwargs: Any) -> EngineAdapter:
        """The state's adapter.

        Raises:
            SQLMeshError: there is no lake.
        """
        check_lake(load_settings())
        return super().create_engine_adapter(*args, **kwargs)
