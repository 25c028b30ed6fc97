"""The publish protocol: one transaction replaces many partitions, excludes other publishers and writes the ledger.

    BEGIN
      token       the id of the snapshot that this transaction creates; see `ducklake_flows.lake.fence`
      drop        attempts that are in the ledger already, are older than the published one, or have the same rows
      schema      if a raw table must change: ALTER, COMMIT, BEGIN. This is harmless alone, but wrong in one
                  transaction with the registration (https://github.com/duckdb/ducklake/issues/1308). A table that
                  was never filled gets its statistics first: see `ducklake_flows.lake.repair`
      delete      the partitions' rows, if there are any: whole files, or a delete file for rows of a merged one
      register    the staged files; insert those that need a cast
      ledger      one row per partition
    COMMIT        if its outcome is unknown, start again: the ledger shows the outcome of each attempt

The caller holds the gate. The fence keeps the lake correct even if the gate fails.
"""

from __future__ import annotations

import ctypes
import json
import logging
import time
from collections import Counter, defaultdict
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

from ducklake_flows.datasets.dataset import Member
from ducklake_flows.errors import (
    CatalogError,
    CommitConflict,
    LakeError,
    NotInitialised,
    OldRelease,
    PublishedInBetween,
    Rejected,
)
from ducklake_flows.lake import checks, ledger, statistics
from ducklake_flows.lake.connect import check_access, commit_message, connect, renew
from ducklake_flows.lake.damage import lost_files
from ducklake_flows.lake.evolve import READ, Contents, Fit, contents, evolve, fit
from ducklake_flows.lake.faults import Forbidden, explain, text_of
from ducklake_flows.lake.fence import check_release, next_token
from ducklake_flows.lake.files import full_paths, short_names
from ducklake_flows.lake.keys import unique_in_table
from ducklake_flows.lake.lookup import held
from ducklake_flows.lake.maintenance import merge, rewrite
from ducklake_flows.lake.migration import outdated
from ducklake_flows.lake.repair import drop, repair, settle
from ducklake_flows.lake.rows import conditions
from ducklake_flows.lake.schema import qualified, record_change, table_columns
from ducklake_flows.settings import LAKE, Settings
from ducklake_flows.staging.receipt import Failure, Outcome, Receipt
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.lake.files import File

log = logging.getLogger(__name__)

RETRIES = 5
"""Maximum number of transactions tried after known conflicts, within one hold of the gate."""

LOST_SECONDS = 60
"""How long to retry after the catalog fails in the middle of a run, within one hold of the gate."""


LASTING = (Forbidden, NotInitialised, OldRelease)
"""Errors of the catalog that do not pass."""

MERGE_AFTER = 5000
"""Files that a run registers in a table before it merges the table's small ones. Otherwise each further partition of a
long backfill would cost more than the one before."""


WORN = 3
"""A run that replaces partitions of a merged file one after the other rewrites the file when its DELETEs have read so
many deleted rows for each of its rows: then they have taken as long as the rewrite does."""


@dataclass(slots=True)
class Published:
    """The outcome of a group.

    Args:
        snapshot_id: DuckLake's snapshot; None if nothing had to be committed.
        receipts: Published now, or already published by an earlier commit.
        unchanged: Receipts whose rows were in the table already.
        failures: Recorded as failed or rejected.
        older: Receipts that were dropped because an attempt extracted later is published.
    """

    snapshot_id: int | None = None
    receipts: list[Receipt] = field(default_factory=list)
    unchanged: list[Receipt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    older: list[Receipt] = field(default_factory=list)

    def add(self, other: Published) -> None:
        """Add the outcome of another group."""
        self.snapshot_id = other.snapshot_id if other.snapshot_id is not None else self.snapshot_id
        self.receipts += other.receipts
        self.unchanged += other.unchanged
        self.failures += other.failures
        self.older += other.older


_Ready = tuple[Receipt, list[tuple[Receipt, "Fit"]]]
"""A receipt, and how each of its tables is loaded."""


class Publisher:
    """Publishes groups over a private connection, which it reopens after a loss.

    Args:
        settings: Where the lake is.
        datasets: The datasets that will be published.
        flow_run_id: Recorded in the ledger.
        expected: Keys of the partitions that will be published; the ledger is read once for all of them.
        planned: The newest attempt in the ledger when the run was planned, by dataset and partition. The receipts of
            the run never count as older than this attempt, even if the clocks of two hosts differ.
        recheck: Compare a receipt that the ledger calls unchanged with the rows in the table.
        force: Publish a receipt even if its rows are published already.
        reason: Why the run was started, in its user's words; recorded in the ledger.
        together: All receipts of a group are published, or none: what refuses one is raised.
    """

    def __init__(
        self,
        settings: Settings,
        datasets: Sequence[Dataset],
        flow_run_id: str,
        expected: Iterable[str] = (),
        *,
        planned: Mapping[tuple[str, str], str] | None = None,
        recheck: bool = False,
        force: bool = False,
        reason: str = "",
        together: bool = False,
    ) -> None:
        self._together = together
        self._settings = settings
        self._ledger = ledger.LedgerCache(settings, expected)
        self._datasets = {d.key: d for given in datasets for d in (given, *given.members)}
        self._flow_run_id = flow_run_id
        self._planned, self._recheck, self._force = planned or {}, recheck, force
        self._reason = reason
        self._con: DuckDBPyConnection | None = None
        self._filled: set[str] = set()
        """Tables that are known to have statistics."""
        self._unmerged: Counter[str] = Counter()
        """Files registered since the last merge, by dataset."""
        self._worn: dict[str, tuple[int, int]] = {}
        """Deleted rows of merged files that DELETEs have read since the last rewrite, all DELETEs together, and the
        rows of these files, by dataset."""
        self._outdated: dict[str, str] = {}
        """Attempts of the group that were extracted before their table was migrated, with the reason."""
        self._began = time.monotonic()
        self._unanswered: int | None = None
        """The token of a COMMIT whose answer was lost."""

    def tables(self) -> dict[str, dict[str, str]]:
        """The current columns of every table, by name; see `table_columns`. Opens the connection.

        Raises:
            CatalogError: the lake belongs to an earlier release.
        """
        return table_columns(self._connection())

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        self._ledger.forget()
        if self._con is not None:
            # Explicit: if Postgres is gone, DuckDB's own rollback on close aborts the process (1.5.5).
            if _rollback(self._con):
                self._con.close()
            else:
                _leave_to_the_end(self._con)
            self._con = None

    def publish(self, group: Sequence[Outcome]) -> Published:
        """Publish a group of outcomes in one transaction. Call it within the gate.

        A receipt that cannot be registered (for example because its file is missing) does not stop the others: the
        outcomes are then published one at a time, and that receipt becomes a failure. DuckDB's errors mislead while a
        connection fails, so an error is blamed on a receipt only if it recurs on a new connection. If the error is that
        a file with the replaced rows alone is lost, the file is dropped from the catalog first; see `repair.drop`.

        Raises:
            CommitConflict: other writers won every retry.
            CatalogError: the catalog cannot be reached, or failed and did not recover in time.
            CredentialsError: there are no S3 credentials, or the object store refuses them.
        """
        import duckdb

        self._began = time.monotonic()
        try:
            result = self._with_retries(group)
        except duckdb.Error as error:
            if self._together:
                raise CatalogError(text_of(error, self._settings), "lake verify") from None
            if len(group) > 1:
                log.warning(
                    "a group of %d could not be published, retrying one at a time: %s",
                    len(group),
                    text_of(error, self._settings),
                )
                result = Published()
                for outcome in group:
                    result.add(self.publish([outcome]))
                return result
            if isinstance(group[0], Failure):
                raise
            failure = _failed(group[0], "failed", text_of(error, self._settings))
            if lost := [file.path for receipt in group[0].all for file in self._lost(receipt)]:
                # Dropped here, the other partitions in it would lose their rows without a word.
                why = f"{', '.join(lost)} is lost, which holds other partitions, too: {failure.error}"
                failure = replace(failure, error=why, fix="lake repair")
            return self._with_retries([failure])
        self._compact(result)
        return result

    def _compact(self, result: Published) -> None:
        """Merge the small files of tables to which this run has added many; rewrite those of which it replaced much."""
        if result.snapshot_id is not None:
            for receipt in _all(result.receipts):
                self._unmerged[receipt.dataset] += len(receipt.files)
        for key in [key for key, files in self._unmerged.items() if files >= MERGE_AFTER]:
            self._now_or_later(merge, key)
            del self._unmerged[key]
        for key in [key for key, (deleted, rows) in self._worn.items() if rows and deleted >= WORN * rows]:
            self._now_or_later(rewrite, key)
            del self._worn[key]

    def _now_or_later(self, work: Callable[[Settings, Dataset], int], key: str) -> None:
        """Maintain a dataset's files. An error does not stop the run: the next maintenance does it."""
        import duckdb

        try:
            log.info("%s: %s of %d files", key, work.__name__, work(self._settings, self._datasets[key]))
        except (LakeError, duckdb.Error) as error:
            log.warning("%s: the %s is done later: %s", key, work.__name__, text_of(error, self._settings))

    def _with_retries(self, group: Sequence[Outcome]) -> Published:
        import duckdb

        conflicts = Retrying(
            retry=retry_if_exception_type(CommitConflict),
            stop=stop_after_attempt(RETRIES),
            wait=wait_random_exponential(0.05, max=1.0),
            reraise=True,
        )
        losses = Retrying(
            retry=retry_if_exception_type(CatalogError) & retry_if_not_exception_type(LASTING),
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
        """Run one transaction. A conflict and a lost answer raise distinct errors."""
        import duckdb

        con = self._connection()
        token: int | None = None
        try:
            con.execute("BEGIN")
            failpoint("after BEGIN")
            result, raised, rows = self._fill(con, group)
            if not rows:
                con.execute("ROLLBACK")
                if self._unanswered is not None:
                    result.snapshot_id = ledger.snapshot_of(con, self._unanswered)
                return result
            token = raised
            failpoint("before COMMIT")
            con.execute("COMMIT")
            failpoint("after COMMIT")
            self._ledger.committed(token, rows)
            result.snapshot_id = token
        except duckdb.Error as error:
            meaning = explain(error, self._settings, committing=token is not None)
            if isinstance(meaning, CommitConflict):
                self._abandon(con)
                raise meaning from error
            self.close()
            if meaning is None:
                check_access(error, self._settings)
                if self._drop_lost(group):
                    raise CommitConflict("Lost files were dropped from the catalog.", "lake verify") from error
                raise
            self._unanswered = token if token is not None else self._unanswered
            raise meaning from error
        except LakeError:
            self._abandon(con)
            raise
        return result

    def _drop_lost(self, group: Sequence[Outcome]) -> bool:
        """Drop the lost files of a single partition, which keep its rows from being replaced. Returns whether any was.

        Until the partition is published, a moment later, readers see it without these rows instead of an error.
        """
        if len(group) > 1 or not isinstance(group[0], Receipt):
            return False  # the caller publishes the group again one at a time
        receipt = group[0]
        lost = [file.path for one in receipt.all for file in self._lost(one) if file.is_of_one]
        if lost:
            log.warning("%s %s: dropping lost files: %s", receipt.dataset, receipt.partition, ", ".join(lost))
            drop(self._settings, lost)
        return bool(lost)

    def _lost(self, receipt: Receipt) -> list[File]:
        dataset = self._datasets[receipt.dataset]
        return lost_files(self._settings, dataset, dataset.partition(receipt.partition))

    def _abandon(self, con: DuckDBPyConnection) -> None:
        """Roll back and discard the cached ledger: the transaction may have read rows that were never committed."""
        _rollback(con)
        self._ledger.forget()

    def _fill(
        self, con: DuckDBPyConnection, group: Sequence[Outcome]
    ) -> tuple[Published, int, Sequence[Mapping[str, Any]]]:
        """Do everything between BEGIN and COMMIT. Returns the outcome, the token and the new ledger rows."""
        token = self._begun(con, group)
        result, new, receipts = self._select(group)
        tables = table_columns(con)
        self._outdated = outdated(con, self._datasets, receipts, tables)
        fitting = [receipt for receipt in receipts if receipt.attempt_id not in self._outdated]
        evolved = evolve(con, self._datasets, fitting, tables)
        if evolved.changed:
            # Never in one transaction with the registration: https://github.com/duckdb/ducklake/issues/1308
            for key, change in evolved.changed.items():
                record_change(con, self._datasets[key].table, change)
            self._record(con, evolved.rows, token, f"schema of {', '.join(evolved.changed)}")
            con.execute("COMMIT")
            failpoint("schema committed")
            self._ledger.committed(token, evolved.rows)
            self._filled -= {self._datasets[key].table for key in evolved.changed}
        filling = {self._datasets[receipt.dataset].table for receipt in receipts} - self._filled
        bare = {table for _, table in statistics.bare(con, filling)} if filling else set()
        if evolved.changed or bare:
            if not evolved.changed:
                con.execute("ROLLBACK")
            if evolved.respell:
                repair(self._settings, evolved.respell)
            if bare:
                settle(self._settings, bare)
            con.execute("BEGIN")
            token = self._begun(con, group)
            # Again: without the gate, another publisher may have committed since the first BEGIN.
            result, new, receipts = self._select(group)
            tables = table_columns(con)
        self._filled |= filling
        held = self._held(con, receipts, tables) if self._recheck else {}
        rows: list[dict[str, Any]] = []
        changed: dict[str, list[tuple[Receipt, Fit]]] = defaultdict(list)
        accepted: list[_Ready] = []

        def reject(receipt: Receipt, error: Rejected) -> None:
            if self._together:
                raise error
            failure = replace(_failed(receipt, "rejected", error.message), fix=error.fix)
            result.failures.append(failure)
            rows.append(ledger.failure_row(failure))

        for outcome in new:
            if isinstance(outcome, Failure):
                result.failures.append(outcome)
                rows.append(ledger.failure_row(outcome))
                continue
            outcome, broken = self._judged(con, token, outcome, tables)  # noqa: PLW2901 - the same outcome
            try:
                if broken:
                    raise Rejected(broken)
                ready = [self._fitted(con, receipt, tables, evolved.refused) for receipt in self._all([outcome])]
            except Rejected as error:
                reject(outcome, error)
                continue
            known = [(receipt, self._known(receipt, held)) for receipt, _ in ready]
            if all(entry for _, entry in known):
                result.unchanged.append(outcome)
                rows += [_confirmed(receipt, entry) for receipt, entry in known if entry and _is_news(receipt, entry)]
                continue
            accepted.append((outcome, ready))
        for (outcome, ready), clash in self._unique(con, accepted, tables):
            if clash:
                reject(outcome, Rejected(clash, "correct the source of one of the two, then load both again"))
                continue
            for receipt, way in ready:
                # An empty first partition of an inferred dataset has no columns, so there is no table yet.
                if self._datasets[receipt.dataset].table in tables:
                    changed[receipt.dataset].append((receipt, way))
                rows.append(ledger.receipt_row(receipt))
            result.receipts.append(outcome)
        for key, ready in changed.items():
            self._replace(con, self._datasets[key], ready)
        written = {row["attempt_id"] for row in rows}
        in_gate = (time.monotonic() - self._began) / max(len(group), 1)
        for row in rows:
            row["profile"] = _json({**row["profile"], "gate": in_gate})
        if rows:
            self._record(con, rows, token, _message(result))
            common = {"flow_run_id": self._flow_run_id, "recorded_at": rows[0]["recorded_at"], "token": token}
            told: list[Outcome] = [*result.receipts, *result.failures]
            checks.record(con, [outcome for outcome in told if outcome.attempt_id in written], common, tables)
        return result, token, rows

    def _judged(
        self, con: DuckDBPyConnection, token: int, receipt: Receipt, tables: Mapping[str, Mapping[str, str]]
    ) -> tuple[Receipt, str]:
        """A receipt with the results of the audits that need the lake, and why it is rejected; "" if it is not."""
        found = [
            checks.judge(con, self._settings, token, self._datasets[one.dataset], one, tables) for one in receipt.all
        ]
        receipts = [one for one, _ in found]
        return replace(receipts[0], members=tuple(receipts[1:])), "; ".join(why for _, why in found if why)

    def _unique(
        self, con: DuckDBPyConnection, accepted: Sequence[_Ready], tables: Mapping[str, Mapping[str, str]]
    ) -> list[tuple[_Ready, str]]:
        """What is to be published, and why it is not: a primary key that must be unique over its table is not."""
        found: dict[str, tuple[Receipt, str]] = {}
        for key in dict.fromkeys(receipt.dataset for receipt, _ in accepted):
            if (dataset := self._datasets[key]).key_scope == "table":
                receipts = [receipt for receipt, _ in accepted if receipt.dataset == key]
                columns = tables.get(dataset.table, {})
                for judged, why in unique_in_table(con, self._settings, dataset, columns, receipts):
                    found[judged.attempt_id] = judged, why
        answer = []
        for receipt, ready in accepted:
            judged, why = found.get(receipt.attempt_id, (receipt, ""))
            answer.append(((judged, ready), why))
        return answer

    def _fitted(
        self,
        con: DuckDBPyConnection,
        receipt: Receipt,
        tables: Mapping[str, Mapping[str, str]],
        refused: Mapping[tuple[str, str], str],
    ) -> tuple[Receipt, Fit]:
        """A receipt with the fingerprint of its rows in the table, and how they are loaded; see `fit`."""
        dataset = self._datasets[receipt.dataset]
        if receipt.attempt_id in self._outdated:
            raise Rejected(self._outdated[receipt.attempt_id], "run the same command again")
        try:
            way = fit(con, self._settings, dataset, tables.get(dataset.table, {}), receipt, refused)
        except Rejected as error:
            if isinstance(dataset, Member):
                raise Rejected(f"{dataset.key}: {error.message}", error.fix) from None
            raise
        return replace(receipt, fingerprint=way.fingerprint or receipt.fingerprint), way

    def _known(self, receipt: Receipt, held: Mapping[tuple[str, str], Contents]) -> ledger.Entry | None:
        """The entry of the published attempt that has the same rows; None if there is none, or they are not there."""
        entry = self._ledger.entries.get((receipt.dataset, receipt.partition))
        is_same = entry is not None and entry.fingerprint == receipt.fingerprint and not self._force
        return entry if is_same and self._is_there(receipt, held) else None

    def _record(self, con: DuckDBPyConnection, rows: Sequence[dict[str, Any]], token: int, message: str) -> None:
        """Append the ledger rows and set the commit message."""
        now = datetime.now(UTC)
        for row in rows:
            row |= {
                "flow_run_id": self._flow_run_id,
                "recorded_at": now,
                "token": token,
                "reason": self._reason or None,
            }
        ledger.append(con, "ledger", rows)
        commit_message(con, message, token=token, flow_run_id=self._flow_run_id)

    def _begun(self, con: DuckDBPyConnection, group: Sequence[Outcome]) -> int:
        """Read the transaction's token and the ledger entries of the group."""
        token = next_token(con)
        failpoint("after the fence")
        self._ledger.read(con, token, {outcome.partition for outcome in group})
        return token

    def _select(self, group: Sequence[Outcome]) -> tuple[Published, list[Outcome], list[Receipt]]:
        """Drop from a group what the ledger makes unnecessary; see `_is_new`.

        Returns:
            The result so far, with what was dropped; the outcomes to write; and all receipts among them, see
            `Receipt.all`.
        """
        result = Published()
        new = [outcome for outcome in group if self._is_new(outcome, result)]
        return result, new, self._all(outcome for outcome in new if isinstance(outcome, Receipt))

    def _all(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        """The receipts and those of the datasets' other tables, without a quarantine that is empty and always was."""

        def has_something(receipt: Receipt) -> bool:
            if not self._datasets[receipt.dataset].is_quarantine or receipt.rows:
                return True
            return (receipt.dataset, receipt.partition) in self._ledger.entries

        return [one for one in _all(receipts) if has_something(one)]

    def _is_new(self, outcome: Outcome, result: Published) -> bool:
        """Whether an outcome must be written. If not, it is added to the list of `result` that fits the ledger.

        Raises:
            PublishedInBetween: the attempt that a rollback would replace is no longer the published one.
        """
        entry = self._ledger.entries.get((outcome.dataset, outcome.partition))
        recorded = self._ledger.attempts.get(outcome.attempt_id)
        if recorded is not None:
            if isinstance(outcome, Failure):
                result.failures.append(outcome)
            elif recorded.state in ("failed", "rejected"):
                result.failures.append(_failed(outcome, recorded.state, recorded.error))
            else:
                result.receipts.append(outcome)
            return False
        if isinstance(outcome, Failure) or entry is None or not entry.attempt_id:
            return True
        if outcome.supersedes:
            if outcome.supersedes != entry.attempt_id and self._recheck:
                result.older.append(outcome)
                return False
            if outcome.supersedes != entry.attempt_id:
                raise PublishedInBetween(
                    f"{outcome.dataset} {outcome.partition} was published again after the rollback was staged; "
                    "nothing was changed.",
                    f"check `lake status {outcome.dataset}`, then roll back again",
                )
            return True
        planned = self._planned.get((outcome.dataset, outcome.partition))
        if outcome.attempt_id < entry.newest and planned != entry.newest:
            result.older.append(outcome)
            return False
        return True

    def _held(
        self, con: DuckDBPyConnection, receipts: Sequence[Receipt], tables: Mapping[str, Mapping[str, str]]
    ) -> dict[tuple[str, str], Contents]:
        """Read what the tables hold of the receipts' partitions."""
        asked: dict[str, list[str]] = defaultdict(list)
        for receipt in receipts:
            asked[receipt.dataset].append(receipt.partition)
        held: dict[tuple[str, str], Contents] = {}
        for key, partitions in asked.items():
            dataset = self._datasets[key]
            if dataset.table in tables:
                found = contents(con, dataset, tables[dataset.table], partitions)
                held |= {(key, partition): what for partition, what in found.items()}
        return held

    def _is_there(self, receipt: Receipt, held: Mapping[tuple[str, str], Contents]) -> bool:
        """Whether the table holds what the ledger says. Always true without `recheck`."""
        there = held.get((receipt.dataset, receipt.partition))
        if not self._recheck or (there is None and not receipt.rows):
            return True
        return there == Contents(receipt.rows, receipt.fingerprint)

    def _replace(self, con: DuckDBPyConnection, dataset: Dataset, ready: Sequence[tuple[Receipt, Fit]]) -> None:
        """Delete the partitions' rows, then register the staged files or insert their rows."""
        is_divided = bool(dataset.partition_columns)
        if not is_divided:
            con.execute(f"DELETE FROM {qualified(dataset)}")
        else:
            there = held(con, self._settings, dataset, [dataset.partition(receipt.partition) for receipt, _ in ready])
            if there.partitions:
                self._worn[dataset.key] = (self._worn.get(dataset.key, (0, 0))[0] + there.deleted, there.rows)
            for rows in conditions(dataset, there.partitions):
                con.execute(f"DELETE FROM {qualified(dataset)} WHERE {rows}")
        failpoint("after DELETE")
        files: dict[str, list[str]] = defaultdict(list)
        for receipt, way in ready:
            if receipt.files:
                files[way.select] += receipt.files
        for select, paths in files.items():
            if select:
                full = full_paths(self._settings, paths)
                con.execute(f"INSERT INTO {qualified(dataset)} BY NAME SELECT {select} FROM {READ}", [full])
            else:
                con.execute(
                    f"CALL ducklake_add_data_files('{LAKE}', ?, ?, schema => 'raw', hive_partitioning => {is_divided})",
                    [dataset.key, short_names(con, self._settings, paths)],
                )
        if files:
            failpoint("after registration")

    def _connection(self) -> DuckDBPyConnection:
        if self._con is None:
            self._con = connect(self._settings)
            check_release(self._con)
            # A commit is metadata only: more threads would take cores from the workers that extract.
            self._con.execute("SET threads = 1")
            # The footer of each staged file is read once. Kept, they would take 12 KiB each.
            self._con.execute("SET enable_external_file_cache = false")
        else:
            renew(self._con, self._settings)
        return self._con


def _all(receipts: Iterable[Receipt]) -> list[Receipt]:
    """The receipts and those of the datasets' other tables."""
    return [one for receipt in receipts for one in receipt.all]


def _is_news(receipt: Receipt, entry: ledger.Entry) -> bool:
    """Whether a receipt of unchanged rows says something that the ledger does not."""
    return entry.state != "published" or entry.source_version != receipt.source_version


def _confirmed(receipt: Receipt, entry: ledger.Entry) -> dict[str, Any]:
    """The ledger row of unchanged rows: those of the published attempt are also the rows of this source version."""
    row = ledger.receipt_row(replace(receipt, attempt_id=entry.attempt_id))
    return {**row, "confirmed_by": receipt.attempt_id}


def _json(profile: Mapping[str, float]) -> str:
    """Seconds by stage as JSON, rounded to 0.1 ms."""
    return json.dumps({stage: round(seconds, 4) for stage, seconds in profile.items()})


def _rollback(con: DuckDBPyConnection) -> bool:
    """Roll back the open transaction. Returns whether the connection can be closed safely."""
    import duckdb

    try:
        con.execute("ROLLBACK")
    except (duckdb.FatalException, duckdb.InternalException) as error:
        log.warning("abandoned a connection after an internal error of DuckDB: %s", error)
        return False
    except duckdb.Error as error:
        log.debug("no transaction to roll back, or no connection: %s", error)
    return True


def _leave_to_the_end(con: DuckDBPyConnection) -> None:
    """Never close a connection: after an internal error, closing it makes DuckDB abort the process."""
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
        checks=receipt.checks,
    )


def _message(result: Published) -> str:
    parts = [f"publish {len(result.receipts)}"] if result.receipts else []
    if result.unchanged:
        parts.append(f"{len(result.unchanged)} unchanged")
    if result.failures:
        parts.append(f"{len(result.failures)} failed")
    return ", ".join(parts)
