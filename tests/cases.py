"""A dataset made on the spot: extracted, published and read back in this process, as a run does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.extract.chunk import extract
from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.evolve import Contents, contents
from ducklake_flows.lake.publish import Published, Publisher
from ducklake_flows.lake.schema import table_columns
from ducklake_flows.staging.inspect import fingerprint_text
from ducklake_flows.staging.receipt import Failure, Outcome

if TYPE_CHECKING:
    from tests.conftest import Lake

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04")


@dataclass
class Case:
    """A dataset in a lake. Its source gives what `given` holds for a partition, unless it has a source of its own."""

    lake: Lake
    dataset: Dataset
    given: dict[str, Any]

    def extract(self, *keys: str) -> list[Outcome]:
        """Extract partitions together, in one chunk."""
        partitions = [parse_partition(key, self.dataset.grain) for key in keys]
        versions = self.dataset.versions(partitions)
        return extract(self.dataset, {key: versions.get(key, "") for key in keys}, self.lake.settings, self.columns)

    def publish(self, outcomes: list[Outcome]) -> Published:
        publisher = Publisher(self.lake.settings, [self.dataset], "test")
        try:
            return publisher.publish(outcomes)
        finally:
            publisher.close()

    def load(self, *keys: str) -> Published:
        return self.publish(self.extract(*keys))

    def each(self, *days: Any) -> list[str]:
        """Publish what is given for one day after the other; the error of each, "" where it was published."""
        said = []
        for key, items in zip(DAYS, days, strict=False):
            self.given[key] = items
            result = self.load(key)
            said.append(result.failures[0].error if result.failures else "")
        return said

    def refused(self, *days: Any) -> str:
        """The last day's error; the days before are published."""
        *before, last = self.each(*days)
        assert not any(before), before
        assert last
        return last

    def damaged(self) -> list[str]:
        """The partitions whose rows are not what the ledger says, by count and content: what `lake verify` looks for.

        `verify` itself knows only datasets that have a file.
        """
        with connected(self.lake.settings, read_only=True) as con:
            here = contents(con, self.dataset, table_columns(con)[self.dataset.table])
            entries = ledger.latest(con, self.dataset.key)
        nothing = Contents(0, fingerprint_text(0, 0))
        return [
            partition
            for (_, partition), entry in entries.items()
            if entry.attempt_id and here.get(partition, nothing) != Contents(entry.rows, entry.fingerprint)
        ]

    def errors(self) -> list[str]:
        """What is wrong with the lake, and with this dataset in it."""
        return self.lake.errors() + self.damaged()

    @property
    def columns(self) -> dict[str, str]:
        """The raw table's columns and types, the partition column left out."""
        with connected(self.lake.settings, read_only=True) as con:
            return table_columns(con).get(self.dataset.table, {})

    def values(self, column: str = "v", order: str = "day, rowid") -> list[Any]:
        return self.lake.column(f'SELECT "{column}" FROM {self.dataset.table} ORDER BY {order}')

    def types(self) -> dict[str, str]:
        return {n: t for n, t in self.columns.items() if n != "day"}


def case(
    lake: Lake,
    key: str = "things",
    source: Any = None,
    contract: Mapping[str, str] | None = None,
    grain: Grain = Grain.day,
    **more: Any,
) -> Case:
    """A dataset by day whose source gives what the test says, or another source.

    Args:
        lake: Where it is published.
        key: Its name.
        source: A source; by default a function that gives `Case.given` of its partition, or calls it.
        contract: The contract's columns.
        grain: Its grain.
        more: The contract's other arguments.
    """
    given: dict[str, Any] = {}

    def function(partition: Any) -> Any:
        found = given[partition.key]
        return found() if isinstance(found, Callable) else found  # type: ignore[arg-type]

    dataset = Dataset(
        key,
        source or function,
        grain,
        partition_column=None if grain is Grain.full else "day",
        contract=Contract(contract or {}, **more),
    )
    return Case(lake, dataset, given)


def failure(outcome: Outcome) -> str:
    assert isinstance(outcome, Failure), outcome
    return outcome.error
