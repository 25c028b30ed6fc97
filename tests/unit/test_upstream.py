"""What this project uses of other libraries beyond calls: an upgrade that changes it fails here by name.

Each entry names the file that uses it. No private member of another library is used or overridden.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import queue
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from distributed import Client, LocalCluster, WorkerPlugin
from prefect_dask.task_runners import PrefectDaskFuture
from sqlmesh.core.config.connection import DuckDBConnectionConfig, PostgresConnectionConfig
from sqlmesh.core.console import NoopConsole
from sqlmesh.core.context import GenericContext
from sqlmesh.core.engine_adapter.base import EngineAdapter
from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter
from sqlmesh.core.loader import SqlMeshLoader
from sqlmesh.core.scheduler import Scheduler
from sqlmesh.core.snapshot import SnapshotEvaluator

import ducklake_flows
from ducklake_flows.orchestration import cluster
from ducklake_flows.orchestration.server import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    # models/adapter.py: SQLMesh commits the DELETE and the INSERT of one interval separately (SQLMesh/sqlmesh#3866).
    (DuckDBEngineAdapter.transaction, "self, condition"),
    (DuckDBEngineAdapter.session, "self, properties"),
    (DuckDBEngineAdapter.with_settings, "self, kwargs"),
    (
        DuckDBEngineAdapter.execute,
        "self, expressions, ignore_unsupported_errors, quote_identifiers, track_rows_processed, kwargs",
    ),
    (DuckDBEngineAdapter.fetchone, "self, query, ignore_unsupported_errors, quote_identifiers"),
    # models/adapter.py: SQLMesh casts the columns of a CREATE TABLE AS without a check.
    (
        DuckDBEngineAdapter.ctas,
        "self, table_name, query_or_df, target_columns_to_types, exists, table_description, column_descriptions, "
        "source_columns, kwargs",
    ),
    (
        DuckDBEngineAdapter.replace_query,
        "self, table_name, query_or_df, target_columns_to_types, table_description, column_descriptions, "
        "source_columns, supports_replace_table_override, kwargs",
    ),
    (
        DuckDBEngineAdapter.temp_table,
        "self, query_or_df, name, target_columns_to_types, source_columns, kwargs",
    ),
    # models/adapter.py, models/config.py: the lake is attached in our way, and a missing lake is one error.
    (DuckDBConnectionConfig.create_engine_adapter, "self, register_comments_override, concurrent_tasks"),
    (PostgresConnectionConfig.create_engine_adapter, "self, register_comments_override, concurrent_tasks"),
    (
        EngineAdapter,
        "connection_factory_or_pool, dialect, sql_gen_kwargs, multithreaded, cursor_init, default_catalog, "
        "execute_log_level, register_comments, pre_ping, pretty_sql, shared_connection, correlation_id, "
        "schema_differ_overrides, query_execution_tracker, kwargs",
    ),
    # models/config.py: external models from the datasets instead of a file.
    (SqlMeshLoader.load, "self, model_fqns, use_project_index"),
    # models/scheduler.py: an interval is audited before its commit.
    (GenericContext.create_scheduler, "self, snapshots, snapshot_evaluator"),
    (
        Scheduler.evaluate,
        "self, snapshot, start, end, execution_time, deployability_index, batch_index, environment_naming_info, "
        "allow_destructive_snapshots, allow_additive_snapshots, target_table_exists, kwargs",
    ),
    (
        SnapshotEvaluator.evaluate,
        "self, snapshot, start, end, execution_time, snapshots, allow_destructive_snapshots, "
        "allow_additive_snapshots, deployability_index, batch_index, target_table_exists, kwargs",
    ),
    (
        SnapshotEvaluator.audit,
        "self, snapshot, snapshots, start, end, execution_time, deployability_index, wap_id, kwargs",
    ),
    # orchestration/cluster.py: a running task learns that its run has ended.
    (WorkerPlugin.transition, "self, key, start, finish, kwargs"),
    # models/build.py: failures and warnings are reported.
    (NoopConsole.log_failed_models, "self, errors"),
    (NoopConsole.log_warning, "self, short_message, long_message"),
]


@pytest.mark.parametrize(("function", "parameters"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_an_overridden_upstream_method_keeps_its_signature(function: Callable[..., Any], parameters: str) -> None:
    assert ", ".join(inspect.signature(inspect.unwrap(function)).parameters) == parameters


def test_the_attributes_that_we_use_exist() -> None:
    assert hasattr(DuckDBEngineAdapter, "SUPPORTS_TRANSACTIONS"), "models/adapter.py"
    assert hasattr(PrefectDaskFuture, "wrapped_future"), "orchestration/cluster.py"


def _classes() -> Iterator[type]:
    """The library's classes."""
    for found in pkgutil.walk_packages(ducklake_flows.__path__, "ducklake_flows."):
        if not found.name.startswith("ducklake_flows.templates."):
            module = importlib.import_module(found.name)
            yield from (c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == found.name)


@functools.cache
def _names(of: type) -> set[str]:
    """The private names that a class defines or its methods use, each as an attribute of any object."""
    names = set(vars(of))
    for member in vars(of).values():
        function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", None) or member)
        is_code = inspect.isfunction(function) and function.__module__ != "typing"  # which adds functions to a Protocol
        codes = [function.__code__] if is_code else []
        while codes:
            code = codes.pop()
            names.update(code.co_names)
            codes += [c for c in code.co_consts if inspect.iscode(c)]
    return {name for name in names if re.match(r"_(?!_|abc_|is_(runtime_)?protocol)", name)}


def test_no_private_member_of_another_library_is_used_or_overridden() -> None:
    """Ruff's SLF refuses ``other._member``, but not ``self._member`` nor ``super()._member`` of an inherited class."""
    found = [
        f"{ours.__module__}.{ours.__name__}.{name} of {base.__module__}.{base.__name__}"
        for ours in _classes()
        for base in ours.__mro__[1:]
        if base.__module__.split(".")[0] not in {"ducklake_flows", *sys.stdlib_module_names}
        for name in _names(ours) & _names(base)
    ]
    assert found == []


_told: queue.SimpleQueue[float | bool] = queue.SimpleQueue()


def _wait_until_abandoned() -> None:
    """A task: tells when it was given to its worker, then whether it saw that its run has ended."""
    abandoned = cluster.abandonment()
    _told.put(cluster.given_at())
    _told.put(until(abandoned, 10))


def test_a_running_task_sees_that_its_client_has_left() -> None:
    """orchestration/cluster.py: Dask tells only a worker plugin of it (dask/distributed#3681)."""
    begun = time.time()
    options: Any = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    made: Any = LocalCluster
    with made(**options) as local:
        client: Any = Client(local)  # type: ignore[no-untyped-call]
        client.register_plugin(cluster.Tasks())
        future = client.submit(_wait_until_abandoned)
        assert begun <= _told.get(timeout=10) <= time.time()
        client.close()  # the scheduler sees a closed connection, as when the run is killed
        assert _told.get(timeout=20) is True
        del future
