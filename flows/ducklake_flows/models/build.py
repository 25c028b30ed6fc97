"""One build: forget the intervals whose input changed, apply changed models, run what is missing."""

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
"""A stretch of time, end excluded, UTC."""


class _Console(NoopConsole):
    """Hands every evaluated interval to the caller, and keeps what failed."""

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
    """A moment as precise as a model's intervals are: a day, an hour, or a minute."""
    if unit is None or unit.is_date_granularity:
        return moment.date().isoformat()
    return moment.strftime("%Y-%m-%dT%H" if unit is IntervalUnit.HOUR else "%Y-%m-%dT%H:%M")


def build(environment: str, changed: Mapping[str, Sequence[str]], replan: bool, report: Report) -> None:
    """Bring an environment's models up to date.

    Args:
        environment: ``prod``, or the name of a development environment.
        changed: Partitions whose published attempt is not the one the models were built from, by dataset.
        replan: Whether the models' files changed, or the environment was never built. A plan is also made when the
            environment holds other models than the project now has: a raw table's columns or first day changed.
        report: Called with a dict for every interval evaluated.

    Raises:
        RunFailed: a model or an audit failed; names it. The intervals that succeeded are done.
    """
    console = _Console(report)
    set_console(console)
    try:
        context = _context()
        found = context.state_reader.get_environment(environment)
        built = {s.snapshot_id for s in found.snapshots} if found else set()
        # Of the models as they were, for a changed one may take over the intervals of the one before it; and of those
        # as they are, for a plan that failed may have built some of them.
        touched = list(_touched(context, built, changed))
        for one in touched:  # one by one: of several of one model, SQLMesh would remove just the last
            context.state_sync.remove_intervals([one], remove_shared_versions=True)
        # A state that was lost has no environment: everything is built again. A plan that broke off is made again.
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
            "fix the model or its input, then: lake transform",
        ) from error


def clean_up(report: Report) -> None:
    """Drop the tables of models and environments that nothing uses any more (SQLMesh's janitor).

    Raises:
        RunFailed: SQLMesh could not.
    """
    console = _Console(report)
    set_console(console)
    try:
        _context().run_janitor(ignore_ttl=False)
    except SQLMeshError as error:
        cause = " ".join(str(error).split())[:400]
        raise RunFailed(f"SQLMesh's janitor failed: {cause}", "lake transform, then: lake maintain") from error


def _context() -> Context:
    return Context(paths=[str(load_settings().models)])


def _plan(context: Context, environment: str) -> None:
    """Make the environment hold the models as they are, and build what is new of them."""
    # External models are compared here: SQLMesh cannot compare columns with those of a table that nobody knew.
    config = CategorizerConfig.all_full().copy(update={"external": AutoCategorizationMode.OFF})
    builder = context.plan_builder(environment, skip_tests=True, categorizer_config=config)
    plan = builder.build()
    for snapshot in plan.uncategorized:
        _, before = plan.context_diff.modified_snapshots[snapshot.name]
        columns, known = snapshot.model.columns_to_types or {}, before.model.columns_to_types or {}
        kept = bool(known) and known.items() <= columns.items()
        # Only a column that was changed or dropped makes what reads the table be built again.
        change = SnapshotChangeCategory.NON_BREAKING if kept else SnapshotChangeCategory.BREAKING
        builder.set_choice(snapshot, change)
    builder.apply()


def _touched(
    context: Context, built: set[SnapshotId], changed: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Snapshot, tuple[int, int]]]:
    """What is downstream of changed partitions: each model with those of its intervals that overlap them, in ms.

    It is what a restatement plan of the external model restates, but for many stretches: a plan can restate one.

    Args:
        context: Of the models as they are; those that SQLMesh's state knows count.
        built: Further models, those that the environment holds.
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
            # A table that is refreshed whole touches the model from its first interval to its last.
            stretches = spans or [(start_date(snapshot, by_id), datetime.now(UTC))]
            for interval in dict.fromkeys(snapshot.get_removal_interval(*s, strict=False) for s in stretches):
                yield snapshot, interval


def _spans(key: str, partitions: Sequence[str]) -> list[Span]:
    """The contiguous stretches that partitions cover; none for a table that is refreshed whole."""
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
    """The ends of the stretches that changed partitions cover: data of the future can be built, too."""
    return [end for key, partitions in changed.items() for _, end in _spans(key, partitions)]
