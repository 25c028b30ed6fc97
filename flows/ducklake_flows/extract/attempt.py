"""One partition in a chunk: what its source gave, and the types that its columns are staged as."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.datasets.types import arrow_type, duckdb_type
from ducklake_flows.errors import Rejected
from ducklake_flows.sources.sift import sifted
from ducklake_flows.sources.values import FILE, Unfit, conform, fit
from ducklake_flows.staging.lattice import contract_line, join
from ducklake_flows.staging.layout import new_attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ducklake_flows.datasets.contract import Contract, Refused
    from ducklake_flows.datasets.dataset import Dataset, Member
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.staging.inspect import Inspection

NULL = '"NULL"'
"""DuckDB's type of a column without values."""

ROWS = ""
"""Key of the number of rows, beside the number of values of each column."""

_TEXT = {"VARCHAR", "JSON"}
_FROM_TEXT = {"DATE", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"}
"""Types that text is converted to if the table has them: CSV and JSON can only write such values as text."""


@dataclass
class Attempt:
    """One partition in a run.

    Args:
        partition: The partition.
        source_version: Version that the source reported before it was read.
        given: Number of non-null values of each column, and of rows, that the source gave.
        natural: The DuckDB type that holds each column's values.
        origins: The file whose values last changed that type, if the source names its files.
        files: The staged rows, in local Parquet files.
        paths: The staged files' paths, below the data path.
        staged: Number of non-null values of each column, and of rows, in the staged files.
        tries: Which try of its partition in this chunk it is, from 1.
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
    tries: int = 1
    members: list[tuple[Member, Attempt]] = field(default_factory=list)
    """The attempts at the partition of the dataset's other tables."""
    set_aside: Counter[str] = field(default_factory=Counter)
    """Number of rows that are set aside, by reason."""
    refused: list[Refused] = field(default_factory=list)
    """Rows that are set aside, and not kept in a file yet."""

    @property
    def seconds(self) -> float:
        """Seconds spent on the attempt."""
        return sum(self.profile.values())

    def begin(self) -> None:
        """Start the attempt: give it a new id, so that ids sort by start, and discard earlier results."""
        self.id = new_attempt()
        self.error, self.seen, self.files, self.paths = None, None, [], []
        self.given, self.natural, self.origins = Counter(), {}, {}
        self.set_aside, self.refused = Counter(), []

    def refuse(self, row: Refused) -> None:
        """Set a row aside."""
        self.set_aside[f"{row.column}: {row.reason}" if row.column else row.reason] += 1
        self.refused.append(row)

    def again(self) -> Attempt:
        """Another try of the partition."""
        return Attempt(self.partition, self.source_version, tries=self.tries + 1)

    def own(self, table: pa.Table, dataset: Dataset, source: Partition) -> pa.Table:
        """The rows of a source's partition that this attempt takes, see `Dataset.late`.

        Those that belong to another partition, which reads them too, are left out. Those that no partition would read
        are kept in the attempt at the source's own, whose audit refuses them.

        Raises:
            Unfit: a value of the partition column does not fit.
        """
        column = dataset.partition_column
        if not dataset.late or column is None:
            return table
        is_own = source == self.partition
        if column not in table.column_names:
            return table if is_own else table.slice(0, 0)
        kind = arrow_type(dataset.partition_columns[column])
        contract = dataset.contract_of(source, self.refuser(source))
        file = (table.schema.metadata or {}).get(FILE, b"").decode()
        read_by = [source]
        while len(read_by) <= dataset.late:
            before = read_by[-1].start - timedelta(microseconds=1)
            read_by.append(dataset.scheme.at(before, source.segment))
        lows = [p.low if dataset.grain is Grain.hour else p.low.date() for p in read_by]
        mine = self.partition.low if dataset.grain is Grain.hour else self.partition.low.date()
        kept = [table.slice(0, 0)]
        for rows, found in sifted(
            table,
            lambda t: pa.table([fit(t.column(column), kind, column, contract.zone)], [column]),
            contract,
            lambda _: (file, 0),
        ):
            values = found.column(column)
            keep = pc.fill_null(pc.equal(values, pa.scalar(mine, kind)), is_own)
            if is_own:
                keep = pc.or_(keep, pc.invert(pc.is_in(values, pa.array(lows, kind))))
            kept.append(rows.filter(keep))
        return pa.concat_tables(kept)

    def refuser(self, source: Partition) -> Callable[[Refused], None]:
        """What takes the rows of a source's partition that are set aside: this attempt if the partition is its own.

        With `Dataset.late`, rows of other partitions are read, too. Those that cannot be read are left to their own.
        """
        return self.refuse if source == self.partition else lambda _: None

    def take(self, table: pa.Table, dataset: Dataset) -> tuple[pa.Table, dict[str, pa.ChunkedArray]]:
        """Convert a table of rows to the contract, add the partition columns, count values and record types.

        Returns:
            The rows without those that are set aside, and their lists that have a table of their own, by column.

        Raises:
            Unfit: a value or a column does not fit. The row is counted from the partition's first.
        """
        contract = dataset.contract_of(self.partition, self.refuse)
        added = dataset.added_columns
        kinds = {column: arrow_type(data_type) if data_type else None for column, data_type in added.items()}
        file = (table.schema.metadata or {}).get(FILE, b"").decode()
        before = self.given[ROWS] + sum(self.set_aside.values())

        def converted(rows: pa.Table) -> pa.Table:
            return conform(_cut(rows, dataset)[0], contract, kinds)

        def where(row: int) -> tuple[str, int]:
            return file, 0 if dataset.late else before + row + 1  # with `late`, these are only some rows of the file

        try:
            # The result may have no columns, but the rows still count.
            parts = list(sifted(table, converted, contract, where))
        except Unfit as error:
            raise Unfit(error.column, error.why, None if error.row is None else before + error.row) from None
        if len(parts) == 1:
            ((table, found),) = parts
        else:
            nothing = table.slice(0, 0)
            table = pa.concat_tables([part for part, _ in parts] or [nothing])
            found = pa.concat_tables([made for _, made in parts] or [converted(nothing)])
        table, lists = _cut(table, dataset)
        counts = {
            name: table.num_rows - table.column(name).null_count
            for name in table.column_names
            if _is_kept(name, contract) or name in kinds
        }
        rows = table.num_rows
        segment, low = self.partition.place
        for column in dataset.partition_columns:
            kind = kinds[column]
            if column not in table.column_names:
                of_kind = segment if column == dataset.segment_column else low.date() if kind == pa.date32() else low
                value = pa.scalar(of_kind, kind)
                found = found.append_column(column, pa.chunked_array([pa.repeat(value, rows)]))
                counts[column] = rows
        for field_ in found.schema:
            self._widen(field_.name, duckdb_type(field_.type), file)
        self.given.update({ROWS: rows, **counts})
        return found.replace_schema_metadata(None), lists

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
        """The DuckDB types that the partition's columns are staged as.

        Args:
            dataset: The dataset with the contract.
            table: The raw table's current columns. Columns that the partition lacks are staged as nulls.

        Raises:
            Rejected: a column's values cannot be stored exactly in the table; names the line for the contract.
        """
        wanted: dict[str, str] = {}
        for name, there in table.items():
            here = self.natural.get(name, NULL)
            if arrow_type(there) is None and here == NULL:
                continue  # the publisher fills in columns whose type has no Arrow type
            declared = name in dataset.contract.columns or name in dataset.added_columns
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
                    f"column {name} is a {here} of only empty lists or nulls, so its type is unknown; "
                    f"declare it in the contract: {contract_line(name, 'JSON')}"
                )
        # A column without values has no type. It is added with its first value.
        return wanted | {n: t for n, t in self.natural.items() if n not in wanted and t != NULL}


def _cut(table: pa.Table, dataset: Dataset) -> tuple[pa.Table, dict[str, pa.ChunkedArray]]:
    """Take the columns of children out of a table of a source."""
    lists = {name: table.column(name) for name in dataset.children if name in table.column_names}
    return table.drop_columns(list(lists)) if lists else table, lists


def with_neighbours(table: Mapping[str, str], attempts: Sequence[Attempt]) -> dict[str, str]:
    """The table's columns, and columns of which one attempt has only empty lists and another has elements."""
    known = dict(table)
    for name in {n for a in attempts for n, t in a.natural.items() if n not in table and NULL in t and t != NULL}:
        joined: str | None = NULL
        for attempt in attempts:
            joined = joined and _joined(joined, attempt.natural.get(name, NULL))
        if joined and NULL not in joined:
            known[name] = joined
    return known


def _is_kept(name: str, contract: Contract) -> bool:
    return not contract.columns or name in contract.columns or contract.mode("columns") in ("evolve", "freeze")


def _joined(there: str, new: str) -> str | None:
    """The type that holds both. JSON text and other text have no common type."""
    return None if {there, new} == _TEXT else join(there, new)


def _declare(name: str, *types: str) -> str:
    widest = "VARCHAR" if "VARCHAR" in types else next((t for t in types if t != NULL), "VARCHAR")
    return f"declare it in the contract: {contract_line(name, widest)}"


def as_arrow(types: Mapping[str, str]) -> pa.Schema:
    """The Arrow schema that columns of these DuckDB types are staged with."""
    return pa.schema([(name, arrow_type(data_type)) for name, data_type in types.items()])


def said(error: Unfit) -> Rejected:
    """Convert the error of an unfit value to an error for the user."""
    where = f"row {error.row + 1}: " if error.row is not None else ""
    what = f"column {error.column}: {error.why}" if error.column else error.why
    return Rejected(f"{where}{what}", "correct the source or the dataset's contract")


@contextlib.contextmanager
def timed(attempts: Sequence[Attempt], stage: str) -> Iterator[None]:
    """Add the duration of a block to a stage of the attempts, in equal shares."""
    began = time.monotonic()
    try:
        yield
    finally:
        for attempt in attempts:
            share = (time.monotonic() - began) / len(attempts)
            attempt.profile[stage] = attempt.profile.get(stage, 0.0) + share
