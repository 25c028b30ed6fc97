"""Paths of staged files: below the data path, one immutable name per attempt, Hive style.

Files are staged *below* the data path, so that DuckLake stores relative paths and the lake can be moved. The drawback
is that an orphan clean-up can see them before they are registered. So every clean-up has a minimum age. `lake init`
stores it in the catalog (``delete_older_than``), so that even a bare ``CHECKPOINT`` respects it.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition

_NAME = re.compile(r"/([0-9a-f]{26})-\d+\.parquet$")


def new_attempt() -> str:
    """A new attempt id: 26 hexadecimal digits that sort by creation time (microseconds)."""
    return f"{time.time_ns() // 1000:014x}{secrets.token_hex(6)}"


def staged_path(dataset: Dataset, partition: Partition, attempt: str, number: int) -> str:
    """A staged file's path below the data path: ``raw/flights/flight_date=2013-01-05/<attempt>-0.parquet``."""
    name = f"{attempt}-{number}.parquet"
    if dataset.partition_column is None:
        return f"raw/{dataset.key}/{name}"
    return f"raw/{dataset.key}/{partition_folder(dataset, partition)}/{name}"


def partition_folder(dataset: Dataset, partition: Partition) -> str:
    """The name of the folder with the staged files of a partition: ``flight_date=2013-01-05``."""
    return f"{dataset.partition_column}={quote(partition.value, safe='-')}"


def attempt_of(path: str) -> str:
    """The attempt id in a staged file's path; "" if the pipeline did not stage the file."""
    found = _NAME.search(path)
    return found[1] if found else ""
