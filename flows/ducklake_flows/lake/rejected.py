"""The rows of a rejected attempt: its staged files, which are never registered, until a clean-up deletes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import connected, literal, rows
from ducklake_flows.lake.evolve import READ
from ducklake_flows.lake.schema import ORPHAN_AGE
from ducklake_flows.settings import LAKE
from ducklake_flows.staging.layout import attempt_of, partition_folder
from ducklake_flows.states import State
from ducklake_flows.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings
    from ducklake_flows.storage import Storage


@dataclass(frozen=True, slots=True)
class RejectedRows:
    """The rows of a rejected attempt.

    Args:
        attempt_id: The attempt.
        recorded_at: When it was rejected.
        error: Why.
        files: The staged files.
        total: The number of rows that were asked for.
        rows: The first of them, by column.
    """

    attempt_id: str
    recorded_at: datetime
    error: str
    files: Sequence[str]
    total: int
    rows: Sequence[Mapping[str, Any]]


def read(settings: Settings, dataset: Dataset, partition: str, where: str = "", limit: int = 20) -> RejectedRows:
    """Read the rows of a partition's last rejected attempt.

    Args:
        settings: Where the lake is.
        dataset: The dataset.
        partition: The partition's key.
        where: Only rows that meet this SQL condition; "": all.
        limit: The most rows.

    Raises:
        BadInput: no attempt was rejected, its rows were never staged, or they are deleted; or the condition is wrong.
    """
    import duckdb

    key = dataset.partition(partition)
    with connected(settings, read_only=True) as con:
        found = con.execute(
            f"""SELECT attempt_id, recorded_at, error FROM {LAKE}.ops.ledger
                WHERE dataset = {literal(dataset.key)} AND partition = {literal(key.key)}
                      AND state = '{State.rejected}' ORDER BY token DESC LIMIT 1"""
        ).fetchall()
        if not found:
            raise BadInput(f"No attempt at {dataset.key} {partition} was rejected.", f"lake status {dataset.key}")
        ((attempt, moment, error),) = found
        storage = open_storage(settings.data_path, settings)
        folder = f"raw/{dataset.key}/{partition_folder(dataset, key)}".rstrip("/")
        files = _files(storage, folder, attempt) or _files(storage, f"raw/{dataset.key}", attempt)
        if not files:
            raise BadInput(
                f"No rows of {dataset.key} {partition} are kept: it was rejected before they were staged, or more than "
                f"{ORPHAN_AGE} ago. Why: {error}",
                f"correct the source or the dataset, then run: lake backfill {dataset.key} --mode failed",
            )
        paths = [f"{storage.url}{path}" for path in files]
        condition = f"WHERE {where}" if where else ""
        try:
            total = con.execute(f"SELECT count(*) FROM {READ} {condition}", [paths]).fetchall()[0][0]
            shown = rows(con, f"SELECT * FROM {READ} {condition} LIMIT {limit}", [paths])
        except (duckdb.ProgrammingError, duckdb.DataError) as fault:
            raise BadInput(
                f"--where {where!r} does not fit the rows: {' '.join(str(fault).split())[:300]}",
                "correct the condition",
            ) from None
    return RejectedRows(attempt, moment, error, files, total, shown)


def _files(storage: Storage, folder: str, attempt: str) -> list[str]:
    """The files of an attempt in a folder of the stage, by their paths below it."""
    return sorted(path for info in storage.list(folder) if attempt_of(path := storage.relative(info.path)) == attempt)
