"""One build: remove the intervals whose input changed, apply changed models, run the missing intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlglot import exp
from sqlmesh.core.config import AutoCategorizationMode, CategorizerConfig
from sqlmesh.core.console import NoopConsole, set_console
from sqlmesh.core.model.kind import IncrementalByPartitionKind
from sqlmesh.core.snapshot import Snapshot, SnapshotChangeCategory, SnapshotId, start_date
from sqlmesh.core.snapshot.definition import snapshots_to_dag
from sqlmesh.utils.date import to_datetime
from sqlmesh.utils.errors import SQLMeshError

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import RunFailed
from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import connected
from ducklake_flows.models.lineage import copied_from
from ducklake_flows.models.scheduler import Interval, LakeContext, Refusal, Refused, named, short
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import load_settings

if TYPE_CHECKING:
    from ducklake_flows.staging.receipt import Checked

Report = Callable[[dict[str, Any]], None]
Span = tuple[datetime, datetime]
"""A time range, end excluded, UTC."""


class _Console(NoopConsole):
    """Reports warnings to the caller and collects failures."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.failures: list[str] = []

    def log_failed_models(self, errors: Sequence[Any]) -> None:
        for error in errors:
            node = str(error.node[0] if isinstance(error.node, tuple) else error.node)
            cause = " ".join(str(error.__cause__ or error).split())[:400]
            self.failures.append(f"{node.replace(chr(34), '')}: {cause}")

    def log_warning(self, short_message: str, long_message: str | None = None, *args: Any, **kwargs: Any) -> None:
        self._report({"event": "warning", "text": short_message})


def build(
    environment: str,
    changed: Mapping[str, Sequence[str]],
    replan: bool,
    report: Report,
    refused: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Bring an environment's models up to date.

    Args:
        environment: ``prod``, or the name of a development environment.
        changed: Partitions whose published attempt differs from the one the models were built from, by dataset.
        replan: Whether the models' files changed, or the environment was never built. Independent of it, a plan is
            made when the environment's models differ from the project's: a raw table's columns or first day changed.
        report: Called with a dict for every interval that is built, audited or refused.
        refused: The intervals that an earlier build refused: ``model``, ``start`` and ``end`` in ms since 1970. Those
            without a changed partition are not tried again, unless the models' files changed.

    Raises:
        RunFailed: a model failed; the message names it. Intervals that succeeded stay built.
    """
    console = _Console(report)
    set_console(console)
    try:
        context = _context(report)
        found = context.state_reader.get_environment(environment)
        built = {s.snapshot_id for s in found.snapshots} if found else set()
        # If SQLMesh's state was lost, there is no environment: build everything. Repeat an unfinished plan.
        whole = found is not None and found.finalized_ts is not None
        plans = replan or not whole or {s.snapshot_id for s in context.snapshots.values()} != built
        context.changed = dict(_parts(context, built, changed, refused))
        # Includes the environment's old models: a changed model may inherit the intervals of its predecessor.
        # Includes the project's current models: a failed plan may have built some of their intervals.
        touched = list(_touched(context, built, changed))
        again = [*_without_refused(context, built, refused), *_returning(context, environment, built)] if plans else []
        for one in touched + again:  # one call each: given several intervals of a model, SQLMesh removes only the last
            context.state_sync.remove_intervals([one], remove_shared_versions=True)
        if plans:
            _plan(context, environment)
            touched = [*_touched(context, set(), changed), *again]
        else:
            _keep_refused(context, refused, touched)
        if touched:
            moment = max([datetime.now(UTC), *_ends(changed)])
            status = context.run(
                environment,
                start=to_datetime(min(start for _, (start, _) in touched)),
                # Not later: a model without a start begins a day before the end.
                end=min(to_datetime(max(end for _, (_, end) in touched)), moment),
                execution_time=moment,
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
        _context(report).run_janitor(ignore_ttl=False)
    except SQLMeshError as error:
        cause = " ".join(str(error).split())[:400]
        raise RunFailed(f"SQLMesh's janitor failed: {cause}", "lake transform, then run: lake maintain") from error


def drop(environment: str, report: Report) -> None:
    """Drop an environment's views and all its tables.

    Raises:
        RunFailed: SQLMesh failed; what is left is dropped by the same call again.
    """
    set_console(_Console(report))
    try:
        context = _context(report)
        if context.state_reader.get_environment(environment):
            context.invalidate_environment(environment, sync=True)
        context.run_janitor(ignore_ttl=True)
    except SQLMeshError as error:
        cause = " ".join(str(error).split())[:400]
        raise RunFailed(
            f"The environment {environment} was not dropped: {cause}", "run the same command again"
        ) from error


def _context(report: Report) -> LakeContext:
    """The project's models, with a scheduler that reports each interval that is built or refused."""

    def event(kind: str, snapshot: Snapshot, interval: Interval) -> dict[str, Any]:
        first, last = named(snapshot, interval)
        return {"event": kind, "model": short(snapshot.name), "start": first, "end": last}

    def begun(snapshot: Snapshot, interval: Interval) -> None:
        report({**event("begun", snapshot, interval), "reads": [short(parent.name) for parent in snapshot.parents]})

    def built(snapshot: Snapshot, interval: Interval, seconds: float, audits: Sequence[Any]) -> None:
        failed = sum(bool(audit.count) for audit in audits)
        counts = {"audits_passed": len(audits) - failed, "audits_failed": failed}
        report({**event("model", snapshot, interval), "seconds": round(seconds, 3), **counts})

    def refused(snapshot: Snapshot, interval: Interval, refusals: Sequence[Refusal]) -> None:
        dag = snapshots_to_dag(context.snapshots.values())
        raws = [short(i.name) for i in dag.upstream(snapshot.snapshot_id) if short(i.name).startswith("raw.")]
        report(
            {
                **event("refused", snapshot, interval),
                "interval": interval,
                "refusals": [asdict(refusal) for refusal in refusals],
                "datasets": sorted(name.removeprefix("raw.") for name in raws),
                "downstream": sorted(short(i.name) for i in dag.downstream(snapshot.snapshot_id)),
            }
        )

    def audited(snapshot: Snapshot, interval: Interval, results: Sequence[Checked]) -> None:
        if results:
            found = [asdict(result) for result in results]
            report({"event": "audited", "model": short(snapshot.name), "interval": interval, "results": found})

    context = LakeContext(paths=[str(load_settings().models)])
    context.refused = Refused(begun, refused, built, audited)
    return context


def _keep_refused(
    context: LakeContext, refused: Sequence[Mapping[str, Any]], touched: Sequence[tuple[Snapshot, Interval]]
) -> None:
    """Leave out the intervals that were refused before, unless a partition that they are built from has changed."""
    names = {short(snapshot.name): snapshot.name for snapshot in context.snapshots.values()}
    for old in refused:
        name, start, end = names.get(old["model"]), old["start"], old["end"]
        if name and not any(s.name == name and a < end and start < b for s, (a, b) in touched):
            context.refused.add(name, (start, end))


def _plan(context: LakeContext, environment: str) -> None:
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
    context: LakeContext, built: set[SnapshotId], changed: Mapping[str, Sequence[str]]
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
        raws = [i for i in by_id if short(i.name) == f"raw.{key}"]
        spans = _spans(key, partitions)
        for snapshot in (by_id[i] for raw in raws for i in dag.downstream(raw) if i in by_id):
            if not snapshot.is_model or snapshot.model.kind.is_view or snapshot.model.kind.is_external:
                continue
            # A dataset without time partitions affects all of the model's intervals.
            stretches = spans or [(start_date(snapshot, by_id), datetime.now(UTC))]
            for interval in dict.fromkeys(snapshot.get_removal_interval(*s, strict=False) for s in stretches):
                yield snapshot, interval


def _without_refused(
    context: LakeContext, built: set[SnapshotId], refused: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Snapshot, Interval]]:
    """The models that were built as a whole without an interval that was refused, downstream of it."""
    by_id = context.state_reader.get_snapshots(built | {s.snapshot_id for s in context.snapshots.values()})
    dag = snapshots_to_dag(by_id.values())
    names = {old["model"] for old in refused}
    ids = {i for parent in by_id if short(parent.name) in names for i in dag.downstream(parent)}
    for snapshot in map(by_id.__getitem__, sorted(ids)):
        by_time = not snapshot.is_model or not snapshot.is_materialized or snapshot.is_incremental_by_time_range
        if not by_time and snapshot.intervals:
            yield snapshot, (snapshot.intervals[0][0], snapshot.intervals[-1][1])


def _returning(
    context: LakeContext, environment: str, built: set[SnapshotId]
) -> Iterator[tuple[Snapshot, tuple[int, int]]]:
    """The intervals of models that come back into an environment and may lack what was published since they left it.

    SQLMesh uses the table of an earlier version of a model again, as it was built then. The tables that a failed plan
    has begun since the environment was last built lack nothing that is not among the changed partitions. Those of
    another environment lack what that one lacks.

    Args:
        context: Context of the project's current models.
        environment: The environment.
        built: The models in the environment.
    """
    found = context.state_reader.get_snapshots(context.snapshots.values())
    back = [s for i, s in found.items() if i not in built and s.is_model and s.is_materialized and s.intervals]
    if not back:
        return
    others = {
        other.name: {info.snapshot_id for info in other.snapshots}
        for other in context.state_reader.get_environments()
        if other.name != environment
    }
    with connected(load_settings(), read_only=True) as con:
        last = ledger.last_build(con, environment)
        lacking: dict[str, dict[str, list[str]]] = {name: {} for name in others}
        for name, keys in lacking.items():
            for dataset, partition in ledger.unbuilt(con, name):
                keys.setdefault(dataset, []).append(partition)
    for snapshot in back:
        kept_by = [name for name, ids in others.items() if snapshot.snapshot_id in ids]
        if kept_by:
            touched = _touched(context, set(), min((lacking[name] for name in kept_by), key=len))
            yield from (each for each in touched if each[0].snapshot_id == snapshot.snapshot_id)
        elif last is not None and snapshot.created_ts < last.timestamp() * 1000:
            yield snapshot, (snapshot.intervals[0][0], snapshot.intervals[-1][1])


def _parts(
    context: LakeContext,
    built: set[SnapshotId],
    changed: Mapping[str, Sequence[str]],
    refused: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[SnapshotId, tuple[str, list[str]]]]:
    """The models of which only the changed segments are built again: a column of each, and its values.

    A model of kind INCREMENTAL_BY_PARTITION, one of whose partition columns is the segment column of each changed
    dataset that it is built from, copied unchanged. All others are built as a whole, and so is one that does not have
    every earlier change: it, or a model that it reads, was not ready or was refused, or is built by time.
    """
    wanted = built | {s.snapshot_id for s in context.snapshots.values()}
    by_id = context.state_reader.get_snapshots(wanted)
    dag = snapshots_to_dag(by_id.values())
    behind = {old["model"] for old in refused}

    def complete(found: Snapshot) -> bool:
        if not found.is_model or found.model.kind.is_external or not found.is_materialized:
            return True
        return bool(found.intervals) and not found.is_incremental_by_time_range and short(found.name) not in behind

    for found in by_id.values():
        if not found.is_model or not isinstance(found.model.kind, IncrementalByPartitionKind):
            continue
        upstream = [by_id[i] for i in dag.upstream(found.snapshot_id) if i in by_id]
        if not all(map(complete, [found, *upstream])):
            continue
        names = {short(parent.name) for parent in upstream}
        datasets = [dataset for key in changed if (dataset := get_dataset(key)).table in names]
        segments = {f"{dataset.table}.{dataset.segment_column}" for dataset in datasets}
        for column in (each.name for each in found.model.partitioned_by if isinstance(each, exp.Column)):
            if segments and segments <= copied_from(context, found.model, column):
                values = {dataset.partition(key).segment for dataset in datasets for key in changed[dataset.key]}
                yield found.snapshot_id, (column, sorted(values))
                break


def _spans(key: str, partitions: Sequence[str]) -> list[Span]:
    """The contiguous time ranges of the partition column's values; empty for a dataset of grain ``full``."""
    dataset = get_dataset(key)
    spans: list[Span] = []
    if dataset.grain is Grain.full:
        return spans
    for low, high in sorted({(found.low, found.high) for found in map(dataset.partition, partitions)}):
        start, end = low.replace(tzinfo=UTC), high.replace(tzinfo=UTC)
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _ends(changed: Mapping[str, Sequence[str]]) -> list[datetime]:
    """The ends of the time ranges of changed partitions. They may lie in the future, and are built too."""
    return [end for key, partitions in changed.items() for _, end in _spans(key, partitions)]
