"""Publishes rows of earlier snapshots again: for rollbacks, and for repairs, which keep what is still damaged."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.dataset import Member
from ducklake_flows.errors import BadInput, LakeError
from ducklake_flows.lake import repair
from ducklake_flows.lake.connect import connected, one_snapshot
from ducklake_flows.lake.damage import find_all
from ducklake_flows.lake.history import NOW, published_between, snapshot_meant
from ducklake_flows.lake.publish import Published, Publisher
from ducklake_flows.lake.restore import stage_published
from ducklake_flows.orchestration import events, gate
from ducklake_flows.orchestration.chunks import GROUP
from ducklake_flows.project import get_dataset
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.lake.damage import Damaged
    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Receipt


def changed_since(
    settings: Settings, datasets: Sequence[Dataset], to: str, pattern: str | None = None
) -> tuple[int, list[tuple[Dataset, list[Partition]]]]:
    """The partitions that were published after a state of the lake.

    Args:
        settings: Where the lake is.
        datasets: Their datasets.
        to: A snapshot's number or a moment.
        pattern: Only the partitions whose key is this, or matches it (``eu/*``); None: all.

    Returns:
        The snapshot, and the partitions of each dataset that has some.

    Raises:
        BadInput: there is no such snapshot.
    """
    with connected(settings, read_only=True) as con, one_snapshot(con):
        snapshot, now = snapshot_meant(con, to), snapshot_meant(con, NOW)
        found = []
        for dataset in datasets:
            # A member may have changed alone, such as the quarantine table.
            changed = {k for one in (dataset, *dataset.members) for k in published_between(con, one.key, snapshot, now)}
            keys = [key for key in sorted(changed) if pattern is None or fnmatchcase(key, pattern)]
            if keys:
                found.append((dataset, list(map(dataset.partition, keys))))
    return snapshot, found


def publish_together(
    settings: Settings, receipts: Sequence[Receipt], flow_run_id: str, reason: str, refusal: str
) -> Published:
    """Publish receipts in one commit, all of them or none, and say so by an event.

    Args:
        settings: Where the lake is.
        receipts: What is published.
        flow_run_id: Recorded in the ledger.
        reason: Why; recorded in the ledger.
        refusal: How the error begins if one is refused.

    Raises:
        LakeError: one was refused, so nothing was changed.
    """
    datasets = [get_dataset(key) for key in dict.fromkeys(receipt.dataset for receipt in receipts)]
    publisher = Publisher(settings, datasets, flow_run_id, reason=reason, together=True)
    try:
        with gate.hold():
            result = publisher.publish(receipts)
    finally:
        publisher.close()
    if result.failures:
        raise LakeError(f"{refusal}: {result.failures[0].error}", "lake verify")
    with events.transform_follows():
        events.published(result, settings)
    return result


class Restoring:
    """The damaged partitions of a repair, and what was done about each.

    Args:
        settings: Where the lake is.
        damaged: The partitions.
        flow_run_id: Recorded in the ledger.
    """

    def __init__(self, settings: Settings, damaged: Sequence[Damaged], flow_run_id: str) -> None:
        self._settings, self._flow_run_id = settings, flow_run_id
        self._damaged = {(d.dataset, d.partition): d for d in damaged}
        self._left = dict(self._damaged)
        self._done: dict[tuple[str, str], str] = {}
        self._why: dict[tuple[str, str], str] = {}

    def drop_shared(self) -> list[repair.Change]:
        """Take lost files with rows of several partitions out of the catalog: otherwise none of them can be replaced.

        Until these partitions are published again, readers see the table without their rows instead of an error.
        """
        shared = sorted({path for damaged in self._left.values() for path in damaged.shared})
        if not shared:
            return []
        with gate.hold():
            return repair.drop(self._settings, shared)

    def loadable(self) -> dict[str, list[str]]:
        """The partitions to load from their sources, by dataset. A rolled back one must not get its source's rows.

        Another table of a dataset is loaded with it.
        """
        found: dict[str, list[str]] = {}
        for key, partitions in self._loadable().items():
            dataset = get_dataset(key)
            found.setdefault(dataset.parent if isinstance(dataset, Member) else key, []).extend(partitions)
        return {key: sorted(set(partitions)) for key, partitions in found.items()}

    def _loadable(self) -> dict[str, list[str]]:
        return _by_dataset(d for d in self._left.values() if d.state != State.rolled_back)

    def loaded(self) -> None:
        """Record the partitions that a run has published from their sources."""
        self._check(self._loadable(), "published from its source")

    def from_snapshots(self) -> None:
        """Publish the rows of the last good snapshots."""
        receipts: list[Receipt] = []
        for key, damaged in self._left.items():
            if damaged.state:
                dataset = get_dataset(damaged.dataset)
                try:
                    receipts.append(stage_published(self._settings, dataset, dataset.partition(key[1])))
                except BadInput as error:
                    self._why[key] = f"{error.message} {error.fix}"
        keys: dict[str, list[str]] = {}
        for receipt in receipts:
            keys.setdefault(receipt.dataset, []).append(receipt.partition)
        publisher = Publisher(self._settings, [get_dataset(key) for key in keys], self._flow_run_id, recheck=True)
        try:
            for first in range(0, len(receipts), GROUP):
                with gate.hold():
                    result = publisher.publish(receipts[first : first + GROUP])
                events.published(result, self._settings)
                self._why |= {(f.dataset, f.partition): f.error for f in result.failures}
        finally:
            publisher.close()
        self._check(keys, "published from a snapshot")

    def remove_unknown(self) -> list[repair.Change]:
        """Delete the rows of partitions that were never published and could not be loaded."""
        changes: list[repair.Change] = []
        unknown = [d for d in self._left.values() if not d.state]
        for key, partitions in _by_dataset(unknown).items():
            with gate.hold():
                changes += repair.drop(self._settings, [path for d in unknown if d.dataset == key for path in d.lost])
                changes += repair.remove(self._settings, get_dataset(key), partitions)
            self._check({key: partitions}, "removed: neither the ledger nor the source has it")
        return changes

    def rows(self) -> list[dict[str, Any]]:
        """Every damaged partition, what was found, and what was done; for tables."""
        return [
            {"dataset": d.dataset, "partition": d.partition, "found": d.message, "done": self._done.get(key, "")}
            for key, d in self._damaged.items()
        ]

    @property
    def lost(self) -> set[str]:
        """The lost files of partitions that are still damaged."""
        return {path for damaged in self._left.values() for path in damaged.lost}

    @property
    def failed(self) -> dict[str, str]:
        """The partitions that are still damaged, by name, with the reason."""
        return {" ".join(key): self._why.get(key, damaged.message) for key, damaged in self._left.items()}

    def _check(self, tried: dict[str, list[str]], how: str) -> None:
        """Look again at partitions, and record those that are right now."""
        for key, partitions in tried.items():
            still = {d.partition: d for d in find_all(self._settings, [get_dataset(key)], partitions)}
            for partition in partitions:
                if partition in still:
                    self._left[key, partition] = still[partition]
                else:
                    self._done[key, partition] = how
                    del self._left[key, partition]


def _by_dataset(damaged: Iterable[Damaged]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in damaged:
        found.setdefault(one.dataset, []).append(one.partition)
    return found
