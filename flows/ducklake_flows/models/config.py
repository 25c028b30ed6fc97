"""The SQLMesh project's configuration, made from the lake's settings and datasets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlmesh.core.config import (
    Config,
    DuckDBConnectionConfig,
    GatewayConfig,
    ModelDefaultsConfig,
    PostgresConnectionConfig,
)
from sqlmesh.core.loader import SqlMeshLoader
from sqlmesh.core.model import create_external_model
from sqlmesh.utils.errors import SQLMeshError

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.types import declared_types
from ducklake_flows.errors import LakeError, NotInitialised
from ducklake_flows.lake.builds import Raw, read_raw
from ducklake_flows.models.adapter import check_lake, lake_connection
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import LAKE, Settings, find_project, load_settings


class LakeLoader(SqlMeshLoader):
    """Loads the project; every dataset's raw table is an external model, so none is written down twice."""

    def __init__(self, context: Any, path: Path, *args: Any, **kwargs: Any) -> None:
        # SQLMesh has put the environment back since it read the configuration.
        lake_settings(path)
        super().__init__(context, path, *args, **kwargs)

    def _load_external_models(self, audits: Any, cache: Any, gateway: str | None = None) -> Any:
        models = super()._load_external_models(audits, cache, gateway)
        datasets = all_datasets()
        try:
            raw = read_raw(load_settings(), datasets.values())
        except NotInitialised:
            raw = {}  # what needs the lake says so; to format or lint the project does not
        except LakeError as error:
            raise SQLMeshError(str(error)) from None
        for dataset in datasets.values():
            found = raw.get(dataset.key, Raw({}, None))
            columns = dict(found.columns) or declared_types(dataset)
            if not columns:
                continue  # nothing is known of it until its first partition makes the table
            model = create_external_model(
                f"{LAKE}.{dataset.table}",
                dialect="duckdb",
                columns=columns,
                start=_begin(dataset, found),
                path=Path(__file__),
                project=self.config.project,
                default_catalog=LAKE,
            )
            models.update({model.fqn: model})  # also over one that somebody wrote into external_models.yaml
        return models


def _begin(dataset: Dataset, raw: Raw) -> str | None:
    """Where models without a ``start`` begin that read this dataset, as SQLMesh takes it from what they read.

    It is a year's first day: a first partition that moves back by days would change every model each time.
    """
    years = [moment.year for moment in (dataset.start, raw.since) if moment]
    return f"{min(years):04}-01-01" if years else None


def lake_settings(folder: Path) -> Settings:
    """The settings of the project that a SQLMesh folder belongs to.

    It is the one that ``LAKE_PROJECT`` names, else the nearest one above the SQLMesh folder, so that `sqlmesh` may be
    typed in any folder with ``--paths``.

    Args:
        folder: The folder of models.
    """
    if "LAKE_PROJECT" not in os.environ and (project := find_project(folder)) is not None:
        os.environ["LAKE_PROJECT"] = str(project)
    return load_settings()


def project_config(settings: Settings) -> Config:
    """The configuration that SQLMesh works with: gateway, state and loader."""
    return Config(
        default_gateway=LAKE,
        gateways={
            LAKE: GatewayConfig(
                connection=lake_connection(settings),
                state_connection=_state_connection(settings),
                # Not "sqlmesh": DuckDB names a state file's catalog so, and the two would be ambiguous.
                state_schema="state",
                test_connection=DuckDBConnectionConfig(),
            )
        },
        model_defaults=ModelDefaultsConfig(dialect="duckdb", cron="@daily"),
        loader=LakeLoader,
        cache_dir=str(settings.home / "sqlmesh-cache"),
        disable_anonymized_analytics=True,
        # The models' Python is this project's own; inferring its packages takes a second of every plan.
        infer_python_dependencies=False,
    )


def _state_connection(settings: Settings) -> DuckDBConnectionConfig | PostgresConnectionConfig:
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
    """SQLMesh's state in a DuckDB file, which one process at a time can open."""

    @property
    def _connection_factory(self) -> Callable[..., Any]:
        def connect(**options: Any) -> Any:
            import duckdb

            check_lake(load_settings())
            try:
                return duckdb.connect(**options)
            except duckdb.IOException as error:
                raise SQLMeshError(
                    f"SQLMesh's state cannot be opened: {' '.join(str(error).split())[:300]}\n"
                    "Next: wait for the transform or command that has it open. A state in PostgreSQL can be shared."
                ) from None

        return connect


class _StateServer(PostgresConnectionConfig):
    """SQLMesh's state in PostgreSQL."""

    @property
    def _connection_factory(self) -> Callable[..., Any]:
        def connect(**options: Any) -> Any:
            check_lake(load_settings())
            return opened(**options)

        opened = super()._connection_factory
        return connect
