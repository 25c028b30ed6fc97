"""The lower bound: DuckDB alone, in one process, stages the same files and registers them in groups of our size."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import DATASET, DAYS, Run, peak_rss, report
from ducklake_flows.datasets.types import declared_type
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.schema import create_table
from ducklake_flows.orchestration.chunks import GROUP
from ducklake_flows.settings import LAKE, Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

TYPES = {name: declared_type(data_type) for name, data_type in DATASET.contract.columns.items()}


def run(settings: Settings) -> Run:
    """Time the year, excluding the time to create and open the lake.

    One thread stages ahead while this one registers, with one DuckDB thread each. On two cores this is faster than
    sequential steps with two threads, and than two cursors that each stage one partition at a time.
    """
    con = connect(settings, create=True)
    con.execute("SET threads = 1")
    con.execute(f"CREATE SCHEMA {LAKE}.raw")
    create_table(con, DATASET, TYPES)
    folder = f"{settings.data_path}raw/flights"
    if not settings.in_s3:
        Path(folder).mkdir(parents=True)
    groups = [DAYS[first : first + GROUP] for first in range(0, len(DAYS), GROUP)]
    registering = 0.0
    began = time.monotonic()
    with ThreadPoolExecutor(1) as stager, con.cursor() as cursor:
        staging = [stager.submit(_stage, cursor, settings.landing, folder, group) for group in groups]
        for group, stage in zip(groups, staging, strict=True):
            staged = stage.result()
            ready = time.monotonic()
            _register(con, group, staged)
            registering += time.monotonic() - ready
    wall = time.monotonic() - began
    con.close()
    return Run(
        "read_csv, one partitioned COPY and one transaction a group; stages ahead while it registers",
        DAYS,
        wall,
        {"register and commit": registering, "wait for the stage": wall - registering},
        {"process": peak_rss()},
    )


def _stage(con: DuckDBPyConnection, landing: str, folder: str, group: Sequence[str]) -> list[str]:
    """Write one Parquet file per partition, in Hive layout, with one statement for the whole group."""
    staged = con.execute(
        "COPY (SELECT * EXCLUDE filename, parse_filename(filename, true)::DATE AS flight_date "
        f"FROM read_csv({[f'{landing}flights/{day}.csv' for day in group]}, columns = {TYPES}, "
        "header = true, auto_detect = false, delim = ',', nullstr = 'NA', filename = true)) "
        f"TO '{folder}' (FORMAT parquet, PARTITION_BY (flight_date), FILENAME_PATTERN '{{uuid}}', APPEND, RETURN_FILES)"
    ).fetchall()
    files: list[str] = staged[0][1]
    if len(files) != len(group):
        raise ValueError(f"{len(files)} files were staged for {len(group)} partitions")
    return files


def _register(con: DuckDBPyConnection, group: Sequence[str], staged: Sequence[str]) -> None:
    days = ", ".join(f"'{day}'" for day in group)
    con.execute("BEGIN")
    con.execute(f"DELETE FROM {LAKE}.raw.flights WHERE flight_date IN ({days})")
    con.execute(
        f"CALL ducklake_add_data_files('{LAKE}', 'flights', ?, schema => 'raw', hive_partitioning => true)", [staged]
    )
    con.execute("COMMIT")


if __name__ == "__main__":
    lake = load_settings()
    report(lake, run(lake))
