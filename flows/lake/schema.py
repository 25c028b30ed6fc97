"""The lake's own tables, and how raw tables are made and evolve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from flows.datasets.model import Dataset
from flows.errors import CatalogError, Rejected
from flows.lake.connect import commit_message, connect
from flows.settings import LAKE, Settings
from flows.stage.types import declared_types, partition_type, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ORPHAN_AGE = "1 day"
"""How old a file that no snapshot names must be before any clean-up may take it; longer than any run."""

OPS = {
    "fence": "token BIGINT",
    "transform_fence": "token BIGINT",
    "ledger": """
        dataset VARCHAR, partition VARCHAR, attempt_id VARCHAR, state VARCHAR,
        rows_in BIGINT, rows_published BIGINT, rows_quarantined BIGINT, files BIGINT, bytes BIGINT,
        fingerprint VARCHAR, source_version VARCHAR, seconds DOUBLE, flow_run_id VARCHAR, error VARCHAR,
        recorded_at TIMESTAMP WITH TIME ZONE, token BIGINT, restores VARCHAR, profile VARCHAR""",
    "builds": """
        environment VARCHAR, project VARCHAR, dataset VARCHAR, partition VARCHAR, attempt_id VARCHAR,
        flow_run_id VARCHAR, recorded_at TIMESTAMP WITH TIME ZONE, token BIGINT""",
}
"""Columns of the tables in ``lake.ops``. ``token`` is the fence's, so it orders the rows.

A later release only adds columns at the end, and `bootstrap` adds them to a lake that lacks them.
"""

WIDER = {
    "TINYINT": ("SMALLINT", "INTEGER", "BIGINT"),
    "SMALLINT": ("INTEGER", "BIGINT"),
    "INTEGER": ("BIGINT",),
    "FLOAT": ("DOUBLE",),
}
"""The types a column may be promoted to, as DuckLake allows it."""


def bootstrap(settings: Settings, datasets: Iterable[Dataset]) -> list[str]:
    """Make the catalog, the schemas, the lake's own tables and the declared raw tables. Safe to repeat.

    Only one process may do this at a time: DuckLake's first attach and its CREATEs are races. Call it within the
    gate, before any worker starts.

    Returns:
        What was made, one name each; empty when everything was there.

    Raises:
        CatalogError: the catalog or the data path cannot be made or used.
    """
    import duckdb

    con = connect(settings, create=True)
    try:
        if con.execute(f"SELECT value FROM {LAKE}.options() WHERE option_name = 'encrypted'").fetchall() == [("true",)]:
            raise CatalogError(
                "The catalog encrypts its files (ENCRYPTED), but staged files are registered as they were written: "
                "raw would lie in the open.",
                "make the lake in another catalog, and encrypt its bucket or disk: docs/production.md",
            )
        con.execute("BEGIN")
        made = []
        schemas = {
            name
            for (name,) in con.execute(
                "SELECT schema_name FROM duckdb_schemas() WHERE database_name = 'lake'"
            ).fetchall()
        }
        for schema in ("raw", "ops"):
            if schema not in schemas:
                con.execute(f"CREATE SCHEMA {LAKE}.{schema}")
                made.append(schema)
        there = table_columns(con)
        for name, columns in OPS.items():
            if f"ops.{name}" not in there:
                con.execute(f"CREATE TABLE {LAKE}.ops.{name} ({columns})")
                made.append(f"ops.{name}")
                continue
            for column in columns.split(","):
                column_name, data_type = column.split(maxsplit=1)
                if column_name not in there[f"ops.{name}"]:
                    con.execute(f"ALTER TABLE {LAKE}.ops.{name} ADD COLUMN {column_name} {data_type}")
                    made.append(f"ops.{name}.{column_name}")
        for fence in ("fence", "transform_fence"):
            if f"ops.{fence}" in made:
                con.execute(f"INSERT INTO {LAKE}.ops.{fence} VALUES (0)")
        for dataset in datasets:
            if dataset.contract.columns and dataset.table not in there:
                create_table(con, dataset, declared_types(dataset))
                made.append(dataset.table)
        if made:
            commit_message(con, "lake init", made=made)
        con.execute("COMMIT")
        # Model tables always go to files; the lake's own small rows stay in the catalog until they are flushed.
        con.execute(f"CALL {LAKE}.set_option('data_inlining_row_limit', '0')")
        con.execute(f"CALL {LAKE}.set_option('data_inlining_row_limit', '1000', schema => 'ops')")
        con.execute(f"CALL {LAKE}.set_option('delete_older_than', '{ORPHAN_AGE}')")
    except duckdb.Error as error:
        raise CatalogError(
            f"The lake cannot be initialised: {' '.join(str(error).split())[:400]}",
            "check that LAKE_HOME, LAKE_CATALOG and LAKE_DATA_PATH can be written, then: lake init",
        ) from None
    finally:
        con.close()
    return made


def table_columns(con: DuckDBPyConnection) -> dict[str, dict[str, str]]:
    """Every table of ``raw`` and ``ops``, with the name and DuckDB type of its columns in order."""
    found: dict[str, dict[str, str]] = {}
    for schema, table, column, data_type in con.execute(
        "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = 'lake' AND schema_name IN ('raw', 'ops') ORDER BY schema_name, table_name, column_index"
    ).fetchall():
        found.setdefault(f"{schema}.{table}", {})[column] = data_type
    return found


def create_table(con: DuckDBPyConnection, dataset: Dataset, columns: Mapping[str, str]) -> None:
    """Make a raw table with these columns and its partition column."""
    wanted = dict(columns)
    if dataset.partition_column:
        wanted[dataset.partition_column] = partition_type(dataset.grain)
    table = qualified(dataset)
    con.execute(f"CREATE TABLE {table} ({', '.join(f'{quoted(n)} {t}' for n, t in wanted.items())})")
    if dataset.partition_column:
        con.execute(f"ALTER TABLE {table} SET PARTITIONED BY ({quoted(dataset.partition_column)})")


def evolve(con: DuckDBPyConnection, dataset: Dataset, there: dict[str, str], staged: Mapping[str, str]) -> None:
    """Bring a raw table to where a staged file fits, as far as the contract allows.

    Args:
        con: Within the publishing transaction.
        dataset: Whose contract counts.
        there: The table's columns; brought up to date.
        staged: The file's columns.

    Raises:
        Rejected: a column is new and the contract frozen, or has a type the table cannot hold.
    """
    changes = []
    for name, data_type in staged.items():
        if name not in there:
            if dataset.contract.columns and dataset.contract.new_columns != "evolve":
                raise Rejected(f"column {name} is not in the contract")
            changes.append((name, f"ADD COLUMN {quoted(name)} {data_type}", data_type))
        elif there[name] != data_type and there[name] not in WIDER.get(data_type, ()):
            if data_type not in WIDER.get(there[name], ()):
                raise Rejected(f"column {name} is {data_type}, but {there[name]} in {dataset.table}")
            changes.append((name, f"ALTER COLUMN {quoted(name)} SET DATA TYPE {data_type}", data_type))
    for name, change, data_type in changes:
        con.execute(f"ALTER TABLE {qualified(dataset)} {change}")
        there[name] = data_type


def qualified(dataset: Dataset) -> str:
    """The raw table's full name, quoted."""
    return f"{LAKE}.raw.{quoted(dataset.key)}"
