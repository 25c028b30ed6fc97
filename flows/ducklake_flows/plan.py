"""Plan a run: the state of every partition of a range, which of them the run would process, and why."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from ducklake_flows import storage
from ducklake_flows.datasets.partitions import Grain, Partition
from ducklake_flows.datasets.source import Strays
from ducklake_flows.errors import BadInput, LakeError, SourceError, StorageError, redacted
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.contracts import blocked, schema_changes
from ducklake_flows.lake.ledger import Entry, latest, published_by
from ducklake_flows.lake.schema import table_columns
from ducklake_flows.project import get_dataset
from ducklake_flows.states import PUBLISHED, Mode, Order, State

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import date

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings


class Planned(NamedTuple):
    """One partition of a plan. A tuple: a plan may have many thousands.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.
        state: Its current state.
        runs: Whether the mode selects it.
        found_version: The source's current version; "" if the source cannot report one, None if it has no data.
        entry: Its ledger entry; None if there is none.
    """

    dataset: str
    partition: str
    state: State
    runs: bool
    found_version: str | None
    entry: Entry | None

    @property
    def source_version(self) -> str:
        """The source's current version; "" if the source cannot report one or has no data."""
        return self.found_version or ""

    @property
    def why(self) -> str:
        """The reason for the state, in one line."""
        if self.state is State.missing:
            return "not in the ledger yet"
        if self.state is State.no_source:
            return "the source has no data for it yet; the next run checks again"
        if self.state is State.stale:
            return "its source changed after it was published"
        error = self.entry.error if self.entry else ""
        return f"{error}; the source has no data for it now" if error and self.found_version is None else error


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A dataset that a plan leaves out.

    Args:
        dataset: Its key.
        error: Why, and what to do.
        is_fault: Whether something is wrong. False for a dataset that has no start and was not named.
    """

    dataset: str
    error: LakeError
    is_fault: bool


def make_plan(
    settings: Settings,
    datasets: Sequence[Dataset],
    start: date | None = None,
    end: date | None = None,
    mode: Mode | Sequence[Mode] = Mode.missing_failed,
    only: Sequence[str] | None = None,
) -> list[Planned]:
    """Plan a run of datasets, none of which may be left out; see `plan_each`.

    Raises:
        LakeError: as `plan_each`, or the error of the first dataset that is left out.
    """
    planned, left_out = plan_each(settings, datasets, start, end, mode, only, named=True)
    for left in left_out:
        raise left.error
    return planned


def plan_each(
    settings: Settings,
    datasets: Sequence[Dataset],
    start: date | None = None,
    end: date | None = None,
    mode: Mode | Sequence[Mode] = Mode.missing_failed,
    only: Sequence[str] | None = None,
    *,
    named: bool = False,
    recorded: bool = False,
    known: Iterable[Planned] = (),
    con: DuckDBPyConnection | None = None,
) -> tuple[list[Planned], list[LeftOut]]:
    """Plan a run. Reads the ledger and lists the sources; changes nothing.

    A dataset whose source cannot be listed, or whose contract does not fit its table, is left out and does not stop the
    others. The same holds for a dataset without a start, unless it was named.

    Args:
        settings: Where the lake is.
        datasets: The datasets to plan.
        start: First day; None means the dataset's own.
        end: Last day, inclusive; None means the dataset's own.
        mode: Which partitions would run.
        only: Plan these partitions instead of a range: keys, or patterns of keys with ``*`` that select from the range.
        named: Whether the user named the datasets.
        recorded: For a dataset without a start, plan the partitions that are in the ledger.
        known: The plan of a run that has just ended. The source is not asked again for the versions in it, except for
            those of partitions that the run was to process but has no outcome for.
        con: A connection with the lake attached; None opens one.

    Returns:
        The plan, and the datasets that it leaves out.

    Raises:
        BadInput: the range is reversed, a named dataset has no start, or a key is not a partition of a dataset.
        NotInitialised: there is no lake yet.
        LakeError: no dataset can be planned, all for the same reason.
        StorageError: the object store does not answer.
    """
    modes = [mode] if isinstance(mode, Mode) else mode
    states = frozenset[State]().union(*(m.states for m in modes))
    wanted: dict[str, list[Partition]] = {}
    left_out = []
    for dataset in datasets:
        try:
            if only:
                wanted[dataset.key] = _selected(dataset, only, start, end)
            elif not (recorded and start is None and dataset.needs_start):
                wanted[dataset.key] = dataset.partitions(start, end)
        except BadInput as error:
            if named or only or not dataset.needs_start:
                raise
            left_out.append(LeftOut(dataset.key, error, is_fault=False))
        except Exception as error:  # noqa: BLE001 - the source cannot list its segments: it leaves out its dataset only
            if isinstance(error, StorageError):
                storage.check(settings)
            left_out.append(LeftOut(dataset.key, _source_error(dataset, error), is_fault=True))
    asked = [d for d in datasets if d.key not in {left.dataset for left in left_out}]
    with connected(settings, read_only=True) if con is None else contextlib.nullcontext(con) as there:
        tables = {} if recorded else table_columns(there)
        faults = {d.key: blocked(schema_changes(there, [d], tables)) for d in asked}
        left_out += [LeftOut(key, fault, is_fault=True) for key, fault in faults.items() if fault is not None]
        asked = [d for d in asked if d.key not in {left.dataset for left in left_out}]
        entries: dict[tuple[str, str], Entry] = {}
        for dataset in asked:
            keys = [p.key for p in wanted.get(dataset.key, [])]
            # By segment first, these keys do not sort by time, and some segments may be in the ledger only.
            entries |= latest(there, dataset.key, [] if dataset.segment_column and not only else keys)
            if dataset.segment_column and dataset.key in wanted and not only:
                wanted[dataset.key] += _unlisted(dataset, wanted[dataset.key], entries, start, end)
    before = {(p.dataset, p.partition): p for p in known}
    planned: list[Planned] = []
    for dataset in asked:
        if dataset.key not in wanted:
            keys = sorted(partition for key, partition in entries if key == dataset.key)
            wanted[dataset.key] = [dataset.partition(key) for key in keys]
        try:
            versions = _versions(dataset, wanted[dataset.key], entries, before)
        except Exception as error:  # noqa: BLE001 - any error of a source leaves out its dataset only
            if isinstance(error, StorageError):
                storage.check(settings)  # raises if the object store as a whole does not answer
            left_out.append(LeftOut(dataset.key, _source_error(dataset, error), is_fault=True))
            continue
        for partition in wanted[dataset.key]:
            version = versions.get(partition.key)
            entry = entries.get((dataset.key, partition.key))
            state = _state(entry, version)
            absent = version is None and state is not State.published
            runs = (
                dataset.complete if absent else state in states or _also_runs(dataset, partition, state, entry, modes)
            )
            planned.append(Planned(dataset.key, partition.key, state, runs, version, entry))
    errors = {str(left.error): left.error for left in left_out if left.is_fault}
    if not planned and len(errors) == 1:
        raise next(iter(errors.values()))
    return planned, left_out


def _unlisted(
    dataset: Dataset,
    listed: Sequence[Partition],
    entries: Iterable[tuple[str, str]],
    start: date | None,
    end: date | None,
) -> list[Partition]:
    """The partitions in a range of segments that are in the ledger, but that the source does not list any more."""
    segments = {partition.segment for partition in listed}
    periods = {partition.period for partition in dataset.periods(start, end)}
    recorded = (dataset.partition(partition) for key, partition in sorted(entries) if key == dataset.key)
    return [p for p in recorded if p.segment not in segments and p.period in periods]


def _selected(dataset: Dataset, only: Sequence[str], start: date | None, end: date | None) -> list[Partition]:
    """The partitions with these keys, and those of a range whose keys match one of these patterns.

    Raises:
        BadInput: a key is not a partition, a pattern matches none, or the range has no start.
    """
    exact = [dataset.partition(key) for key in only if "*" not in key]
    patterns = [key for key in only if "*" in key]
    there = dataset.partitions(start, end) if patterns else []
    for pattern in patterns:
        matching = re.compile(".*".join(map(re.escape, pattern.split("*"))))
        found = [partition for partition in there if matching.fullmatch(partition.key)]
        if not found:
            raise BadInput(
                f"{dataset.key}: no partition matches {pattern!r}.", f"a key looks like this: {dataset.scheme.example}"
            )
        exact += found
    return list(dict.fromkeys(exact))


def _versions(
    dataset: Dataset,
    partitions: Sequence[Partition],
    entries: Mapping[tuple[str, str], Entry],
    before: Mapping[tuple[str, str], Planned],
) -> dict[str, str]:
    """The version of each partition that the source has: from an earlier plan and the ledger, else from the source."""
    found: dict[str, str] = {}
    unknown: list[Partition] = []
    for partition in partitions:
        where = (dataset.key, partition.key)
        entry, old = entries.get(where), before.get(where)
        if old is None or (old.runs and entry == old.entry):
            unknown.append(partition)
        elif entry is not None and entry != old.entry and entry.state in PUBLISHED:
            found[partition.key] = entry.source_version  # as it was read, which may be newer than the plan
        elif old.found_version is not None:
            found[partition.key] = old.found_version
    return found | dataset.versions(unknown) if unknown or not partitions else found


def _also_runs(
    dataset: Dataset, partition: Partition, state: State, entry: Entry | None, modes: Sequence[Mode]
) -> bool:
    """Whether a mode runs a partition although its states do not contain the partition's state.

    A run of new and failed partitions also takes those whose source changed within the dataset's `recheck`. A run of
    stale partitions also takes those that were published, but failed when their changed source was read.
    """
    if state is State.stale and Mode.missing_failed in modes:
        return dataset.is_rechecked(partition, datetime.now(UTC).replace(tzinfo=None))
    return state in Mode.failed.states and Mode.stale in modes and bool(entry and entry.attempt_id)


def stale_left(planned: Sequence[Planned]) -> list[str]:
    """One line per dataset with stale partitions that the plan does not run: how many, which, and how to run them."""
    lines = []
    keys: dict[str, list[str]] = {}
    for p in planned:
        if p.state is State.stale and not p.runs:
            keys.setdefault(p.dataset, []).append(p.partition)
    for key, partitions in keys.items():
        dataset = get_dataset(key)
        span = min(partitions) if len(partitions) == 1 else f"{min(partitions)}..{max(partitions)}"
        count = "1 partition is" if len(partitions) == 1 else f"{len(partitions)} partitions are"
        where = " outside the recheck window" if dataset.recheck else ""
        days = sorted(dataset.partition(key).local.date() for key in partitions)
        span_given = f" --start {days[0]} --end {days[-1]}" if dataset.needs_start else ""
        lines.append(f"{key}: {count} stale{where} ({span}): lake backfill {key}{span_given} --mode stale")
    return lines


def chosen(
    planned: Iterable[Planned],
    datasets: Sequence[Dataset],
    order: Order = Order.newest,
    limit: int | None = None,
    done: Collection[tuple[str, str]] = (),
) -> list[Planned]:
    """The partitions of a plan that run, in the order in which to extract them.

    Args:
        planned: The plan.
        datasets: The plan's datasets.
        order: By the start of the partitions, all datasets together.
        limit: At most so many, the first in this order.
        done: Left out, and part of the limit: what the run has published before it was resumed or retried.
    """
    known = {dataset.key: dataset for dataset in datasets}
    found = [p for p in planned if p.runs and (p.dataset, p.partition) not in done]
    found.sort(key=lambda p: known[p.dataset].partition(p.partition).start, reverse=order is Order.newest)
    return found if limit is None else found[: max(limit - len(done), 0)]


def at_most_one(
    datasets: Sequence[Dataset],
    start: date | None = None,
    end: date | None = None,
    only: Sequence[str] | None = None,
    limit: int | None = None,
) -> bool:
    """Whether a run certainly has no more than one partition. Takes the arguments of a run; reads nothing.

    Args:
        datasets: The datasets of the run.
        start: First day. Without it or ``end``, a dataset counts as having many partitions, unless its grain is full.
        end: Last day, inclusive.
        only: These partition keys instead of a range.
        limit: At most so many.
    """
    if limit == 1:
        return True
    if len(datasets) != 1:
        return False
    if only is not None:
        return len(only) == 1 and "*" not in only[0]
    (dataset,) = datasets
    if dataset.segment_column:
        return False
    if dataset.grain is Grain.full:
        return True
    return start is not None and end is not None and len(dataset.partitions(start, end)) <= 1


def done_by(settings: Settings, flow_run_id: str) -> set[tuple[str, str]]:
    """What a flow run has published: dataset and partition."""
    with connected(settings, read_only=True) as con:
        return published_by(con, flow_run_id)


def _source_error(dataset: Dataset, error: Exception) -> LakeError:
    """The error to show for a source that cannot be listed."""
    if isinstance(error, StorageError):
        return error
    text = error.message if isinstance(error, LakeError) else f"{type(error).__name__}: {error}"
    cause = redacted(" ".join(text.split()))[:300]
    fix = error.fix if isinstance(error, LakeError) else ""
    return SourceError(
        f"The source of {dataset.key} cannot be listed: {cause}",
        fix or f"fix the cause; to see that it is fixed: lake plan {dataset.key}",
    )


def strays(datasets: Sequence[Dataset]) -> dict[str, list[str]]:
    """The files that belong to no partition, by dataset, for sources that can report them."""
    found: dict[str, list[str]] = {}
    for dataset in datasets:
        if isinstance(dataset.source, Strays) and not dataset.needs_start:
            found[dataset.key] = dataset.source.unmatched(dataset.partitions())
    return {key: names for key, names in found.items() if names}


def counts(planned: Sequence[Planned]) -> Mapping[str, int]:
    """The number of partitions in each state, in the order of `State`."""
    found = Counter(p.state for p in planned)
    return {state.value: found[state] for state in State if found[state]}


def _state(entry: Entry | None, version: str | None) -> State:
    if entry is None:
        return State.missing if version is not None else State.no_source
    there = entry.state in PUBLISHED
    if there and version and entry.source_version and version != entry.source_version:
        return State.stale
    return _STATES[entry.state]


_STATES = {state.value: state for state in State}
