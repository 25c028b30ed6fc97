"""One build: forget the intervals whose input changed, apply changed models, run what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlmesh.core.config import CategorizerConfig
from sqlmesh.core.console import NoopConsole, set_console
from sqlmesh.core.context import Context
from sqlmesh.core.snapshot import Snapshot
from sqlmesh.utils.date import to_datetime
from sqlmesh.utils.errors import SQLMeshError

from flows.datasets import get_dataset
from flows.datasets.model import Grain, parse_partition
from flows.errors import RunFailed
from flows.settings import LAKE, PROJECT

Report = Callable[[dict[str, Any]], None]


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
                "start": to_datetime(interval[0]).date().isoformat(),
                "end": (to_datetime(interval[1]) - timedelta(microseconds=1)).date().isoformat(),
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


def build(environment: str, changed: Mapping[str, Sequence[str]], replan: bool, report: Report) -> None:
    """Bring an environment's models up to date.

    Args:
        environment: ``prod``, or the name of a development environment.
        changed: Partitions whose published attempt is not the one the models were built from, by dataset.
        replan: Whether the models themselves changed, or the environment was never built.
        report: Called with a dict for every interval evaluated.

    Raises:
        RunFailed: a model or an audit failed; names it. The intervals that succeeded are done.
    """
    console = _Console(report)
    set_console(console)
    try:
        context = Context(paths=[str(PROJECT)])
        # A state that was lost, or is another one: everything is built anew, and the lake's own record starts again.
        replan = replan or context.state_reader.get_environment(environment) is None
        spans = {key: _spans(key, partitions) for key, partitions in changed.items()}
        _forget(context, spans)
        if replan:
            context.plan(
                environment,
                auto_apply=True,
                no_prompts=True,
                skip_tests=True,
                categorizer_config=CategorizerConfig.all_full(),
            )
        bounds = [moment for found in spans.values() for span in found for moment in span]
        if bounds:
            status = context.run(
                environment,
                start=min(bounds),
                end=max(bounds),
                execution_time=max(datetime.now(UTC), max(bounds)),
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
            "mend the model or its input, then: lake transform",
        ) from error


def clean_up(report: Report) -> None:
    """Drop the tables of models and environments that nothing uses any more (SQLMesh's janitor).

    Raises:
        RunFailed: SQLMesh could not.
    """
    console = _Console(report)
    set_console(console)
    try:
        Context(paths=[str(PROJECT)]).run_janitor(ignore_ttl=False)
    except SQLMeshError as error:
        cause = " ".join(str(error).split())[:400]
        raise RunFailed(f"SQLMesh's janitor failed: {cause}", "lake transform, then: lake maintain") from error


def _spans(key: str, partitions: Sequence[str]) -> list[tuple[datetime, datetime]]:
    """The contiguous stretches of time that partitions cover, ends excluded, UTC."""
    dataset = get_dataset(key)
    if dataset.grain is Grain.full:
        return [(datetime(2013, 1, 1, tzinfo=UTC), datetime.now(UTC))]
    spans: list[tuple[datetime, datetime]] = []
    for name in sorted(partitions):
        partition = parse_partition(name, dataset.grain)
        start, end = partition.start.replace(tzinfo=UTC), partition.end.replace(tzinfo=UTC)
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _forget(context: Context, spans: Mapping[str, Sequence[tuple[datetime, datetime]]]) -> None:
    """Forget the intervals downstream of these stretches, so that a run does them again.

    It is what a restatement plan of the external model does, for many stretches at once: a plan can restate one.
    """
    known = context.state_reader.get_snapshots([s.snapshot_id for s in context.snapshots.values()])
    by_name = {s.name: s for s in known.values() if s.is_model and not s.model.kind.is_external}
    for key, stretches in spans.items():
        fqn = next((n for n in context.snapshots if n.replace('"', "") == f"{LAKE}.raw.{key}"), None)
        for name in context.dag.downstream(fqn) if fqn else ():
            if not (snapshot := by_name.get(name)) or snapshot.model.kind.is_view:
                continue
            for start, end in stretches:
                interval = snapshot.get_removal_interval(start, end, strict=False)
                context.state_sync.remove_intervals([(snapshot, interval)], remove_shared_versions=True)
