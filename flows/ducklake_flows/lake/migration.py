"""Migrations: columns of a filled raw table get another name or another type, or are dropped.

The contract says what the types become. A migration is recorded in ``ops.schema_changes`` in its own commit, so that
rows of earlier snapshots can be published again in the new columns, and so that it can be undone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.dataset import Member
from ducklake_flows.datasets.types import arrow_type, declared_types
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import literal
from ducklake_flows.settings import LAKE
from ducklake_flows.sources.values import Unfit, fit
from ducklake_flows.staging.footers import complete
from ducklake_flows.staging.lattice import contract_line, join
from ducklake_flows.staging.layout import attempt_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.staging.receipt import Receipt

BATCH = 122_880
"""Rows that are converted at once."""

_RECORD = "MIGRATE "
"""How the record of a migration begins in ``ops.schema_changes``."""


@dataclass(frozen=True)
class Migration:
    """Changes to the columns of a raw table.

    Args:
        rename: The new name of each renamed column, by its old one.
        drop: The DuckDB type of each dropped column.
        retype: The old and the new DuckDB type of each column that gets another one, by its new name.
        add: The DuckDB type of each added column: a dropped one, if this undoes a migration.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Mapping[str, str] = field(default_factory=dict)
    retype: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    add: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rename or self.drop or self.retype or self.add)

    @property
    def rewrites(self) -> bool:
        """Whether files must be written anew. Otherwise only the catalog changes."""
        return bool(self.retype or self.add)

    def after(self, columns: Mapping[str, str]) -> dict[str, str]:
        """The columns, name and DuckDB type, that these become."""
        kept = {self.rename.get(name, name): kind for name, kind in columns.items() if name not in self.drop}
        return {name: self.retype.get(name, ("", kind))[1] for name, kind in kept.items()} | dict(self.add)

    @property
    def undone(self) -> Migration:
        """The migration that undoes this one."""
        old = {new: name for name, new in self.rename.items()}
        retype = {old.get(name, name): (after, before) for name, (before, after) in self.retype.items()}
        return Migration(old, self.add, retype, self.drop)

    @property
    def lines(self) -> list[str]:
        """Each change in words."""
        return [
            *(f"{name} becomes {new}" for name, new in self.rename.items()),
            *(f"{name}: {before} -> {after}" for name, (before, after) in self.retype.items()),
            *(f"{name} ({kind}) is dropped" for name, kind in self.drop.items()),
            *(f"{name} ({kind}) comes back" for name, kind in self.add.items()),
        ]

    @property
    def record(self) -> str:
        """The migration as a row of ``ops.schema_changes`` keeps it."""
        parts = {"rename": self.rename, "drop": self.drop, "retype": self.retype, "add": self.add}
        return _RECORD + json.dumps({name: part for name, part in parts.items() if part})


def read_record(text: str) -> Migration:
    """The migration of a record."""
    found: dict[str, Any] = json.loads(text.removeprefix(_RECORD))
    retype = {name: (before, after) for name, (before, after) in found.pop("retype", {}).items()}
    return Migration(**found, retype=retype)


def recorded(con: DuckDBPyConnection, table: str, since: int = -1) -> list[tuple[int, Migration]]:
    """The migrations of a table that were committed after a snapshot, each with its own snapshot, oldest first."""
    found = con.execute(
        f"SELECT token, change FROM {LAKE}.ops.schema_changes WHERE table_name = {literal(table)} "
        f"AND token > {since} AND starts_with(change, '{_RECORD}') ORDER BY token"
    ).fetchall()
    return [(int(token), read_record(change)) for token, change in found]


def since(con: DuckDBPyConnection, table: str, snapshot: int) -> list[Migration]:
    """What has become of a table's columns after a snapshot, oldest first, without what was undone."""
    meant: list[Migration] = []
    for _, migration in recorded(con, table, snapshot):
        if meant and meant[-1].undone == migration:
            meant.pop()
        else:
            meant.append(migration)
    return meant


def outdated(
    con: DuckDBPyConnection,
    datasets: Mapping[str, Dataset],
    receipts: Iterable[Receipt],
    tables: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """The attempts that were extracted before their table was migrated and do not fit it any more, with the reason.

    Args:
        con: A connection with the lake attached.
        datasets: By key.
        receipts: What will be published.
        tables: The columns of every existing table.
    """
    found = {}
    for receipt in receipts:
        table = datasets[receipt.dataset].table
        there = {name.casefold(): kind for name, kind in tables.get(table, {}).items()}
        strange = (
            name.casefold() not in there or join(there[name.casefold()], kind) != there[name.casefold()]
            for name, kind in receipt.columns.items()
        )
        if not there or not any(strange):
            continue
        taken = attempt_time(receipt.attempt_id).isoformat()
        for token, _ in con.execute(
            f"SELECT token, change FROM {LAKE}.ops.schema_changes WHERE table_name = {literal(table)} "
            f"AND starts_with(change, '{_RECORD}') AND recorded_at > TIMESTAMPTZ {literal(taken)} LIMIT 1"
        ).fetchall():
            found[receipt.attempt_id] = f"extracted before {table} was migrated (snapshot {token})"
    return found


def plan(dataset: Dataset, there: Mapping[str, str], rename: Mapping[str, str], drop: Iterable[str]) -> Migration:
    """The migration that makes a filled raw table what its dataset declares.

    Args:
        dataset: The dataset, as it is declared now.
        there: The table's columns.
        rename: The new name of columns, by the old one.
        drop: Columns to drop.

    Raises:
        BadInput: a column is none of the table's, or must stay; or the contract says otherwise.
    """
    drop = list(drop)
    if dataset.is_quarantine:
        raise BadInput(f"The columns of {dataset.table} are always the same.", f"lake replay {_parent(dataset)}")
    if not there:
        raise BadInput(f"There is no table {dataset.table} yet.", f"lake backfill {dataset.key}")
    for name in (*rename, *drop):
        if name not in there:
            raise BadInput(f"{dataset.table} has no column {name}.", f"its columns: {', '.join(there)}")
        if name in dataset.added_columns:
            raise BadInput(f"{dataset.table}.{name} is added by the pipeline; it must stay.", "choose other columns")
        if name in dataset.contract.columns and name not in rename.values():
            raise BadInput(
                f"The contract of {dataset.key} still declares {name}, so the next publish would add it again.",
                "take it out of the contract, then run the same command again",
            )
        if any(name in dataset.primary_key and not member.is_quarantine for member in dataset.members):
            raise BadInput(f"The children of {dataset.key} refer to {name}; it must stay.", "choose other columns")
    kept = {rename.get(name, name): kind for name, kind in there.items() if name not in drop}
    names = {name.casefold() for name in there if name not in drop}
    for name in rename.values():
        if name.casefold() in names:
            raise BadInput(f"{dataset.table} would have two columns {name}.", "choose another name")
        names.add(name.casefold())
    if missing := [name for name in dataset.primary_key if name not in kept]:
        raise BadInput(f"The primary key of {dataset.key} has {missing[0]}.", "declare another primary key first")
    if dataset.contract.columns and dataset.contract.mode("columns") != "evolve":
        for name in rename.values():
            if name not in dataset.contract.columns:
                line = contract_line(name, kept[name])
                raise BadInput(f"The contract of {dataset.key} does not declare {name}.", f"declare it: {line}")
    known = {name.casefold(): name for name in kept}
    declared = {known[n.casefold()]: kind for n, kind in declared_types(dataset).items() if n.casefold() in known}
    retype = {name: (kept[name], kind) for name, kind in declared.items() if join(kept[name], kind) != kind}
    return Migration(dict(rename), {name: there[name] for name in drop}, retype)


def _parent(dataset: Dataset) -> str:
    return dataset.parent if isinstance(dataset, Member) else dataset.key


def fitted(dataset: Dataset, column: pa.Array, kind: str, name: str) -> pa.ChunkedArray:
    """The values of a column in another DuckDB type.

    Raises:
        Unfit: a value does not fit.
    """
    import pyarrow as pa

    values = pa.chunked_array([column])
    return fit(values, arrow_type(kind) or column.type, name, dataset.contract.zone)


def unfit(where: str, error: Unfit) -> BadInput:
    """The error of a value that does not fit its new type, in a partition."""
    return BadInput(
        f"{where}: {error}",
        "declare another type, or correct the rows and load the partition again; nothing was changed",
    )


def convert(
    dataset: Dataset,
    partition: Partition,
    source: Path,
    target: Path,
    columns: Mapping[str, str],
    migrations: Sequence[Migration] = (),
) -> Path:
    """Write the rows of a local Parquet file in other columns.

    Args:
        dataset: The dataset of the rows.
        partition: Their partition.
        source: The file.
        target: The file to write.
        columns: Name and DuckDB type of the columns to write. One that the rows do not have is null.
        migrations: What has become of the file's columns since it was written, oldest first.

    Returns:
        The written file: `target`, or one beside it.

    Raises:
        BadInput: a value does not fit its new type; names the column, the value and the partition.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    now = {name: name for name in file.schema_arrow.names}
    for migration in migrations:
        now = {old: migration.rename.get(name, name) for old, name in now.items() if name not in migration.drop}
    given = {name: file.schema_arrow.get_field_index(old) for old, name in now.items()}
    is_json = {name for name, kind in columns.items() if kind == "JSON"}
    fields = []
    for name, kind in columns.items():
        own = file.schema_arrow.field(given[name]).type if name in given else pa.null()
        fields.append(pa.field(name, arrow_type(kind) or own))
    schema = pa.schema(fields)
    zone = dataset.contract_of(partition).zone
    with pq.ParquetWriter(target, schema) as writer:
        for batch in file.iter_batches(BATCH):
            rows = []
            for one in schema:
                column = batch.column(given[one.name]) if one.name in given else pa.nulls(len(batch))
                try:
                    rows.append(fit(pa.chunked_array([column]), one.type, one.name, zone))
                except Unfit as error:
                    raise unfit(f"{dataset.key} {partition}", error) from None
            writer.write_table(pa.Table.from_arrays(rows, schema=schema))
    return complete(target, is_json)
