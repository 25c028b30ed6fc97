"""One build: remove the intervals whose input changed, apply changed models, run the missing intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlmesh.core.config import AutoCategorizationMode, CategorizerConfig
from sqlmesh.core.console import NoopConsole, set_console
from sqlmesh.core.context import Context
from sqlmesh.core.node import IntervalUnit
from sqlmesh.core.snapshot import Snapshot, SnapshotChangeCategory, SnapshotId, start_date
from sqlmesh.core.snapshot.definition import snapshots_to_dag
from sqlmesh.utils.date import to_datetime
from sqlmesh.utils.errors import SQLMeshError

from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import RunFailed
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import LAKE, load_settings

Report = Callable[[dict[str, Any]], None]
Span = tuple[datetime, datetime]
"""A time range, end excluded, UTC."""


class _Console(NoopConsole):
    """Reports every evaluated interval to the caller and collects failures."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.failures: list[str] = []

    def update_snapshot_evaluation_progress(
        self,
        snapshot: Snapshot,
        interval: tuple[int, int],
        batch_idx: int,
        duration_ms: int | None,
        num_audits_passed: int,
        num_audits_failed: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self._report(
            {
                "event": "model",
                "model": snapshot.name.replace('"', "").removeprefix(f"{LAKE}."),
                "start": _named(to_datetime(interval[0]), snapshot.node.interval_unit),
                "end": _named(to_datetime(interval[1]) - timedelta(microseconds=1), snapshot.node.interval_unit),
                "seconds": round((duration_ms or 0) / 1000, 3),
                "audits_passed": num_audits_passed,
                "audits_failed": num_audits_failed,
            }
        )

    def log_failed_models(self, errors: Sequence[Any]) -> None:
        for error in errors:
            node = str(error.node[0] if isinstance(error.node, tuple) else error.node)
            cause = " ".join(str(error.__cause__ or error).split())[:400]
            self.failures.append(f"{node.replace(chr(34), '')}: {cause}")

    def log_warning(self, short_message: str, long_message: str | None = None, *args: Any, **kwargs: Any) -> None:
        self._report({"event": "warning", "text": short_message})


def _named(moment: datetime, unit: IntervalUnit | None) -> str:
    """A moment with the precision of a model's intervals: a day, an hour, or a minute."""
    if unit is None or unit.is_date_granularity:
        return moment.date().isoformat()
    return moment.strftime("%Y-%m-%dT%H" if unit is IntervalUnit.HOUR else "%Y-%m-%dT%H:%M")


def build(environment: str, changed: Mapping[str, Sequence[str]], replan: bool, report: Report) -> None:
    """Bring an environment's models up to date.

    Args:
        environment: ``prod``, or the name of a development environment.
        changed: Partitions whose published attempt differs from the one the models were built from, by dataset.
        replan: Whether the models' files changed, or the environment was never built. Independent of it, a plan is
            made when the environment's models differ from the project's: a raw table's columns or first day changed.
        report: Called with a dict for every interval evaluated.

    Raises:
        RunFailed: a model or an audit failed; the message names it. Intervals that succeeded stay built.
    """
    console = _Console(report)
    set_console(console)
    try:
        context = _context()
        found = context.state_reader.get_environment(environment)
        built = {s.snapshot_id for s in found.snapshots} if found else set()
        # Includes the environment's old models: a changed model may inherit the intervals of its predecessor.
        # Includes the project's current models: a failed plan may have built some of their intervals.
        touched = list(_touched(context, built, changed))
        for one in touched:  # one call each: given several intervals of a model, SQLMesh removes only the last
            context.state_sync.remove_intervals([one], remove_shared_versions=True)
        # If SQLMesh's state was lost, there is no environment: build everything. Repeat an unfinished plan.
        whole = found is not None and found.finalized_ts is not None
        if replan or not whole or {s.snapshot_id for s in context.snapshots.values()} != built:
            _plan(context, environment)
            touched = list(_touched(context, set(), changed))
        if touched:
            status = context.run(
                environment,
                start=to_datetime(min(start for _, (start, _) in touched)),
                end=to_datetime(max(end for _, (_, end) in touched)),
                execution_time=max([datetime.now(UTC), *_ends(changed)]),
                skip_janitor=True,
                ignore_cron=True,
            )
            if status.is_failure:
                raise SQLMeshError("models failed")
    except SQLMeshError as error:
        causes = console.failures or [" ".join(str(error).split())[:400]]
        raise RunFailed(
            f"{len(causes)} model{'s' if len(causes) > 1 else ''} failed in {environment}.\n"
            + "\n".join(f"  {cause}" for cause in causes),
            "fix the model or its input, then run: lake transform",
        ) from error


def clean_up(report: Report) -> None:
    """Drop the tables of unused models and environments (SQLMesh's janitor).

    Raises:
        RunFailed: the janitor failed.
    """
    console = _Console(report)
    set_console(console)
    try:
        _context().run_janitor(ignore_ttl=False)
    except SQLMeshError as error:
        cause = " ".join(str(error).split())[:400]
        raise RunFailed(f"SQLMesh's janitor failed: {cause}", "lake transform, then run: lake maintain") from error


def _context() -> Context:
    return Context(paths=[str(load_settings().models)])


def _plan(context: Context, environment: str) -> None:
    """Apply the project's models to the environment and build new and changed ones."""
    # External models are categorised below: SQLMesh cannot compare them if the earlier columns are unknown.
    config = CategorizerConfig.all_full().copy(update={"external": AutoCategorizationMode.OFF})
    builder = context.plan_builder(environment, skip_tests=True, categorizer_config=config)
    plan = builder.build()
    for snapshot in plan.uncategorized:
        _, before = plan.context_diff.modified_snapshots[snapshot.name]
        columns, known = snapshot.model.columns_to_types or {}, before.model.columns_to_types or {}
        kept = bool(known) and known.items() <= columns.items()
        # Rebuild downstream models only if a column changed or was dropped.
        change = SnapshotChangeCategory.NON_BREAKING if kept else SnapshotChangeCategory.BREAKING
        builder.set_choice(snapshot, change)
    builder.apply()


def _touched(
    context: Context, built: set[SnapshotId], changed: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Snapshot, tuple[int, int]]]:
    """The models downstream of changed partitions, each with its overlapping intervals, in ms since the epoch.

    Equals the restatement of a plan for the external model, but for many time ranges: a plan restates only one.

    Args:
        context: Context of the project's current models. Models that are not in SQLMesh's state are ignored.
        built: Further models: the ones in the environment.
        changed: Partitions by dataset.
    """
    wanted = built | {s.snapshot_id for s in context.snapshots.values()}
    by_id = context.state_reader.get_snapshots(wanted)
    dag = snapshots_to_dag(by_id.values())
    for key, partitions in changed.items():
        raws = [i for i in by_id if i.name.replace('"', "") == f"{LAKE}.raw.{key}"]
        spans = _spans(key, partitions)
        for snapshot in (by_id[i] for raw in raws for i in dag.downstream(raw) if i in by_id):
            if not snapshot.is_model or snapshot.model.kind.is_view or snapshot.model.kind.is_external:
                continue
            # A dataset without time partitions affects all of the model's intervals.
            stretches = spans or [(start_date(snapshot, by_id), datetime.now(UTC))]
            for interval in dict.fromkeys(snapshot.get_removal_interval(*s, strict=False) for s in stretches):
                yield snapshot, interval


def _spans(key: str, partitions: Sequence[str]) -> list[Span]:
    """The contiguous time ranges that partitions cover; empty for a dataset of grain ``full``."""
    grain = get_dataset(key).grain
    spans: list[Span] = []
    if grain is Grain.full:
        return spans
    for name in sorted(partitions):
        partition = parse_partition(name, grain)
        start, end = partition.start.replace(tzinfo=UTC), partition.end.replace(tzinfo=UTC)
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _ends(changed: Mapping[str, Sequence[str]]) -> list[datetime]:
    """The ends of the time ranges of changed partitions. They may lie in the future, and are built too."""
    return [end for key, partitions in changed.items() for _, end in _spans(key, partitions)]
