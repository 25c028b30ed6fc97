"""Prefect assets: the tables that a run wrote, each with the tables that it is built from.

Prefect emits an asset's events when a task of `prefect.assets.materialize` ends. Here a run writes many tables, and the
models are built in SQLMesh's process. A task for each table would show it twice in the run's graph, so the events of
`AssetContext`, which such a task emits, are emitted without one: one per table and run, however many partitions.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext
from prefect.states import Completed, Failed

from ducklake_flows.project import get_dataset
from ducklake_flows.report.words import following, ranges, spans
from ducklake_flows.settings import LAKE, PROD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ducklake_flows.orchestration.summary import Summary
    from ducklake_flows.staging.receipt import Receipt

RAW = "raw."


def asset(table: str) -> Asset:
    """The asset of a table: ``ducklake://lake/raw/flights``.

    The key has the name that SQL uses, so it holds no path, host or password, and is the same on every machine.

    Args:
        table: Schema and name. Characters that Prefect refuses in a key become dashes.
    """
    path = "/".join(re.sub(r"[^\w.$-]", "-", part) for part in table.split(".", 1))
    return Asset(key=f"ducklake://{LAKE}/{path}", properties=AssetProperties(name=table))


@contextlib.contextmanager
def emitted(summary: Summary) -> Iterator[None]:
    """At the end of the block, emit one event for each table of which it published partitions, or which only failed.

    What was published stays published, so the events are emitted even if the block ends with an error. A dataset of
    which nothing changed has no event. One with a published partition was materialised; the number of its failed
    partitions is in the metadata.
    """
    try:
        yield
    finally:
        _ingested(summary)


def _ingested(summary: Summary) -> None:
    for key in summary.datasets:
        published = [r for r in summary.published if r.dataset == key]
        failed = sum(f.dataset == key for f in summary.failed)
        if not published and not failed:
            continue
        tables: dict[str, list[Receipt]] = {key: []}
        for receipt in (one for each in published for one in each.all):
            tables.setdefault(receipt.dataset, []).append(receipt)
        for table, receipts in tables.items():
            if get_dataset(table).is_quarantine and not any(r.rows for r in receipts):
                continue
            metadata = {
                "partitions": len(receipts),
                "range": ranges(spans(r.partition for r in receipts)),
                "rows": sum(r.rows for r in receipts),
                "bytes": sum(r.bytes for r in receipts),
                "unchanged": sum(r.dataset == key for r in summary.unchanged),
                "failed": failed,
                "snapshot_id": summary.snapshot_id,
            }
            _emit(f"{RAW}{table}", [], "dlt", metadata, succeeded=bool(receipts))


@dataclass
class _Model:
    """What a transform has done to one model."""

    reads: Sequence[str] = ()
    built: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0


class ModelAssets:
    """Collects the reports of a build; then emits one event for each model that it built or failed to build.

    Args:
        environment: The environment of models. Other environments than ``prod`` have tables, and assets, of their own.

    Attributes:
        snapshot_id: DuckLake's snapshot after the build; None until it is recorded.
    """

    def __init__(self, environment: str) -> None:
        self.snapshot_id: int | None = None
        self._environment = environment
        self._models: dict[str, _Model] = {}

    def report(self, event: Mapping[str, Any]) -> None:
        """Take a report of the build; see `models/runner.py`."""
        model = self._models.setdefault(event["model"], _Model())
        if event["event"] == "begun":
            model.reads = event["reads"]
        elif event["event"] == "model":
            model.built.append((event["start"], event["end"]))
            model.seconds += event["seconds"]
        elif event["event"] == "refused":
            model.failed += 1

    def emit(self) -> None:
        """Emit the events. Each committed interval is complete, even if the build failed afterwards."""
        for name, model in self._models.items():
            metadata = {
                "intervals": ranges(_joined(model.built)),
                "failed": model.failed,
                "seconds": round(model.seconds, 3),
                "snapshot_id": self.snapshot_id,
            }
            reads = [self._table(read) for read in model.reads]
            _emit(self._table(name), reads, "sqlmesh", metadata, succeeded=bool(model.built))

    def _table(self, name: str) -> str:
        """The table or view that readers of the environment use: ``gold.daily``, in dev ``gold__dev.daily``."""
        if self._environment == PROD or name.startswith(RAW):
            return name
        schema, _, table = name.partition(".")
        return f"{schema}__{self._environment}.{table}"


def _joined(intervals: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Intervals in order; those that follow each other as one."""
    found: list[tuple[str, str]] = []
    for start, end in sorted(intervals):
        if found and following(found[-1][1]) == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _emit(table: str, reads: Iterable[str], by: str, metadata: dict[str, Any], *, succeeded: bool) -> None:
    """Emit the events of one table: that it was materialised, or that this failed, and what it was read from."""
    made = asset(table)
    AssetContext(
        downstream_assets={made},
        direct_asset_dependencies={asset(read) for read in reads},
        materialized_by=by,
        materialization_metadata={made.key: metadata},
    ).emit_events(Completed() if succeeded else Failed())
