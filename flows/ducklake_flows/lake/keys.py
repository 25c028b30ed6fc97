"""A primary key that is unique over the whole table: judged in the transaction that publishes, before its commit.

Only the key's columns are read: of the staged files, and of the table's files that may hold a value between the least
and the greatest staged one. DuckLake knows the bounds of each file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.types import is_nested, quoted
from ducklake_flows.lake.connect import literal
from ducklake_flows.lake.evolve import key_of
from ducklake_flows.lake.files import full_paths
from ducklake_flows.lake.rows import condition
from ducklake_flows.lake.schema import qualified
from ducklake_flows.staging.receipt import Checked, rows_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Receipt

_STAGED = 'temp."staged keys"'
_NUMBER = '"staged number"'
"""Of the staged partition. No column of a source can have this name: column names contain no spaces."""


@dataclass(frozen=True, slots=True)
class _Clash:
    """Rows of a staged partition whose key another partition has, too.

    Args:
        number: The staged partition.
        other: The other one: its number if it is staged, too, or its key if it is published.
        rows: How many of its rows.
        example: The least of these keys, as JSON.
    """

    number: int
    other: int | str
    rows: int
    example: str


def unique_in_table(
    con: DuckDBPyConnection,
    settings: Settings,
    dataset: Dataset,
    columns: Mapping[str, str],
    receipts: Sequence[Receipt],
) -> list[tuple[Receipt, str]]:
    """Judge whether the primary key stays unique over the table if staged partitions replace the published ones.

    A partition with a key that another published partition has is refused. So is each with a key that one before it,
    which is published with it, has; one that is refused keeps its earlier rows, so this is judged again until no
    partition is refused.

    Args:
        con: A connection with the publishing transaction open.
        settings: Where the staged files are.
        dataset: The dataset.
        columns: The table's columns.
        receipts: The staged partitions, each another one, that are published together.

    Returns:
        Each receipt with the result, and why it is refused; "" if it is not.
    """
    label = ", ".join(dataset.primary_key)
    name = f"the primary key ({label}) is unique in the table"
    why: dict[int, _Clash] = {}
    _read(con, settings, dataset, columns, receipts)
    left = list(range(len(receipts)))
    while left:
        found = list(_published(con, dataset, columns, receipts, left)) or list(_together(con, dataset, left))
        if not found:
            break
        for clash in found:
            why.setdefault(clash.number, clash)
        left = [number for number in left if number not in why]
    con.execute(f"DROP TABLE {_STAGED}")
    judged = []
    for number, receipt in enumerate(receipts):
        check, text = Checked(name, "reject", True, rows_text(0), rows_text(0), 0), ""
        if number in why:
            clash = why[number]
            other = receipts[clash.other].partition if isinstance(clash.other, int) else clash.other
            seen = ", ".join(f"{column}={value}" for column, value in json.loads(clash.example).items())
            check = Checked(
                name, "reject", False, rows_text(clash.rows), rows_text(0), clash.rows, f"[{clash.example}]"
            )
            text = (
                f"the primary key ({label}) is not unique in {dataset.table}: {seen} is in {receipt.partition} and in "
            )
            text += f"{other}: {rows_text(clash.rows)}"
        judged.append((replace(receipt, checks=(*receipt.checks, check)), text))
    return judged


def twice(
    con: DuckDBPyConnection, dataset: Dataset, columns: Mapping[str, str], only: Sequence[Partition] | None
) -> str:
    """How many keys of the table more than one row has, with the least of them and its partitions; "" if none has.

    Rows that were published before the dataset had ``key_scope="table"`` are among them.

    Args:
        con: A connection.
        dataset: The dataset.
        columns: The table's columns.
        only: Only keys of these partitions; None: all.
    """
    if any(column not in columns for column in dataset.primary_key):
        return ""
    keys = ", ".join(map(quoted, dataset.primary_key))
    of = [quoted(name) if name else "''" for name in (dataset.segment_column, dataset.partition_column)]
    rows = f'SELECT {keys}, {of[0]} AS "the segment", {of[1]} AS "the value" FROM {qualified(dataset)} t'
    if only is not None:
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {_STAGED.removeprefix('temp.')} AS "
            f"SELECT 0 AS {_NUMBER}, {keys} FROM {qualified(dataset)} WHERE {condition(dataset, only)}"
        )
        if not (bounds := _bounds(con, dataset, columns, [0])):
            return ""
        rows += f" SEMI JOIN {_STAGED} USING ({keys}) WHERE {bounds}"
    count, example, places = con.execute(
        f"""WITH found AS (
                SELECT {keys}, list(DISTINCT struct_pack("the segment", "the value")) AS places FROM ({rows})
                GROUP BY {keys} HAVING count(*) > 1
            )
            SELECT count(*), {_example(dataset)}, arg_min(places, struct_pack({_pairs(dataset)})) FROM found s"""
    ).fetchall()[0]
    if not count:
        return ""
    seen = ", ".join(f"{column}={value}" for column, value in json.loads(example).items())
    where = sorted(key_of(dataset, *place.values()) for place in places)
    what = "1 key is" if count == 1 else f"{count:,} keys are"
    return f"{what} in more than one row; {seen} in {' and in '.join(where)}"


def _read(
    con: DuckDBPyConnection,
    settings: Settings,
    dataset: Dataset,
    columns: Mapping[str, str],
    receipts: Sequence[Receipt],
) -> None:
    """Read the staged keys into a temporary table, as values of the table's types."""
    types = {column: columns.get(column, "VARCHAR") for column in dataset.primary_key}
    keys = ", ".join(f"CAST({quoted(column)} AS {of}) AS {quoted(column)}" for column, of in types.items())
    nothing = ", ".join(f"NULL::{of} AS {quoted(column)}" for column, of in types.items())
    parts = [f"SELECT NULL::INTEGER AS {_NUMBER}, {nothing} WHERE false"]
    for number, receipt in enumerate(receipts):
        if receipt.files:
            files = ", ".join(map(literal, full_paths(settings, receipt.files)))
            read = f"read_parquet([{files}], union_by_name => true, hive_partitioning => false)"
            parts.append(f"SELECT {number}, {keys} FROM {read}")
    con.execute(f"CREATE OR REPLACE TEMP TABLE {_STAGED.removeprefix('temp.')} AS {' UNION ALL '.join(parts)}")


def _published(
    con: DuckDBPyConnection,
    dataset: Dataset,
    columns: Mapping[str, str],
    receipts: Sequence[Receipt],
    left: Sequence[int],
) -> Iterator[_Clash]:
    """The staged partitions with a key of a published partition that none of them replaces."""
    bounds = _bounds(con, dataset, columns, left)
    if not columns or not bounds:
        return
    replaced = condition(dataset, [dataset.partition(receipts[number].partition) for number in left])
    of = [quoted(name) if name else "''" for name in (dataset.segment_column, dataset.partition_column)]
    keys = ", ".join(map(quoted, dataset.primary_key))
    there = (
        f'SELECT {keys}, {of[0]} AS "the segment", {of[1]} AS "the value" FROM {qualified(dataset)} '
        f"WHERE {bounds} AND ({replaced}) IS NOT TRUE"
    )
    for number, segment, value, rows, example in con.execute(
        f"""SELECT {_NUMBER}, "the segment", "the value", count(*), {_example(dataset)}
            FROM {_STAGED} s JOIN ({there}) t USING ({keys}) WHERE {_NUMBER} IN ({", ".join(map(str, left))})
            GROUP BY ALL ORDER BY ALL"""
    ).fetchall():
        yield _Clash(number, key_of(dataset, segment, value), rows, example)


def _together(con: DuckDBPyConnection, dataset: Dataset, left: Sequence[int]) -> Iterator[_Clash]:
    """The staged partitions with a key of one before them that is not itself one of these."""
    keys = ", ".join(map(quoted, dataset.primary_key))
    numbers = ", ".join(map(str, left))
    late: set[int] = set()
    for number, other, rows, example in con.execute(
        f"""SELECT s.{_NUMBER}, t.{_NUMBER}, count(*), {_example(dataset)}
            FROM {_STAGED} s JOIN {_STAGED} t USING ({keys})
            WHERE t.{_NUMBER} < s.{_NUMBER} AND s.{_NUMBER} IN ({numbers}) AND t.{_NUMBER} IN ({numbers})
            GROUP BY ALL ORDER BY ALL"""
    ).fetchall():
        if other not in late:
            late.add(number)
            yield _Clash(number, other, rows, example)


def _example(dataset: Dataset) -> str:
    """SQL of the least key of a group, as JSON; of the staged rows ``s``."""
    return f"to_json(min(struct_pack({_pairs(dataset)})))::VARCHAR"


def _pairs(dataset: Dataset) -> str:
    return ", ".join(f"{quoted(column)} := s.{quoted(column)}" for column in dataset.primary_key)


def _bounds(con: DuckDBPyConnection, dataset: Dataset, columns: Mapping[str, str], left: Sequence[int]) -> str:
    """A condition that all rows with a staged key meet, of constants, so that files are left out; "" without keys."""
    of = [column for column in dataset.primary_key if not is_nested(columns.get(column, ""))]
    asked = ", ".join(f"min({quoted(column)})::VARCHAR, max({quoted(column)})::VARCHAR" for column in of) or "NULL"
    number, *found = con.execute(
        f"SELECT count(*), {asked} FROM {_STAGED} WHERE {_NUMBER} IN ({', '.join(map(str, left))})"
    ).fetchall()[0]
    if not number:
        return ""
    said = ["true"]
    for column, low, high in zip(of, found[::2], found[1::2], strict=False):
        if _is_text(low) and _is_text(high):
            kind = columns[column]
            said.append(f"{quoted(column)} BETWEEN CAST({literal(low)} AS {kind}) AND CAST({literal(high)} AS {kind})")
    return " AND ".join(said)


def _is_text(value: Any) -> bool:
    """Whether a bound can be written in SQL."""
    return value is not None and "\0" not in value
