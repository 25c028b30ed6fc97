"""The fence: of two writers that commit at the same time, one cannot, with or without the gate.

DuckLake detects conflicts by table, and otherwise repeats a commit on top of the other writer's. Two publishers that
each replace an empty partition touch no common file, so both would commit. So no connection repeats a commit
(`connect.NO_RETRY`): a transaction commits only as the successor of the snapshot that it read. The id of a snapshot is
a primary key of the catalog, for which all writers compete: publishers, transforms, maintenance. A repair writes the
catalog's own tables, and claims the id itself.

The id is also the token in the rows of ``ops``: tokens order the writes of all transactions. Earlier releases counted
tokens in tables of their own. A lake with such a table is not written until `lake init` has dropped it, since a writer
of an earlier release, which needs it, is not fenced.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ducklake_flows.errors import OldRelease
from ducklake_flows.lake.connect import literal
from ducklake_flows.settings import LAKE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

META = f"__ducklake_metadata_{LAKE}"
"""The database of the catalog's own tables in an attached DuckLake."""

OLD_FENCES = ("fence", "transform_fence")
"""Tables in ``ops`` that earlier releases update in each transaction."""


def next_token(con: DuckDBPyConnection) -> int:
    """The id of the snapshot that the open transaction creates, if it commits."""
    return int(con.execute(f"SELECT id + 1 FROM {LAKE}.current_snapshot()").fetchall()[0][0])


def check_release(con: DuckDBPyConnection) -> None:
    """Check that no writer of an earlier release can write this lake.

    Raises:
        OldRelease: one can.
    """
    names = ", ".join(f"'{name}'" for name in OLD_FENCES)
    where = f"database_name = '{LAKE}' AND schema_name = 'ops' AND table_name IN ({names})"
    if con.execute(f"SELECT 1 FROM duckdb_tables() WHERE {where}").fetchall():
        raise OldRelease(
            "This lake was last written by an earlier release, whose writers must not write beside this one's.",
            "stop all runs of the earlier release, then: lake init",
        )


def drop_old_fences(con: DuckDBPyConnection, there: Sequence[str]) -> list[str]:
    """Drop the fence tables of an earlier release within the open transaction. Returns what was done."""
    found = [name for name in OLD_FENCES if f"ops.{name}" in there]
    for name in found:
        con.execute(f"DROP TABLE {LAKE}.ops.{name}")
    return [f"ops.{name} (dropped: this release has another fence)" for name in found]


def claim_snapshot(con: DuckDBPyConnection, snapshot: int, tables: Sequence[int], mark: str) -> None:
    """Insert the snapshot after the one that was read. The commit fails if another writer inserts it first.

    Args:
        con: A connection with a transaction open on the catalog's own tables.
        snapshot: The latest snapshot that the transaction read.
        tables: Ids of the tables that the snapshot lists as altered, so that concurrent commits to them conflict.
        mark: A text that identifies the snapshot if the answer to COMMIT is lost.
    """
    con.execute(
        f"""INSERT INTO {META}.ducklake_snapshot
            SELECT snapshot_id + 1, now(), schema_version, next_catalog_id, next_file_id + 1
            FROM {META}.ducklake_snapshot WHERE snapshot_id = {snapshot}"""
    )
    altered = ",".join(f"altered_table:{table}" for table in tables)
    con.execute(
        f"INSERT INTO {META}.ducklake_snapshot_changes VALUES "
        f"({snapshot + 1}, {literal(altered)}, 'ducklake-flows', 'repair', {literal(json.dumps({'repair': mark}))})"
    )
