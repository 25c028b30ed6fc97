"""A hundred days of a thousand rows, but one of them of a million."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from ducklake_flows.datasets.partitions import Partition

ROWS, LARGE, BATCH = 1_000, "2024-02-01", 100_000


def batches(partition: Partition) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    rows = ROWS * (1_000 if partition.key == LARGE else 1)
    for first in range(0, rows, BATCH):
        number = pa.array(range(first, min(rows, first + BATCH)), pa.int64())
        yield pa.RecordBatch.from_arrays([number, number], names=["id", "value"])


DATASET = Dataset(
    key="skewed",
    source=batches,
    partition_column="day",
    contract=Contract({"id": "bigint", "value": "bigint"}),
    start=date(2024, 1, 1),
    end=date(2024, 4, 9),
)
