"""What a dataset's contract would change in its raw table, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ducklake_flows.datasets.types import declared_types
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.schema import is_outdated
from ducklake_flows.staging.lattice import contract_line, join

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """A difference between a contract and the raw table.

    Args:
        table: Schema and name of the raw table.
        column: The column.
        before: Its type in the table; None if it is not there.
        after: Its type once a partition is published; None if the contract does not have it.
        effect: What that means for the rows, in words.
        is_blocked: Whether no partition could be published.
    """

    table: str
    column: str
    before: str | None
    after: str | None
    effect: str
    is_blocked: bool = False

    def __str__(self) -> str:
        return f"{self.table}.{self.column}: {self.before or 'missing'} -> {self.after or 'undeclared'}: {self.effect}"


def schema_changes(
    con: DuckDBPyConnection, datasets: Iterable[Dataset], tables: Mapping[str, Mapping[str, str]]
) -> list[SchemaChange]:
    """The changes of all tables of datasets that declare their columns. A table without rows is made anew as declared.

    Args:
        con: A connection with the lake attached.
        datasets: The datasets.
        tables: The columns of the lake's tables.
    """
    return [
        change
        for dataset in datasets
        for one in (dataset, *dataset.members)
        if one.contract.columns and one.table in tables
        for change in _changes(con, one, tables[one.table])
    ]


def _changes(con: DuckDBPyConnection, dataset: Dataset, there: Mapping[str, str]) -> Iterator[SchemaChange]:
    declared = declared_types(dataset)
    known = {name.casefold(): name for name in there}
    if all(there.get(name) == kind for name, kind in declared.items()) and declared.keys() == there.keys():
        return
    if is_outdated(con, dataset, there):
        return
    for name, kind in declared.items():
        before = there.get(known.get(name.casefold(), name))
        if before is None:
            yield SchemaChange(dataset.table, name, None, kind, "added; null in the partitions that are published")
        elif before != kind and (before, kind) != ("VARCHAR", "JSON"):
            joined = join(before, kind)
            if joined is None:
                effect = "no type holds the values of both; no partition can be published"
                yield SchemaChange(dataset.table, name, before, kind, effect, is_blocked=True)
            elif joined != before:
                yield SchemaChange(dataset.table, name, before, joined, "becomes wider with the next publish")
    if dataset.contract.mode("columns") != "evolve":
        wanted = {name.casefold() for name in declared}
        for name, kind in there.items():
            if name.casefold() not in wanted and name not in dataset.partition_columns:
                yield SchemaChange(dataset.table, name, kind, None, "null in partitions that are published from now on")


def blocked(changes: Iterable[SchemaChange]) -> BadInput | None:
    """The error of a contract that no partition could be published with; None if there is none."""
    found = [change for change in changes if change.is_blocked]
    if not found:
        return None
    lines = "; ".join(map(str, found))
    kept = ", ".join(contract_line(change.column, change.before or "") for change in found)
    key = found[0].table.partition(".")[2]
    return BadInput(
        f"The contract does not fit the table: {lines}",
        f"convert the table: lake migrate {key}; or keep the type in the contract ({kept})",
    )
