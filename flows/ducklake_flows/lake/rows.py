"""Which rows of a raw table belong to some partitions, in SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ducklake_flows.datasets.types import quoted
from ducklake_flows.lake.connect import literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition


def conditions(dataset: Dataset, partitions: Iterable[Partition]) -> list[str]:
    """The rows of partitions, in SQL: each row meets exactly one of these conditions, whose number is small.

    Each is a list of values for each partition column, so that DuckLake leaves out files by their bounds.

    Args:
        dataset: The dataset.
        partitions: Some of its partitions.
    """
    if not dataset.partition_columns:
        return ["true"]
    by: dict[str, list[str]] = {}
    for partition in partitions:
        by.setdefault(partition.segment, []).append(partition.value)
    groups: dict[tuple[str, ...], list[str]] = {}
    for segment, values in by.items():
        groups.setdefault(tuple(dict.fromkeys(values)), []).append(segment)
    return [
        " AND ".join(
            f"{quoted(column)} IN ({', '.join(map(literal, wanted))})"
            for column, wanted in ((dataset.segment_column, segments), (dataset.partition_column, values))
            if column is not None
        )
        for values, segments in groups.items()
    ]


def condition(dataset: Dataset, partitions: Iterable[Partition]) -> str:
    """The same as one condition in parentheses; false if there are no partitions."""
    return f"({' OR '.join(f'({each})' for each in conditions(dataset, partitions)) or 'false'})"
