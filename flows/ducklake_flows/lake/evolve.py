"""Schema evolution of raw tables: which columns change, and how a staged file is loaded into its table.

Every value is stored exactly, or its partition is rejected. A column is widened to a type that holds both its values
and the new ones. A file that needs a cast is inserted only if every value survives the cast.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.partitions import FULL
from ducklake_flows.datasets.types import declared_types, quoted
from ducklake_flows.errors import Rejected
from ducklake_flows.lake import ledger
from ducklake_flows.lake.files import full_paths, looks_like
from ducklake_flows.lake.rows import condition
from ducklake_flows.lake.schema import create_table, is_outdated, qualified
from ducklake_flows.staging.inspect import fingerprint_sql, fingerprint_text
from ducklake_flows.staging.lattice import contract_line, exact, is_untyped, join, reads_as

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Receipt

log = logging.getLogger(__name__)

READ = "read_parquet(?, union_by_name => true, hive_partitioning => false)"
"""Reads staged files by bound paths: only their contents, no values from their paths."""


@dataclass(slots=True)
class Evolved:
    """The changes to the raw tables.

    Args:
        changed: The datasets whose table was created or changed, and how. Commit this before anything is registered.
        rows: The ledger rows for partitions whose fingerprint changed.
        refused: Why a column could not be widened, by dataset and column.
        respell: The tables with a column that changed from FLOAT to DOUBLE. DuckLake keeps the bounds of their files
            as texts of FLOATs; `ducklake_flows.lake.repair` has to rewrite them.
    """

    changed: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    respell: set[str] = field(default_factory=set)


def evolve(
    con: DuckDBPyConnection,
    datasets: Mapping[str, Dataset],
    receipts: Sequence[Receipt],
    tables: Mapping[str, Mapping[str, str]],
) -> Evolved:
    """Evolve the raw tables to the staged schemas, as far as lattice, contracts and values allow.

    If a widening and a registration share a transaction, DuckLake 1.5.5 loses the minimum and maximum of the widened
    column, and later queries miss rows (https://github.com/duckdb/ducklake/issues/1308). The caller therefore commits
    the changes before it registers files.

    Args:
        con: A connection with an open transaction.
        datasets: By key.
        receipts: What will be published. If one does not fit, `fit` raises the reason.
        tables: The columns of every existing table.
    """
    done = Evolved()
    for key in dict.fromkeys(receipt.dataset for receipt in receipts if receipt.columns):
        dataset = datasets[key]
        there = tables.get(dataset.table, {})
        anew = bool(there) and is_outdated(con, dataset, there)
        wanted = declared_types(dataset) if anew or not there else dict(there)
        for receipt in receipts:
            if receipt.dataset == key:
                with contextlib.suppress(Rejected):
                    wanted = wanted_columns(dataset, wanted, receipt.columns)
        if anew or not there:
            if anew:
                con.execute(f"DROP TABLE {qualified(dataset)}")
            create_table(con, dataset, wanted)
            done.changed[key] = "CREATE"
            continue
        for name, data_type in there.items():
            if reason := _lost_by(con, dataset, name, data_type, wanted[name]):
                done.refused[key, name] = reason
                wanted[name] = data_type
        if any("FLOAT" in there[name] and wanted[name] != there[name] for name in there):
            done.respell.add(dataset.table)
        if wanted != there:
            done.changed[key], rows = _widen(con, dataset, there, wanted)
            done.rows += rows
    return done


def wanted_columns(dataset: Dataset, there: Mapping[str, str], staged: Mapping[str, str]) -> dict[str, str]:
    """The columns that a raw table needs to hold a staged file, as far as lattice and contract allow.

    Args:
        dataset: The dataset, for its contract.
        there: The table's columns; empty if there is no table yet.
        staged: The file's columns.

    Returns:
        The table's columns first, then the new ones.

    Raises:
        Rejected: a column is new, or its type would change, and the contract freezes that; two columns differ in case
            only; or no type holds the values of both.
    """
    wanted = dict(there)
    names = {name.casefold(): name for name in there}
    seen: dict[str, str] = {}
    frozen = bool(dataset.contract.columns) and dataset.contract.mode("columns") != "evolve"
    for name, data_type in staged.items():
        folded = name.casefold()
        if folded in seen:
            raise Rejected(f"columns {seen[folded]} and {name} differ in case only: a table cannot hold both")
        seen[folded] = name
        if is_untyped(data_type):
            continue
        known = names.get(folded)
        if known is None:
            if frozen and name not in dataset.contract.columns and name not in dataset.added_columns:
                raise Rejected(f"column {name} is not in the contract")
            wanted[name] = data_type
        else:
            joined = join(wanted[known], data_type)
            if joined is None:
                raise Rejected(_no_join(dataset, known, wanted[known], data_type))
            is_declared = known in dataset.contract.columns or known in dataset.added_columns
            if joined != wanted[known] and not is_declared and dataset.contract.mode("data_type") == "freeze":
                raise Rejected(
                    f"column {known} would become {joined}: it is {data_type} in this partition, {wanted[known]} in "
                    f"{dataset.table}, and the contract freezes types"
                )
            wanted[known] = joined
    return wanted


def _no_join(dataset: Dataset, name: str, there: str, staged: str) -> str:
    """The reason why a partition's column does not fit, and what to declare."""
    if name in dataset.contract.columns:
        return (
            f"column {name} is {staged} in the contract, but {there} in {dataset.table}, which has rows: "
            f"lake migrate {dataset.key}"
        )
    nested = any(("(" in t and not t.startswith("DECIMAL")) or t.endswith("]") for t in (there, staged))
    line = contract_line(name, "JSON" if nested else "VARCHAR" if "VARCHAR" in (there, staged) else staged)
    return (
        f"column {name} is {staged} in this partition, but {there} in {dataset.table}; declare it in the contract "
        f"({line}), then: lake migrate {dataset.key}"
    )


@dataclass(frozen=True, slots=True)
class Contents:
    """One partition in a raw table: its row count, and the fingerprint of its rows."""

    rows: int
    fingerprint: str


def contents(
    con: DuckDBPyConnection,
    dataset: Dataset,
    columns: Mapping[str, str],
    only: Iterable[str] | None = None,
    source: str | None = None,
) -> dict[str, Contents]:
    """Read the contents of a raw table's partitions, by key; partitions without rows are left out.

    Args:
        con: A connection with the lake attached.
        dataset: The dataset of the table.
        columns: The table's columns.
        only: Read only these partitions; None means all.
        source: A table expression to read instead of the table.
    """
    where = "" if only is None else f"WHERE {condition(dataset, map(dataset.partition, sorted(only)))}"
    of = [quoted(name) if name else "''" for name in (dataset.segment_column, dataset.partition_column)]
    found = con.execute(
        f"SELECT {', '.join(of)}, count(*), {fingerprint_sql(columns)} FROM {source or qualified(dataset)} {where} "
        "GROUP BY ALL"
    ).fetchall()
    there: dict[str, tuple[int, int]] = {}
    for segment, value, rows, digest in found:
        key = key_of(dataset, segment, value)
        so_far = there.get(key, (0, 0))
        there[key] = (so_far[0] + rows, so_far[1] + (digest or 0))
    return {key: Contents(rows, fingerprint_text(rows, digest)) for key, (rows, digest) in there.items() if rows}


def key_of(dataset: Dataset, segment: str | None, value: Any) -> str:
    """The key of the partition that rows with these values are in; how they are written, if they are in none."""
    if not dataset.partition_columns:
        return FULL
    if segment is None or value is None or (dataset.segment_column and not segment):
        return "/".join(str(part) for part in (segment, value) if part != "")
    return dataset.scheme.holding(value or datetime.min, segment).key


def _lost_by(con: DuckDBPyConnection, dataset: Dataset, name: str, there: str, wanted: str) -> str:
    """Why a table's column cannot be widened: a value that the wider type cannot hold exactly. "" if there is none."""
    condition = exact(quoted(name), there, wanted)
    if condition == "true":
        return ""
    lost = con.execute(f"SELECT {quoted(name)}::VARCHAR FROM {qualified(dataset)} WHERE NOT {condition} LIMIT 1")
    for (value,) in lost.fetchall():
        return (
            f"column {name} would have to become {wanted}, but {dataset.table} holds {value[:100]} ({there}), "
            f"which {wanted} cannot hold exactly; declare it in the contract ({contract_line(name, there)})"
        )
    return ""


def _widen(
    con: DuckDBPyConnection, dataset: Dataset, there: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[str, list[dict[str, Any]]]:
    """Add and widen a table's columns. Returns the changes and the ledger rows of partitions with a new fingerprint.

    The values do not change, so the attempts stay the same. A partition that already differed from the ledger gets no
    row, so that `lake verify` still reports it.
    """
    wider = [name for name, data_type in there.items() if wanted[name] != data_type]
    rehashed = any(not reads_as(there[name], wanted[name]) for name in wider)
    before = contents(con, dataset, there) if rehashed else {}
    changes = [f"ADD COLUMN {quoted(name)} {wanted[name]}" for name in wanted if name not in there]
    changes += [f"ALTER COLUMN {quoted(name)} SET DATA TYPE {wanted[name]}" for name in wider]
    for change in changes:
        con.execute(f"ALTER TABLE {qualified(dataset)} {change}")
    after = contents(con, dataset, wanted) if rehashed else {}
    said = ", ".join(changes)
    log.info(
        "%s: %s; computed the fingerprints of %d rows again",
        dataset.table,
        said,
        sum(c.rows for c in after.values()),
    )
    entries = ledger.latest(con, dataset.key) if rehashed else {}
    return said, [
        ledger.retyped_row(entry, after[entry.partition].fingerprint)
        for entry in entries.values()
        if entry.partition in before
        and entry.fingerprint == before[entry.partition].fingerprint
        and before[entry.partition] != after[entry.partition]
    ]


@dataclass(frozen=True, slots=True)
class Fit:
    """How a staged file is loaded into its table.

    Args:
        select: The columns that an INSERT selects from the file; "" if the file can be registered as it is.
        fingerprint: Of its rows as the table stores them; "" if it is the receipt's.
    """

    select: str
    fingerprint: str


def fit(
    con: DuckDBPyConnection,
    settings: Settings,
    dataset: Dataset,
    columns: Mapping[str, str],
    receipt: Receipt,
    refused: Mapping[tuple[str, str], str],
) -> Fit:
    """Decide how a staged partition is loaded into its table.

    Three kinds of files are inserted instead of registered:

    - A file whose types need a cast, after a check that every value survives it.
    - A file that lacks a column of the table. DuckLake 1.5.5 would register it but still tell DuckDB that the column
      has no nulls, and ``WHERE it IS NULL`` would find none of its rows.
    - Every file, if a folder above the lake looks like the partition of a column (``name=zzz``): DuckLake 1.5.5 would
      take it for one.

    Args:
        con: A connection with the lake attached.
        settings: Where the files are.
        dataset: The dataset of the table.
        columns: The table's columns, after `evolve`.
        receipt: The staged partition.
        refused: From `evolve`.

    Raises:
        Rejected: the file does not fit, or a value does not survive the cast; names the column, the value and both
            types.
    """
    if not columns or not receipt.columns:
        return Fit("", "")
    for name, data_type in wanted_columns(dataset, columns, receipt.columns).items():
        if columns.get(name) != data_type:
            raise Rejected(refused[dataset.key, name])
    names = {name.casefold(): name for name in columns}
    source = {names[name.casefold()]: (name, t) for name, t in receipt.columns.items() if not is_untyped(t)}
    as_it_is = all(name == target and reads_as(t, columns[target]) for target, (name, t) in source.items())
    if as_it_is and len(source) == len(columns) == len(receipt.columns) and not looks_like(settings, names):
        return Fit("", "")
    select = ", ".join(
        f"CAST({quoted(name)} AS {columns[target]}) AS {quoted(target)}" for target, (name, _) in source.items()
    )
    if as_it_is:
        return Fit(select, "")
    files = full_paths(settings, receipt.files)
    for target, (name, data_type) in source.items():
        condition = exact(quoted(name), data_type, columns[target])
        if condition == "true":
            continue
        for value, count in con.execute(
            f"SELECT {quoted(name)}::VARCHAR, count(*) OVER () FROM {READ} WHERE NOT {condition} LIMIT 1", [files]
        ).fetchall():
            raise Rejected(
                f"column {name} holds {value[:100]} ({data_type}), which {columns[target]} in {dataset.table} "
                f"cannot hold exactly: {count:,} row{'s' if count > 1 else ''}"
            )
    digest = fingerprint_sql({target: columns[target] for target in source})
    rows, found = con.execute(f"SELECT count(*), {digest} FROM (SELECT {select} FROM {READ})", [files]).fetchall()[0]
    return Fit(select, fingerprint_text(rows, found))
