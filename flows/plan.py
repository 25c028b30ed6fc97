"""The plan: where every partition of a range stands, and which of them a run would do, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from flows.datasets.model import Dataset, parse_partition
from flows.lake.connect import connected
from flows.lake.ledger import Entry, latest
from flows.settings import Settings


class Mode(StrEnum):
    """Which partitions a backfill does."""

    missing = "missing"
    failed = "failed"
    missing_failed = "missing-failed"
    stale = "stale"
    all = "all"


class State(StrEnum):
    """Where a partition stands."""

    published = "published"
    stale = "stale"
    failed = "failed"
    rejected = "rejected"
    rolled_back = "rolled_back"
    missing = "missing"
    no_source = "no source"


_RUNS = {
    Mode.missing: {State.missing},
    Mode.failed: {State.failed, State.rejected},
    Mode.missing_failed: {State.missing, State.failed, State.rejected},
    Mode.stale: {State.stale},
    Mode.all: set(State) - {State.no_source},
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One partition of a plan.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.
        state: Where it stands.
        runs: Whether the mode does it.
        source_version: What the source has now, "" when it cannot say.
        entry: What the ledger says of it, None when it says nothing.
    """

    dataset: str
    partition: str
    state: State
    runs: bool
    source_version: str
    entry: Entry | None

    @property
    def why(self) -> str:
        """One line on why it stands so."""
        if self.state is State.missing:
            return "not in the ledger yet"
        if self.state is State.no_source:
            return "the source has nothing for it (yet); tried again next time"
        if self.state is State.stale:
            return "its source changed since it was published"
        return self.entry.error if self.entry else ""


def make_plan(
    settings: Settings,
    datasets: Sequence[Dataset],
    start: date | None = None,
    end: date | None = None,
    mode: Mode = Mode.missing_failed,
    only: Sequence[str] | None = None,
) -> list[Planned]:
    """Plan a run. Reads the ledger and lists the sources; changes nothing.

    Args:
        settings: Where the lake is.
        datasets: What to plan.
        start: First day, the dataset's own when None.
        end: Last day, included; the dataset's own when None.
        mode: Which partitions would run.
        only: Just these partitions, by key, instead of a range.

    Raises:
        BadInput: the range is reversed, or has no start; or a key is not a partition of a dataset.
        NotInitialised: there is no lake yet.
    """
    if only:
        wanted = {d.key: [parse_partition(key, d.grain) for key in only] for d in datasets}
    else:
        wanted = {d.key: d.partitions(start, end) for d in datasets}
    with connected(settings, read_only=True) as con:
        entries: dict[tuple[str, str], Entry] = {}
        for dataset in datasets:
            entries |= latest(con, dataset.key, [p.key for p in wanted[dataset.key]])
    planned = []
    for dataset in datasets:
        versions = dataset.versions(wanted[dataset.key])
        for partition in wanted[dataset.key]:
            version = versions.get(partition.key)
            entry = entries.get((dataset.key, partition.key))
            state = _state(entry, version)
            runs = state in _RUNS[mode] or (state is State.no_source and dataset.complete)
            planned.append(Planned(dataset.key, partition.key, state, runs, version or "", entry))
    return planned


def counts(planned: Sequence[Planned]) -> Mapping[str, int]:
    """How many partitions stand how, in the order of `State`."""
    found = Counter(p.state for p in planned)
    return {state.value: found[state] for state in State if found[state]}


def _state(entry: Entry | None, version: str | None) -> State:
    if version is None and (entry is None or entry.state != State.published):
        return State.no_source
    if entry is None:
        return State.missing
    there = entry.state in (State.published, State.rolled_back)
    if there and version and entry.source_version and version != entry.source_version:
        return State.stale
    return State(entry.state)
