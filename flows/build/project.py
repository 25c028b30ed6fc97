"""The SQLMesh project's configuration, made from the lake's settings and datasets."""

from __future__ import annotations

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

from flows.build.adapter import lake_connection
from flows.datasets import all_datasets
from flows.settings import LAKE, Settings
from flows.stage.types import declared_types


class LakeLoader(SqlMeshLoader):
    """Loads the project; every dataset's raw table is an external model, so none is written down twice."""

    def _load_external_models(self, audits: Any, cache: Any, gateway: str | None = None) -> Any:
        models = super()._load_external_models(audits, cache, gateway)
        for dataset in all_datasets().values():
            columns = declared_types(dataset)
            model = create_external_model(
                f"{LAKE}.{dataset.table}",
                dialect="duckdb",
                columns=columns or None,
                path=Path(__file__),
                project=self.config.project,
                default_catalog=LAKE,
            )
            models[model.fqn] = model
        return models


def project_config(settings: Settings) -> Config:
    """The configuration that `sqlmesh_project/config.py` hands to SQLMesh."""
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
        model_defaults=ModelDefaultsConfig(dialect="duckdb", start="2013-01-01", cron="@daily"),
        loader=LakeLoader,
        cache_dir=str(settings.home / "sqlmesh-cache"),
        disable_anonymized_analytics=True,
        # The models' Python is this project's own; inferring its packages takes a second of every plan.
        infer_python_dependencies=False,
    )


def _state_connection(settings: Settings) -> DuckDBConnectionConfig | PostgresConnectionConfig:
    if "://" not in settings.state:
        return DuckDBConnectionConfig(database=settings.state)
    url = urlsplit(settings.state)
    return PostgresConnectionConfig(
        host=url.hostname or "localhost",
        port=url.port or 5432,
        user=unquote(url.username or ""),
        password=settings.state_password.get_secret_value() if settings.state_password else "",
        database=url.path.lstrip("/"),
    )
