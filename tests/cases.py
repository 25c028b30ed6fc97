"""A dataset defined by a test: extracted, published and read back in this process, with the code of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.extract.chunk import extract
from ducklake_flows.lake import ledger
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
    """A dataset in a lake. By default its source returns `given[partition]`."""

    lake: Lake
    dataset: Dataset
    given: dict[str, Any]

    def extract(self, *keys: str) -> list[Outcome]:
        """Extract partitions together, in one chunk."""
        partitions = [self.dataset.partition(key) for key in keys]
        versions = self.dataset.versions(partitions)
        with self.lake.reading() as con:
            tables = table_columns(con)
        others = {member.key: tables.get(member.table, {}) for member in self.dataset.members}
        asked = {key: versions.get(key, "") for key in keys}
        return extract(self.dataset, asked, self.lake.settings, tables.get(self.dataset.table, {}), others=others)

    def publish(self, outcomes: list[Outcome]) -> Published:
        publisher = Publisher(self.lake.settings, [self.dataset], "test")
        try:
            return publisher.publish(outcomes)
        finally:
            publisher.close()

    def load(self, *keys: str) -> Published:
        return self.publish(self.extract(*keys))

    def each(self, *days: Any) -> list[str]:
        """Publish the given items, one day each. Returns the error of each day, "" if it was published."""
        said = []
        for key, items in zip(DAYS, days, strict=False):
            self.given[key] = items
            result = self.load(key)
            said.append(result.failures[0].error if result.failures else "")
        return said

    def refused(self, *days: Any) -> str:
        """The error of the last day. All days before it must be published."""
        *before, last = self.each(*days)
        assert not any(before), before
        assert last
        return last

    def damaged(self) -> list[str]:
        """The partitions whose row count or fingerprint differs from the ledger, as `lake verify` checks them.

        `verify` itself knows only datasets that have a file.
        """
        with self.lake.reading() as con:
            tables = table_columns(con)
            found = [
                (contents(con, one, tables[one.table]) if one.table in tables else {}, ledger.latest(con, one.key))
                for one in (self.dataset, *self.dataset.members)
            ]
        nothing = Contents(0, fingerprint_text(0, 0))
        return [
            partition
            for here, entries in found
            for (_, partition), entry in entries.items()
            if entry.attempt_id and here.get(partition, nothing) != Contents(entry.rows, entry.fingerprint)
        ]

    def errors(self) -> list[str]:
        """The errors of `lake verify`, and the damaged partitions of this dataset."""
        return self.lake.errors() + self.damaged()

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the raw table and their types."""
        with self.lake.reading() as con:
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
    divided: Mapping[str, Any] | None = None,
    **more: Any,
) -> Case:
    """A daily dataset whose source returns what the test sets, or uses the given source.

    Args:
        lake: The lake that it is published to.
        key: The key of the dataset.
        source: A source. By default a function that returns `Case.given[partition]`, or the result of calling it.
        contract: The columns of the contract.
        grain: The grain of the dataset.
        divided: Its segments or its zone: other arguments of the dataset.
        more: The other arguments of the contract.
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
        **(divided or {}),
    )
    return Case(lake, dataset, given)


def failure(outcome: Outcome) -> str:
    assert isinstance(outcome, Failure), outcome
    return outcome.error
