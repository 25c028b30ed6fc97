"""Paths of staged files: below the data path, one immutable name per attempt, Hive style.

The files of a chunk have a folder of their own, so that the publisher can register them by one pattern: DuckLake runs a
query for each name that it is given.

Files are staged *below* the data path, so that DuckLake stores relative paths and the lake can be moved. The drawback
is that an orphan clean-up can see them before they are registered. So every clean-up has a minimum age. `lake init`
stores it in the catalog (``delete_older_than``), so that even a bare ``CHECKPOINT`` respects it.
"""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition

CHUNK = "chunk-"
"""How the names of chunks' folders begin."""

_NAME = re.compile(r"/([0-9a-f]{26})-\d+\.parquet$")
_CHUNK = re.compile(rf"^raw/[^/]+/{CHUNK}[0-9a-f]{{26}}/(?=(?:[^/]+/){{1,2}}[^/]+$)")


def new_attempt() -> str:
    """A new attempt id: 26 hexadecimal digits that sort by creation time (microseconds)."""
    return f"{time.time_ns() // 1000:014x}{secrets.token_hex(6)}"


def new_chunk() -> str:
    """The name of a folder for the files of several partitions that are staged together."""
    return f"{CHUNK}{new_attempt()}"


def staged_path(dataset: Dataset, partition: Partition, attempt: str, number: int, chunk: str = "") -> str:
    """A staged file's path below the data path: ``raw/flights/flight_date=2013-01-05/<attempt>-0.parquet``.

    Args:
        dataset: The dataset.
        partition: The partition.
        attempt: The attempt's id.
        number: The number of the file in the attempt.
        chunk: The chunk's folder, between those of the table and of the partition; "": the attempt is staged alone.
    """
    name = f"{attempt}-{number}.parquet"
    if not dataset.partition_columns:
        return f"raw/{dataset.key}/{name}"
    folder = f"raw/{dataset.key}/{chunk}/" if chunk else f"raw/{dataset.key}/"
    return f"{folder}{partition_folder(dataset, partition)}/{name}"


def chunk_of(path: str) -> str:
    """The folder of the chunk in a staged file's path below the data path, with a slash at its end; "" if none."""
    found = _CHUNK.match(path)
    return found[0] if found else ""


def partition_folder(dataset: Dataset, partition: Partition) -> str:
    """The folder with the staged files of a partition: ``flight_date=2013-01-05``, ``region=eu/day=2013-01-05``."""
    found = dataset.partition_values(partition)
    return "/".join(f"{column}={quote(value, safe='-')}" for column, value in found.items())


def attempt_time(attempt: str) -> datetime:
    """When an attempt's id was made, UTC."""
    return datetime.fromtimestamp(int(attempt[:14], 16) / 1e6, UTC)


def is_older(chunk: str, moment: datetime) -> bool:
    """Whether the chunk's folder of this name was named before a moment (with time zone)."""
    return attempt_time(chunk.removeprefix(CHUNK)) < moment


def attempt_of(path: str) -> str:
    """The attempt id in a staged file's path; "" if the pipeline did not stage the file."""
    found = _NAME.search(path)
    return found[1] if found else ""
