"""Small partitions by the hour, for as long as a benchmark wants: its rows are made, not read."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain, Partition

if TYPE_CHECKING:
    from collections.abc import Iterator


def events(partition: Partition) -> Iterator[list[dict[str, Any]]]:
    yield [{"id": number, "value": number / 7} for number in range(20)]


DATASET = Dataset(
    key="events",
    source=events,
    grain=Grain.hour,
    partition_column="hour",
    contract=Contract({"id": "bigint", "value": "double"}),
    start=date(2000, 1, 1),
    end=date(2005, 12, 31),
)
