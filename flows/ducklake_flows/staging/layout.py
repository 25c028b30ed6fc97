"""Where staged files lie: under the data path, one immutable name an attempt, Hive style.

They are staged *under* the data path, so that DuckLake stores them by relative path and the lake can be moved. The
price is that an orphan clean-up could see them before they are registered: every clean-up has an age guard, which
`lake init` stores in the catalog (``delete_older_than``) so that even a bare ``CHECKPOINT`` keeps it.
"""

from __future__ import annotations

import re
import secrets
import time
from urllib.parse import quote

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Partition

_NAME = re.compile(r"/([0-9a-f]{26})-\d+\.parquet$")


def new_attempt() -> str:
    """A new attempt id: 26 hexadecimal digits that sort by the time they were made (microseconds)."""
    return f"{time.time_ns() // 1000:014x}{secrets.token_hex(6)}"


def staged_path(dataset: Dataset, partition: Partition, attempt: str, number: int) -> str:
    """A staged file's path below the data path: ``raw/flights/flight_date=2013-01-05/<attempt>-0.parquet``."""
    name = f"{attempt}-{number}.parquet"
    if dataset.partition_column is None:
        return f"raw/{dataset.key}/{name}"
    return f"raw/{dataset.key}/{dataset.partition_column}={quote(partition.value, safe='-')}/{name}"


def attempt_of(path: str) -> str:
    """The attempt id in a staged file's path, "" when the file was not staged by us."""
    found = _NAME.search(path)
    return found[1] if found else ""
