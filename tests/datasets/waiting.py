"""A source that creates a file when it is read, and yields rows while another file exists, for all or one partition."""

import time
from collections.abc import Iterator
from datetime import date
from typing import Any

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Partition
from ducklake_flows.settings import load_settings


def waiting(partition: Partition) -> Iterator[dict[str, Any]]:
    home = load_settings().home
    home.mkdir(parents=True, exist_ok=True)  # a lake in S3 does not create it
    home.joinpath(f"asked-{partition.key}").touch()
    number = 0
    yield {"n": number}
    while home.joinpath("wait").exists() or home.joinpath(f"wait-{partition.key}").exists():
        time.sleep(0.1)
        number += 1
        yield {"n": number}


DATASET = Dataset(key="waiting", source=waiting, partition_column="day", start=date(2024, 1, 1), end=date(2024, 1, 1))
