"""The ledger: what happened to each partition, in the lake itself; and what the models were built from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flows.lake.connect import rows
from flows.settings import LAKE

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one partition stands: its latest ledger row, and the attempt whose rows are in the raw table.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.
        state: Of the latest row: ``published``, ``failed``, ``rejected`` or ``rolled_back``.
        error: Of the latest row.
        attempt_id: The published attempt, "" when none was.
        rows: Rows of the published attempt.
        bytes: Size of its files.
        seconds: Time a worker took over it.
        fingerprint: Digest of its rows.
        source_version: The source's version that was last published or found unchanged.
        recorded_at: When the latest row was written.
    """

    dataset: str
    partition: str
    state: str
    error: str
    attempt_id: str
    rows: int
    bytes: int
    seconds: float
    fingerprint: str
    source_version: str
    recorded_at: datetime


_LATEST = f"""
    SELECT dataset, partition,
           arg_max(state, token) AS state,
           coalesce(arg_max(error, token), '') AS error,
           coalesce(arg_max(attempt_id, token) FILTER (state IN ('published', 'rolled_back')), '') AS attempt_id,
           coalesce(arg_max(rows_published, token) FILTER (state IN ('published', 'rolled_back')), 0) AS rows,
           coalesce(arg_max(bytes, token) FILTER (state IN ('published', 'rolled_back')), 0) AS bytes,
           arg_max(seconds, token) AS seconds,
           coalesce(arg_max(fingerprint, token) FILTER (state IN ('published', 'rolled_back')), '') AS fingerprint,
           coalesce(arg_max(source_version, token) FILTER (state IN ('published', 'rolled_back')), '')
               AS source_version,
           max(recorded_at) AS recorded_at
    FROM {LAKE}.ops.ledger
"""


def latest(
    con: DuckDBPyConnection, dataset: str | None = None, partitions: Sequence[str] = ()
) -> dict[tuple[str, str], Entry]:
    """Where partitions stand, by dataset and partition; those without a row are left out.

    Args:
        con: A connection with the lake attached.
        dataset: Only this dataset; None means all.
        partitions: Only these partitions; empty means all.
    """
    where, parameters = ["true"], []
    if dataset is not None:
        where.append("dataset = ?")
        parameters.append(dataset)
    if partitions:
        where.append("partition IN (SELECT unnest(?::VARCHAR[]))")
        parameters.append(list(partitions))  # type: ignore[arg-type]
    found = con.execute(f"{_LATEST} WHERE {' AND '.join(where)} GROUP BY ALL", parameters).fetchall()
    return {(row[0], row[1]): Entry(*row) for row in found}


def attempts_in(con: DuckDBPyConnection, attempt_ids: Iterable[str]) -> set[str]:
    """Which of these attempts the ledger holds, whatever became of them."""
    ids = list(attempt_ids)
    return {
        found
        for (found,) in con.execute(
            f"SELECT attempt_id FROM {LAKE}.ops.ledger WHERE attempt_id IN (SELECT unnest(?::VARCHAR[]))", [ids]
        ).fetchall()
    }


def history(con: DuckDBPyConnection, dataset: str, partition: str) -> list[dict[str, Any]]:
    """Every attempt of one partition whose rows were published, oldest first, each with its first ledger row."""
    return rows(
        con,
        f"""SELECT attempt_id, min(token) AS token, any_value(restores) AS restores,
                   any_value(fingerprint) AS fingerprint, arg_max(source_version, token) AS source_version
            FROM {LAKE}.ops.ledger
            WHERE dataset = ? AND partition = ? AND state IN ('published', 'rolled_back')
            GROUP BY attempt_id ORDER BY token""",
        [dataset, partition],
    )


def append(con: DuckDBPyConnection, table: str, added: Sequence[dict[str, Any]]) -> None:
    """Append rows to ``ops.ledger`` or ``ops.builds``, by column name, within the caller's transaction."""
    if not added:
        return
    import pyarrow as pa

    # Every row's columns: Arrow would take the first row's for all.
    names = dict.fromkeys(name for row in added for name in row)
    staged = pa.table({name: [row.get(name) for row in added] for name in names})
    con.register("appended", staged)
    con.execute(f"INSERT INTO {LAKE}.ops.{table} BY NAME SELECT * FROM appended")
    con.unregister("appended")


def built(con: DuckDBPyConnection, environment: str) -> dict[tuple[str, str], str]:
    """The attempt that the models of an environment were last built from, by dataset and partition."""
    found = con.execute(
        f"SELECT dataset, partition, arg_max(attempt_id, token) FROM {LAKE}.ops.builds "
        "WHERE environment = ? AND dataset IS NOT NULL GROUP BY ALL",
        [environment],
    ).fetchall()
    return {(dataset, partition): attempt for dataset, partition, attempt in found}


def built_project(con: DuckDBPyConnection, environment: str) -> str:
    """The digest of the models that an environment was last built with, "" when it never was."""
    found = con.execute(
        f"SELECT arg_max(project, token) FROM {LAKE}.ops.builds WHERE environment = ?", [environment]
    ).fetchone()
    return (found[0] if found else None) or ""
