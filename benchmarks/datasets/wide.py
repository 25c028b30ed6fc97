"""One partition of ten million rows, as Arrow batches."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from ducklake_flows.datasets.partitions import Partition

ROWS, BATCH = 10_000_000, 100_000


def batches(partition: Partition) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for first in range(0, ROWS, BATCH):
        number = pa.array(range(first, first + BATCH), pa.int64())
        yield pa.RecordBatch.from_arrays(
            [number, pc.cast(number, pa.string()), pc.divide(pc.cast(number, pa.float64()), 7.0)],
            names=["id", "name", "amount"],
        )


DATASET = Dataset(
    key="wide",
    source=batches,
    partition_column="day",
    contract=Contract({"id": "bigint", "name": "text", "amount": "double"}),
    start=date(2024, 1, 1),
    end=date(2024, 1, 1),
)
