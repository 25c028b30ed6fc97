"""A partition that does not fit into the memory limit of its worker is streamed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import duckdb

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stack.conftest import Running

ROWS = 10_000_000


def test_ten_million_rows_go_through_a_worker_of_one_gib(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "2024-01-01.parquet"
    duckdb.execute(
        f"COPY (SELECT range AS id, 'name ' || (range % 1000) AS name, range / 4 AS amount FROM range({ROWS})) "
        f"TO '{file}' (FORMAT parquet)"
    )
    running.land("big/2024-01-01.parquet", file.read_bytes())
    workers = [worker.pid for worker in running.stack.workers]
    printed = running.lake("backfill", "big", "--start", "2024-01-01", "--end", "2024-01-01", "--json")
    summary = json.loads(printed)
    assert (summary["published"], summary["rows"], summary["failed"]) == (1, ROWS, [])
    assert 0 < summary["peak_rss"] < 1 << 30
    # Dask restarts a worker that exceeds its limit: the process ids would differ.
    assert [worker.pid for worker in running.stack.workers if worker.is_alive] == workers
    assert "exceeded" not in "".join(worker.log.read_text() for worker in running.stack.workers)
    found = running.sql("SELECT count(*) AS n, sum(id)::BIGINT AS ids FROM raw.big")
    assert found == [{"n": ROWS, "ids": ROWS * (ROWS - 1) // 2}]
