"""Read the lake: one query on a connection that cannot write and reads only the lake's own files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import connect, connected, literal
from ducklake_flows.settings import Settings, load_settings, project_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duckdb import DuckDBPyConnection

TABLE_FUNCTIONS = frozenset(
    {
        *("duckdb_columns", "duckdb_constraints", "duckdb_databases", "duckdb_functions", "duckdb_schemas"),
        *("duckdb_tables", "duckdb_types", "duckdb_views", "pragma_version"),
        *("current_snapshot", "ducklake_current_snapshot", "last_committed_snapshot"),
        *("ducklake_last_committed_snapshot", "ducklake_list_files", "ducklake_options", "options"),
        *("ducklake_settings", "settings", "ducklake_snapshots", "snapshots", "ducklake_table_info", "table_info"),
        *("ducklake_table_changes", "table_changes", "ducklake_table_deletions", "table_deletions"),
        *("ducklake_table_insertions", "table_insertions"),
        *("generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"),
    }
)
"""The table functions that a query may call. All others are refused: several write even within a SELECT
(``ducklake_expire_snapshots``, ``sqlite_query``, ``postgres_execute``), read files, or run a text as SQL."""

REFUSED = frozenset({"current_setting", "getenv", "json_serialize_plan", "nextval", "write_log"})
"""Scalar functions that read the process's settings or environment, bind a text as SQL, or have a side effect."""

_AWS = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token")
"""Settings that DuckDB's httpfs fills from the environment when it is loaded. The lake uses a secret instead."""

_EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\b|\(\s*(?:ANALYZE|FORMAT|JSON|TEXT|[\s,])+\))?", re.IGNORECASE)
_COPY = re.compile(
    r"\s*COPY\s*\((.*)\)\s*TO\s*'((?:[^']|'')+)'\s*(\((?:[^()]|\([^()]*\))*\))?\s*;?\s*", re.IGNORECASE | re.DOTALL
)

_TABLES = "list the tables with: lake sql 'SHOW ALL TABLES'"


@dataclass(frozen=True)
class Answer:
    """The result of a query.

    Args:
        columns: The column names, made unique: a second ``n`` becomes ``n_2``.
        rows: The rows, with one value per column.
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> list[dict[str, Any]]:
        """The rows by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def open_lake(project: str | Path | None = None) -> DuckDBPyConnection:
    """Connect to a project's lake, read-only, for notebooks and BI tools.

    ``open_lake().sql("FROM gold.carrier_daily").pl()``: the lake is attached as ``lake`` and is the default catalog.
    Nothing can be written to it. Close the connection when done, or use it in a ``with`` block.

    Args:
        project: A project's folder; None means ``LAKE_PROJECT``, or the one found from the working directory upwards.

    Raises:
        BadInput: a setting is malformed, or the folder is not a project.
        CatalogError: there is no lake yet, or it cannot be opened.
    """
    settings = load_settings() if project is None else project_settings(Path(project))
    return connect(settings, read_only=True)


def query(settings: Settings, sql: str) -> list[dict[str, Any]]:
    """Run one query on the attached lake; see `answer`. Returns the rows by column name."""
    return answer(settings, sql).dicts()


def answer(settings: Settings, sql: str, *, allow_export: bool = False) -> Answer:
    """Run one query on the attached lake, read-only.

    Args:
        settings: Where the lake is.
        sql: The query; ``raw.flights``, ``gold.carrier_performance`` and so on need no prefix.
        allow_export: Whether ``COPY (query) TO 'file'`` is allowed, too.

    Raises:
        BadInput: the query is invalid, is not a single query, or reads something other than the lake.
    """
    import duckdb

    with connected(settings, read_only=True) as con:
        try:
            # Lock first: parsing IMPORT DATABASE already reads its files.
            if copy := _COPY.fullmatch(sql) if allow_export else None:
                target = _export_target(settings, copy[2].replace("''", "'"))
                _lock(con, settings, target)
                _check(con, copy[1])
                sql = f"COPY ({copy[1]}\n) TO {literal(str(target))} {copy[3] or ''}"
                _check_type(con, sql, "COPY")
            else:
                _lock(con, settings)
                _check(con, sql)
            result = con.execute(sql)
            return Answer(_distinct([column[0] for column in result.description or []]), result.fetchall())
        except (duckdb.IOException, duckdb.ConnectionException):
            raise  # the catalog or the storage failed, not the query: `connected` says which
        except duckdb.Error as error:
            raise BadInput(
                f"The query failed: {settings.redact(str(error))}", f"correct the query; {_TABLES}"
            ) from None


def _check(con: DuckDBPyConnection, sql: str) -> None:
    """Refuse anything but one query over the lake, before DuckDB binds it: binding can have side effects."""
    if explain := _EXPLAIN.match(sql):
        _check_type(con, sql, "EXPLAIN")
        sql = sql[explain.end() :]
    _check_type(con, sql, "SELECT")
    (text,) = con.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0]
    tree = json.loads(text)
    if tree["error"]:
        raise BadInput(f"The query cannot be parsed: {tree['error_message']}", f"correct the query; {_TABLES}")
    for node in _nodes(tree):
        name = str(node.get("function_name", "")).lower()
        if node.get("type") == "TABLE_FUNCTION":
            called = str(node["function"].get("function_name", "")).lower()
            if called not in TABLE_FUNCTIONS:
                raise BadInput(f"lake sql does not call {called}(): it reads only the lake's tables.", _TABLES)
        elif name in REFUSED:
            raise BadInput(f"lake sql does not call {name}(): it reads only the lake's tables.", _TABLES)
        elif node.get("type") == "BASE_TABLE" and "/" in node["table_name"]:
            raise BadInput(f"lake sql does not read files: {node['table_name']}", _TABLES)


def _check_type(con: DuckDBPyConnection, sql: str, wanted: str) -> None:
    """Refuse anything that DuckDB does not parse as exactly one statement of this type."""
    found = [statement.type.name for statement in con.extract_statements(sql)]
    if found == [wanted]:
        return
    if len(found) == 2 and found[1] == "SELECT" and "PIVOT" in sql.upper():
        raise BadInput(
            "A PIVOT without its values is more than one statement.", "list the values: PIVOT t ON c IN ('a', 'b')"
        )
    if found == ["COPY"]:
        raise BadInput(
            "lake sql writes a file only with --allow-export.",
            "lake sql --allow-export \"COPY (SELECT ...) TO 'result.parquet'\"",
        )
    said = " and ".join(found) if found else "nothing"
    raise BadInput(
        f"lake sql runs one query that changes nothing; this is {said}.",
        "write one SELECT, FROM, DESCRIBE, SHOW or SUMMARIZE, or an EXPLAIN of one of them",
    )


def _lock(con: DuckDBPyConnection, settings: Settings, target: Path | None = None) -> None:
    """Restrict a connection to what a query over the lake needs: no other files, Python variables or settings."""
    folders = [settings.data_path, *([f"{target}/"] if target else [])]
    paths = [str(target), str(target.with_name(f"tmp_{target.name}"))] if target else []
    if settings.in_s3:
        for name in _AWS:
            con.execute(f"SET GLOBAL {name} = ''")
    con.execute("SET GLOBAL python_enable_replacements = false")
    con.execute(f"SET GLOBAL allowed_directories = [{', '.join(map(literal, folders))}]")
    con.execute(f"SET GLOBAL allowed_paths = [{', '.join(map(literal, paths))}]")
    con.execute("SET GLOBAL enable_external_access = false")
    con.execute("SET GLOBAL lock_configuration = true")


def _export_target(settings: Settings, name: str) -> Path:
    """The file (or folder, if partitioned) that a COPY may write: on this machine and outside the lake's folders.

    Raises:
        BadInput: it is a URL, its parent folder does not exist, or it overlaps with the lake's own folders.
    """
    if "://" in name:
        raise BadInput(f"lake sql exports to a file on this machine, not to {name}.", "name a local file")
    target = Path(name).expanduser().resolve()
    if not target.parent.is_dir():
        raise BadInput(
            f"lake sql cannot write {target}: there is no folder {target.parent}.", "create the folder first"
        )
    folders = [settings.home, *(Path(p) for p in (settings.data_path, settings.landing) if not p.startswith("s3://"))]
    if settings.catalog_file:
        folders.append(settings.catalog_file)
    for folder in map(Path.resolve, folders):
        if target.is_relative_to(folder) or folder.is_relative_to(target):
            raise BadInput(f"lake sql does not export into the lake's own folders: {target}", "name another file")
    return target


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON document."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _distinct(names: list[str]) -> list[str]:
    """The names, with a number added to repeated ones: a dict would keep only the last of them."""
    found: dict[str, None] = {}
    for name in names:
        number = 1
        while (shown := name if number == 1 else f"{name}_{number}") in found:
            number += 1
        found[shown] = None
    return list(found)
