"""The summary of an ingest run: as plain values, and as an error text."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ducklake_flows.plan import counts, stale_left
from ducklake_flows.report import causes
from ducklake_flows.report.words import count, ranges, spans
from ducklake_flows.staging.receipt import Failure, Outcome, Receipt
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect.logging.loggers import LoggingAdapter

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.lake.publish import Published
    from ducklake_flows.plan import LeftOut, Planned
    from ducklake_flows.report.causes import Cause


@dataclass
class Summary:
    """What a run did.

    Seconds are wall time, except for the stages of a chunk, which are summed over the workers: ``dask`` (until a worker
    received the chunk), ``prefect`` (until the task began), ``extract``, ``normalize``, ``inspect``, ``stage``, and
    ``receipt`` (until the run received the outcomes, including the end of the Prefect task).
    """

    datasets: list[str]
    flow_run: str = ""
    plan: Sequence[Planned] = ()
    planned: dict[str, int] = field(default_factory=dict)
    published: list[Receipt] = field(default_factory=list)
    unchanged: list[Receipt] = field(default_factory=list)
    older: list[Receipt] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    no_source: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    commits: int = 0
    snapshot_id: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _told: set[tuple[str, str, str]] = field(default_factory=set)

    def add_plan(
        self, planned: Sequence[Planned], todo: Sequence[Planned], logger: logging.Logger | LoggingAdapter
    ) -> None:
        """Add the plan, its counts and what it leaves out because of its state, and log it."""
        self.plan, self.planned = planned, dict(counts(planned))
        self.no_source = [f"{p.dataset} {p.partition}" for p in planned if p.state is State.no_source and not p.runs]
        self.stale = stale_left(planned)
        logger.info("plan: %s", "; ".join([f"{len(todo)} of {len(planned)} partitions to do", *self.stale]))

    def log_left_out(self, logger: logging.Logger | LoggingAdapter) -> None:
        """Log the datasets that the plan leaves out; a fault as an error."""
        for out in self.left_out:
            logger.log(
                logging.ERROR if out.is_fault else logging.INFO, "%s is skipped: %s", out.dataset, out.error.message
            )

    def add_seconds(self, stage: str, since: float) -> None:
        """Add the time since ``since``, a value of `time.monotonic`, to a stage."""
        self._add(stage, time.monotonic() - since)

    def add_profile(self, profile: Mapping[str, float]) -> None:
        """Add a partition's seconds by stage."""
        for stage, seconds in profile.items():
            self._add(stage, seconds)

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def without_absent(self, group: Sequence[Outcome], datasets: Mapping[str, Dataset]) -> list[Outcome]:
        """Remove the partitions from a group that the source reported at read time as not existing.

        They are counted as ``no_source``. In a dataset that must be complete, they stay in the group as failures.
        """
        for outcome in group:
            self.add_profile(outcome.profile)
        absent = [
            o
            for o in group
            if isinstance(o, Failure) and o.state == State.no_source and not datasets[o.dataset].complete
        ]
        self.no_source += [f"{o.dataset} {o.partition}" for o in absent]
        return [o for o in group if o not in absent]

    def add(self, result: Published, logger: logging.Logger | LoggingAdapter) -> None:
        """Add the result of publishing a group, and log it."""
        self.published += result.receipts
        self.unchanged += result.unchanged
        self.failed += result.failures
        self.older += result.older
        if result.snapshot_id is not None:
            self.commits += 1
            self.snapshot_id = result.snapshot_id
            logger.info("snapshot %d: %s", result.snapshot_id, _published(result))
        for older in result.older:
            logger.warning("%s %s: dropped, a later attempt is published", older.dataset, older.partition)

    @property
    def faults(self) -> list[LeftOut]:
        """Datasets that could not be planned."""
        return [out for out in self.left_out if out.is_fault]

    @property
    def causes(self) -> list[Cause]:
        """The failed partitions, grouped by cause."""
        return causes.causes(map(_failed, self.failed))

    def new_causes(self, failures: Sequence[Failure]) -> list[Cause]:
        """The causes of these failures that the run has not met before, each with these partitions."""
        known = self._told.copy()
        self._told |= {_failed(f).kind for f in failures}
        return causes.causes(f for f in map(_failed, failures) if f.kind not in known)

    @property
    def rows(self) -> int:
        """Rows published."""
        return sum(r.rows for r in self.published)

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {
            "datasets": self.datasets,
            "flow_run": self.flow_run,
            "planned": self.planned,
            "published": len(self.published),
            "unchanged": len(self.unchanged),
            "older": len(self.older),
            "failed": [
                {"dataset": f.dataset, "partition": f.partition, "error": f.error}
                for f in sorted(self.failed, key=lambda f: (f.dataset, f.partition))
            ],
            "causes": [cause.to_json() for cause in self.causes],
            "no_source": sorted(self.no_source),
            "left_out": [{"dataset": out.dataset, "error": out.error.message} for out in self.left_out],
            "stale": self.stale,
            "rows": self.rows,
            "bytes": sum(r.bytes for r in self.published),
            "commits": self.commits,
            "snapshot_id": self.snapshot_id,
            "peak_rss": max((r.peak_rss for r in self.published), default=0),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }


def _failed(failure: Failure) -> causes.Failed:
    return causes.Failed(failure.dataset, failure.partition, failure.state, failure.error, failure.fix)


def _published(result: Published) -> str:
    """What a commit published: ``flights 2013-01-01..03 (3 partitions, 2,699 rows)``, and its failures."""
    keys: dict[str, list[str]] = {}
    for receipt in result.receipts:
        keys.setdefault(receipt.dataset, []).append(receipt.partition)
    told = []
    for dataset, partitions in sorted(keys.items()):
        total = sum(r.rows for r in result.receipts if r.dataset == dataset)
        told.append(
            f"{dataset} {ranges(spans(sorted(partitions)))} "
            f"({count(len(partitions), 'partition')}, {count(total, 'row')})"
        )
    failed = [f"{count(len(result.failures), 'failure')} recorded"] if result.failures else []
    return "; ".join(told + failed) or "nothing new"


def failures_text(summary: Summary) -> str:
    """What failed, one line per cause: partitions first, then datasets that could not be planned."""
    lines = causes.lines(summary.causes)
    counted = []
    if summary.failed:
        counted.append(f"{count(len(summary.failed), 'partition')} failed")
    if summary.faults:
        counted.append(f"{count(len(summary.faults), 'dataset')} could not be planned")
        lines += [f"  {out.dataset}: {out.error.message}" for out in summary.faults]
    return "\n".join([f"{' and '.join(counted)}; all others are published.", *lines])


def next_step(summary: Summary) -> str:
    """The next step for each cause of a run's failures."""
    if not summary.failed:
        return summary.faults[0].error.fix
    return causes.next_steps(summary.causes)
