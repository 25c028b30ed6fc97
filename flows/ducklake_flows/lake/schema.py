"""The lake's own tables, and how raw tables are created."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ducklake_flows.datasets.types import declared_types, quoted
from ducklake_flows.errors import CatalogError
from ducklake_flows.lake.connect import commit_message, connect
from ducklake_flows.lake.fence import drop_old_fences, next_token
from ducklake_flows.lake.lookup import create_indexes
from ducklake_flows.settings import LAKE, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset

ORPHAN_AGE = "1 day"
"""Minimum age of a file that no snapshot names before a clean-up may delete it; longer than any run."""

SHADOW = "__migration"
"""How such a name ends: `shadow_key`."""

OPS = {
    "ledger": """
        dataset VARCHAR, partition VARCHAR, attempt_id VARCHAR, state VARCHAR,
        rows_in BIGINT, rows_published BIGINT, rows_quarantined BIGINT, files BIGINT, bytes BIGINT,
        fingerprint VARCHAR, source_version VARCHAR, seconds DOUBLE, flow_run_id VARCHAR, error VARCHAR,
        recorded_at TIMESTAMP WITH TIME ZONE, token BIGINT, restores VARCHAR, profile VARCHAR, confirmed_by VARCHAR,
        source VARCHAR, reason VARCHAR""",
    "builds": """
        environment VARCHAR, project VARCHAR, dataset VARCHAR, partition VARCHAR, attempt_id VARCHAR,
        flow_run_id VARCHAR, recorded_at TIMESTAMP WITH TIME ZONE, token BIGINT""",
    "checks": """
        environment VARCHAR, model VARCHAR, interval_start TIMESTAMP, interval_end TIMESTAMP, name VARCHAR,
        passed BOOLEAN, failed_rows BIGINT, sample VARCHAR, error VARCHAR, datasets VARCHAR[],
        flow_run_id VARCHAR, recorded_at TIMESTAMP WITH TIME ZONE, token BIGINT, dataset VARCHAR, partition VARCHAR,
        attempt_id VARCHAR, on_fail VARCHAR, observed VARCHAR, expected VARCHAR""",
    "schema_changes": "table_name VARCHAR, change VARCHAR, recorded_at TIMESTAMP WITH TIME ZONE, token BIGINT",
}
"""Columns of the tables in ``lake.ops``. ``token`` is the snapshot that committed the row; see `fence`.

A later release only adds columns at the end; `bootstrap` adds them to an existing lake.
"""


def bootstrap(settings: Settings, datasets: Iterable[Dataset]) -> list[str]:
    """Create the catalog, the schemas, the lake's own tables and the declared raw tables. Safe to repeat.

    Only one process may do this at a time: concurrent first attaches and CREATEs of DuckLake race. Call it within the
    gate, before any worker starts.

    Returns:
        The names of what was created; empty if everything existed.

    Raises:
        CatalogError: the catalog or the data path cannot be created or used.
    """
    import duckdb

    con = connect(settings, create=True)
    try:
        if con.execute(f"SELECT value FROM {LAKE}.options() WHERE option_name = 'encrypted'").fetchall() == [("true",)]:
            raise CatalogError(
                "The catalog encrypts its files (ENCRYPTED), but staged files are registered as they were written: "
                "raw data would be unencrypted.",
                "create the lake in another catalog, and encrypt its bucket or disk: docs/production.md",
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
        made += drop_old_fences(con, list(there))
        for dataset in (one for given in datasets for one in (given, *given.members)):
            if not dataset.contract.columns:
                continue
            if dataset.table not in there:
                create_table(con, dataset, declared_types(dataset))
                made.append(dataset.table)
            elif is_outdated(con, dataset, there[dataset.table]):
                con.execute(f"DROP TABLE {qualified(dataset)}")
                create_table(con, dataset, declared_types(dataset))
                made.append(f"{dataset.table} (recreated from its new contract)")
        if made:
            commit_message(con, "lake init", made=made)
        con.execute("COMMIT")
        # Model tables always go to files; the lake's own small rows stay in the catalog until they are flushed.
        con.execute(f"CALL {LAKE}.set_option('data_inlining_row_limit', '0')")
        con.execute(f"CALL {LAKE}.set_option('data_inlining_row_limit', '1000', schema => 'ops')")
        con.execute(f"CALL {LAKE}.set_option('delete_older_than', '{ORPHAN_AGE}')")
        create_indexes(con, settings)
    except duckdb.Error as error:
        raise CatalogError(
            f"The lake cannot be initialised: {' '.join(str(error).split())[:400]}",
            "check that LAKE_HOME, LAKE_CATALOG and LAKE_DATA_PATH are writable, then run: lake init",
        ) from None
    finally:
        con.close()
    return made


def table_columns(con: DuckDBPyConnection) -> dict[str, dict[str, str]]:
    """The columns of every table of ``raw`` and ``ops``: name and DuckDB type, in order."""
    found: dict[str, dict[str, str]] = {}
    for schema, table, column, data_type in con.execute(
        "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = 'lake' AND schema_name IN ('raw', 'ops') ORDER BY schema_name, table_name, column_index"
    ).fetchall():
        found.setdefault(f"{schema}.{table}", {})[column] = data_type
    return found


def record_change(con: DuckDBPyConnection, table: str, change: str) -> None:
    """Record within the open transaction that it changes a table's columns. Every such transaction must call this.

    The row takes a file id, an ALTER does not. DuckLake caches the statistics of a table by the next file id
    (`DuckLakeCatalog::StatsCacheKey`, 1.5.5). Without a new one, open connections go on with statistics of the old
    type, and queries miss rows (`make test ARGS="tests/regressions -k 1308"`).

    Args:
        con: A connection with the transaction open.
        table: Schema and name.
        change: What is changed, as in ALTER TABLE.
    """
    con.execute(
        f"INSERT INTO {LAKE}.ops.schema_changes VALUES (?, ?, now(), ?)",
        [table, change, next_token(con)],
    )


def is_outdated(con: DuckDBPyConnection, dataset: Dataset, there: Mapping[str, str]) -> bool:
    """Whether a raw table is empty and its columns differ from the contract's: it may be created again."""
    fits = all(there.get(name) == data_type for name, data_type in declared_types(dataset).items())
    return not fits and not con.execute(f"SELECT 1 FROM {qualified(dataset)} LIMIT 1").fetchall()


def create_table(con: DuckDBPyConnection, dataset: Dataset, columns: Mapping[str, str]) -> None:
    """Create a raw table with these columns, its partition columns, and DuckLake's partitioning if it is asked for."""
    wanted = dict(columns) | dataset.partition_columns
    table = qualified(dataset)
    con.execute(f"CREATE TABLE {table} ({', '.join(f'{quoted(n)} {t}' for n, t in wanted.items())})")
    if dataset.partitioned:
        partition(con, dataset)


def partition(con: DuckDBPyConnection, dataset: Dataset) -> None:
    """Partition a raw table by its partition columns, or by nothing, as its dataset asks for."""
    keys = f"SET PARTITIONED BY ({', '.join(map(quoted, dataset.partition_columns))})"
    con.execute(f"ALTER TABLE {qualified(dataset)} {keys if dataset.partitioned else 'RESET PARTITIONED BY'}")


def shadow_key(dataset: str) -> str:
    """The name, in ``raw``, of the table that a migration of a dataset fills; see `ducklake_flows.lake.migrate`."""
    return f"{dataset[: 63 - len(SHADOW)]}{SHADOW}"


def qualified(dataset: Dataset) -> str:
    """The raw table's full name, quoted."""
    return f"{LAKE}.raw.{quoted(dataset.key)}"
