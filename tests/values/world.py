"""Runs stories through the project: lands, reads and publishes them, reads the lake, and compares with the oracle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from hypothesis import reject

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.datasets.types import duckdb_type
from ducklake_flows.errors import LakeError
from ducklake_flows.extract.attempt import Attempt, said
from ducklake_flows.extract.items import items_of, tables_of
from ducklake_flows.sources.files import Files
from ducklake_flows.sources.values import Unfit
from tests.cases import Case
from tests.values import oracle
from tests.values.forms import (
    NUMBER,
    Form,
    Given,
    Unwritable,
    csv_text,
    duckdb_parquet,
    json_text,
    pandas_parquet,
    pyarrow_parquet,
)
from tests.values.stories import DAYS, Story

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from tests.conftest import Lake

_KEYS = (f"story_{number}" for number in count())


@dataclass
class Told:
    """A story's dataset and the values of its partitions.

    Args:
        story: The story.
        case: The dataset.
        given: The values of each day, by the source's names.
    """

    story: Story
    case: Case
    given: list[Given]

    def names(self, day: int) -> dict[str, str]:
        """The columns, by source name, that the contract keeps for a day."""
        contract = self.story.contract
        is_kept = not contract or self.story.more.get("schema_contract", {}).get("columns") != "discard_value"
        columns = {name: oracle.column(name) for name in self.given[day]}
        return {name: column for name, column in columns.items() if is_kept or column in contract}


def tell(story: Story, lake: Lake, folder: Path) -> Told:
    """Land a story's partitions in its form. The example is rejected if the form cannot hold them."""
    key = next(_KEYS)
    try:
        return _tell(story, lake, folder, key)
    except Unwritable:
        reject()


def _tell(story: Story, lake: Lake, folder: Path, key: str) -> Told:
    items: dict[str, Any] = {}
    given: list[Given] = []
    source: Any = lambda partition: items[partition.key]()  # noqa: E731
    pattern = f"{key}/{{partition}}"
    if story.mode == "csv":
        source = Files(f"{pattern}.csv{story.dialect.suffix}", "csv", **story.dialect.arguments())
    elif story.mode != "function":
        kind: Any = "parquet" if story.mode == "parquet" else "jsonl"
        source = Files(f"{pattern}.{kind}", kind, empty=True)
    for number, (day, columns) in enumerate(zip(DAYS, story.days, strict=False)):
        own: Given | None = None
        if story.mode == "function":
            form: Form = story.forms[number]
            own = form.make(columns)[1]
            items[day] = lambda form=form, columns=columns: form.make(columns)[0]
        elif story.mode == "csv":
            content, own = csv_text(columns, story.dialect, folder)
            lake.land(f"{key}/{day}.csv{story.dialect.suffix}", content)
        elif story.mode == "json":
            text, own = json_text(columns, array=story.array)
            lake.land(f"{key}/{day}.jsonl", text)
        else:
            how = story.forms[number]
            if how == "pandas":
                content, own = pandas_parquet(columns)
            else:
                content = pyarrow_parquet(columns) if how == "pyarrow" else duckdb_parquet(columns, folder)
            lake.land(f"{key}/{day}.parquet", content)
        given.append(own if own is not None else {c.name: c.values for c in columns})
    contract = Contract(story.contract, **story.more)
    return Told(story, Case(lake, Dataset(key, source, partition_column="day", contract=contract), items), given)


def read(dataset: Dataset, key: str) -> tuple[Given, dict[str, str], str]:
    """Read one partition without a lake. Returns its values by column, the columns' types, and the error or ""."""
    attempt = Attempt(parse_partition(key, dataset.grain), "")
    tables: list[pa.Table] = []
    try:
        given = tables_of(items_of(dataset.read(attempt.partition, {})), dataset.contract)
        tables += [attempt.take(table, dataset)[0] for table in given if table is not None and table.num_rows]
    except Unfit as error:
        return {}, {}, said(error).message
    except LakeError as error:
        return {}, {}, error.message
    types = {field.name: duckdb_type(field.type) for table in tables for field in table.schema}
    values: Given = {name: [] for name in types}
    for table in tables:
        rows = table.to_pylist(maps_as_pydicts="lossy")
        for name in types:
            values[name] += [row.get(name) for row in rows]
    return values, types, ""


def compare(told: Told, day: int, values: Mapping[str, list[Any]], types: Mapping[str, str]) -> list[str]:
    """The differences between the values that were read and the source's, both ordered by row number."""
    given, names = told.given[day], told.names(day)
    wrong = []
    size = len(given[NUMBER])
    lost = [v for v in values.values() if len(v) != size]
    if lost:
        wrong.append(f"{len(lost[0])} rows instead of {size}")
    taken: dict[str, list[str]] = {}
    for name, column in names.items():
        taken.setdefault(column, []).append(name)
    for column, sources in taken.items():
        wanted = [next((given[s][row] for s in sources if given[s][row] is not None), None) for row in range(size)]
        if len(sources) > 1 and any(sum(given[s][row] is not None for s in sources) > 1 for row in range(size)):
            wrong.append(f"{sources} became one column")
        got = values.get(column, [None] * size)
        kind = types.get(column, "")
        declared = column in told.story.contract
        wrong += [
            f"{column} ({kind}), row {row}: {found!r} instead of {value!r}"
            for row, (found, value) in enumerate(zip(got, wanted, strict=False))
            if not oracle.stands_for(found, value, kind, told.story.more.get("timezone"), declared)
        ]
    for column in values.keys() - taken.keys() - {"day"}:
        if any(value is not None for value in values[column]):
            wrong.append(f"{column} has values, but the source has none for it")
    return wrong


def is_named(told: Told, day: int, error: str) -> bool:
    """Whether an error names a column of the partition or of the contract."""
    names = {*told.given[day], *map(oracle.column, told.given[day]), *told.story.contract}
    spelt = {spelling for name in names for spelling in (name, repr(name), repr(name)[1:-1])}
    error = " ".join(error.split())
    return any(re.search(rf"(?<!\w){re.escape(' '.join(name.split()))}(?!\w)", error) for name in spelt if name)


class Reader:
    """A connection that reads the lake with every operator."""

    def __init__(self, con: DuckDBPyConnection) -> None:
        self._con = con

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """A query's rows."""
        return self._con.execute(query).fetchall()

    def table(self, table: str) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
        """The columns and rows of a table, ordered by day and row number."""
        found = self._con.execute(f'SELECT * FROM lake.{table} ORDER BY "day", row_number')
        types = {d[0]: str(d[1]) for d in found.description or []}
        return types, found.fetchall()

    def wrong(self, table: str, column: str, kind: str, rows: list[tuple[Any, Any, Any]]) -> Iterator[str]:
        """Query results on a column that contradict the table's rows.

        Args:
            table: The table's name.
            column: The column to query.
            kind: The column's DuckDB type.
            rows: Day, row number and the column's value of every row.
        """
        name = '"' + column.replace('"', '""') + '"'
        source = f"FROM lake.{table}"
        key = "(strftime(\"day\", '%Y-%m-%d') || ' ' || row_number)"
        keyed = [(f"{day} {number}", value) for day, number, value in rows]
        there = [value for _, value in keyed if value is not None]
        asked: list[tuple[str, str, list[Any], Any]] = [
            ("count", f"SELECT [count(*), count({name})] {source}", [], [len(rows), len(there)]),
            ("IS NULL", f"SELECT list({key}) {source} WHERE {name} IS NULL", [], {k for k, v in keyed if v is None}),
            (
                "IS NOT NULL",
                f"SELECT list({key}) {source} WHERE {name} IS NOT NULL",
                [],
                {k for k, v in keyed if v is not None},
            ),
            (
                "GROUP BY",
                f"SELECT list_sort(list(n)) FROM (SELECT count(*) n {source} GROUP BY {name})",
                [],
                oracle.counted([v for _, v in keyed]),
            ),
        ]
        is_nested = kind.endswith("]") or kind.startswith(("STRUCT", "MAP"))
        if not is_nested:
            order = f"SELECT list({key} ORDER BY {name} NULLS LAST, {key}) {source}"
            top = f"SELECT list(k) FROM (SELECT {key} k {source} ORDER BY {name} NULLS LAST, {key} LIMIT 3)"
            by_value = oracle.ordered(keyed)
            asked += [("ORDER BY", order, [], by_value), ("ORDER BY LIMIT", top, [], by_value[:3])]
            if there:
                low = high = there[0]
                for value in there:
                    low = value if oracle.compare(value, low) < 0 else low
                    high = value if oracle.compare(value, high) > 0 else high
                is_low = f"SELECT min({name}) IS NOT DISTINCT FROM ?::{kind} {source}"
                is_high = f"SELECT max({name}) IS NOT DISTINCT FROM ?::{kind} {source}"
                asked += [("min", is_low, [low], True), ("max", is_high, [high], True)]
            for value in [*there[:2], *there[-1:]]:
                equal = {k for k, v in keyed if v is not None and oracle.equal(v, value)}
                above = {k for k, v in keyed if v is not None and oracle.compare(v, value) > 0}
                asked += [
                    ("=", f"SELECT list({key}) {source} WHERE {name} = ?::{kind}", [value], equal),
                    (">", f"SELECT list({key}) {source} WHERE {name} > ?::{kind}", [value], above),
                ]
        for what, sql, parameters, wanted in asked:
            found: Any = self._con.execute(sql, parameters).fetchall()[0][0]
            right = sorted(wanted) if isinstance(wanted, set) else wanted
            if isinstance(wanted, set):
                found = sorted(found or [])
            elif isinstance(wanted, list):
                found = found or []
            if found != right:
                yield f"{what} of {column} ({kind}), {parameters}: {found} instead of {right}"
