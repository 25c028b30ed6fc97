"""`lake lineage`: from a value in gold to columns, models, raw partitions, attempts, source, files, snapshots, runs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.partitions import EXAMPLES, FULL, Grain, Partition, grain_of
from ducklake_flows.datasets.scheme import Scheme
from ducklake_flows.errors import BadInput
from ducklake_flows.lake import history
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.files import bounded, registered
from ducklake_flows.project import all_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings


def lineage(settings: Settings, target: str, partition: str | None = None) -> dict[str, Any]:
    """Where the values of a table or column come from.

    Args:
        settings: Where the lake and its models are.
        target: ``schema.table`` or ``schema.table.column``.
        partition: Also the raw partitions that overlap this one, of any grain.

    Returns:
        ``table``, ``column``, ``steps`` (each with ``table``, ``columns`` and ``rows_from``), and with a partition
        ``partitions`` (each with ``dataset``, ``partition``, ``attempts``, ``files`` and ``builds``).

    Raises:
        BadInput: the target is no table or column, or the partition is none of any grain.
        NotInitialised: there is no lake yet.
    """
    names = target.split(".")
    if len(names) not in (2, 3) or not all(names):
        raise BadInput(f"{target!r} is no table or column.", "write it like this: gold.TABLE or gold.TABLE.COLUMN")
    asked = _parsed(partition) if partition is not None else None
    from ducklake_flows.models.lineage import trace

    steps = trace(settings, ".".join(names[:2]), names[2] if len(names) == 3 else None)
    found: dict[str, Any] = {
        "table": ".".join(names[:2]),
        "column": names[2] if len(names) == 3 else None,
        "steps": [
            {
                "table": step.table,
                "columns": {name: list(sources) for name, sources in step.columns.items()},
                "rows_from": list(step.rows_from),
            }
            for step in steps
        ],
    }
    if asked is not None:
        datasets = {dataset.key: dataset for dataset in all_tables()}
        raw = [step.table.removeprefix("raw.") for step in steps if step.table.startswith("raw.")]
        if asked.segment and not any(key in datasets and datasets[key].segment_column for key in raw):
            raise _no_partition(partition)
        with connected(settings, read_only=True) as con:
            found["partitions"] = [
                one for key in raw if key in datasets for one in _partitions(con, datasets[key], asked)
            ]
    return found


def _partitions(con: DuckDBPyConnection, dataset: Dataset, asked: Partition) -> list[dict[str, Any]]:
    """The partitions of a dataset that overlap another, each with its attempts, current files and latest builds."""
    first, last = asked.period[:13], f"{asked.period[:13]}~"
    if asked.grain is Grain.full or dataset.grain is Grain.full:
        first, last = "", "~"
    elif asked.grain is not dataset.grain:
        moments = (asked.low, asked.high - timedelta(microseconds=1))
        first, last = (dataset.scheme.holding(moment).period for moment in moments)
    segment = asked.segment if dataset.segment_column else ""
    attempts = history.attempts(con, dataset.key, first, last, segment)
    if not attempts:
        return []
    builds = history.builds(con, dataset.key, first, last, segment)
    files = bounded(con, dataset, registered(con, dataset.table))
    return [
        {
            "dataset": dataset.key,
            "partition": key,
            "attempts": _of(key, attempts),
            "files": sorted(f.path for f in files if f.may_hold(dataset.partition(key).place)),
            "builds": _of(key, builds),
        }
        for key in dict.fromkeys(row["partition"] for row in attempts)
    ]


def _of(key: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name != "partition"} for row in rows if row["partition"] == key
    ]


def _parsed(key: str) -> Partition:
    """The partition with this key, of the grain that the key has the form of; with a segment or not.

    Raises:
        BadInput: there is none.
    """
    segment, _, period = key.rpartition("/")
    grain = grain_of(period)
    try:
        return Scheme(grain, segmented=bool(segment) or (grain is Grain.full and key != FULL)).parse(key)
    except BadInput:
        raise _no_partition(key) from None


def _no_partition(key: str | None) -> BadInput:
    return BadInput(
        f"--partition {key!r} is no partition of any grain, nor of a dataset with segments that it is built from.",
        f"write it like one of these: {', '.join(EXAMPLES.values())}",
    )
