"""A partitioned lakehouse: Prefect maps partitions, Dask extracts, one gated DuckLake commit publishes, SQLMesh builds.

The names below are the public surface. They are imported on first use, so that `import ducklake_flows` costs nothing.
The flows are functions of their modules: ``from ducklake_flows.ingest import ingest``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ducklake_flows.datasets.audits import (
        Audit,
        accepted_values,
        at_least,
        expect,
        fresh,
        measured,
        not_null,
        null_rate,
        references,
        steady,
        unique,
    )
    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.datasets.dataset import Dataset, Table
    from ducklake_flows.datasets.partitions import Grain, Partition
    from ducklake_flows.datasets.source import Source
    from ducklake_flows.errors import LakeError, NoSource, SourceError, SourceUnavailable
    from ducklake_flows.lake.diff import changes
    from ducklake_flows.lake.query import open_lake
    from ducklake_flows.orchestration.sqlmesh_gate import sqlmesh_config
    from ducklake_flows.settings import Secret, Settings, load_settings
    from ducklake_flows.sources.files import Files
    from ducklake_flows.sources.rest_api import RestApi, Versions
    from ducklake_flows.sources.sql_database import SqlDatabase

_PLACES = {
    "Audit": "datasets.audits",
    "Contract": "datasets.contract",
    "Dataset": "datasets.dataset",
    "Files": "sources.files",
    "Grain": "datasets.partitions",
    "LakeError": "errors",
    "NoSource": "errors",
    "Partition": "datasets.partitions",
    "RestApi": "sources.rest_api",
    "Secret": "settings",
    "Settings": "settings",
    "Source": "datasets.source",
    "SourceError": "errors",
    "SourceUnavailable": "errors",
    "SqlDatabase": "sources.sql_database",
    "Table": "datasets.dataset",
    "Versions": "sources.rest_api",
    "accepted_values": "datasets.audits",
    "at_least": "datasets.audits",
    "changes": "lake.diff",
    "expect": "datasets.audits",
    "fresh": "datasets.audits",
    "load_settings": "settings",
    "measured": "datasets.audits",
    "not_null": "datasets.audits",
    "null_rate": "datasets.audits",
    "open_lake": "lake.query",
    "references": "datasets.audits",
    "sqlmesh_config": "orchestration.sqlmesh_gate",
    "steady": "datasets.audits",
    "unique": "datasets.audits",
}

__all__ = [
    "Audit",
    "Contract",
    "Dataset",
    "Files",
    "Grain",
    "LakeError",
    "NoSource",
    "Partition",
    "RestApi",
    "Secret",
    "Settings",
    "Source",
    "SourceError",
    "SourceUnavailable",
    "SqlDatabase",
    "Table",
    "Versions",
    "accepted_values",
    "at_least",
    "changes",
    "expect",
    "fresh",
    "load_settings",
    "measured",
    "not_null",
    "null_rate",
    "open_lake",
    "references",
    "sqlmesh_config",
    "steady",
    "unique",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
