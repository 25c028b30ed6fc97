"""Days behind an HTTP API that answers page by page; `benchmarks.workers` runs the API."""

from __future__ import annotations

import os
from datetime import date
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ducklake_flows.datasets.partitions import Partition

PAGES = 5


def pages(partition: Partition) -> Iterator[list[dict[str, Any]]]:
    """dlt's client sits out what the API refuses (429)."""
    from dlt.sources.helpers import requests

    for page in range(PAGES):
        yield requests.get(f"{os.environ['BENCH_API']}/{partition.key}/{page}", timeout=30).json()


DATASET = Dataset(
    key="api",
    source=pages,
    partition_column="day",
    contract=Contract({"id": "bigint", "page": "bigint"}),
    start=date(2024, 1, 1),
    end=date(2024, 5, 7),
)
