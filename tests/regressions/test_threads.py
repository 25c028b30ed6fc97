"""Several threads of a worker extract, or one extracts while another run warms the worker up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ducklake_flows.datasets.audits import Audit, at_least
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.extract import split
from ducklake_flows.extract.chunk import extract
from ducklake_flows.sources.files import Files
from ducklake_flows.staging.inspect import inspect
from ducklake_flows.staging.receipt import Failure, Receipt

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder")

THREADS = 8
DAYS = {f"2024-01-{n:02}": "" for n in range(1, 5)}


def dataset() -> Dataset:
    return Dataset(
        "things",
        Files("things/{partition}.csv", "csv"),
        partition_column="day",
        start=date(2024, 1, 1),
        audits=(at_least(1), Audit("positive", "n > 0")),
    )


def test_inspections_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    """One ended another's query, and its partition was rejected: "unsuccessful or closed pending query result"."""
    files = []
    for number in range(1, THREADS + 1):
        files.append(tmp_path / f"{number}.parquet")
        pq.write_table(
            pa.table({"n": range(1, number * 1000), "day": [date(2024, 1, 1)] * (number * 1000 - 1)}), files[-1]
        )
    partition = parse_partition("2024-01-01", Grain.day)

    def look(number: int) -> set[int]:
        return {inspect(dataset(), [partition], [str(files[number])])[0].rows for _ in range(100)}

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(look, range(THREADS))) == [{1000 * n - 1} for n in range(1, THREADS + 1)]


def test_chunks_in_several_threads_extract_what_one_does(lake: Lake) -> None:
    for day in DAYS:
        lake.land(f"things/{day}.csv", "n,name\n" + "".join(f"{n},{day}\n" for n in range(1, 500)))

    def fingerprints(_: int) -> list[str]:
        return [o.fingerprint if isinstance(o, Receipt) else o.error for o in extract(dataset(), DAYS, lake.settings)]

    alone = fingerprints(0)
    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(fingerprints, range(2 * THREADS))) == [alone] * 2 * THREADS


def test_a_full_memory_is_not_blamed_on_the_audits(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Out of Memory Error: could not allocate block"

    def full(*_: object) -> None:
        raise duckdb.OutOfMemoryException(text)

    lake.land("things/2024-01-01.csv", "n,name\n1,x\n")
    monkeypatch.setattr(split, "inspect", full)
    (failure,) = extract(dataset(), {"2024-01-01": ""}, lake.settings)
    assert isinstance(failure, Failure)
    assert (failure.state, failure.error) == ("failed", f"OutOfMemoryException: {text}")
