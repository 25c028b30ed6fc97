"""Rows that are set aside: how many, why, and in which partitions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ducklake_flows.errors import BadInput
from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import connected, one_snapshot, rows
from ducklake_flows.lake.rows import condition
from ducklake_flows.lake.schema import qualified, table_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset, Member
    from ducklake_flows.settings import Settings


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The rows of a dataset that are set aside.

    Args:
        partitions: Their number in each partition that has some, by key.
        reasons: Their number by column ("" for a row as a whole) and reason, the most frequent first. Of values that do
            not fit, the reason without the value.
        sample: Some of them: ``partition``, ``attempt_id``, and the columns of the quarantine table.
    """

    partitions: Mapping[str, int]
    reasons: Mapping[tuple[str, str], int]
    sample: Sequence[Mapping[str, Any]]


def read(settings: Settings, dataset: Dataset, partitions: Sequence[str] = (), limit: int = 10) -> Quarantined:
    """Read what is set aside of a dataset.

    Args:
        settings: Where the lake is.
        dataset: The dataset.
        partitions: Only these; empty: all.
        limit: The most rows of the sample.

    Raises:
        BadInput: the dataset sets no rows aside.
    """
    if (member := dataset.quarantine) is None:
        raise BadInput(
            f"{dataset.key} sets no rows aside.",
            'on_fail="quarantine" in an audit, or schema_contract={"data_type": "discard_row"}; see docs/data.md',
        )
    with connected(settings, read_only=True) as con, one_snapshot(con):
        entries = {key: entry for (_, key), entry in ledger.latest(con, member.key).items() if entry.rows}
        chosen = {key: entries[key] for key in sorted(entries) if not partitions or key in partitions}
        if not chosen or member.table not in table_columns(con):
            return Quarantined({}, {}, [])
        where = condition(member, map(dataset.partition, chosen))
        reasons = rows(
            con,
            # Without the value that does not fit.
            f"""SELECT coalesce(column_name, '') AS column_name,
                       regexp_replace(regexp_replace(reason, '^.* cannot be', 'cannot be'), ', but holds .*$', '')
                           AS why, count(*) AS n
                FROM {qualified(member)} WHERE {where} GROUP BY 1, 2 ORDER BY n DESC, 1, 2""",
        )
        found = rows(con, f"FROM {qualified(member)} WHERE {where} ORDER BY ALL LIMIT {limit}")
    keys = {dataset.partition(key).place: key for key in chosen}
    sample = []
    for row in found:
        key = keys[_place(member, row)]
        shown = {name: value for name, value in row.items() if name not in member.partition_columns}
        sample.append({"partition": key, "attempt_id": chosen[key].attempt_id, **shown})
    return Quarantined(
        {key: entry.rows for key, entry in chosen.items()},
        {(row["column_name"], row["why"]): row["n"] for row in reasons},
        sample,
    )


def counts(con: DuckDBPyConnection, datasets: Iterable[Dataset]) -> dict[str, tuple[int, int]]:
    """The number of rows that are set aside, and of the partitions that have some, by dataset; none for the others."""
    found = {}
    for dataset in datasets:
        if member := dataset.quarantine:
            numbers = [entry.rows for entry in ledger.latest(con, member.key).values() if entry.rows]
            if numbers:
                found[dataset.key] = sum(numbers), len(numbers)
    return found


def _place(member: Member, row: Mapping[str, Any]) -> tuple[str, datetime]:
    """The place of a row's partition, see `ducklake_flows.datasets.partitions.Partition.place`."""
    segment = row[member.segment_column] if member.segment_column else ""
    if member.partition_column is None:
        return segment, datetime.min
    low = row[member.partition_column]
    return segment, low if isinstance(low, datetime) else datetime(low.year, low.month, low.day)
