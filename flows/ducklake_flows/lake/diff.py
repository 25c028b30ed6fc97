"""What differs between two states of a table: rows added, removed and changed, and which values, by column."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.types import quoted
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import connected, literal, one_snapshot, rows
from ducklake_flows.lake.history import NOW, published_between, snapshot_meant
from ducklake_flows.lake.ledger import PUBLISHED_STATES
from ducklake_flows.lake.rows import condition
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import LAKE, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two states.

    Args:
        name: As it was asked for, with the snapshot: ``snapshot 12``.
        rows: The rows, as a table expression in SQL.
        columns: Name and DuckDB type of each column; empty if there is no such table.
    """

    name: str
    rows: str
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between an old and a new state.

    Args:
        old: The name of the old state.
        new: The name of the new state.
        key: The columns that identify a row; empty: none do, so a changed row is one removed and one added.
        columns: For each column that only one has, or that has another type: its types, None where it is missing.
        added: The number of rows that only the new state has.
        removed: The number of rows that only the old one has.
        changed: The number of rows whose values differ.
        by_column: For each column, the number of rows in which its value differs.
        by_partition: For each partition with a difference, ``added``, ``removed`` and ``changed``; empty for a model.
        sample: Some of these rows: ``what`` (added, removed, changed), ``key``, and ``old`` and ``new`` values; of a
            changed row only those that differ.
    """

    old: str
    new: str
    key: Sequence[str]
    columns: Mapping[str, tuple[str | None, str | None]]
    added: int = 0
    removed: int = 0
    changed: int = 0
    by_column: Mapping[str, int] = field(default_factory=dict)
    by_partition: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    sample: Sequence[Mapping[str, Any]] = ()

    def __bool__(self) -> bool:
        return bool(self.columns or self.added or self.removed or self.changed)


def diff_dataset(
    settings: Settings,
    dataset: Dataset,
    old: str | None = None,
    new: str = NOW,
    partition: str | None = None,
    limit: int = 20,
) -> Difference:
    """Compare two states of a raw table.

    Only partitions are read that the ledger says were published between the two.

    Args:
        settings: Where the lake is.
        dataset: The dataset.
        old: A snapshot's number, an attempt's id, or a moment (UTC). None: before the last publish, of the partition or
            of the dataset.
        new: The same, or ``now``.
        partition: Only this partition; None: all.
        limit: The most rows of the sample.

    Raises:
        BadInput: there is no such state, or its snapshot has expired.
    """
    with connected(settings, read_only=True) as con, one_snapshot(con):
        first = _last_publish(con, dataset, partition) - 1 if old is None else snapshot_meant(con, old, dataset)
        last = snapshot_meant(con, new, dataset)
        low, high = sorted((first, last))
        touched = published_between(con, dataset.key, low, high)
        chosen = [key for key in touched if partition is None or key == partition]
        where = condition(dataset, map(dataset.partition, chosen))
        before, after = (_at(con, dataset.table, number, where) for number in (first, last))
        places = {tuple(dataset.partition_values(dataset.partition(k)).values()): k for k in chosen}
        return _compare(con, before, after, _key(dataset), limit, list(dataset.partition_columns), places)


@contextlib.contextmanager
def changed_rows(
    settings: Settings, dataset: Dataset, since: int | None, batch: int = 1000
) -> Iterator[tuple[int, Iterator[Mapping[str, Any]]]]:
    """The rows of a raw table that changed since a snapshot, as a consumer that keeps up with the table needs them.

    A partition is replaced as a whole; only the rows that differ are changes. Without a primary key, a changed row is a
    delete and an insert.

    Args:
        settings: Where the lake is.
        dataset: The dataset.
        since: The snapshot that the consumer has seen; None: it has seen nothing.
        batch: Rows that are read at once.

    Yields:
        The snapshot that the consumer has seen once it has taken all changes, and the changes: ``change`` (insert,
        update, delete), ``key`` (empty without a primary key), ``row`` (None of a delete), ``before`` (None of an
        insert). By partition, then in no order.

    Raises:
        BadInput: the snapshot has expired: what was there then is not known any more.
    """
    with connected(settings, read_only=True) as con, one_snapshot(con):
        known = [row["snapshot_id"] for row in rows(con, f"SELECT snapshot_id FROM {LAKE}.snapshots() ORDER BY 1")]
        now = int(known[-1])
        if since is not None and since not in known:
            raise BadInput(
                f"Snapshot {since} has expired, so the changes since then are not known.",
                "read the whole table again: lake changes, without a cursor",
            )
        first = since if since is not None else -1
        chosen = published_between(con, dataset.key, first, now)
        where = condition(dataset, map(dataset.partition, chosen))
        new = _at(con, dataset.table, now, where)
        old = _at(con, dataset.table, since, where) if since is not None else Side("nothing", "", {})
        yield now, _streamed(con, old, new, _key(dataset), batch) if chosen and new.columns else iter(())


@contextlib.contextmanager
def changes(dataset: str, since: int | None = None) -> Iterator[tuple[int, Iterator[Mapping[str, Any]]]]:
    """The rows of a dataset that changed since a snapshot, for a consumer that keeps up with it.

    Only rows that differ are changes, though a partition is replaced as a whole. Keep the snapshot once all changes are
    taken: if the consumer ends before, the same changes come again, and their key tells which were taken.

    Args:
        dataset: The dataset's key.
        since: The snapshot that was seen; None: nothing, so every row is an insert.

    Yields:
        The snapshot to give as ``since`` the next time, and the changes: ``change`` (insert, update, delete), ``key``
        (without a primary key empty, and a changed row is a delete and an insert), ``row`` (None of a delete) and
        ``before`` (None of an insert).

    Raises:
        BadInput: there is no such dataset, or the snapshot has expired.
    """
    with changed_rows(load_settings(), get_dataset(dataset), since) as found:
        yield found


def _streamed(
    con: DuckDBPyConnection, old: Side, new: Side, key: Sequence[str], batch: int
) -> Iterator[Mapping[str, Any]]:
    names = list(dict.fromkeys([*new.columns, *old.columns]))
    if any(name not in side.columns for name in key for side in (old, new)):
        found = con.execute(_counted(old, new, names))
    else:
        found = con.execute(_keyed(old, new, key, names) if key else _counted(old, new, names))
    kinds = {"added": "insert", "removed": "delete", "changed": "update"}
    while some := found.fetchmany(batch):
        for what, before, row, times in some:
            identity = {name: (row or before)[name] for name in key}
            for _ in range(times):
                yield {"change": kinds[what], "key": identity, "row": row, "before": before}


def _key(dataset: Dataset) -> tuple[str, ...]:
    """The columns that identify a row in the whole table; none if the dataset has no primary key."""
    return tuple(dict.fromkeys((*dataset.partition_columns, *dataset.primary_key))) if dataset.primary_key else ()


def diff_tables(
    settings: Settings, old: tuple[str, str], new: tuple[str, str], key: Sequence[str] = (), limit: int = 20
) -> Difference:
    """Compare the present rows of two tables or views, such as a model in two environments.

    Args:
        settings: Where the lake is.
        old: The name to show, and schema and name of the table.
        new: The same of the other.
        key: The columns that identify a row; empty: none do.
        limit: The most rows of the sample.

    Raises:
        BadInput: there is no such table or column.
    """
    with connected(settings, read_only=True) as con, one_snapshot(con):
        sides: list[Side] = []
        for name, table in (old, new):
            columns = _columns(con, f"{LAKE}.{table}")
            if not columns:
                raise BadInput(f"There is no table {table}.", "lake transform, or correct the name")
            if lacking := [column for column in key if column not in columns]:
                raise BadInput(f"{table} has no column {lacking[0]!r}.", f"choose from {', '.join(columns)}")
            sides.append(Side(name, f"{LAKE}.{table}", columns))
        return _compare(con, sides[0], sides[1], tuple(key), limit, [], {})


def _last_publish(con: DuckDBPyConnection, dataset: Dataset, partition: str | None) -> int:
    """The snapshot of the last publish of a partition, or of a dataset.

    Raises:
        BadInput: nothing was published.
    """
    which = f"AND partition = {literal(partition)}" if partition is not None else ""
    found = con.execute(
        f"SELECT max(token) FROM {LAKE}.ops.ledger WHERE dataset = {literal(dataset.key)} "
        f"AND state IN {PUBLISHED_STATES} AND confirmed_by IS NULL {which}"
    ).fetchall()[0][0]
    if found is None:
        raise BadInput(
            f"{dataset.key}{f' {partition}' if partition else ''} was never published.", f"lake status {dataset.key}"
        )
    return int(found)


def _at(con: DuckDBPyConnection, table: str, snapshot: int, where: str) -> Side:
    """Some rows of a raw table as of a snapshot."""
    found = f"{LAKE}.{table} AT (VERSION => {snapshot})"
    return Side(f"snapshot {snapshot}", f"(SELECT * FROM {found} WHERE {where})", _columns(con, found))


def _columns(con: DuckDBPyConnection, table: str) -> dict[str, str]:
    """The columns of a table expression, with their types; none if there is no such table."""
    import duckdb

    try:
        return {row[0]: row[1] for row in con.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()}
    except duckdb.CatalogException:
        return {}


def _compare(
    con: DuckDBPyConnection,
    old: Side,
    new: Side,
    key: Sequence[str],
    limit: int,
    partition_columns: Sequence[str],
    places: Mapping[tuple[str, ...], str],
) -> Difference:
    """Compare two states."""
    names = list(dict.fromkeys([*new.columns, *old.columns]))
    columns = {
        name: (old.columns.get(name), new.columns.get(name))
        for name in names
        if old.columns and new.columns and old.columns.get(name) != new.columns.get(name)
    }
    if not names or (places == {} and partition_columns):
        return Difference(old.name, new.name, key, columns)
    if any(name not in side.columns for name in key for side in (old, new)):
        key = ()  # before the first publish there is no table
    select = _keyed(old, new, key, names) if key else _counted(old, new, names)
    con.execute(f"CREATE OR REPLACE TEMP TABLE differing AS {select}")
    differing = [name for name in names if name not in key] if key else []
    values = ", ".join(
        f"count(*) FILTER (what = 'changed' AND old.{quoted(n)} IS DISTINCT FROM new.{quoted(n)})" for n in differing
    )
    totals = con.execute(
        "SELECT coalesce(sum(n) FILTER (what = 'added'), 0)::BIGINT, "
        "coalesce(sum(n) FILTER (what = 'removed'), 0)::BIGINT, coalesce(sum(n) FILTER (what = 'changed'), 0)::BIGINT"
        f"{', ' if values else ''}{values} FROM differing"
    ).fetchall()[0]
    by_partition = {}
    if partition_columns:
        shown = ", ".join(f"coalesce(new.{quoted(c)}, old.{quoted(c)})::VARCHAR" for c in partition_columns)
        for *place, added, removed, changed in con.execute(
            f"SELECT {shown}, coalesce(sum(n) FILTER (what = 'added'), 0)::BIGINT, "
            "coalesce(sum(n) FILTER (what = 'removed'), 0)::BIGINT, "
            "coalesce(sum(n) FILTER (what = 'changed'), 0)::BIGINT FROM differing GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            by_partition[places.get(tuple(place), "/".join(place))] = added, removed, changed
    elif places:
        by_partition = {next(iter(places.values())): (totals[0], totals[1], totals[2])}
    order = ", ".join(f"coalesce(new.{quoted(c)}, old.{quoted(c)})" for c in key) or "ALL"
    found = rows(con, f"SELECT what, old, new, n FROM differing ORDER BY {order} LIMIT {limit}")
    con.execute("DROP TABLE differing")
    return Difference(
        old.name,
        new.name,
        key,
        columns,
        totals[0],
        totals[1],
        totals[2],
        {name: count for name, count in zip(differing, totals[3:], strict=True) if count},
        {name: counts for name, counts in by_partition.items() if any(counts)},
        [_shown(row, key) for row in found],
    )


def _keyed(old: Side, new: Side, key: Sequence[str], names: Sequence[str]) -> str:
    """SQL of the rows that differ, by key: ``what``, ``old`` and ``new`` (structs of all columns), ``n``."""
    o, n = (f"(SELECT {_struct(names, side, old, new)} AS r, true AS there FROM {side.rows})" for side in (old, new))
    pairs = " AND ".join(f"o.r.{quoted(c)} IS NOT DISTINCT FROM n.r.{quoted(c)}" for c in key)
    return (
        "SELECT CASE WHEN o.there IS NULL THEN 'added' WHEN n.there IS NULL THEN 'removed' ELSE 'changed' END AS what, "
        f"o.r AS old, n.r AS new, 1 AS n FROM {o} o FULL JOIN {n} n ON {pairs} "
        "WHERE o.there IS NULL OR n.there IS NULL OR o.r IS DISTINCT FROM n.r"
    )


def _counted(old: Side, new: Side, names: Sequence[str]) -> str:
    """SQL of the rows that differ, as multisets."""
    parts = [
        f"SELECT {_struct(names, side, old, new)} AS r, {sign} AS n FROM {side.rows}"
        for side, sign in ((old, -1), (new, 1))
        if side.columns
    ]
    return (
        "SELECT CASE WHEN total > 0 THEN 'added' ELSE 'removed' END AS what, "
        "CASE WHEN total < 0 THEN r END AS old, CASE WHEN total > 0 THEN r END AS new, abs(total)::BIGINT AS n "
        f"FROM (SELECT r, sum(n) AS total FROM ({' UNION ALL '.join(parts)}) GROUP BY r) WHERE total <> 0"
    )


_NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)")


def _struct(names: Sequence[str], side: Side, *sides: Side) -> str:
    """SQL of a row as a struct: a column that it lacks is null, one of two types that are not numbers is text."""

    def value(name: str) -> str:
        types = {each.columns[name] for each in sides if name in each.columns}
        as_text = len(types) > 1 and not all(map(_NUMBER.fullmatch, types))
        found = quoted(name) if name in side.columns else f"NULL::{types.copy().pop()}"
        return f"{found}::VARCHAR" if as_text else found

    return f"struct_pack({', '.join(f'{quoted(name)} := {value(name)}' for name in names)})"


def _shown(row: Mapping[str, Any], key: Sequence[str]) -> dict[str, Any]:
    """A row of the sample."""
    old, new = row["old"] or {}, row["new"] or {}
    if row["what"] == "changed":
        names = [name for name in new if name not in key and _differs(old[name], new[name])]
        old, new = ({name: side[name] for name in names} for side in (old, new))
    shown = {"what": row["what"], "key": {name: (row["new"] or row["old"])[name] for name in key}}
    return shown | {"old": old, "new": new} | ({"times": row["n"]} if row["n"] > 1 else {})


def _differs(one: Any, other: Any) -> bool:
    return not (one == other or (one != one and other != other))  # noqa: PLR0124 - NaN


MODEL = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")


def in_environment(model: str, environment: str) -> str:
    """Schema and name of a model's view in an environment."""
    schema, _, name = model.partition(".")
    return model if environment == "prod" else f"{schema}__{environment}.{name}"
