"""Readers see a partition completely before or completely after a replace, in raw tables and in models."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.lake.connect import connected
from tests.faults.conftest import PROCESSES, Killer, staged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.conftest import Lake

DAY = "2024-01-01"
TABLES = ("raw.readings", "silver.by_interval", "gold.whole")
ROWS = (70, 100)
MOST = 300
"""Maximum number of replaces while the reader waits for the expected counts."""


def replace(lake: Lake, times: int, stock: bool, seen: Any) -> None:
    """Replace a day of a raw table, an interval of an incremental model and a whole table, repeatedly.

    At least ``times`` times, and until the reader has seen what it waits for: it may have started late.
    """
    from sqlglot import exp, parse_one
    from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter

    from ducklake_flows.models.adapter import LakeAdapter, LakeConnection, lake_connection

    LakeAdapter.gate = contextlib.nullcontext
    if stock:
        LakeConnection.adapter = DuckDBEngineAdapter
    adapter = lake_connection(lake.settings).create_engine_adapter()
    publisher = lake.publisher()
    types = {"id": exp.DataType.build("bigint"), "day": exp.DataType.build("date")}
    for number in itertools.count():
        if number >= times and (seen.is_set() or number >= MOST):
            break
        rows = ROWS[number % 2]
        query = parse_one(f"SELECT range AS id, DATE '{DAY}' AS day FROM range({rows})", dialect="duckdb")
        adapter.insert_overwrite_by_time_partition(
            "lake.silver.by_interval",
            query,
            DAY,
            DAY,
            time_formatter=lambda time, _: exp.cast(exp.Literal.string(str(time)[:10]), "date"),
            time_column="day",
            target_columns_to_types=types,
        )
        adapter.replace_query("lake.gold.whole", query, target_columns_to_types=types)
        publisher.publish([staged(lake, DAY, rows, rows)])
    publisher.close()


def watch(lake: Lake, kill: Killer, times: int, stock: bool, until: Mapping[str, set[int]]) -> dict[str, set[int]]:
    """Every row count that a reader saw during at least ``times`` replaces; they go on until it has seen ``until``."""
    seen: dict[str, set[int]] = {table: set() for table in TABLES}
    told = PROCESSES.Event()
    process = kill.start(replace, times, stock, told)
    with connected(lake.settings, read_only=True) as con:
        while process.is_alive():
            for table in TABLES:
                count = con.execute(f"SELECT count(*) FROM {table} WHERE day = '{DAY}'").fetchall()[0][0]
                seen[table].add(count)
            if all(counts <= seen[table] for table, counts in until.items()):
                told.set()
    assert process.exitcode == 0
    return seen


def prepare(lake: Lake) -> None:
    """Create the tables, each with its first rows."""
    lake.publish([staged(lake, DAY, ROWS[1], 0)])
    with connected(lake.settings) as con:
        for table in TABLES[1:]:
            con.execute(f"CREATE SCHEMA {table.partition('.')[0]}")
            con.execute(f"CREATE TABLE {table} (id BIGINT, day DATE)")
            con.execute(f"ALTER TABLE {table} SET PARTITIONED BY (day)")
            con.execute(f"INSERT INTO {table} SELECT range, DATE '{DAY}' FROM range({ROWS[1]})")


def test_a_reader_sees_only_whole_partitions(
    lake: Lake, kill: Killer, seeds: Callable[[int, int], list[int]], record_property: Callable[[str, object], None]
) -> None:
    times = len(seeds(6, 1000))
    record_property("cases", times)
    prepare(lake)
    both = {table: set(ROWS) for table in TABLES}
    assert watch(lake, kill, times, False, both) == both
    assert lake.errors() == []


@pytest.mark.parametrize("lake", ["postgres+s3"], indirect=True)
def test_with_the_stock_adapter_the_test_above_fails(lake: Lake, kill: Killer) -> None:
    """SQLMesh's DuckDB adapter replaces an interval in two commits: a reader between them sees it empty."""
    prepare(lake)
    empty = {"silver.by_interval": {0}}
    assert 0 in watch(lake, kill, 12, True, empty)["silver.by_interval"]
