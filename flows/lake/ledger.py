"""The ledger: what happened to each partition, in the lake itself; and what the models were built from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flows.lake.connect import literal, rows
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
           dataset, partition,
           arg_max(state, token) AS state,
           coalesce(arg_max_null(error, token), '') AS error,
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
    con: DuckDBPyConnection, dataset: str | None = None, between: Sequence[str] = ()
) -> dict[tuple[str, str], Entry]:
    """Where partitions stand, by dataset and partition; those without a row are left out.

    Args:
        con: A connection with the lake attached.
        dataset: Only this dataset; None means all.
        between: Only partitions from the first to the last of these keys, in the order of the text; empty means all.
    """
    # Not bound: to bind a parameter, DuckDB imports pandas and Arrow, a third of a second of a command's start.
    where = f"dataset = {literal(dataset)}" if dataset is not None else "true"
    if between:
        where += f" AND partition BETWEEN {literal(min(between))} AND {literal(max(between))}"
    found = con.execute(f"SELECT {_LATEST} WHERE {where} GROUP BY ALL").fetchall()
    return {(row[0], row[1]): Entry(*row) for row in found}


def after(entry: Entry | None, row: Mapping[str, Any]) -> Entry:
    """Where a partition stands once a row has been appended: what `latest` would read."""
    entry = entry or Entry(row["dataset"], row["partition"], "", "", "", 0, 0, 0.0, "", "", row["recorded_at"])
    changed = {"state": row["state"], "error": row["error"] or "", "seconds": row["seconds"]}
    if row["state"] in ("published", "rolled_back"):
        changed |= {"rows": row["rows_published"]}
        changed |= {name: row[name] for name in ("attempt_id", "bytes", "fingerprint", "source_version")}
    return replace(entry, **changed, recorded_at=row["recorded_at"])


class Standing:
    """Where partitions stand, read once and then kept: true for as long as nobody else has raised the fence.

    A run that publishes in many groups would otherwise read the whole ledger for each of them.

    Args:
        expected: Keys of partitions that will be asked for; they are read along with the first.
    """

    def __init__(self, expected: Iterable[str] = ()) -> None:
        self._expected = set(expected)
        self.forget()

    def forget(self) -> None:
        """Read anew next time."""
        self._fence: int | None = None
        self._read: set[str] = set()
        self.entries: dict[tuple[str, str], Entry] = {}
        self.attempts: set[str] = set()
        """Every attempt at these partitions that the ledger holds, whatever became of it."""

    def read(self, con: DuckDBPyConnection, token: int, partitions: Iterable[str]) -> None:
        """Bring up to date what is known of these partitions.

        Args:
            con: Within the publishing transaction.
            token: What the transaction has raised the fence to.
            partitions: By key.
        """
        if self._fence != token - 1:
            self.forget()
            self._fence = token - 1
        if new := set(partitions) - self._read:
            new |= self._expected - self._read
            self._read |= new
            keys = ", ".join(map(literal, sorted(new)))
            for attempts, *row in con.execute(
                f"SELECT list(attempt_id), {_LATEST} WHERE partition IN ({keys}) GROUP BY ALL"
            ).fetchall():
                self.entries[row[0], row[1]] = Entry(*row)
                self.attempts.update(attempts)

    def committed(self, token: int, added: Sequence[Mapping[str, Any]]) -> None:
        """Take up what a transaction has committed."""
        self._fence = token
        for row in added:
            key = (row["dataset"], row["partition"])
            self.entries[key] = after(self.entries.get(key), row)
            self.attempts.add(row["attempt_id"])


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


def earliest(con: DuckDBPyConnection) -> dict[str, str]:
    """The first partition that was ever published, by dataset; those without one are left out."""
    found = con.execute(
        f"SELECT dataset, min(partition) FROM {LAKE}.ops.ledger "
        "WHERE state IN ('published', 'rolled_back') GROUP BY ALL"
    ).fetchall()
    return dict(found)


def unbuilt(con: DuckDBPyConnection, environment: str) -> dict[tuple[str, str], str]:
    """The published attempts that an environment's models have not taken up, by dataset and partition."""
    found = con.execute(
        f"""WITH published AS (
                SELECT dataset, partition,
                       arg_max(attempt_id, token) FILTER (state IN ('published', 'rolled_back')) AS attempt_id
                FROM {LAKE}.ops.ledger GROUP BY ALL
            ), built AS (
                SELECT dataset, partition, arg_max(attempt_id, token) AS attempt_id
                FROM {LAKE}.ops.builds WHERE environment = {literal(environment)} GROUP BY ALL
            )
            SELECT p.dataset, p.partition, p.attempt_id FROM published p LEFT JOIN built b USING (dataset, partition)
            WHERE p.attempt_id IS NOT NULL AND p.attempt_id IS DISTINCT FROM b.attempt_id"""
    ).fetchall()
    return {(dataset, partition): attempt for dataset, partition, attempt in found}


def built_project(con: DuckDBPyConnection, environment: str) -> str:
    """The digest of the models that an environment was last built with, "" when it never was."""
    found = con.execute(
        f"SELECT arg_max(project, token) FROM {LAKE}.ops.builds WHERE environment = {literal(environment)}"
    ).fetchone()
    return (found[0] if found else None) or ""
