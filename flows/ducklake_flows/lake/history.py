"""What the ledger and the catalog say about the past: runs, growth, stages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import literal, rows
from ducklake_flows.lake.ledger import PUBLISHED_STATES
from ducklake_flows.lake.schema import table_columns
from ducklake_flows.settings import LAKE
from ducklake_flows.states import RETYPED

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset

NOW = "now"
"""The present state, as an argument."""


def runs(con: DuckDBPyConnection, dataset: str | None = None, limit: int = 10) -> list[dict[str, Any]]:
    """The latest runs that wrote to the ledger, newest first.

    Args:
        con: A connection with the lake attached.
        dataset: Only this dataset; None means all.
        limit: Maximum runs.

    Returns:
        For each run: ``flow_run_id``, ``at`` (its last commit), ``published``, ``failed``, ``rows``, ``bytes``, and
        ``seconds`` (that workers spent on its partitions).
    """
    where = f"AND dataset = {literal(dataset)}" if dataset is not None else ""
    return rows(
        con,
        f"""SELECT flow_run_id, max(recorded_at) AS at,
                   count(*) FILTER (state IN {PUBLISHED_STATES}) AS published,
                   count(*) FILTER (state NOT IN {PUBLISHED_STATES}) AS failed,
                   coalesce(sum(rows_published) FILTER (state IN {PUBLISHED_STATES}), 0)::BIGINT AS rows,
                   coalesce(sum(bytes) FILTER (state IN {PUBLISHED_STATES}), 0)::BIGINT AS bytes,
                   coalesce(sum(seconds), 0)::DOUBLE AS seconds
            FROM {LAKE}.ops.ledger WHERE state <> '{RETYPED}' {where}
            GROUP BY flow_run_id ORDER BY max(token) DESC LIMIT {limit}""",
    )


def run_totals(con: DuckDBPyConnection, flow_run_id: str) -> list[dict[str, Any]]:
    """What one run wrote to the ledger, by dataset: ``published``, ``failed``, ``rows``, ``bytes``, ``files``."""
    return rows(
        con,
        f"""SELECT dataset, count(*) FILTER (state IN {PUBLISHED_STATES}) AS published,
                   count(*) FILTER (state NOT IN {PUBLISHED_STATES}) AS failed,
                   coalesce(sum(rows_published) FILTER (state IN {PUBLISHED_STATES}), 0)::BIGINT AS rows,
                   coalesce(sum(bytes) FILTER (state IN {PUBLISHED_STATES}), 0)::BIGINT AS bytes,
                   coalesce(sum(files) FILTER (state IN {PUBLISHED_STATES}), 0)::BIGINT AS files
            FROM {LAKE}.ops.ledger WHERE flow_run_id = {literal(flow_run_id)} AND state <> '{RETYPED}'
            GROUP BY dataset ORDER BY dataset""",
    )


def failures(con: DuckDBPyConnection, limit: int = 500) -> list[dict[str, Any]]:
    """The latest failed attempts, newest first, also of partitions that are published since.

    Returns:
        For each: ``dataset``, ``partition``, ``state``, ``error``, ``at``, ``flow_run_id``, and ``fixed``: whether a
        later attempt at the partition was published.
    """
    return rows(
        con,
        f"""SELECT dataset, partition, state, error, recorded_at AS at, flow_run_id, fixed FROM (
                SELECT *, max(token) FILTER (state IN {PUBLISHED_STATES}) OVER (PARTITION BY dataset, partition) > token
                          IS TRUE AS fixed
                FROM {LAKE}.ops.ledger
            ) WHERE state NOT IN {PUBLISHED_STATES} AND state <> '{RETYPED}'
            ORDER BY token DESC, dataset, partition LIMIT {limit}""",
    )


def growth(con: DuckDBPyConnection, limit: int = 90) -> list[dict[str, Any]]:
    """Rows and bytes in the raw tables at the end of each of the last days (UTC) with a publish, oldest first."""
    return rows(
        con,
        f"""WITH changes AS (
                SELECT (recorded_at AT TIME ZONE 'UTC')::DATE AS day, rows_published, bytes,
                       lag(rows_published) OVER one AS rows_before, lag(bytes) OVER one AS bytes_before
                FROM {LAKE}.ops.ledger WHERE state IN {PUBLISHED_STATES}
                WINDOW one AS (PARTITION BY dataset, partition ORDER BY token)
            ), days AS (
                SELECT day, sum(rows_published - coalesce(rows_before, 0)) AS rows,
                       sum(bytes - coalesce(bytes_before, 0)) AS bytes
                FROM changes GROUP BY day
            )
            SELECT * FROM (
                SELECT day, sum(rows) OVER (ORDER BY day)::BIGINT AS rows,
                       sum(bytes) OVER (ORDER BY day)::BIGINT AS bytes
                FROM days ORDER BY day DESC LIMIT {limit}
            ) ORDER BY day""",
    )


def stages(con: DuckDBPyConnection, since: str = "") -> list[dict[str, Any]]:
    """Seconds by dataset and stage, summed over the ledger's rows: ``dataset``, ``stage``, ``seconds``, ``count``.

    Args:
        con: A connection with the lake attached.
        since: Only rows recorded at or after this time, as ISO text; "" means all.
    """
    where = f"AND recorded_at >= {literal(since)}::TIMESTAMPTZ" if since else ""
    return rows(
        con,
        f"""SELECT dataset, stage, sum(json_extract(profile, '$."' || stage || '"')::DOUBLE) AS seconds,
                   count(*) AS count
            FROM (SELECT dataset, profile, unnest(json_keys(profile)) AS stage
                  FROM {LAKE}.ops.ledger WHERE profile IS NOT NULL {where})
            GROUP BY ALL ORDER BY ALL""",
    )


def attempt_counts(con: DuckDBPyConnection) -> list[tuple[str, str, int]]:
    """Number of attempts in the ledger by dataset and state, since the lake exists."""
    return con.execute(
        f"SELECT dataset, state, count(*) FROM {LAKE}.ops.ledger WHERE state <> '{RETYPED}' GROUP BY ALL ORDER BY ALL"
    ).fetchall()


def attempts(con: DuckDBPyConnection, dataset: str, first: str, last: str, segment: str = "") -> list[dict[str, Any]]:
    """The ledger rows of the partitions of a segment, or of all, from one period to another, oldest first.

    Returns:
        For each row: ``partition``, ``attempt_id``, ``state``, ``rows``, ``bytes``, ``fingerprint``, ``source``,
        ``source_version``, ``error``, ``restores``, ``flow_run_id``, ``at``, and ``snapshot_id`` (None if it has
        expired). ``source`` is None in rows of older releases.
    """
    ledger = table_columns(con)["ops.ledger"]
    return rows(
        con,
        f"""SELECT partition, attempt_id, state, rows_published AS rows, bytes, fingerprint,
                   {"source" if "source" in ledger else "NULL"} AS source, source_version, error, restores,
                   flow_run_id, recorded_at AS at, committed_in AS snapshot_id
            FROM {LAKE}.ops.ledger LEFT JOIN (
                SELECT (commit_extra_info->>'token')::BIGINT AS token, max(snapshot_id) AS committed_in
                FROM {LAKE}.snapshots() WHERE commit_extra_info->>'token' IS NOT NULL GROUP BY ALL
            ) USING (token)
            WHERE dataset = {literal(dataset)} AND state <> '{RETYPED}' AND {_between(first, last, segment)}
            ORDER BY partition, token""",
    )


def builds(con: DuckDBPyConnection, dataset: str, first: str, last: str, segment: str = "") -> list[dict[str, Any]]:
    """The latest builds from such partitions, see `attempts`: one per partition and environment.

    Returns:
        For each: ``partition``, ``environment``, ``attempt_id``, ``flow_run_id`` and ``at``.
    """
    return rows(
        con,
        f"""SELECT partition, environment, arg_max(attempt_id, token) AS attempt_id,
                   arg_max(flow_run_id, token) AS flow_run_id, max(recorded_at) AS at
            FROM {LAKE}.ops.builds WHERE dataset = {literal(dataset)} AND {_between(first, last, segment)}
            GROUP BY ALL ORDER BY ALL""",
    )


def _between(first: str, last: str, segment: str) -> str:
    of = f"split_part(partition, '/', 1) = {literal(segment)} AND " if segment else ""
    return f"{of}split_part(partition, '/', -1) BETWEEN {literal(first)} AND {literal(last)}"


def size(con: DuckDBPyConnection) -> dict[str, int]:
    """The catalog's size: ``snapshots``, ``tables``, ``files`` and ``bytes`` (of the current data files)."""
    tables, files, size_bytes = con.execute(
        f"SELECT count(*), coalesce(sum(file_count), 0), coalesce(sum(file_size_bytes), 0) FROM {LAKE}.table_info()"
    ).fetchall()[0]
    ((snapshots,),) = con.execute(f"SELECT count(*) FROM {LAKE}.snapshots()").fetchall()
    return {"snapshots": int(snapshots), "tables": int(tables), "files": int(files), "bytes": int(size_bytes)}


def snapshot_meant(con: DuckDBPyConnection, asked: str, dataset: Dataset | None = None) -> int:
    """The snapshot that a user means.

    Args:
        con: A connection with the lake attached.
        asked: A snapshot's number, a moment (UTC without a zone), or ``now``; with a dataset also an attempt's id.
        dataset: The dataset of the attempt.

    Raises:
        BadInput: there is none, or it has expired.
    """
    known = [row["snapshot_id"] for row in rows(con, f"SELECT snapshot_id FROM {LAKE}.snapshots() ORDER BY 1")]
    which = f"choose from {known[0]} to {known[-1]}"
    if asked == NOW:
        return int(known[-1])
    if asked.isdecimal() and len(asked) < 19:
        if int(asked) in known:
            return int(asked)
        raise BadInput(f"There is no snapshot {asked}: it has expired, or never was.", which)
    if dataset is not None:
        found = con.execute(
            f"SELECT min(token) FROM {LAKE}.ops.ledger WHERE dataset = {literal(dataset.key)} "
            f"AND attempt_id = {literal(asked)} AND state IN {PUBLISHED_STATES}"
        ).fetchall()[0][0]
        if found is not None and found not in known:
            raise BadInput(f"The snapshot of attempt {asked} has expired.", which)
        if found is not None:
            return int(found)
    try:
        moment = datetime.fromisoformat(asked)
    except ValueError:
        attempt = f", a published attempt of {dataset.key}," if dataset is not None else ""
        raise BadInput(
            f"{asked!r} is not a snapshot{attempt} or a moment.", "write it like this: 12, or 2024-01-31T18:00, or now"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    before = con.execute(
        f"SELECT max(snapshot_id) FROM {LAKE}.snapshots() "
        f"WHERE snapshot_time <= TIMESTAMPTZ {literal(moment.isoformat())}"
    ).fetchall()[0][0]
    if before is None:
        raise BadInput(f"No snapshot is as old as {asked}.", f"choose a snapshot from {known[0]} to {known[-1]}")
    return int(before)


def published_between(con: DuckDBPyConnection, dataset: str, low: int, high: int) -> list[str]:
    """The partitions of a dataset that were published or rolled back after one snapshot, until another, sorted."""
    found = con.execute(
        f"SELECT DISTINCT partition FROM {LAKE}.ops.ledger WHERE dataset = {literal(dataset)} "
        f"AND state IN {PUBLISHED_STATES} AND token > {low} AND token <= {high} ORDER BY 1"
    ).fetchall()
    return [key for (key,) in found]
