"""SQLMesh's scheduler for the lake: an interval is written, audited, then committed; a refused one stops no other.

Stock SQLMesh audits an interval after its commit, so readers see rows that an audit refuses. It evaluates many
intervals in one batch, and a batch that fails stops every model downstream for all of them. Here the audits run in the
interval's own transaction. A batch that is refused is halved until the refused intervals are found. These keep their
earlier rows, and so do the same intervals downstream; all others are built.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
from rich.markup import escape
from sqlglot import exp
from sqlmesh.core.context import Context
from sqlmesh.core.node import IntervalUnit
from sqlmesh.core.notification_target import NotificationEvent
from sqlmesh.core.scheduler import Scheduler
from sqlmesh.core.snapshot import Snapshot, SnapshotEvaluator
from sqlmesh.core.snapshot.definition import expand_range, merge_intervals, parent_snapshots_by_name
from sqlmesh.utils.concurrency import NodeExecutionFailedError
from sqlmesh.utils.date import to_datetime
from sqlmesh.utils.errors import AuditError, SQLMeshError

from ducklake_flows.settings import LAKE
from ducklake_flows.staging.receipt import Checked, rows_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sqlmesh.core.model.definition import AuditResult
    from sqlmesh.core.snapshot import SnapshotId

Interval = tuple[int, int]
"""Start and end, end excluded, in ms since 1970, UTC: SQLMesh's own form."""

S = TypeVar("S", bound="LakeScheduler")

DATA_ERRORS = (duckdb.DataError, duckdb.IntegrityError, duckdb.InvalidInputException)
"""DuckDB's errors that a row causes: a failed cast, a value out of range, a call of `error()`."""

SAMPLE = 3
"""Rows shown of those that an audit refuses."""

MORE_AUDITS = 64
"""Maximum further audits of a stretch's parts, to find the intervals that an audit warns about."""


@dataclass(frozen=True)
class Refusal:
    """Why an interval was not committed.

    Args:
        check: The audit, see `label`; "" if the query itself failed on a row.
        rows: Number of rows that the audit refused; None if the query failed.
        sample: Up to `SAMPLE` of these rows, by column.
        error: The error's text.
    """

    check: str
    rows: int | None
    sample: Sequence[Mapping[str, Any]]
    error: str


class AuditsFailed(SQLMeshError):
    """A blocking audit refused rows; the transaction is rolled back."""

    def __init__(
        self, refusals: Sequence[Refusal], errors: Sequence[AuditError], others: Sequence[Checked] = ()
    ) -> None:
        super().__init__("; ".join(r.error for r in refusals))
        self.refusals, self.errors, self.others = refusals, errors, others


ROW_ERRORS = (AuditsFailed, *DATA_ERRORS)
"""Errors of which other intervals may be free."""


class AuditingEvaluator(SnapshotEvaluator):
    """Keeps an interval's transaction open until its audits have passed."""

    _open: contextlib.ExitStack | None = None

    def evaluate(self, snapshot: Snapshot, **kwargs: Any) -> str | None:
        """Write an interval. The transaction stays open: `audit` commits it or rolls it back."""
        with contextlib.ExitStack() as held:
            if snapshot.is_model and snapshot.is_materialized:
                held.enter_context(self.get_adapter(snapshot.model_gateway).transaction())
            written: str | None = super().evaluate(snapshot, **kwargs)
            self._open = held.pop_all()
        return written

    def audit(self, snapshot: Snapshot, **kwargs: Any) -> list[AuditResult]:
        """Audit an interval. If `evaluate` has just written it, commit it, or roll it back.

        Raises:
            AuditsFailed: a blocking audit refused the interval that was just written.
        """
        held, self._open = self._open, None
        if held is None:
            return list(super().audit(snapshot, **kwargs))
        with held:
            results: list[AuditResult] = super().audit(snapshot, **kwargs)
            if failed := [r for r in results if r.count and r.blocking]:
                adapter = self.get_adapter(snapshot.model_gateway)
                errors = [_error(result, adapter.dialect) for result in failed]
                samples = [self._sample(adapter, error.query) for error in errors]
                others = self.checked(snapshot, [r for r in results if r not in failed])
                raise AuditsFailed(list(map(_refusal, failed, samples)), errors, others)
        return results

    def checked(self, snapshot: Snapshot, results: Sequence[AuditResult]) -> list[Checked]:
        """Results of audits of an interval as they are recorded; skipped ones are left out."""
        adapter = self.get_adapter(snapshot.model_gateway)
        return [
            Checked(
                label(result),
                "reject" if result.blocking else "warn",
                not result.count,
                rows_text(result.count),
                rows_text(0),
                result.count,
                json.dumps(self._sample(adapter, result.query) if result.count else []),
            )
            for result in results
            if result.count is not None
        ]

    def _sample(self, adapter: Any, query: Any) -> list[dict[str, Any]]:
        """The first rows that an audit refuses, as plain values."""
        first = exp.select("*").from_(query.subquery("audit")).limit(SAMPLE)
        result = adapter.cursor.execute(first.sql(dialect=adapter.dialect, identify=True))
        names = [column[0] for column in result.description]
        return [dict(zip(names, map(_plain, row), strict=True)) for row in result.fetchall()]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | None.__class__) else str(value)


def _error(result: AuditResult, dialect: str) -> AuditError:
    """SQLMesh's error for a result with refused rows."""
    found: Any = result  # `count` and `query` are None only for a skipped audit
    return AuditError(found.audit.name, found.audit_args, found.count, found.query, found.model, dialect)


def label(result: AuditResult) -> str:
    """An audit and its arguments, as in the model's file: ``not_null(columns := (day))``."""
    arguments = ", ".join(f"{name} := {value.sql('duckdb')}" for name, value in result.audit_args.items())
    return f"{result.audit.name}({arguments})" if arguments else str(result.audit.name)


def _refusal(result: AuditResult, sample: Sequence[Mapping[str, Any]]) -> Refusal:
    example = f", for example {json.dumps(sample[0])}" if sample else ""
    error = f"audit {result.audit.name} refuses {rows_text(result.count or 0)}{example}"
    return Refusal(label(result), result.count, sample, error)


@dataclass
class Refused:
    """The intervals that are not built, by the model's full name.

    Args:
        begun: Called with the model and the batch before it is built.
        report: Called with the model, the interval and the reasons when an interval is refused.
        built: Called with the model, the interval, the seconds and the audits' results when one is committed.
        audited: Called with the model, an interval and the results of its audits that did not refuse it.
    """

    begun: Callable[[Snapshot, Interval], None]
    report: Callable[[Snapshot, Interval, Sequence[Refusal]], None]
    built: Callable[[Snapshot, Interval, float, Sequence[AuditResult]], None]
    audited: Callable[[Snapshot, Interval, Sequence[Checked]], None]
    _intervals: dict[str, list[Interval]] = field(default_factory=dict)

    def add(self, name: str, interval: Interval) -> None:
        """Do not build this interval of a model, nor the same time of the models downstream."""
        self._intervals.setdefault(name, []).append(interval)

    def of(self, names: Iterable[str]) -> list[Interval]:
        """The intervals of these models."""
        return [interval for name in names for interval in self._intervals.get(name, [])]


class LakeScheduler(Scheduler):
    """Builds what can be built of a batch; see the module's text."""

    refused: Refused
    changed: Mapping[SnapshotId, tuple[str, Sequence[str]]] = MappingProxyType({})
    """By-partition models of which only a part is built again: a column, and its values."""

    def evaluate(  # type: ignore[override]
        self, snapshot: Snapshot, *, start: Any, end: Any, batch_index: int, **kwargs: Any
    ) -> list[AuditResult]:
        """Build the intervals of a batch that are not refused, in as few transactions as possible.

        Raises:
            AuditsFailed, duckdb.Error: rows were refused in a model whose intervals are not independent. It keeps its
                old rows, and the models downstream are not built.
        """
        results: list[AuditResult] = []
        built = False
        column_values = self.changed.get(snapshot.snapshot_id) if kwargs.get("target_table_exists") else None

        def build(interval: Interval) -> None:
            nonlocal built
            self.refused.begun(snapshot, interval)
            began = time.monotonic()
            # After the first interval, the table exists and has rows.
            more = {**kwargs, "target_table_exists": True} if built else kwargs
            audited = super(LakeScheduler, self).evaluate(
                snapshot, start=interval[0], end=interval[1], batch_index=batch_index + built, **more
            )
            built = True
            results.extend(audited)
            self.refused.built(snapshot, interval, time.monotonic() - began, audited)
            self._report_audits(snapshot, interval, audited, kwargs)

        if not snapshot.is_incremental_by_time_range:
            try:
                if column_values is None:
                    # Without intervals, which a change of its input removes, SQLMesh would begin a history again.
                    batch_index += bool(snapshot.is_scd_type_2 and kwargs.get("target_table_exists"))
                    build((start, end))
                else:
                    batch_index += 1  # otherwise SQLMesh replaces the whole table: its intervals were removed
                    adapter: Any = self.snapshot_evaluator.get_adapter(snapshot.model_gateway)
                    with adapter.replacing(*column_values):
                        build((start, end))
            except ROW_ERRORS as error:
                # The models downstream can still read the earlier rows of a table that is always built as a whole.
                # A part that is refused leaves its model without intervals: the next change builds it as a whole.
                if not (column_values or (snapshot.is_full and kwargs.get("target_table_exists"))):
                    raise
                self._refuse(snapshot, (start, end), error)
            return results
        for stretch in self._stretches(snapshot, (start, end)):
            for interval, cause in _largest(stretch, snapshot, build):
                self.refused.add(snapshot.name, interval)
                self._refuse(snapshot, interval, cause)
                if snapshot.depends_on_past:
                    self.refused.add(snapshot.name, (interval[0], _END))
                    return results
        return results

    def _stretches(self, snapshot: Snapshot, batch: Interval) -> list[Interval]:
        """The parts of a batch for which neither the model nor one that it reads is refused."""
        refused = self.refused.of([snapshot.name, *self._read_by_time(snapshot)])
        if not refused:
            return [batch]
        free = []
        for unit in _units(snapshot, batch):
            if any(start < unit[1] and unit[0] < end for start, end in refused):
                self.refused.add(snapshot.name, unit)
            else:
                free.append(unit)
        return list(merge_intervals(free))

    def _read_by_time(self, snapshot: Snapshot) -> Iterator[str]:
        """The models that a model reads by time, also through views."""
        for parent in snapshot.parents:
            read = self.snapshots.get(parent)
            if read is not None and read.is_incremental_by_time_range:
                yield read.name
            elif read is not None and read.is_model and not read.is_materialized:
                yield from self._read_by_time(read)

    def _report_audits(
        self, snapshot: Snapshot, interval: Interval, results: Sequence[AuditResult], kwargs: Mapping[str, Any]
    ) -> None:
        """Report the results of a stretch that was built. An audit that warns is told by the shortest part it is in."""
        evaluator: Any = self.snapshot_evaluator
        names = ("execution_time", "deployability_index")
        more = {"snapshots": parent_snapshots_by_name(snapshot, self.snapshots), **{n: kwargs[n] for n in names}}
        left = iter(range(MORE_AUDITS))

        def report(part: Interval, found: Sequence[AuditResult]) -> None:
            units = _units(snapshot, part) if snapshot.is_incremental_by_time_range else []
            if len(units) > 1 and any(result.count for result in found) and next(left, None) is not None:
                middle = units[len(units) // 2][0]
                halves = [(part[0], middle), (middle, part[1])]
                both = [evaluator.audit(snapshot, start=start, end=end, **more) for start, end in halves]
                # An audit that neither half breaks is about the stretch as a whole.
                whole = [r for r, *parts in zip(found, *both, strict=True) if not any(part.count for part in parts)]
                if len(whole) < len(found):
                    for half, of_half in zip(halves, both, strict=True):
                        report(half, of_half)
                    found = [result for result in whole if result.count]
            self.refused.audited(snapshot, part, evaluator.checked(snapshot, found))

        report(interval, results)

    def _refuse(self, snapshot: Snapshot, interval: Interval, error: Exception) -> None:
        if isinstance(error, AuditsFailed):
            self.refused.audited(snapshot, interval, error.others)
            refusals = error.refusals
            for each in error.errors:
                self.notification_target_manager.notify(NotificationEvent.AUDIT_FAILURE, each)
        else:
            refusals = [Refusal("", None, [], " ".join(str(error).split())[:400])]
        self.refused.report(snapshot, interval, refusals)


_END = 2**62
"""After every interval."""


def _largest(
    stretch: Interval, snapshot: Snapshot, build: Callable[[Interval], None]
) -> Iterator[tuple[Interval, Exception]]:
    """Build a stretch as a whole; its halves if a row is refused; and so on.

    Yields:
        Each single interval that is refused, in order of time, and why.
    """
    try:
        build(stretch)
    except ROW_ERRORS as error:
        units = _units(snapshot, stretch)
        if len(units) == 1:
            yield stretch, error
            return
        middle = units[len(units) // 2][0]
        for half in ((stretch[0], middle), (middle, stretch[1])):
            yield from _largest(half, snapshot, build)


def _units(snapshot: Snapshot, stretch: Interval) -> list[Interval]:
    """The single intervals of a stretch: days, hours, months."""
    moments = expand_range(*stretch, snapshot.node.interval_unit)
    return list(itertools.pairwise(moments))


class LakeContext(Context):
    """A context whose plans and runs use the lake's scheduler."""

    refused: Refused
    changed: Mapping[SnapshotId, tuple[str, Sequence[str]]] = MappingProxyType({})

    def create_scheduler(self, snapshots: Iterable[Snapshot], snapshot_evaluator: SnapshotEvaluator) -> Scheduler:
        """The lake's scheduler for these models."""
        made = _with_evaluator(LakeScheduler, self, snapshots, snapshot_evaluator)
        made.refused, made.changed = self.refused, self.changed
        return made


class CommandScheduler(LakeScheduler):
    """The scheduler of SQLMesh's own commands: builds what can be built; the command fails if rows were refused.

    `sqlmesh run` leaves every good interval built. `sqlmesh plan` does not promote an environment that lacks one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refused = Refused(lambda *_: None, self._report, lambda *_: None, lambda *_: None)
        self._failed: list[NodeExecutionFailedError[Any]] = []

    def run_merged_intervals(self, **kwargs: Any) -> tuple[list[NodeExecutionFailedError[Any]], list[Any]]:
        """Build the intervals.

        Returns:
            An error for each model that failed and each interval that was refused, and what was skipped.
        """
        errors, skipped = super().run_merged_intervals(**kwargs)
        if self._failed:
            self.console.log_error("Next: correct the source, the model or the audit, then run: lake transform")
        return [*errors, *self._failed], skipped

    def _report(self, snapshot: Snapshot, interval: Interval, refusals: Sequence[Refusal]) -> None:
        where = f"{short(snapshot.name)} {'..'.join(dict.fromkeys(named(snapshot, interval)))}"
        for each in refusals:
            self.console.log_error(escape(f"{where} is not committed: {each.error}"))
        self._failed.append(NodeExecutionFailedError(where))


def command_scheduler(context: Context, snapshots: Iterable[Snapshot], evaluator: SnapshotEvaluator) -> Scheduler:
    """The scheduler of a context that SQLMesh's command created."""
    return _with_evaluator(CommandScheduler, context, snapshots, evaluator)


def _with_evaluator(
    kind: type[S], context: Context, snapshots: Iterable[Snapshot], snapshot_evaluator: SnapshotEvaluator
) -> S:
    return kind(
        snapshots,
        AuditingEvaluator(
            snapshot_evaluator.adapters,
            ddl_concurrent_tasks=snapshot_evaluator.ddl_concurrent_tasks,
            selected_gateway=snapshot_evaluator.selected_gateway,
        ),
        context.state_sync,
        default_catalog=context.default_catalog,
        max_workers=context.concurrent_tasks,
        console=context.console,
        notification_target_manager=context.notification_target_manager,
    )


def short(name: str) -> str:
    """A model's name without the lake's catalog and quotes: ``bronze.flights``."""
    return name.replace('"', "").removeprefix(f"{LAKE}.")


def named(snapshot: Snapshot, interval: Interval) -> tuple[str, str]:
    """The first and last interval of a stretch, with the precision of the model's intervals: day, hour or minute."""
    unit = snapshot.node.interval_unit
    moments = to_datetime(interval[0]), to_datetime(interval[1]) - timedelta(microseconds=1)
    if unit is None or unit.is_date_granularity:
        first, last = (moment.date().isoformat() for moment in moments)
    else:
        first, last = (m.strftime("%Y-%m-%dT%H" if unit is IntervalUnit.HOUR else "%Y-%m-%dT%H:%M") for m in moments)
    return first, last
