"""Private names and signatures of other libraries that this project uses: an upgrade that changes one fails here.

Each entry names the file that uses it. If upstream adds a public alternative, use it and remove the entry.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from distributed.worker_state_machine import BaseWorker, TaskState, WorkerState
from prefect_dask.task_runners import PrefectDaskFuture
from sqlmesh.core.config.connection import DuckDBConnectionConfig, PostgresConnectionConfig
from sqlmesh.core.console import NoopConsole
from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter
from sqlmesh.core.loader import SqlMeshLoader
from sqlmesh.utils.connection_pool import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    # models/adapter.py: SQLMesh commits the DELETE and the INSERT of one interval separately (SQLMesh/sqlmesh#3866).
    (DuckDBEngineAdapter.transaction, "self, condition"),
    (
        DuckDBEngineAdapter.execute,
        "self, expressions, ignore_unsupported_errors, quote_identifiers, track_rows_processed, kwargs",
    ),
    (DuckDBEngineAdapter.fetchone, "self, query, ignore_unsupported_errors, quote_identifiers"),
    (DuckDBEngineAdapter.fetchall, "self, query, ignore_unsupported_errors, quote_identifiers"),
    (DuckDBEngineAdapter._order_projections_and_filter, "self, query, target_columns_to_types, where, coerce_types"),
    (DuckDBEngineAdapter._fetch_native_df, "self, query, quote_identifiers"),
    # models/config.py: external models from the datasets instead of a file.
    (SqlMeshLoader._load_external_models, "self, audits, cache, gateway"),
    # models/build.py: an event for each evaluated interval.
    (
        NoopConsole.update_snapshot_evaluation_progress,
        "self, snapshot, interval, batch_idx, duration_ms, num_audits_passed, num_audits_failed, "
        "audit_only, execution_stats, auto_restatement_triggers",
    ),
    (NoopConsole.log_failed_models, "self, errors"),
]


@pytest.mark.parametrize(("function", "parameters"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_an_overridden_upstream_method_keeps_its_signature(function: Callable[..., Any], parameters: str) -> None:
    assert ", ".join(inspect.signature(inspect.unwrap(function)).parameters) == parameters


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (DuckDBEngineAdapter, "SUPPORTS_TRANSACTIONS"),  # models/adapter.py
        (ConnectionPool, "is_transaction_active"),  # models/adapter.py
        (DuckDBConnectionConfig, "_engine_adapter"),  # models/adapter.py
        (DuckDBConnectionConfig, "_cursor_init"),  # models/adapter.py
        (DuckDBConnectionConfig, "_connection_factory"),  # models/config.py
        (PostgresConnectionConfig, "_connection_factory"),  # models/config.py
        (PrefectDaskFuture, "wrapped_future"),  # orchestration/extraction.py
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_private_upstream_names_that_we_use_exist(owner: type, name: str) -> None:
    assert hasattr(owner, name)


def test_a_worker_shows_the_state_of_its_tasks() -> None:
    """orchestration/cluster.py: Dask does not notify a running task that its client has left (dask/distributed#3681).

    An Event or a Variable set by the client does not help: a killed client sets none.
    """
    assert inspect.get_annotations(BaseWorker)["state"] == "WorkerState"
    assert "tasks" in inspect.get_annotations(WorkerState)
    assert {"state", "start_time"} <= inspect.get_annotations(TaskState).keys()
