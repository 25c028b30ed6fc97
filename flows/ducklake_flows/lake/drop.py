"""Drop what is published: partitions, a dataset's rows, or the tables of a dataset that is no longer defined.

The ledger keeps who dropped what and why, and gets a row for each partition. Earlier snapshots still have the rows, so
`lake rollback --to` brings them back until those expire.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ducklake_flows.datasets.types import quoted
from ducklake_flows.errors import BadInput
from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import commit_message, connected
from ducklake_flows.lake.fence import next_token
from ducklake_flows.lake.restore import NONE, NOTHING
from ducklake_flows.lake.schema import table_columns
from ducklake_flows.lake.transaction import committed
from ducklake_flows.settings import LAKE
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Receipt
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.lake.ledger import Entry
    from ducklake_flows.settings import Settings


def emptied(settings: Settings, dataset: Dataset, pattern: str | None = None) -> tuple[list[Receipt], int]:
    """Receipts of no rows for the published partitions of a dataset, and the rows that they replace in all its tables.

    The caller publishes the receipts.

    Args:
        settings: Where the lake is.
        dataset: The dataset.
        pattern: Only the partitions whose key is this, or matches it (``eu/*``); None: all.

    Raises:
        BadInput: no published partition has this key.
    """
    with connected(settings, read_only=True) as con:
        tables = [{k: e for (_, k), e in ledger.latest(con, d.key).items()} for d in (dataset, *dataset.members)]
    keys = [key for key, entry in sorted(tables[0].items()) if pattern is None or fnmatchcase(key, pattern)]
    there = [key for key in keys if any(key in table and table[key].rows for table in tables)]
    if pattern is not None and not there:
        raise BadInput(f"{dataset.key} has no rows of {pattern}.", f"lake status {dataset.key}")
    of = [one.key for one in (dataset, *dataset.members)]
    receipts = []
    for key in there:
        parent, *members = (_empty(name, key, table.get(key)) for name, table in zip(of, tables, strict=True))
        receipts.append(replace(parent, members=tuple(members)))
    return receipts, sum(table[key].rows for table in tables for key in there if key in table)


def _empty(dataset: str, partition: str, entry: Entry | None) -> Receipt:
    """A receipt without rows."""
    return Receipt(
        dataset=dataset,
        partition=partition,
        attempt_id=new_attempt(),
        files=(),
        rows=0,
        bytes=0,
        columns={},
        fingerprint=NONE,
        source_version=entry.source_version if entry else "",
        seconds=0.0,
        peak_rss=0,
        restores=NOTHING,
        supersedes=entry.attempt_id if entry else "",
    )


def undefined(settings: Settings, key: str) -> dict[str, int]:
    """The tables in the lake of a dataset that the project no longer defines, by key, with their published rows.

    Raises:
        BadInput: the lake has no such table either.
    """
    with connected(settings, read_only=True) as con:
        found = _undefined(con, key)
        if not found:
            raise BadInput(f"Neither the project nor the lake has a dataset {key}.", "lake status")
        return {name: sum(e.rows for e in ledger.latest(con, name).values() if e.attempt_id) for name in found}


def _undefined(con: DuckDBPyConnection, key: str) -> list[str]:
    """The keys of the tables of a dataset and its members."""
    of = re.compile(rf"raw\.{re.escape(key)}(__.*)?")
    return [name.removeprefix("raw.") for name in table_columns(con) if of.fullmatch(name)]


def retire(settings: Settings, key: str, keep: set[str], reason: str, flow_run_id: str) -> int | None:
    """Drop the tables of a dataset that the project no longer defines. Call it within the gate.

    Args:
        settings: Where the lake is.
        key: The dataset's key.
        keep: Keys of tables of the project's datasets.
        reason: Why, for the ledger.
        flow_run_id: Recorded in the ledger.

    Returns:
        The snapshot; None if it was done before.

    Raises:
        CommitConflict: other writers were first in every retry.
        CatalogError: the catalog cannot be written.
    """

    def work(con: DuckDBPyConnection) -> int | None:
        names = [name for name in _undefined(con, key) if name not in keep]
        if not names:
            return None
        token = next_token(con)
        common = {"flow_run_id": flow_run_id, "recorded_at": datetime.now(UTC), "token": token, "reason": reason}
        rows = [
            {**ledger.receipt_row(_empty(name, partition, entry)), "profile": None, **common}
            for name in names
            for (_, partition), entry in ledger.latest(con, name).items()
            if entry.rows
        ]
        for name in names:
            con.execute(f"DROP TABLE {LAKE}.raw.{quoted(name)}")
        ledger.append(con, "ledger", rows)
        commit_message(con, f"drop {key}", token=token, flow_run_id=flow_run_id)
        failpoint("before COMMIT")
        return token

    return committed(settings, work)
