"""The ingest flow: plan, extract chunks of partitions on Dask, publish them in gated groups as they arrive."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from distributed import KilledWorker
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import CrashedRun
from prefect.runtime import flow_run, task_run

from flows import events, gate
from flows.cluster import abandonment, given_at, task_runner
from flows.datasets import broken_datasets, get_datasets
from flows.datasets.model import Dataset
from flows.errors import LakeError, RunFailed, redacted
from flows.extract.chunk import Stopped, extract_chunk
from flows.lake.publish import Published, Publisher
from flows.plan import LeftOut, Mode, Planned, State, counts, plan_each
from flows.points import reached
from flows.progress import progress
from flows.settings import Settings, load_settings
from flows.setup import check
from flows.stage.layout import new_attempt
from flows.stage.receipt import Failure, Outcome, Receipt

CHUNK = 100
"""Partitions in one Dask task at most. A task and its dlt run cost 0.3 s, whatever is in them."""

CHUNK_SECONDS = 10.0
"""After so long a chunk begins no further partition: a slow source's rows are not kept back by its neighbours."""

GROUP = 128
"""Partitions in one publishing transaction at most: it bounds how long the gate is held."""


@dataclass
class Summary:
    """What a run did.

    Seconds are wall time, but for the stages of a chunk, which add up its workers' time: ``dask`` (until a worker took
    it), ``prefect`` (until the task began), ``extract``, ``normalize``, ``inspect``, ``stage``, and ``receipt`` (until
    the run took it up, Prefect's end of the task included).
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
    commits: int = 0
    snapshot_id: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, stage: str, since: float) -> None:
        """Add the time since a moment of `time.monotonic` to a stage."""
        self._add(stage, time.monotonic() - since)

    def add_profile(self, profile: Mapping[str, float]) -> None:
        """Add a partition's seconds by stage."""
        for stage, seconds in profile.items():
            self._add(stage, seconds)

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

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
            "rows": self.rows,
            "bytes": sum(r.bytes for r in self.published),
            "commits": self.commits,
            "snapshot_id": self.snapshot_id,
            "peak_rss": max((r.peak_rss for r in self.published), default=0),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }


@dataclass(frozen=True, slots=True)
class Chunk:
    """Partitions of one dataset that one task extracts.

    Args:
        dataset: The dataset's key.
        versions: The source's version by partition.
        alone: Nothing else is under way: it may be to blame for a worker's death.
    """

    dataset: str
    versions: dict[str, str]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a task hands back: its chunk's outcomes, and moments of its way, in seconds since the epoch.

    Between two machines they are as right as their clocks.
    """

    outcomes: list[Outcome]
    given: float
    began: float
    ended: float

    def profile(self, submitted: float) -> dict[str, float]:
        """A partition's share of the chunk's way there and back."""
        way = {
            "dask": self.given - submitted,
            "prefect": self.began - self.given,
            "receipt": time.time() - self.ended,
        }
        return {stage: max(seconds, 0.0) / max(len(self.outcomes), 1) for stage, seconds in way.items()}


def _chunk_name() -> str:
    parameters = task_run.parameters
    keys = list(parameters["versions"])
    span = keys[0] if len(keys) == 1 else f"{keys[0]}..{keys[-1]} ({len(keys)})"
    return f"{parameters['dataset']} {span}"


@task(name="extract", task_run_name=_chunk_name, cache_policy=NO_CACHE, persist_result=False)
def extract(dataset: str, versions: dict[str, str], table: dict[str, str], pace: float, limit: float) -> Extracted:
    """Extract one chunk of partitions on a Dask worker; see `flows.extract.chunk.extract_chunk`."""
    logger, given, began = get_run_logger(), given_at(), time.time()
    outcomes: list[Outcome] = []
    try:
        settings = load_settings()
        outcomes = extract_chunk(dataset, versions, settings, table, abandonment(), pace, limit)
        # Here, before any of it is logged, shown or recorded: a source's own error may quote its password.
        outcomes = [replace(o, error=settings.redact(o.error)) if isinstance(o, Failure) else o for o in outcomes]
    except Stopped:
        logger.warning("given up: the run that wanted it is gone")
    else:
        if left := len(versions) - len(outcomes):
            logger.info("its time was over: %d of %d partitions are handed back", left, len(versions))
    for outcome in outcomes:
        if isinstance(outcome, Failure) and outcome.state != "no source":
            logger.error("%s %s %s: %s", outcome.dataset, outcome.partition, outcome.state, outcome.error)
    return Extracted(outcomes, given, began, time.time())


def range_name(start: date | None, end: date | None) -> str:
    """A range of days as it stands in the names of runs."""
    return f"{start or 'first'}..{end or 'last'}"


def names_of(datasets: Sequence[str] | None) -> str:
    """Datasets as they stand in the names of runs."""
    return "+".join(datasets) if datasets else "all"


def _flow_run_name() -> str:
    parameters = flow_run.parameters
    span = range_name(parameters["start"], parameters["end"])
    if partitions := parameters["partitions"]:
        span = partitions[0] if len(partitions) == 1 else f"{partitions[0]} and {len(partitions) - 1} more"
    return f"ingest {'due' if parameters['due'] else names_of(parameters['datasets'])} {span}"


@flow(name="ingest", flow_run_name=_flow_run_name)
def ingest(
    datasets: list[str] | None = None,
    start: date | None = None,
    end: date | None = None,
    mode: Mode | list[Mode] = Mode.missing_failed,
    workers: int = 2,
    partitions: list[str] | None = None,
    due: bool = False,
) -> dict[str, Any]:
    """Bring partitions of datasets into the lake.

    Args:
        datasets: Keys of the datasets; all when left open.
        start: First day; each dataset's own when it is left open.
        end: Last day, included; each dataset's own when it is left open.
        mode: Which partitions: missing, failed, missing-failed, stale or all; or several of them.
        workers: Processes of the local Dask cluster; an existing cluster has its own.
        partitions: Just these partitions, by key, instead of a range.
        due: Only the datasets whose hour (UTC) the run was scheduled for.

    Returns:
        The summary: counts, rows, bytes, commits, seconds by stage.

    Raises:
        RunFailed: some partitions failed; the others are published.
    """
    settings, logger = load_settings(), get_run_logger()
    began = time.monotonic()
    chosen = get_datasets(datasets or [])
    if due:
        chosen = [d for d in chosen if d.hour == flow_run.scheduled_start_time.hour]
    summary = Summary([d.key for d in chosen], flow_run.name or "")
    check(settings)
    planned, left_out = plan_each(settings, chosen, start, end, mode, partitions, named=bool(datasets))
    if not datasets:
        left_out += [LeftOut(key, error, is_fault=True) for key, error in broken_datasets().items()]
    summary.left_out = left_out
    summary.planned = dict(counts(planned))
    summary.no_source = [f"{p.dataset} {p.partition}" for p in planned if p.state is State.no_source and not p.runs]
    todo = [p for p in planned if p.runs]
    summary.add_seconds("plan", began)
    logger.info("plan: %d of %d partitions to do", len(todo), len(planned))
    if todo:
        _Run(settings, chosen, summary).drive(todo, workers, recheck=mode is Mode.all)
    summary.add_seconds("total", began)
    _artifacts(summary)
    for out in left_out:
        logger.log(
            logging.ERROR if out.is_fault else logging.INFO, "%s is left out: %s", out.dataset, out.error.message
        )
    faults = [out for out in left_out if out.is_fault]
    if summary.failed or faults:
        raise RunFailed(_failures(summary.failed, faults), _next(summary.failed, faults), summary.to_json())
    return summary.to_json()


class _Run:
    """The run's moving parts: chunks out to Dask, outcomes back, groups to the lake."""

    def __init__(self, settings: Settings, datasets: Sequence[Dataset], summary: Summary) -> None:
        self._settings, self._summary = settings, summary
        self._datasets = {d.key: d for d in datasets}
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._running: dict[str, tuple[Any, Chunk, float]] = {}
        self._held: dict[str, deque[Chunk]] = {}
        """Chunks of datasets with a rate: no more are under way than it was shared among."""
        self._waiting: list[Outcome] = []
        self._suspects: list[Chunk] = []

    def drive(self, todo: Sequence[Planned], workers: int, *, recheck: bool) -> None:
        """Extract and publish everything."""
        began = time.monotonic()
        publisher = Publisher(
            self._settings,
            list(self._datasets.values()),
            str(flow_run.id),
            {p.partition for p in todo},
            planned={(p.dataset, p.partition): p.entry.newest for p in todo if p.entry},
            recheck=recheck,
        )
        with contextlib.closing(publisher) as self._publisher:
            tables = publisher.tables()
            self._tables = {key: tables.get(d.table, {}) for key, d in self._datasets.items()}
            with task_runner(self._settings, workers) as self._runner:
                self._summary.add_seconds("cluster start", began)
                began = time.monotonic()
                self._extract_and_publish(todo, workers)
                self._summary.add_seconds("extract and publish", began)

    def _extract_and_publish(self, todo: Sequence[Planned], workers: int) -> None:
        """Outcomes gather while a group is being published."""
        # An existing cluster has its own number of workers; one that grows when there is work may have none yet.
        there = sum(self._runner.client.nthreads().values())
        if not there:
            get_run_logger().warning("the Dask cluster has no workers: waiting for one")
        self._places = there or workers
        for chunk in chunks(todo, self._places):
            self._submit_in_turn(chunk)
        with progress(len(todo), ", ".join(self._datasets)) as shown:
            while self._running or self._waiting or self._suspects:
                if not self._running and not self._waiting:
                    self._submit(self._suspects.pop())
                self._gather()
                group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                result = self._publish(group)
                rows = sum(r.rows for r in result.receipts)
                shown.advance(len(group), rows, len(result.failures))

    def _submit_in_turn(self, chunk: Chunk) -> None:
        """Submit a chunk, or keep it until one of its dataset has ended if that may not be asked faster."""
        if self._datasets[chunk.dataset].rate is not None:
            under_way = sum(other.dataset == chunk.dataset for _, other, _ in self._running.values())
            if under_way == self._places:
                self._held.setdefault(chunk.dataset, deque()).append(chunk)
                return
        self._submit(chunk)

    def _submit(self, chunk: Chunk) -> None:
        rate = self._datasets[chunk.dataset].rate
        try:
            future = self._runner.submit(
                extract,
                parameters={
                    "dataset": chunk.dataset,
                    "versions": chunk.versions,
                    "table": self._tables[chunk.dataset],
                    "pace": self._places / rate if rate else 0.0,
                    "limit": CHUNK_SECONDS,
                },
            )
        except ClosedClientError:
            raise self._scheduler_is_gone() from None
        wrapped = future.wrapped_future
        self._running[str(wrapped.key)] = (future, chunk, time.time())
        wrapped.add_done_callback(lambda done: self._finished.put(str(done.key)))

    def _scheduler_is_gone(self) -> LakeError:
        return LakeError(
            f"The Dask scheduler at {self._settings.dask_address} went away, and with it what it was at.",
            "start it again, then the same command: what was published stays published",
        )

    def _gather(self) -> None:
        """Wait for a chunk if nothing is waiting, and take all that have finished."""
        keys = [] if self._waiting else [self._finished.get()]
        while not self._finished.empty():
            keys.append(self._finished.get())
        for key in keys:
            future, chunk, submitted = self._running.pop(key)
            if held := self._held.get(chunk.dataset):
                self._submit(held.popleft())
            self._waiting += self._outcomes(future, chunk, submitted)

    def _outcomes(self, future: Any, chunk: Chunk, submitted: float) -> list[Outcome]:
        """A finished chunk's outcomes.

        A dead worker loses all its chunks; their partitions are retried one at a time, with nothing else under way.
        One that is lost alone has failed. An error that does not depend on the partition fails the chunk at once: a
        dataset's file that cannot be loaded there, a worker that has not the code.
        """
        try:
            extracted: Extracted = future.result()
            reached("receipted")
        except Exception as error:  # noqa: BLE001 - a dead worker, or whatever left its task
            if self._runner.client.status in ("closing", "closed"):
                raise self._scheduler_is_gone() from None
            cause = _cause(error)
            get_run_logger().warning("a chunk of %s was lost: %s", chunk.dataset, cause)
            if not chunk.alone and not isinstance(error, LakeError | ImportError | SyntaxError):
                self._suspects += [Chunk(chunk.dataset, {k: v}, alone=True) for k, v in chunk.versions.items()]
                return []
            return [
                Failure(chunk.dataset, key, new_attempt(), "failed", cause, version)
                for key, version in chunk.versions.items()
            ]
        finally:
            # Dask computes a finished task again when its worker dies while somebody still holds its future.
            future.wrapped_future.release()
        self._put_back(chunk, len(extracted.outcomes))
        way = extracted.profile(submitted)
        outcomes = [replace(o, profile={**o.profile, **way}) for o in extracted.outcomes]
        for outcome in outcomes:
            self._summary.add_profile(outcome.profile)
        return [o for o in outcomes if not self._is_just_absent(o)]

    def _put_back(self, chunk: Chunk, done: int) -> None:
        """Submit again what a chunk had no time for, in even chunks no larger than what it had time for."""
        left = list(chunk.versions.items())[done:]
        if left and done:
            size = -(-len(left) // -(-len(left) // done))
            for first in range(0, len(left), size):
                self._submit_in_turn(Chunk(chunk.dataset, dict(left[first : first + size])))

    def _is_just_absent(self, outcome: Outcome) -> bool:
        """Whether a source that could not say so before turned out to have nothing: no failure."""
        absent = isinstance(outcome, Failure) and outcome.state == "no source"
        if absent and not self._datasets[outcome.dataset].complete:
            self._summary.no_source.append(f"{outcome.dataset} {outcome.partition}")
            return True
        return False

    def _publish(self, group: Sequence[Outcome]) -> Published:
        if not group:
            return Published()
        began = time.monotonic()
        with gate.hold():
            reached("gate held")
            self._summary.add_seconds("wait for the gate", began)
            waited = (time.monotonic() - began) / len(group)
            group = [replace(o, profile={**o.profile, "gate_wait": waited}) for o in group]
            began = time.monotonic()
            result = self._publisher.publish(group)
            self._summary.add_seconds("in the gate", began)
            reached("before the slot is freed")
        self._summary.published += result.receipts
        self._summary.unchanged += result.unchanged
        self._summary.failed += result.failures
        self._summary.older += result.older
        for receipt in result.older:
            get_run_logger().warning(
                "%s %s: dropped, since an attempt that was extracted later is published",
                receipt.dataset,
                receipt.partition,
            )
        if result.snapshot_id is not None:
            self._summary.commits += 1
            self._summary.snapshot_id = result.snapshot_id
        reached("before the event")
        events.published(result)
        return result


_DEATHS = (KilledWorker, CommClosedError, CrashedRun)
"""How a worker that died, or was ended, surfaces."""


def _cause(error: Exception) -> str:
    """One line on why a chunk came back without outcomes, without secrets."""
    if isinstance(error, _DEATHS):
        return f"its worker died: {type(error).__name__}"
    if isinstance(error, LakeError):
        text = error.message
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}"
    return redacted(" ".join(text.split()))[:500]


def chunks(todo: Sequence[Planned], workers: int) -> list[Chunk]:
    """Cut a plan into chunks of one dataset each.

    As large as `CHUNK` allows, and about as many for every worker, so that the last ones end together.
    """
    by_dataset: dict[str, dict[str, str]] = {}
    for planned in todo:
        by_dataset.setdefault(planned.dataset, {})[planned.partition] = planned.source_version
    rounds = -(-len(todo) // (workers * CHUNK))
    size = -(-len(todo) // (workers * rounds))
    cut = []
    for dataset, versions in by_dataset.items():
        keys = list(versions)
        cut += [Chunk(dataset, {k: versions[k] for k in keys[i : i + size]}) for i in range(0, len(keys), size)]
    return cut


def _artifacts(summary: Summary) -> None:
    """What the Prefect UI shows of a run: a table of its partitions, and a summary."""
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
        f"- dropped as older than what is published: {len(summary.older)}",
        f"- failed: **{len(summary.failed)}**",
        *(f"    - `{f.dataset} {f.partition}` {f.error}" for f in summary.failed[:20]),
        f"- no source: {len(summary.no_source)} {', '.join(summary.no_source[:10])}",
        *(f"- left out: `{out.dataset}` {out.error.message}" for out in summary.left_out),
        "",
        "| stage | seconds |",
        "| --- | ---: |",
        *(f"| {stage} | {seconds:.1f} |" for stage, seconds in summary.seconds.items()),
    ]
    create_markdown_artifact("\n".join(lines), key="ingest-summary", description=summary.flow_run)


def _failures(failed: Sequence[Failure], faults: Sequence[LeftOut]) -> str:
    """What failed, one line for each cause: partitions first, then datasets that were left out."""
    causes: dict[tuple[str, str], list[str]] = {}
    for f in sorted(failed, key=lambda f: (f.dataset, f.partition)):
        causes.setdefault((f.dataset, f.error), []).append(f.partition)
    lines = []
    for (dataset, error), keys in list(causes.items())[:10]:
        which = keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"
        lines.append(f"  {dataset} {which}: {error}")
    if len(causes) > 10:
        lines.append(f"  and {len(causes) - 10} more causes: lake status")
    counted = []
    if failed:
        counted.append(f"{len(failed)} partition{'s' if len(failed) > 1 else ''} failed")
    if faults:
        counted.append(f"{len(faults)} dataset{'s' if len(faults) > 1 else ''} could not be planned")
        lines += [f"  {out.dataset}: {out.error.message}" for out in faults]
    return "\n".join([f"{' and '.join(counted)}; the others are published.", *lines])


def _next(failed: Sequence[Failure], faults: Sequence[LeftOut]) -> str:
    if faults and not failed:
        return faults[0].error.fix
    return f"correct the cause, then the same command again does just {'that one' if len(failed) == 1 else 'those'}"
