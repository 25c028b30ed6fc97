"""Signals: an interval is ready when its partitions are published according to the ledger."""

from __future__ import annotations

import typing as t

from sqlmesh import signal

if t.TYPE_CHECKING:
    from sqlmesh.core.context import ExecutionContext
    from sqlmesh.utils.date import DatetimeRanges


@signal()
def published(batch: DatetimeRanges, context: ExecutionContext, dataset: str) -> bool | DatetimeRanges:
    """The intervals of this batch whose partitions of the dataset are all published according to the ledger."""
    from ducklake_flows.models.signals import ready

    return ready(batch, context.engine_adapter.cursor, dataset)
