"""One partition on its way through a chunk: what its source gave, and what its columns are staged as."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain, Partition
from ducklake_flows.datasets.types import arrow_type, duckdb_type
from ducklake_flows.errors import Rejected
from ducklake_flows.sources.values import FILE, NAIVE_US, Unfit, conform
from ducklake_flows.staging.inspect import Inspection
from ducklake_flows.staging.lattice import contract_line, join
from ducklake_flows.staging.layout import new_attempt

NULL = '"NULL"'
"""DuckDB's type of a column without any value."""

ROWS = ""
"""Under this name the rows are counted, beside each column's values."""

_TEXT = {"VARCHAR", "JSON"}
_FROM_TEXT = {"DATE", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"}
"""What text is brought to where the table has it by now: CSV and JSON have no other way to write it."""


@dataclass
class Attempt:
    """One partition on its way through a run.

    Args:
        partition: Which.
        source_version: What the source said of itself before it was read.
        given: How many values of each column, and rows, the source gave.
        natural: The DuckDB type that holds each column's values.
        origins: The file whose values last changed that type, where the source says so.
        files: The staged rows, in local Parquet files.
        paths: Where they are staged, below the data path.
        staged: How many values of each column, and rows, are in these.
    """

    partition: Partition
    source_version: str
    id: str = field(default_factory=new_attempt)
    files: list[Path] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    seen: Inspection | None = None
    error: Exception | None = None
    given: Counter[str] = field(default_factory=Counter)
    natural: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    staged: dict[str, int] = field(default_factory=dict)
    profile: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Time spent on it."""
        return sum(self.profile.values())

    def begin(self) -> None:
        """Begin to read: attempts are in the order of this, and what came of it before is forgotten."""
        self.id = new_attempt()
        self.error, self.seen, self.files, self.paths = None, None, [], []
        self.given, self.natural, self.origins = Counter(), {}, {}

    def take(self, table: pa.Table, dataset: Dataset) -> pa.Table:
        """A table of its rows as the contract says, with the partition column; counted, and its types taken up.

        Raises:
            Unfit: a value or a column does not fit; its row is counted from the partition's first.
        """
        contract, column = dataset.contract, dataset.partition_column
        counts = {
            name: table.num_rows - table.column(name).null_count
            for name in table.column_names
            if _is_kept(name, contract) or name == column
        }
        before = self.given[ROWS]
        kind = NAIVE_US if dataset.grain is Grain.hour else pa.date32()
        try:
            # Rows without a column are rows, too.
            found = conform(table, contract, {column: kind} if column else {})
        except Unfit as error:
            raise Unfit(error.column, error.why, None if error.row is None else before + error.row) from None
        rows = table.num_rows
        if column and column not in table.column_names:
            start = self.partition.start
            value = pa.scalar(start if dataset.grain is Grain.hour else start.date(), kind)
            found = found.append_column(column, pa.chunked_array([pa.repeat(value, rows)]))
            counts[column] = rows
        file = (table.schema.metadata or {}).get(FILE, b"").decode()
        for field_ in found.schema:
            self._widen(field_.name, duckdb_type(field_.type), file)
        self.given.update({ROWS: rows, **counts})
        return found.replace_schema_metadata(None)

    def _widen(self, name: str, data_type: str, file: str) -> None:
        before = self.natural.get(name, NULL)
        joined = _joined(before, data_type)
        if joined is None:
            first, then = (f" in {path}" if path else "" for path in (self.origins.get(name), file))
            raise Unfit(
                name,
                f"its values are {before} first{first}, then {data_type}{then}; {_declare(name, data_type, before)}",
            )
        if joined != before:
            self.natural[name], self.origins[name] = joined, file

    def target(self, dataset: Dataset, table: Mapping[str, str]) -> dict[str, str]:
        """The DuckDB types that its columns are staged as.

        Args:
            dataset: Whose contract counts.
            table: The raw table's columns, by now. Those that the partition lacks are staged as nulls.

        Raises:
            Rejected: a column's values have no exact place in the table; names the line for the contract.
        """
        wanted: dict[str, str] = {}
        for name, there in table.items():
            here = self.natural.get(name, NULL)
            if arrow_type(there) is None and here == NULL:
                continue  # the publisher fills in what has no Arrow type
            declared = name in dataset.contract.columns or name == dataset.partition_column
            if declared and name in self.natural:
                wanted[name] = there if (here, there) == ("JSON", "VARCHAR") else here
            elif here == "VARCHAR" and there in _FROM_TEXT:
                wanted[name] = there
            elif joined := _joined(there, here):
                wanted[name] = joined
            else:
                raise Rejected(
                    f"column {name} is {here} in this partition, but {there} in {dataset.table}; "
                    f"{_declare(name, here, there)}"
                )
        for name, here in self.natural.items():
            if name not in wanted and NULL in here and here != NULL:
                raise Rejected(
                    f"column {name} holds nothing but empty lists or nulls in a {here}, which has no type yet; "
                    f"declare it in the contract: {contract_line(name, 'JSON')}"
                )
        # A column that has no value yet has no type: it is added with its first one.
        return wanted | {n: t for n, t in self.natural.items() if n not in wanted and t != NULL}


def with_neighbours(table: Mapping[str, str], attempts: Sequence[Attempt]) -> dict[str, str]:
    """A table's columns, and those of which an attempt has only empty lists while another one has elements."""
    known = dict(table)
    for name in {n for a in attempts for n, t in a.natural.items() if n not in table and NULL in t and t != NULL}:
        joined: str | None = NULL
        for attempt in attempts:
            joined = joined and _joined(joined, attempt.natural.get(name, NULL))
        if joined and NULL not in joined:
            known[name] = joined
    return known


def _is_kept(name: str, contract: Contract) -> bool:
    return not contract.columns or name in contract.columns or contract.new_columns != "discard_value"


def _joined(there: str, new: str) -> str | None:
    """The type of both. Text that is JSON and text that need not be are not the same."""
    return None if {there, new} == _TEXT else join(there, new)


def _declare(name: str, *types: str) -> str:
    widest = "VARCHAR" if "VARCHAR" in types else next((t for t in types if t != NULL), "VARCHAR")
    return f"declare it in the contract: {contract_line(name, widest)}"


def as_arrow(types: Mapping[str, str]) -> pa.Schema:
    """The Arrow schema that columns of these DuckDB types are staged with."""
    return pa.schema([(name, arrow_type(data_type)) for name, data_type in types.items()])


def said(error: Unfit) -> Rejected:
    """An unfit value as the user's error."""
    where = f"row {error.row + 1}: " if error.row is not None else ""
    what = f"column {error.column}: {error.why}" if error.column else error.why
    return Rejected(f"{where}{what}", "mend the source, or the dataset's contract")


@contextlib.contextmanager
def timed(attempts: Sequence[Attempt], stage: str) -> Iterator[None]:
    """Add the time of a block to a stage of these attempts, to each its share."""
    began = time.monotonic()
    try:
        yield
    finally:
        for attempt in attempts:
            share = (time.monotonic() - began) / len(attempts)
            attempt.profile[stage] = attempt.profile.get(stage, 0.0) + share
