"""The fences: they keep two concurrent writers of the same kind from both committing, with or without the gate.

DuckLake detects conflicts by table. Two publishers that each replace an empty partition touch no common file. Every
transaction therefore also updates the single row of a fence table: of two that do so at the same time, one cannot
commit. Publishers and transforms have separate fences, so that a publish does not abort a long model build. A repair
writes the catalog's own tables; its fence is the id of the next snapshot, a primary key for which all commits compete.

The update has a second effect, which a commit that changes a schema needs: it takes a file id. DuckLake caches the
statistics of a table by the next file id (`DuckLakeCatalog::StatsCacheKey`, 1.5.5). After an ALTER that takes none,
open connections go on with statistics of the old type, and queries miss rows
(`make test ARGS="tests/regressions -k 1308"`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, get_args

from ducklake_flows.errors import LakeError
from ducklake_flows.lake.connect import literal
from ducklake_flows.settings import LAKE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

META = f"__ducklake_metadata_{LAKE}"
"""The database of the catalog's own tables in an attached DuckLake."""

Fence = Literal["fence", "transform_fence"]
"""The fence table in ``lake.ops``: of publishers, or of transforms."""

FENCES: tuple[Fence, ...] = get_args(Fence)


def create_fence(con: DuckDBPyConnection, fence: Fence) -> None:
    """Insert the row of a new fence table."""
    con.execute(f"INSERT INTO {LAKE}.ops.{fence} VALUES (0)")


def count_rows(con: DuckDBPyConnection, fence: Fence) -> int:
    """The number of rows of a fence table: one, unless it was changed by hand."""
    return int(con.execute(f"SELECT count(*) FROM {LAKE}.ops.{fence}").fetchall()[0][0])


def advance_fence(con: DuckDBPyConnection, fence: Fence) -> int:
    """Update the fence's row within the open transaction.

    Returns:
        The new token. Tokens order the writes of all transactions of this kind.

    Raises:
        LakeError: the fence table does not have exactly one row.
    """
    con.execute(f"UPDATE {LAKE}.ops.{fence} SET token = token + 1")
    found = con.execute(f"SELECT token FROM {LAKE}.ops.{fence}").fetchall()
    if len(found) != 1:
        raise LakeError(f"ops.{fence} has {len(found)} rows instead of one.", "lake repair")
    return int(found[0][0])


def renew_fence(con: DuckDBPyConnection, fence: Fence) -> None:
    """Replace all rows of a fence table by one, within the open transaction. Its token is above every recorded one."""
    recorded = "ledger" if fence == "fence" else "builds"
    tokens = f"SELECT token FROM {LAKE}.ops.{fence} UNION ALL SELECT token FROM {LAKE}.ops.{recorded}"
    highest = con.execute(f"SELECT coalesce(max(token), 0) FROM ({tokens})").fetchall()[0][0]
    con.execute(f"DELETE FROM {LAKE}.ops.{fence}")
    con.execute(f"INSERT INTO {LAKE}.ops.{fence} VALUES ({highest + 1})")


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
