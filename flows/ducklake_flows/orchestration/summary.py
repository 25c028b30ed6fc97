"""The summary of an ingest run: as plain values, as artifacts of the Prefect UI, and as an error text."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from ducklake_flows.staging.receipt import Failure, Outcome, Receipt
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.lake.publish import Published
    from ducklake_flows.plan import LeftOut


@dataclass
class Summary:
    """What a run did.

    Seconds are wall time, except for the stages of a chunk, which are summed over the workers: ``dask`` (until a worker
    received the chunk), ``prefect`` (until the task began), ``extract``, ``normalize``, ``inspect``, ``stage``, and
    ``receipt`` (until the run received the outcomes, including the end of the Prefect task).
    """

    datasets: list[str]
    flow_run: str = ""
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

    def add(self, result: Published) -> None:
        """Add the result of publishing a group."""
        self.published += result.receipts
        self.unchanged += result.unchanged
        self.failed += result.failures
        self.older += result.older
        if result.snapshot_id is not None:
            self.commits += 1
            self.snapshot_id = result.snapshot_id

    @property
    def faults(self) -> list[LeftOut]:
        """Datasets that could not be planned."""
        return [out for out in self.left_out if out.is_fault]

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
            "failed": [{"dataset": f.dataset, "partition": f.partition, "error": f.error} for f in self.failed],
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


def create_artifacts(summary: Summary) -> None:
    """Create a run's artifacts in the Prefect UI: a table of its partitions, and a summary."""
    table = [
        {
            "dataset": f.dataset,
            "partition": f.partition,
            "state": f.state,
            "rows": None,
            "bytes": None,
            "seconds": round(f.seconds, 3),
            "error": f.error,
        }
        for f in summary.failed
    ]
    found = {"published": summary.published, "unchanged": summary.unchanged, "older": summary.older}
    for state, receipts in found.items():
        table += [
            {
                "dataset": r.dataset,
                "partition": r.partition,
                "state": state,
                "rows": r.rows,
                "bytes": r.bytes,
                "seconds": round(r.seconds, 3),
                "error": "; ".join(r.warnings),
            }
            for r in sorted(receipts, key=lambda r: (r.dataset, r.partition))
        ]
    if table:
        create_table_artifact(table, key="partitions-done", description="every partition of this run")
    lines = [
        f"## {summary.flow_run}",
        "" if table or summary.no_source else "Nothing to do.",
        f"- published: **{len(summary.published)}** partitions, {summary.rows:,} rows, {summary.commits} commits",
        f"- unchanged: {len(summary.unchanged)}",
        f"- dropped because a newer attempt is published: {len(summary.older)}",
        f"- failed: **{len(summary.failed)}**",
        *(f"    - `{f.dataset} {f.partition}` {f.error}" for f in summary.failed[:20]),
        f"- no source: {len(summary.no_source)} {', '.join(summary.no_source[:10])}",
        *(f"- left out: `{out.dataset}` {out.error.message}" for out in summary.left_out),
        *(f"- {line}" for line in summary.stale),
        "",
        "| stage | seconds |",
        "| --- | ---: |",
        *(f"| {stage} | {seconds:.1f} |" for stage, seconds in summary.seconds.items()),
    ]
    create_markdown_artifact("\n".join(lines), key="ingest-summary", description=summary.flow_run)


def failures_text(summary: Summary) -> str:
    """What failed, one line per cause: partitions first, then datasets that could not be planned."""
    failed, faults = summary.failed, summary.faults
    causes: dict[tuple[str, str], list[str]] = {}
    for f in sorted(failed, key=lambda f: (f.dataset, f.partition)):
        causes.setdefault((f.dataset, f.error), []).append(f.partition)
    lines = []
    for (dataset, error), keys in list(causes.items())[:10]:
        which = keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"
        lines.append(f"  {dataset} {which}: {error}")
    if len(causes) > 10:
        lines.append(f"  and {len(causes) - 10} more causes; see: lake status")
    counted = []
    if failed:
        counted.append(f"{len(failed)} partition{'s' if len(failed) > 1 else ''} failed")
    if faults:
        counted.append(f"{len(faults)} dataset{'s' if len(faults) > 1 else ''} could not be planned")
        lines += [f"  {out.dataset}: {out.error.message}" for out in faults]
    return "\n".join([f"{' and '.join(counted)}; all others are published.", *lines])


def next_step(summary: Summary) -> str:
    """The next step after a run with failures: a command that retries them, however the run was started."""
    if not summary.failed:
        return summary.faults[0].error.fix
    datasets = dict.fromkeys(f.dataset for f in summary.failed)
    days = [f"{f.partition}-01"[:10] for f in summary.failed if f.partition != "full"]
    span = f" --start {min(days)} --end {max(days)}" if days else ""
    return f"fix the cause, then run: lake backfill {' '.join(datasets)}{span}"
