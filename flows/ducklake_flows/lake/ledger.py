"""The ledger, stored in the lake itself: the outcome of each attempt, and what the models were built from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ducklake_flows.lake.connect import literal, rows
from ducklake_flows.lake.fence import META
from ducklake_flows.lake.lookup import ledger_rows
from ducklake_flows.settings import LAKE
from ducklake_flows.states import PUBLISHED, RETYPED, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Failure, Receipt


class Entry(NamedTuple):
    """The state of one partition: its latest ledger row, and the attempt whose rows are in the raw table.

    A tuple of plain values: a lake has many thousands.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.
        state: Of the latest row: ``published``, ``failed``, ``rejected`` or ``rolled_back``.
        error: Of the latest row.
        attempt_id: The published attempt; "" if there is none.
        rows: Rows of the published attempt.
        bytes: Size of its files.
        seconds: Time that a worker spent on the latest attempt.
        fingerprint: Digest of the published attempt's rows.
        source_version: The source's version that was last published or found unchanged.
        recorded_us: When the latest row was written, in microseconds since 1970 (UTC).
        newest: The latest attempt that was published or whose rows were already published.
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
    recorded_us: int
    newest: str

    @property
    def recorded_at(self) -> datetime:
        """When the latest row was written, UTC."""
        return _EPOCH + timedelta(microseconds=self.recorded_us)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The ledger's record of one attempt: state and error of its latest row, and its token."""

    state: str
    error: str
    token: int


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

PUBLISHED_STATES = str(tuple(state.value for state in PUBLISHED))
"""The states of a ledger row with published rows, as a list in SQL."""

_LATEST = f"""
           dataset, partition,
           arg_max(state, token) FILTER (state <> '{RETYPED}') AS state,
           coalesce(arg_max_null(error, token) FILTER (state <> '{RETYPED}'), '') AS error,
           coalesce(arg_max(attempt_id, token) FILTER (state IN {PUBLISHED_STATES}), '') AS attempt_id,
           coalesce(arg_max(rows_published, token) FILTER (state IN {PUBLISHED_STATES}), 0) AS rows,
           coalesce(arg_max(bytes, token) FILTER (state IN {PUBLISHED_STATES}), 0) AS bytes,
           arg_max(seconds, token) FILTER (state <> '{RETYPED}') AS seconds,
           coalesce(arg_max(fingerprint, token) FILTER (state IN {PUBLISHED_STATES} OR state = '{RETYPED}'), '')
               AS fingerprint,
           coalesce(arg_max(source_version, token) FILTER (state IN {PUBLISHED_STATES}), '') AS source_version,
           epoch_us(max(recorded_at)) AS recorded_us,
           coalesce(arg_max(coalesce(confirmed_by, attempt_id), token) FILTER (state IN {PUBLISHED_STATES}), '')
               AS newest
"""


def latest(
    con: DuckDBPyConnection,
    dataset: str | None = None,
    between: Sequence[str] = (),
    since: datetime | None = None,
) -> dict[tuple[str, str], Entry]:
    """The state of partitions, by dataset and partition; those without a ledger row are left out.

    Args:
        con: A connection with the lake attached.
        dataset: Only this dataset; None means all.
        between: Only partitions from the smallest to the largest of these keys, compared as text; empty means all.
        since: Only partitions with a row recorded since this moment.
    """
    # Not bound: to bind a parameter, DuckDB imports pandas and Arrow, which delays a command by 0.3 s.
    where = f"dataset = {literal(dataset)}" if dataset is not None else "true"
    if between:
        where += f" AND partition BETWEEN {literal(min(between))} AND {literal(max(between))}"
    if since is not None:
        recent = f"recorded_at >= TIMESTAMPTZ {literal(since.isoformat())}"
        where += f" AND (dataset, partition) IN (SELECT (dataset, partition) FROM {LAKE}.ops.ledger WHERE {recent})"
    found = con.execute(f"SELECT {_LATEST} FROM {LAKE}.ops.ledger WHERE {where} GROUP BY ALL").fetchall()
    return {row[:2]: Entry._make(row) for row in found}


def after(entry: Entry | None, row: Mapping[str, Any]) -> Entry:
    """The entry of a partition after a row was appended, equal to what `latest` would read."""
    entry = entry or Entry(row["dataset"], row["partition"], "", "", "", 0, 0, 0.0, "", "", 0, "")
    recorded = (row["recorded_at"] - _EPOCH) // timedelta(microseconds=1)
    if row["state"] == RETYPED:
        return entry._replace(fingerprint=row["fingerprint"], recorded_us=recorded)
    changed = {"state": row["state"], "error": row["error"] or "", "seconds": row["seconds"]}
    if row["state"] in PUBLISHED:
        changed |= {"rows": row["rows_published"], "newest": row["confirmed_by"] or row["attempt_id"]}
        changed |= {name: row[name] for name in ("attempt_id", "bytes", "fingerprint", "source_version")}
    return entry._replace(**changed, recorded_us=recorded)


class LedgerCache:
    """The state of partitions, read once and cached. It is valid until another writer changes the ledger.

    Without the cache, a run that publishes in many groups would read the whole ledger for each group.

    Args:
        settings: Where the lake is.
        expected: Keys of partitions that will be needed; they are read together with the first.
    """

    def __init__(self, settings: Settings, expected: Iterable[str] = ()) -> None:
        self._settings, self._expected = settings, set(expected)
        self.forget()

    def forget(self) -> None:
        """Discard the cache: the next `read` queries the ledger."""
        self._token: int | None = None
        """The last snapshot up to which the cache is valid."""
        self._read: set[str] = set()
        self.entries: dict[tuple[str, str], Entry] = {}
        self.attempts: dict[str, Recorded] = {}
        """The ledger's record of every attempt at the partitions that were read."""

    def read(self, con: DuckDBPyConnection, token: int, partitions: Iterable[str]) -> None:
        """Bring the cache up to date for these partitions.

        Args:
            con: A connection with the publishing transaction open.
            token: The token of this transaction.
            partitions: Keys of the partitions.

        Raises:
            CommitConflict: another writer has committed since the transaction began.
        """
        if self._token is not None and self._token < token - 1 and _is_changed(con, self._token, token):
            self.forget()
        self._token = token - 1
        if new := set(partitions) - self._read:
            new |= self._expected - self._read
            self._read |= new
            source = ledger_rows(con, self._settings, token, new)
            if source is None:
                source = f"{LAKE}.ops.ledger WHERE partition IN ({', '.join(map(literal, sorted(new)))})"
            recorded = "row(attempt_id, state, coalesce(error, ''), token)"
            for attempts, *row in con.execute(
                f"SELECT list({recorded} ORDER BY token) FILTER (state <> '{RETYPED}'), {_LATEST} "
                f"FROM {source} GROUP BY ALL"
            ).fetchall():
                self.entries[row[0], row[1]] = Entry._make(row)
                self.attempts.update((attempt, Recorded(*said)) for attempt, *said in attempts)

    def committed(self, token: int, added: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows that a transaction has committed."""
        self._token = token
        for row in added:
            key = (row["dataset"], row["partition"])
            self.entries[key] = after(self.entries.get(key), row)
            if row["state"] != RETYPED:
                self.attempts[row["attempt_id"]] = Recorded(row["state"], row["error"] or "", token)


def _is_changed(con: DuckDBPyConnection, since: int, token: int) -> bool:
    """Whether a snapshot between two, both excluded, may have changed the ledger."""
    (ledger,) = con.execute(
        f"""SELECT t.table_id FROM {META}.ducklake_table t JOIN {META}.ducklake_schema s USING (schema_id)
            WHERE t.table_name = 'ledger' AND s.schema_name = 'ops'
              AND t.end_snapshot IS NULL AND s.end_snapshot IS NULL"""
    ).fetchall()[0]
    # A list of changes, each with the id of its table, such as inlined_insert:5
    changes = con.execute(
        f"SELECT changes_made FROM {META}.ducklake_snapshot_changes "
        f"WHERE snapshot_id > {since} AND snapshot_id < {token}"
    ).fetchall()
    expired = len(changes) < token - 1 - since
    return expired or any(f":{ledger}," in f"{made}," for (made,) in changes)


def snapshot_of(con: DuckDBPyConnection, token: int) -> int | None:
    """The snapshot of a transaction, found by the token in its message; None if it created none."""
    return cast(
        "int | None",
        con.execute(
            f"SELECT max(snapshot_id) FROM {LAKE}.snapshots() WHERE commit_extra_info->>'token' = '{token}'"
        ).fetchall()[0][0],
    )


def attempts_in(con: DuckDBPyConnection, attempt_ids: Iterable[str]) -> set[str]:
    """Which of these attempts are in the ledger, in any state."""
    ids = list(attempt_ids)
    return {
        found
        for (found,) in con.execute(
            f"SELECT attempt_id FROM {LAKE}.ops.ledger WHERE attempt_id IN (SELECT unnest(?::VARCHAR[]))", [ids]
        ).fetchall()
    }


def published_by(con: DuckDBPyConnection, flow_run_id: str) -> set[tuple[str, str]]:
    """The partitions that a flow run has published or rolled back, by dataset and partition."""
    return set(
        con.execute(
            f"SELECT DISTINCT dataset, partition FROM {LAKE}.ops.ledger "
            f"WHERE flow_run_id = {literal(flow_run_id)} AND state IN {PUBLISHED_STATES}"
        ).fetchall()
    )


def history(con: DuckDBPyConnection, dataset: str, partition: str) -> list[dict[str, Any]]:
    """Every published attempt of one partition, oldest first.

    Each has the token of its first ledger row and the fingerprint of its latest one.
    """
    return rows(
        con,
        f"""SELECT attempt_id, min(token) AS token, any_value(restores) AS restores,
                   arg_max(fingerprint, token) AS fingerprint, arg_max(source_version, token) AS source_version
            FROM {LAKE}.ops.ledger
            WHERE dataset = ? AND partition = ? AND (state IN {PUBLISHED_STATES} OR state = '{RETYPED}')
            GROUP BY attempt_id ORDER BY token""",
        [dataset, partition],
    )


def fingerprints(con: DuckDBPyConnection, attempt_id: str) -> set[str]:
    """The fingerprints of an attempt's rows: as published, and after its columns were widened."""
    found = con.execute(
        f"SELECT DISTINCT fingerprint FROM {LAKE}.ops.ledger WHERE attempt_id = {literal(attempt_id)} "
        f"AND (state IN {PUBLISHED_STATES} OR state = '{RETYPED}')"
    ).fetchall()
    return {fingerprint for (fingerprint,) in found}


def receipt_row(receipt: Receipt) -> dict[str, Any]:
    """The ledger row of a published receipt, without the columns that all rows of a transaction share."""
    return {
        "dataset": receipt.dataset,
        "partition": receipt.partition,
        "attempt_id": receipt.attempt_id,
        "state": State.rolled_back if receipt.restores else State.published,
        "rows_in": receipt.rows + receipt.quarantined,
        "rows_published": receipt.rows,
        "rows_quarantined": receipt.quarantined,
        "files": len(receipt.files),
        "bytes": receipt.bytes,
        "fingerprint": receipt.fingerprint,
        "source_version": receipt.source_version,
        "seconds": receipt.seconds,
        "error": "; ".join(receipt.warnings) or None,
        "restores": receipt.restores or None,
        "profile": receipt.profile,
        "confirmed_by": None,
        "source": receipt.source,
    }


def failure_row(failure: Failure) -> dict[str, Any]:
    """The ledger row of a failure, without the shared columns."""
    return {
        "dataset": failure.dataset,
        "partition": failure.partition,
        "attempt_id": failure.attempt_id,
        "state": State.failed if failure.state == State.no_source else failure.state,
        "source_version": failure.source_version,
        "seconds": failure.seconds,
        "error": failure.error,
        "profile": failure.profile,
    }


def retyped_row(entry: Entry, fingerprint: str) -> dict[str, Any]:
    """The ledger row with a published attempt's new fingerprint, without the shared columns."""
    return {
        "dataset": entry.dataset,
        "partition": entry.partition,
        "attempt_id": entry.attempt_id,
        "state": RETYPED,
        "rows_published": entry.rows,
        "fingerprint": fingerprint,
    }


def append(con: DuckDBPyConnection, table: str, added: Sequence[dict[str, Any]]) -> None:
    """Append rows to a table of ``ops``, by column name, within the caller's transaction."""
    if not added:
        return
    import pyarrow as pa

    # The columns of all rows: Arrow would use only those of the first row.
    names = dict.fromkeys(name for row in added for name in row)
    staged = pa.table({name: [row.get(name) for row in added] for name in names})
    con.register("appended", staged)
    con.execute(f"INSERT INTO {LAKE}.ops.{table} BY NAME SELECT * FROM appended")
    con.unregister("appended")


def earliest(con: DuckDBPyConnection) -> dict[str, str]:
    """The earliest partition ever published, by dataset; datasets without one are left out."""
    # Without the segment, which comes first in a key.
    found = con.execute(
        f"SELECT dataset, arg_min(partition, split_part(partition, '/', -1)) FROM {LAKE}.ops.ledger "
        f"WHERE state IN {PUBLISHED_STATES} GROUP BY ALL"
    ).fetchall()
    return dict(found)


def newest(con: DuckDBPyConnection, dataset: str) -> list[str]:
    """The newest partition of each segment of a dataset that was ever published, by its key, or of the dataset."""
    found = con.execute(
        f"SELECT max(partition) FROM {LAKE}.ops.ledger WHERE dataset = {literal(dataset)} "
        f"AND state IN {PUBLISHED_STATES} "
        "GROUP BY CASE WHEN contains(partition, '/') THEN split_part(partition, '/', 1) END ORDER BY ALL"
    ).fetchall()
    return [key for (key,) in found]


def unbuilt(con: DuckDBPyConnection, environment: str) -> dict[tuple[str, str], str]:
    """The published attempts that an environment's models were not built from, by dataset and partition."""
    found = con.execute(
        f"""WITH published AS (
                SELECT dataset, partition,
                       arg_max(attempt_id, token) FILTER (state IN {PUBLISHED_STATES}) AS attempt_id
                FROM {LAKE}.ops.ledger GROUP BY ALL
            ), built AS (
                SELECT dataset, partition, arg_max(attempt_id, token) AS attempt_id
                FROM {LAKE}.ops.builds WHERE environment = {literal(environment)} GROUP BY ALL
            )
            SELECT p.dataset, p.partition, p.attempt_id FROM published p LEFT JOIN built b USING (dataset, partition)
            WHERE p.attempt_id IS NOT NULL AND p.attempt_id IS DISTINCT FROM b.attempt_id"""
    ).fetchall()
    return {(dataset, partition): attempt for dataset, partition, attempt in found}


def last_build(con: DuckDBPyConnection, environment: str) -> datetime | None:
    """When an environment was last built, UTC; None if never."""
    found = con.execute(
        f"SELECT epoch_us(max(recorded_at)) FROM {LAKE}.ops.builds WHERE environment = {literal(environment)}"
    ).fetchall()[0][0]
    return None if found is None else _EPOCH + timedelta(microseconds=found)


def built_project(con: DuckDBPyConnection, environment: str) -> str:
    """The digest of the models that an environment was last built with; "" if it was never built."""
    found = con.execute(
        f"SELECT arg_max(project, token) FROM {LAKE}.ops.builds WHERE environment = {literal(environment)}"
    ).fetchone()
    return (found[0] if found else None) or ""
