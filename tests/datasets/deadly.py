"""A source that kills its worker on one of its days."""

import os
import signal
from collections.abc import Iterator
from typing import Any

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Partition


def deadly(partition: Partition) -> Iterator[dict[str, Any]]:
    if partition.key == "2024-01-03":
        os.kill(os.getpid(), signal.SIGKILL)
    yield {"n": 1}


DATASET = Dataset(key="deadly", source=deadly, partition_column="day")
