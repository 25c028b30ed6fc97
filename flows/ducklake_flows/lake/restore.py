"""Restore: read rows that were published before from a snapshot, and stage them as a new attempt.

`stage_previous` is for a rollback: the rows before the published ones. `stage_published` is for a repair: the published
rows, after they were lost.

A path is registered at most once, so the old files are not registered again. They are deleted after their snapshot
expires.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput, Rejected
from ducklake_flows.lake.connect import connected, literal, rows
from ducklake_flows.lake.fence import META
from ducklake_flows.lake.files import holds_sql
from ducklake_flows.lake.ledger import fingerprints, history
from ducklake_flows.lake.migration import convert, since
from ducklake_flows.lake.rows import condition
from ducklake_flows.lake.schema import qualified, table_columns
from ducklake_flows.scratch import scratch
from ducklake_flows.settings import LAKE, Settings
from ducklake_flows.staging.inspect import fingerprint_text, inspect
from ducklake_flows.staging.layout import new_attempt, staged_path
from ducklake_flows.staging.receipt import Receipt
from ducklake_flows.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.staging.inspect import Inspection


def stage_previous(settings: Settings, dataset: Dataset, partition: Partition) -> Receipt:
    """Stage the rows that were published before the current ones, of all tables. The caller publishes them.

    Rolling back twice goes back two attempts.

    Raises:
        BadInput: nothing was published before, its snapshot has expired, or its rows differ from the ledger.
    """
    started = time.monotonic()
    name = f"{dataset.key} {partition}"
    with connected(settings, read_only=True) as con, scratch() as work:
        published = history(con, dataset.key, partition.key)
        if not published:
            raise BadInput(f"{name} was never published.", f"lake status {dataset.key}")
        current = published[-1]
        tables = (dataset, *dataset.members)
        # All tables of a dataset are published in one transaction, so they share a token.
        of = [{row["token"]: row for row in history(con, one.key, partition.key)} for one in tables]

        def whole(row: Mapping[str, Any]) -> list[Any]:
            return [
                rows.get(row["token"], {}).get("fingerprint") or (NONE if one.is_quarantine else None)
                for one, rows in zip(tables, of, strict=True)
            ]

        # A rollback over a migration has the restored attempt's rows, but another fingerprint.
        others = [row for row in _still_meant(published) if _shown(row) != _shown(current)]
        before = [row for row in others if whole(row) != whole(current)]
        if not before:
            raise BadInput(f"{name} has no attempt before the published one.", f"lake status {dataset.key}")
        target = before[-1]
        last_seen = max(n for n, row in enumerate(published) if _shown(row) == _shown(target))
        snapshot = _snapshot_before(con, name, published[last_seen + 1]["token"])
        receipts = []
        for one, rows in zip(tables, of, strict=True):
            if (wanted := rows.get(published[last_seen]["token"])) is None and one.is_quarantine:
                receipts.append(_staged(settings, one, partition, work, inspect(one, [partition], [])[0], started))
                continue
            if wanted is None:
                raise BadInput(
                    f"The previous attempt at {name} is older than {one.table}.",
                    f"load another version from its source: {backfill(dataset, partition, '--mode all')}",
                )
            file = work / f"{one.key}.parquet"
            _copy(con, one, partition, snapshot, file)
            seen = inspect(one, [partition], [str(file)])[0]
            if seen.fingerprint != wanted["fingerprint"]:
                what = f"The rows of the previous attempt at {one.key} {partition} differ from what was published."
                raise BadInput(what, "lake verify")
            file, seen = _as_now(con, one, partition, snapshot, file, seen)
            receipt = _staged(settings, one, partition, file, seen, started)
            # The version that was rolled back: once the source is fixed, the partition is stale and is loaded again.
            version = current["source_version"] or ""
            receipts.append(replace(receipt, source_version=version, restores=_shown(wanted)))
    return replace(receipts[0], supersedes=current["attempt_id"], members=tuple(receipts[1:]))


NONE = fingerprint_text(0, None)
"""The fingerprint of no rows. The ledger does not name a quarantine table until it has a row."""


NOTHING = "nothing"
"""What a rollback to before a partition's first attempt restores."""


def stage_as_of(
    settings: Settings, dataset: Dataset, partition: Partition, snapshot: int, *, dry_run: bool = False
) -> Receipt | None:
    """Stage the rows of a partition as of a snapshot, of all tables. The caller publishes them.

    Args:
        settings: Where the lake is.
        dataset: The partition's dataset.
        partition: The partition.
        snapshot: The snapshot.
        dry_run: Stage nothing: the receipt only tells what it would have.

    Returns:
        The receipt, of no rows if nothing was published then; None if the same rows are published now.

    Raises:
        BadInput: the rows of the snapshot differ from the ledger.
    """
    started = time.monotonic()
    tables = (dataset, *dataset.members)
    receipts = []
    is_same = True
    with connected(settings, read_only=True) as con, scratch() as work:
        there = set(table_columns(con))
        for one in tables:
            published = history(con, one.key, partition.key)
            before = [row for row in published if row["token"] <= snapshot]
            wanted, current = (some[-1] if some else None for some in (before, published))
            restores, shown = (_shown(row) if row is not None else NOTHING for row in (wanted, current))
            is_same = is_same and restores == shown
            if wanted is None or one.table not in there:
                receipt = _staged(settings, one, partition, work, inspect(one, [partition], [])[0], started)
            else:
                file = work / f"{one.key}.parquet"
                _copy(con, one, partition, snapshot, file)
                seen = inspect(one, [partition], [str(file)])[0]
                if seen.fingerprint not in fingerprints(con, wanted["attempt_id"]):
                    what = f"The rows of {one.key} {partition} in snapshot {snapshot} differ from what was published."
                    raise BadInput(what, "lake verify")
                file, seen = _as_now(con, one, partition, snapshot, file, seen)
                receipt = _staged(settings, one, partition, file, seen, started, dry_run=dry_run)
            version = (current or {}).get("source_version") or ""
            receipts.append(replace(receipt, source_version=version, restores=restores))
            if one is dataset:
                superseded = current["attempt_id"] if current else ""
    if is_same:
        return None
    return replace(receipts[0], supersedes=superseded, members=tuple(receipts[1:]))


def stage_published(settings: Settings, dataset: Dataset, partition: Partition) -> Receipt:
    """Stage the published rows again, from the last snapshot that has them as the ledger says. The caller publishes.

    Raises:
        BadInput: nothing was published, or no snapshot that can be read has the rows.
    """
    import duckdb

    started = time.monotonic()
    name = f"{dataset.key} {partition}"
    with connected(settings, read_only=True) as con, scratch() as work:
        published = history(con, dataset.key, partition.key)
        if not published:
            raise BadInput(f"{name} was never published.", f"lake status {dataset.key}")
        current = published[-1]
        wanted = fingerprints(con, current["attempt_id"])
        file = work / "rows.parquet"
        for snapshot in _snapshots_with(con, dataset, partition):
            try:
                _copy(con, dataset, partition, snapshot, file)
                seen = inspect(dataset, [partition], [str(file)])[0]
            except (duckdb.Error, Rejected):
                continue  # its files are lost, too, or are cleaned up
            if seen.fingerprint in wanted:
                file, seen = _as_now(con, dataset, partition, snapshot, file, seen)
                break
        else:
            raise BadInput(
                f"No snapshot of the lake has the published rows of {name} any more.",
                f"load another version from its source: {backfill(dataset, partition, '--mode all')}",
            )
        receipt = _staged(settings, dataset, partition, file, seen, started)
    return replace(
        receipt,
        source_version=current["source_version"] or "",
        restores=current["restores"] or "",
        supersedes=current["attempt_id"],
    )


def backfill(dataset: Dataset, partition: Partition, options: str) -> str:
    """The command that runs one partition."""
    if dataset.grain is Grain.full and not dataset.segment_column:
        return f"lake backfill {dataset.key} {options}"
    return f'lake backfill {dataset.key} --partition "{partition}" {options}'


def _staged(
    settings: Settings,
    dataset: Dataset,
    partition: Partition,
    file: Path,
    seen: Inspection,
    started: float,
    *,
    dry_run: bool = False,
) -> Receipt:
    """Stage a local file as a new attempt."""
    attempt = new_attempt()
    staged = staged_path(dataset, partition, attempt, 0)
    if seen.rows and not dry_run:
        stage = open_storage(settings.data_path, settings)
        stage.put(file, staged)
        stage.sync([staged])
    return Receipt(
        dataset=dataset.key,
        partition=partition.key,
        attempt_id=attempt,
        files=(staged,) if seen.rows else (),
        rows=seen.rows,
        bytes=file.stat().st_size if seen.rows else 0,
        columns=seen.columns,
        fingerprint=seen.fingerprint,
        source_version="",
        seconds=time.monotonic() - started,
        peak_rss=0,
    )


def _snapshots_with(con: DuckDBPyConnection, dataset: Dataset, partition: Partition) -> Iterator[int]:
    """Snapshots with each earlier state of a partition, latest first: the last one before each change of its files."""
    there = sorted(row["snapshot_id"] for row in rows(con, f"SELECT snapshot_id FROM {LAKE}.snapshots()"))
    changed = con.execute(
        f"""SELECT DISTINCT unnest([f.end_snapshot, d.begin_snapshot, d.end_snapshot, f.begin_snapshot]) AS changed
            FROM {META}.ducklake_data_file f
            JOIN {META}.ducklake_table t USING (table_id) JOIN {META}.ducklake_schema s USING (schema_id)
            LEFT JOIN {META}.ducklake_delete_file d USING (data_file_id)
            WHERE t.end_snapshot IS NULL AND s.end_snapshot IS NULL AND s.schema_name = 'raw'
              AND t.table_name = {literal(dataset.key)} AND {holds_sql(dataset, partition)}"""
    ).fetchall()
    since = -1
    states = []
    for change in sorted(int(found) for (found,) in changed if found is not None):
        states.append([snapshot for snapshot in there if since <= snapshot < change])
        since = change
    for state in reversed(states):
        yield from state[-1:]


def _shown(row: Mapping[str, Any]) -> str:
    """The attempt that first published the rows of a ledger row."""
    return str(row["restores"] or row["attempt_id"])


def _still_meant(published: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A partition's states minus those already rolled back. One that comes back after that is a new state."""
    meant: list[Mapping[str, Any]] = []
    for row in published:
        shown = [_shown(each) for each in meant]
        if row["restores"] in shown:
            del meant[shown.index(row["restores"]) + 1 :]
        else:
            meant.append(row)
    return meant


def _snapshot_before(con: DuckDBPyConnection, name: str, token: int) -> int:
    """The last snapshot before a ledger row's commit. The commit is found by the token in its message.

    Not the snapshot that published the wanted rows: it may have expired while the rows were still current.
    """
    found = rows(con, f"SELECT snapshot_id, commit_extra_info FROM {LAKE}.snapshots()")
    there = {int(snapshot["snapshot_id"]) for snapshot in found}
    for snapshot in found:
        before = int(snapshot["snapshot_id"]) - 1
        if json.loads(snapshot["commit_extra_info"] or "{}").get("token") == token and before in there:
            return before
    raise BadInput(
        f"The snapshot of the previous attempt at {name} has expired, so its rows can no longer be read.",
        f"load it again from its source: lake backfill {name.split(maxsplit=1)[0]} --mode all",
    )


def _as_now(
    con: DuckDBPyConnection, dataset: Dataset, partition: Partition, snapshot: int, file: Path, seen: Inspection
) -> tuple[Path, Inspection]:
    """Rows as of a snapshot in the columns that the table has since; see `ducklake_flows.lake.migration`."""
    changes = since(con, dataset.table, snapshot)
    if not changes:
        return file, seen
    columns = seen.columns
    for change in changes:
        columns = change.after(columns)
    made = convert(dataset, partition, file, file.with_name(f"now-{file.name}"), columns, changes)
    return made, inspect(dataset, [partition], [str(made)])[0]


def _copy(con: DuckDBPyConnection, dataset: Dataset, partition: Partition, snapshot: int, file: Path) -> None:
    """Write the partition's rows as of a snapshot to a file."""
    source = f"SELECT * FROM {qualified(dataset)} AT (VERSION => {snapshot}) WHERE {condition(dataset, [partition])}"
    con.execute(f"COPY ({source}) TO {literal(str(file))} (FORMAT parquet)")
