"""The publish protocol: one transaction that replaces many partitions, fences off other publishers, keeps the ledger.

    BEGIN
      fence       UPDATE the one row of ops.fence: of two transactions that touch it, one cannot commit
      drop        what the ledger holds already, and what has not changed
      evolve      the raw tables, as far as the contracts allow
      delete      the partitions' rows: whole files, so it is metadata only
      register    the staged files
      ledger      a row for each partition
    COMMIT        and when its outcome is unknown, ask the ledger by attempt id

The caller holds the gate. The fence keeps the lake right even when the gate does not.
"""

from __future__ import annotations

import ctypes
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from flows.datasets.model import Dataset, parse_partition
from flows.errors import CatalogError, CommitConflict, LakeError, Rejected
from flows.lake import ledger
from flows.lake.connect import commit_message, connect
from flows.lake.schema import create_table, evolve, qualified, table_columns
from flows.points import reached
from flows.settings import LAKE, Settings
from flows.stage.receipt import Failure, Outcome, Receipt
from flows.stage.types import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

RETRIES = 5
"""Transactions begun anew after a known conflict, within one hold of the gate."""

LOST_SECONDS = 60
"""How long a catalog that went away in mid-run may stay away; within one hold of the gate."""

_CONFLICT = ("conflict", "primary key", "unique constraint", "concurrent", "maximum retry count", "database is locked")
_LOST = ("connection", "server closed", "terminating", "broken pipe", "i/o error", "disk is full", '"rollback"')


class UnknownOutcome(CatalogError):
    """The connection was lost, perhaps after COMMIT was sent: only the ledger knows."""


class Forbidden(CatalogError):
    """The catalog's role may only read."""


@dataclass(slots=True)
class Published:
    """What became of a group.

    Args:
        snapshot_id: DuckLake's snapshot, None when nothing had to be committed.
        receipts: Published, or found to be published by an earlier commit.
        unchanged: Receipts whose rows were in the table already.
        failures: Recorded as failed or rejected.
    """

    snapshot_id: int | None = None
    receipts: list[Receipt] = field(default_factory=list)
    unchanged: list[Receipt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Published) -> None:
        """Take over the outcome of a further group."""
        self.snapshot_id = other.snapshot_id if other.snapshot_id is not None else self.snapshot_id
        self.receipts += other.receipts
        self.unchanged += other.unchanged
        self.failures += other.failures


class Publisher:
    """Publishes groups over one connection of its own, which it opens again when it was lost.

    Args:
        settings: Where the lake is.
        datasets: What will be published.
        flow_run_id: Stands in the ledger.
        expected: Keys of the partitions that will come: the ledger is read once for all of them.
    """

    def __init__(
        self, settings: Settings, datasets: Sequence[Dataset], flow_run_id: str, expected: Iterable[str] = ()
    ) -> None:
        self._settings = settings
        self._standing = ledger.Standing(expected)
        self._datasets = {d.key: d for d in datasets}
        self._flow_run_id = flow_run_id
        self._con: DuckDBPyConnection | None = None
        self._began = time.monotonic()

    def tables(self) -> dict[str, dict[str, str]]:
        """Every table's columns, by name, as they are now; see `table_columns`. Opens the connection."""
        return table_columns(self._connection())

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        self._standing.forget()
        if self._con is not None:
            # By hand: where Postgres is gone, DuckDB's own rollback at the end ends the whole process (1.5.5).
            if _rollback(self._con):
                self._con.close()
            else:
                _leave_to_the_end(self._con)
            self._con = None

    def publish(self, group: Sequence[Outcome]) -> Published:
        """Publish a group of outcomes in one transaction. Call it within the gate.

        A receipt that cannot be registered (its file is gone, say) does not stop the others: the group is then
        published one by one, and that receipt becomes a failure. An error is a receipt's own only when it comes
        again on a fresh connection: a catalog that is going away makes DuckDB say the strangest things.

        Raises:
            CommitConflict: other writers won every retry.
            CatalogError: the catalog cannot be reached, or went away and did not come back.
        """
        import duckdb

        self._began = time.monotonic()
        try:
            return self._with_retries(group)
        except duckdb.Error as error:
            if len(group) > 1:
                log.warning("a group of %d could not be published, trying one by one: %s", len(group), _text(error))
                result = Published()
                for outcome in group:
                    result.add(self.publish([outcome]))
                return result
            if isinstance(group[0], Failure):
                raise
            return self._with_retries([_failed(group[0], "failed", _text(error))])

    def _with_retries(self, group: Sequence[Outcome]) -> Published:
        import duckdb

        conflicts = Retrying(
            retry=retry_if_exception_type(CommitConflict),
            stop=stop_after_attempt(RETRIES),
            wait=wait_random_exponential(0.05, max=1.0),
            reraise=True,
        )
        losses = Retrying(
            retry=retry_if_exception_type(CatalogError) & retry_if_not_exception_type(Forbidden),
            stop=stop_after_delay(LOST_SECONDS),
            wait=wait_random_exponential(0.1, max=5.0),
            reraise=True,
        )
        strange = Retrying(
            retry=retry_if_exception_type(duckdb.Error),
            stop=stop_after_attempt(2),
            reraise=True,
        )
        published: Published = losses(strange, conflicts, self._once, group)
        return published

    def _once(self, group: Sequence[Outcome]) -> Published:
        """One transaction; a conflict and a lost answer each have an error of their own."""
        import duckdb

        con = self._connection()
        committing = False
        try:
            con.execute("BEGIN")
            reached("after BEGIN")
            result, token, rows = self._fill(con, group)
            if not rows:
                con.execute("ROLLBACK")
                return result
            committing = True
            reached("before COMMIT")
            con.execute("COMMIT")
            reached("after COMMIT")
            self._standing.committed(token, rows)
            result.snapshot_id = con.execute(f"SELECT id FROM {LAKE}.last_committed_snapshot()").fetchone()[0]  # type: ignore[index]
        except duckdb.Error as error:
            text = _text(error)
            if any(word in text.lower() for word in _CONFLICT):
                _rollback(con)
                raise CommitConflict(
                    f"Another writer changed the lake first: {text}", "run the same command again"
                ) from error
            self.close()
            if "permission denied" in str(error):
                raise Forbidden(
                    "The catalog's role may not change it: permission denied.", "use the role that owns the catalog"
                ) from error
            if committing and self._is_committed(group):
                return self._as_published(group)
            if committing or any(word in text.lower() for word in _LOST):
                raise UnknownOutcome(
                    f"The connection to the catalog was lost: {text}",
                    "check that it is up, then the same command again: the ledger knows what was committed",
                ) from error
            raise
        return result

    def _fill(
        self, con: DuckDBPyConnection, group: Sequence[Outcome]
    ) -> tuple[Published, int, Sequence[Mapping[str, Any]]]:
        """Everything between BEGIN and COMMIT. Returns the outcome, the fence's token, and the ledger's new rows."""
        token = raise_fence(con, "fence")
        reached("after the fence")
        self._standing.read(con, token, {o.partition for o in group})
        known, done = self._standing.entries, self._standing.attempts
        result, now = Published(), datetime.now(UTC)
        rows: list[dict[str, Any]] = []
        changed: dict[str, list[Receipt]] = defaultdict(list)
        tables = table_columns(con)
        for outcome in group:
            entry = known.get((outcome.dataset, outcome.partition))
            if outcome.attempt_id in done:
                if isinstance(outcome, Receipt):
                    result.receipts.append(outcome)
            elif isinstance(outcome, Failure):
                result.failures.append(outcome)
                rows.append(self._failure_row(outcome))
            elif entry is not None and entry.fingerprint == outcome.fingerprint:
                result.unchanged.append(outcome)
                if entry.state != "published" or entry.source_version != outcome.source_version:
                    # The rows of the published attempt stand for this version of the source, too.
                    rows.append(self._receipt_row(replace(outcome, attempt_id=entry.attempt_id)))
            else:
                try:
                    self._fit(con, tables, outcome)
                except Rejected as error:
                    failure = _failed(outcome, "rejected", error.message)
                    result.failures.append(failure)
                    rows.append(self._failure_row(failure))
                    continue
                # An empty first partition of an inferred dataset has no columns, so no table to replace rows in.
                if self._datasets[outcome.dataset].table in tables:
                    changed[outcome.dataset].append(outcome)
                result.receipts.append(outcome)
                rows.append(self._receipt_row(outcome))
        for key, receipts in changed.items():
            self._replace(con, self._datasets[key], receipts, tables[self._datasets[key].table])
        in_gate = (time.monotonic() - self._began) / max(len(group), 1)
        rows = [
            {**row, "profile": _json({**row["profile"], "gate": in_gate}), "recorded_at": now, "token": token}
            for row in rows
        ]
        ledger.append(con, "ledger", rows)
        if rows:
            commit_message(con, _message(result), token=token, flow_run_id=self._flow_run_id)
        return result, token, rows

    def _fit(self, con: DuckDBPyConnection, tables: dict[str, dict[str, str]], receipt: Receipt) -> None:
        """Make or evolve the raw table so that the receipt's files fit."""
        dataset = self._datasets[receipt.dataset]
        if dataset.table in tables:
            evolve(con, dataset, tables[dataset.table], receipt.columns)
        elif receipt.columns:
            create_table(con, dataset, receipt.columns)
            tables[dataset.table] = dict(receipt.columns)

    def _replace(
        self, con: DuckDBPyConnection, dataset: Dataset, receipts: Sequence[Receipt], columns: Mapping[str, str]
    ) -> None:
        """Delete the partitions' rows, and register the staged files in their place.

        A file that lacks a column of the table is inserted instead: DuckLake 1.5.5 registers it, but goes on telling
        DuckDB that the column has no nulls, and ``WHERE it IS NULL`` finds none of its rows.
        """
        column = dataset.partition_column
        if column is None:
            con.execute(f"DELETE FROM {qualified(dataset)}")
        else:
            values = ", ".join(f"'{parse_partition(r.partition, dataset.grain).value}'" for r in receipts)
            con.execute(f"DELETE FROM {qualified(dataset)} WHERE {quoted(column)} IN ({values})")
        reached("after DELETE")
        whole: list[str] = []
        lacking: list[str] = []
        for receipt in receipts:
            fits = receipt.columns.keys() >= columns.keys()
            (whole if fits else lacking).extend(self._settings.data_path + path for path in receipt.files)
        if whole:
            con.execute(
                f"CALL ducklake_add_data_files('{LAKE}', ?, ?, schema => 'raw', "
                f"hive_partitioning => {column is not None})",
                [dataset.key, whole],
            )
        if lacking:
            con.execute(
                f"INSERT INTO {qualified(dataset)} BY NAME "
                "FROM read_parquet(?, union_by_name => true, hive_partitioning => false)",
                [lacking],
            )
        if whole or lacking:
            reached("after registration")

    def _receipt_row(self, receipt: Receipt) -> dict[str, Any]:
        return {
            "dataset": receipt.dataset,
            "partition": receipt.partition,
            "attempt_id": receipt.attempt_id,
            "state": "rolled_back" if receipt.restores else "published",
            "rows_in": receipt.rows,
            "rows_published": receipt.rows,
            "rows_quarantined": 0,
            "files": len(receipt.files),
            "bytes": receipt.bytes,
            "fingerprint": receipt.fingerprint,
            "source_version": receipt.source_version,
            "seconds": receipt.seconds,
            "flow_run_id": self._flow_run_id,
            "error": "; ".join(receipt.warnings) or None,
            "restores": receipt.restores or None,
            "profile": receipt.profile,
        }

    def _failure_row(self, failure: Failure) -> dict[str, Any]:
        return {
            "dataset": failure.dataset,
            "partition": failure.partition,
            "attempt_id": failure.attempt_id,
            "state": "failed" if failure.state == "no source" else failure.state,
            "source_version": failure.source_version,
            "seconds": failure.seconds,
            "flow_run_id": self._flow_run_id,
            "error": failure.error,
            "profile": failure.profile,
        }

    def _connection(self) -> DuckDBPyConnection:
        if self._con is None:
            self._con = connect(self._settings)
            # A commit is metadata: more threads only take the cores from the workers that extract.
            self._con.execute("SET threads = 1")
        return self._con

    def _is_committed(self, group: Sequence[Outcome]) -> bool:
        """Whether a transaction whose answer was lost is in the ledger: all of it is, or nothing."""
        return bool(ledger.attempts_in(self._connection(), [o.attempt_id for o in group]))

    def _as_published(self, group: Sequence[Outcome]) -> Published:
        """The outcome of a group as the ledger tells it after its answer was lost."""
        con = self._connection()
        inside = ledger.attempts_in(con, [o.attempt_id for o in group])
        receipts = [o for o in group if isinstance(o, Receipt)]
        snapshot = con.execute(f"SELECT max(snapshot_id) FROM {LAKE}.snapshots()").fetchone()
        return Published(
            snapshot[0] if snapshot else None,
            [r for r in receipts if r.attempt_id in inside],
            [r for r in receipts if r.attempt_id not in inside],
            [o for o in group if isinstance(o, Failure)],
        )


def raise_fence(con: DuckDBPyConnection, fence: str) -> int:
    """Touch the one row that every transaction of this kind touches, and return its new value.

    Two transactions that both did cannot both commit, not even where each saw an empty partition; and the value
    orders what they write.
    """
    con.execute(f"UPDATE {LAKE}.ops.{fence} SET token = token + 1")
    found = con.execute(f"SELECT token FROM {LAKE}.ops.{fence}").fetchall()
    if len(found) != 1:
        raise LakeError(f"ops.{fence} has {len(found)} rows instead of one.", "lake verify")
    return int(found[0][0])


def _json(profile: Mapping[str, float]) -> str:
    """Seconds by stage, to a tenth of a millisecond."""
    return json.dumps({stage: round(seconds, 4) for stage, seconds in profile.items()})


def _rollback(con: DuckDBPyConnection) -> bool:
    """Roll back what is open. Returns whether the connection is still fit to be closed."""
    import duckdb

    try:
        con.execute("ROLLBACK")
    except (duckdb.FatalException, duckdb.InternalException) as error:
        log.warning("a connection is given up: %s", _text(error))
        return False
    except duckdb.Error as error:
        log.debug("there is no transaction to roll back, or nobody to tell: %s", error)
    return True


def _leave_to_the_end(con: DuckDBPyConnection) -> None:
    """Keep a connection from ever being closed: after an error of its own, DuckDB ends the process over that."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(con))


def _failed(receipt: Receipt, state: Any, error: str) -> Failure:
    return Failure(
        receipt.dataset,
        receipt.partition,
        receipt.attempt_id,
        state,
        error,
        receipt.source_version,
        receipt.seconds,
        receipt.profile,
    )


def _message(result: Published) -> str:
    parts = [f"publish {len(result.receipts)}"] if result.receipts else []
    if result.unchanged:
        parts.append(f"{len(result.unchanged)} unchanged")
    if result.failures:
        parts.append(f"{len(result.failures)} failed")
    return ", ".join(parts)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
