"""SQLMesh's state of a lake that is moved: which versions of the models exist, and which intervals are built."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import duckdb
from sqlmesh.core.console import NoopConsole
from sqlmesh.core.state_sync import EngineAdapterStateSync
from sqlmesh.utils.errors import SQLMeshError

from ducklake_flows.datasets.types import quoted
from ducklake_flows.errors import LakeError
from ducklake_flows.lake.connect import attach_database, engine
from ducklake_flows.models.config import state_connection, state_schema
from ducklake_flows.settings import PROD, Settings
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def holds_models(settings: Settings) -> bool:
    """Whether there is a state of the project's models.

    Raises:
        LakeError: the state cannot be opened.
    """
    if not _exists(settings):
        return False
    with closing(engine()) as con:
        try:
            _attach(con, "state", settings)
            found = [schema for schema in _schemas(settings) if "_snapshots" in _tables(con, "state", schema)]
            return any(con.execute(f"FROM state.{schema}._snapshots LIMIT 1").fetchall() for schema in found)
        except duckdb.Error as error:
            raise _error(settings, error) from None


def copy_state(source: Settings, target: Settings) -> int:
    """Replace the target's state by the source's, in one transaction. Call it while no transform runs.

    Returns:
        The number of versions of models; 0 if the source has no state.

    Raises:
        LakeError: a state cannot be opened, or the source's was written by another release of SQLMesh.
    """
    if not _exists(source):
        return 0
    count = 0
    with closing(engine()) as con:
        try:
            _attach(con, "source", source)
            schemas = [schema for schema in _schemas(source) if _tables(con, "source", schema)]
            for schema in schemas:
                _create(target, schema)
            _attach(con, "target", target, read_only=False)
            con.execute("BEGIN")
            for schema in schemas:
                mine, theirs = (_tables(con, name, schema) for name in ("source", "target"))
                for table, columns in theirs.items():
                    if mine.get(table, set()) != columns:
                        raise LakeError(
                            f"SQLMesh's state was written by another release of SQLMesh: {schema}.{table}.",
                            "sqlmesh --paths PROJECT/sqlmesh_project migrate; then run the same command again",
                        )
                    names = ", ".join(map(quoted, sorted(columns)))
                    con.execute(f"DELETE FROM target.{schema}.{table}")
                    con.execute(
                        f"INSERT INTO target.{schema}.{table} ({names}) SELECT {names} FROM source.{schema}.{table}"
                    )
                count += con.execute(f"SELECT count(*) FROM target.{schema}._snapshots").fetchall()[0][0]
            con.execute("COMMIT")
        except duckdb.Error as error:
            raise _error(target, error) from None
    failpoint("state copied")
    return count


def _schemas(settings: Settings) -> list[str]:
    return [state_schema(name) for name in (PROD, *settings.environments)]


def _exists(settings: Settings) -> bool:
    return "://" in settings.state or Path(settings.state).exists()


def _create(settings: Settings, schema: str) -> None:
    """Create SQLMesh's tables, with its own types and keys."""
    if "://" not in settings.state:
        Path(settings.state).parent.mkdir(parents=True, exist_ok=True)
    try:
        adapter = state_connection(settings).create_engine_adapter()
        try:
            EngineAdapterStateSync(adapter, schema, NoopConsole()).migrate(skip_backup=True)
        finally:
            adapter.close()
    except SQLMeshError as error:
        raise _error(settings, error) from None


def _attach(con: DuckDBPyConnection, name: str, settings: Settings, *, read_only: bool = True) -> None:
    url = urlsplit(settings.state)
    if "://" not in settings.state:
        attach_database(con, name, f"duckdb:{settings.state}", read_only=read_only)
        return
    parts = {
        "host": url.hostname or "localhost",
        "port": str(url.port or 5432),
        "user": unquote(url.username or ""),
        "dbname": url.path.lstrip("/"),
    }
    place = " ".join(f"{key}={_in_libpq(value)}" for key, value in parts.items() if value)
    attach_database(con, name, f"postgres:{place}", settings.state_password, read_only=read_only)


def _in_libpq(value: str) -> str:
    """A value in libpq's connection string."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _tables(con: DuckDBPyConnection, database: str, schema: str) -> dict[str, set[str]]:
    """The columns of SQLMesh's tables in a state, without those that SQLMesh made as a backup."""
    found: dict[str, set[str]] = {}
    for table, column in con.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = ? AND schema_name = ? "
        "AND NOT ends_with(table_name, '_backup')",
        [database, schema],
    ).fetchall():
        found.setdefault(table, set()).add(column)
    return found


def _error(settings: Settings, error: Exception) -> LakeError:
    return LakeError(
        f"SQLMesh's state cannot be copied: {settings.redact(' '.join(str(error).split()))[:300]}",
        "wait until the command that has it open ends, or check LAKE_STATE; then run the same command again",
    )
