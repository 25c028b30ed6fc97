"""Which datasets are overdue: their newest partitions are not published within the dataset's `freshness`.

It is read from the ledger and the dataset files. The sources are not asked, and no load needs to have happened: a
schedule that never ran is one of the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import connected
from ducklake_flows.report.causes import backfill
from ducklake_flows.report.words import duration, ranges, spans

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings


@dataclass(frozen=True, slots=True)
class Overdue:
    """A dataset whose newest partitions are not published in time.

    Args:
        dataset: The dataset's key.
        freshness: How long after its end a partition must be published.
        since: When the dataset became overdue, UTC: the time by which the first of the partitions had to be published.
        partitions: Keys of the partitions that are late, oldest first. None of them is published.
        last: The newest published partition; "" if none was ever published.
        last_at: When the ledger recorded it last, UTC; None if none was ever published.
        error: The error of the newest late partition that failed; "" if none was tried.
        failed: That partition; "" if none was tried.
    """

    dataset: str
    freshness: timedelta
    since: datetime
    partitions: tuple[str, ...]
    last: str
    last_at: datetime | None
    error: str
    failed: str

    @property
    def line(self) -> str:
        """What is late, since when, and what was published last, in one line."""
        what = f"{ranges(spans(self.partitions))} not published within {duration(self.freshness)}"
        last = "nothing was published yet"
        if self.last_at:
            last = f"the last is {self.last}, recorded {_utc(self.last_at)}"
        return f"{self.dataset}: overdue since {_utc(self.since)} UTC: {what}; {last}"

    @property
    def cause(self) -> str:
        """Why, as far as the ledger knows, in one line."""
        if not self.error:
            return "no attempt is recorded: no run was started, it had no worker, or the source has no data"
        return f"last error, {self.failed}: {self.error}"

    @property
    def next_step(self) -> str:
        """The command that loads the partitions."""
        command = backfill(self.dataset, self.partitions)
        return f"fix the cause, then: {command}" if self.error else command

    def to_json(self) -> dict[str, Any]:
        """The same as plain values; times in ISO format."""
        return {
            "dataset": self.dataset,
            "since": self.since.isoformat(),
            "partitions": len(self.partitions),
            "first": self.partitions[0],
            "last": self.partitions[-1],
            "last_published": self.last or None,
            "last_published_at": self.last_at.isoformat() if self.last_at else None,
            "last_error": self.error or None,
            "next": self.next_step,
        }


def overdue(settings: Settings, datasets: Iterable[Dataset], now: datetime | None = None) -> list[Overdue]:
    """The datasets that are overdue. Reads only the ledger.

    Args:
        settings: Where the lake is.
        datasets: Those to look at; the ones without `freshness` never are.
        now: The present, in UTC, without zone; default: the time of this host's clock.

    Raises:
        NotInitialised: there is no lake yet, and one of the datasets has a `freshness`.
        CatalogError: the catalog cannot be opened.
    """
    limited = [d for d in datasets if d.freshness is not None]
    if not limited:
        return []
    with connected(settings, read_only=True) as con:
        return overdue_in(con, limited, now)


def overdue_in(con: DuckDBPyConnection, datasets: Iterable[Dataset], now: datetime | None = None) -> list[Overdue]:
    """The same, with a connection that has the lake attached."""
    now = now or datetime.now(UTC).replace(tzinfo=None)
    return [late for d in datasets if (late := _overdue(con, d, now))]


def _overdue(con: DuckDBPyConnection, dataset: Dataset, now: datetime) -> Overdue | None:
    """What is overdue of a dataset; None if it is fresh."""
    if not isinstance(dataset.freshness, timedelta):
        return None
    newest = {of.segment: of for of in map(dataset.partition, ledger.newest(con, dataset.key))}
    segments = sorted({*dataset.declared, *newest}) if dataset.segment_column else [""]
    late = [
        found
        for segment in segments
        for found in dataset.scheme.of_segments(dataset.overdue(newest.get(segment), now), [segment])
    ]
    if not late:
        return None
    entries = ledger.latest(con, dataset.key, [p.key for p in (*late, *newest.values())])
    # Of an hour that comes twice, the first is greater as text.
    published = {key for (_, key), entry in entries.items() if entry.attempt_id}
    late = sorted((p for p in late if p.key not in published), key=lambda p: (p.start, p.key))
    if not late:
        return None
    keys = [p.key for p in late]
    last_key = max((p for p in newest.values()), key=lambda p: p.start).key if newest else ""
    last = entries[dataset.key, last_key] if newest else None
    failed = next((e for key in reversed(keys) if (e := entries.get((dataset.key, key))) and e.error), None)
    return Overdue(
        dataset.key,
        dataset.freshness,
        (late[0].end + dataset.freshness).replace(tzinfo=UTC),
        tuple(keys),
        last_key,
        last.recorded_at if last else None,
        failed.error if failed else "",
        failed.partition if failed else "",
    )


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
