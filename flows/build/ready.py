"""Which intervals of a model are ready: the ledger answers, so none is recorded as done before its partition landed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from flows.datasets import get_dataset
from flows.datasets.model import partition_at
from flows.lake.ledger import latest

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def ready(
    batch: Sequence[tuple[datetime, datetime]], con: DuckDBPyConnection, key: str
) -> list[tuple[datetime, datetime]]:
    """The intervals whose partition has been published at least once.

    Args:
        batch: Intervals, start included and end excluded, UTC.
        con: A connection with the lake attached.
        key: The dataset that the model reads.
    """
    grain = get_dataset(key).grain
    wanted = [partition_at(start, grain).key for start, _ in batch]
    published = {partition for (_, partition), entry in latest(con, key, wanted).items() if entry.attempt_id}
    return [interval for interval, partition in zip(batch, wanted, strict=True) if partition in published]
