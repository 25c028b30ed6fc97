"""A source limited to 25 requests per second. It records the time of each request."""

import os
import time
from collections.abc import Iterator
from datetime import date
from typing import Any

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Partition
from ducklake_flows.settings import load_settings


def paced(partition: Partition) -> Iterator[list[dict[str, Any]]]:
    for page in range(2):
        with load_settings().home.joinpath(f"asked-{os.getpid()}").open("a") as asked:
            asked.write(f"{time.time()}\n")
        yield [{"page": page}]


DATASET = Dataset(
    key="paced", source=paced, partition_column="day", start=date(2024, 1, 1), end=date(2024, 1, 20), rate=25
)
