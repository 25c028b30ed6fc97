"""The rows of a database's partition as Arrow tables, read by SQLAlchemy with the values of the database's driver."""

from __future__ import annotations

import contextlib
import itertools
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from ducklake_flows.datasets.names import columns_of
from ducklake_flows.errors import BadInput, SourceError, SourceUnavailable, redacted
from ducklake_flows.sources.rows import column_of
from ducklake_flows.sources.transient import is_transient
from ducklake_flows.sources.values import JSON, NAIVE_US, UTC_US, Unfit

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection, Engine

    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.sources.sql_database import SqlDatabase

SNAPSHOTS = ("postgresql", "mysql", "mariadb")
"""Databases whose transactions read one snapshot at the level REPEATABLE READ. A transaction of SQLite's would keep
writers waiting."""

TOGETHER = 100
"""Partitions whose versions are asked for by one query. SQLite takes 500 parts of a query, and 999 values."""

_NUMERIC = 1700
_KINDS = {
    **dict.fromkeys((21, 23, 20), pa.int64()),
    701: pa.float64(),
    16: pa.bool_(),
    **dict.fromkeys((25, 1043), pa.string()),
    1082: pa.date32(),
    1114: NAIVE_US,
    1184: UTC_US,
    **dict.fromkeys((114, 3802), JSON),
}
"""Types of PostgreSQL's columns by their numbers: smallint, integer, bigint; double precision; boolean; text, varchar;
date, timestamp, timestamptz; json, jsonb. A column of such a type is converted as a whole."""


@lru_cache(maxsize=32)
def engine(url: str, password: str | None) -> Engine:
    """Connections to a database, kept for all partitions of a process.

    Raises:
        BadInput: SQLAlchemy does not know the database, or its driver is not installed.
    """
    try:
        full = sa.make_url(url)
        full = full.set(password=password) if password is not None else full
        # JSON stays text, so that its numbers keep their digits and its null differs from no value.
        options = {"json_deserializer": _text} if full.get_backend_name() == "postgresql" else {}
        return sa.create_engine(full, pool_pre_ping=True, **options)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise BadInput(
            f"The driver of {url.partition(':')[0]} cannot be used: {redacted(str(error))}",
            "install it in the environment of the project and its workers, for example: pip install 'psycopg[binary]'",
        ) from None


class Opened:
    """A source with a connection that reads partitions in one snapshot; see `SqlDatabase.chunk`."""

    def __init__(self, source: SqlDatabase) -> None:
        self._source = source
        self._connection: Connection | None = None

    def close(self) -> None:
        """Close the connection; the next read opens another one, in a snapshot of its own."""
        if self._connection is not None:
            # An error here, on a lost connection, says nothing that the read has not said.
            with contextlib.suppress(SQLAlchemyError):
                self._connection.close()
            self._connection = None

    def read(self, partition: Partition, contract: Contract) -> Iterator[pa.Table]:
        """Stream one partition's rows; see `SqlDatabase.read`."""
        with contextlib.ExitStack() as unless_done:
            unless_done.callback(self.close)
            try:
                yield from self._tables(partition, contract)
            except SQLAlchemyError as error:
                raise _fault(self._source, error, partition) from None
            unless_done.pop_all()

    def _tables(self, partition: Partition, contract: Contract) -> Iterator[pa.Table]:
        source = self._source
        if self._connection is None:
            self._connection = _connect(source, partition.timezone)
        done = 0
        with contextlib.closing(_batches(self._connection, source, source.values(partition))) as batches:
            for names, kinds, rows in batches:
                try:
                    yield _table(names, kinds, rows, contract)
                except Unfit as error:
                    raise Unfit(error.column, error.why, None if error.row is None else error.row + done) from None
                done += len(rows)
        if source.dialect not in SNAPSHOTS:
            self._connection.rollback()


Batch = tuple[list[str], list[pa.DataType | None], "Sequence[Sequence[Any]]"]
"""Names of the columns, their types if the database's description has an exact one, and rows."""


def _batches(connection: Connection, source: SqlDatabase, values: Mapping[str, Any]) -> Generator[Batch]:
    """The rows of a source's query, `batch` of them at once, through a cursor of the server.

    Raises:
        SQLAlchemyError: the database refuses the query, or the driver cannot give a value.
    """
    if connection.engine.driver == "psycopg":
        yield from _batches_of_psycopg(connection, source, values)
        return
    streamed = connection.execution_options(stream_results=True, yield_per=source.batch)
    with contextlib.closing(streamed.execute(statement(source), values)) as result:
        names = list(result.keys())
        described = result.cursor.description if result.cursor is not None else [None] * len(names)
        kinds = [_kind(column) if source.dialect == "postgresql" else None for column in described]
        for rows in result.partitions(source.batch):
            yield names, kinds, rows


def _batches_of_psycopg(connection: Connection, source: SqlDatabase, values: Mapping[str, Any]) -> Generator[Batch]:
    """The same, as the driver's tuples: SQLAlchemy's rows take longer than reading and converting the values."""
    query = statement(source).compile(connection)
    dbapi = connection.dialect.loaded_dbapi
    try:
        with contextlib.closing(connection.connection.cursor(name=f"lake_{next(_NUMBERS)}")) as cursor:
            cursor.execute(str(query), query.construct_params(dict(values)))
            names = [column[0] for column in cursor.description]
            kinds = [_kind(column) for column in cursor.description]
            while rows := cursor.fetchmany(source.batch):
                yield names, kinds, rows
    except dbapi.Error as error:
        # SQLAlchemy does not know that this connection may be lost.
        connection.invalidate(error)
        kind = DataError if isinstance(error, dbapi.DataError) else DBAPIError
        raise kind(None, None, error) from None


_NUMBERS = itertools.count()
"""The cursors of a connection need different names."""


def statement(source: SqlDatabase, column: str | None = None) -> sa.TextClause | sa.Select[Any]:
    """The query of a source, with quoted names and bound values.

    Args:
        source: The source.
        column: Only this column.
    """
    if source.query:
        if column is None:
            return sa.text(source.query)
        name = source.engine.dialect.identifier_preparer.quote(column)
        return sa.text(f"SELECT {name} FROM ({source.query}) AS q")  # noqa: S608 - the dataset's query
    return _of_table(source, column)


def versions(source: SqlDatabase, partitions: Sequence[Partition]) -> dict[str, str]:
    """The number of rows and the greatest version of each partition, by key; see `SqlDatabase.versions`."""
    found: dict[str, str] = {}
    try:
        with contextlib.closing(_connect(source, partitions[0].timezone if partitions else "UTC")) as connection:
            for first in range(0, len(partitions), TOGETHER):
                some = partitions[first : first + TOGETHER]
                for place, rows, newest in connection.execute(_counted(source, some)):
                    found[some[place].key] = f"{rows}:{'' if newest is None else newest}"
    except SQLAlchemyError as error:
        raise _fault(source, error) from None
    return {partition.key: found[partition.key] for partition in partitions}


def _counted(source: SqlDatabase, partitions: Sequence[Partition]) -> sa.CompoundSelect[Any]:
    """A row for each partition: its place, the number of its rows, and their greatest version."""
    table = _table_of(source, [source.version])
    newest = sa.func.max(table.c[source.version])
    parts = []
    for place, partition in enumerate(partitions):
        part: sa.Select[Any] = sa.select(sa.literal_column(str(place)), sa.func.count(), newest).select_from(table)
        if source.window:
            values, window = source.values(partition), table.c[source.window]
            part = part.where(window >= values["start"], window < values["end"])
        if source.segment:
            part = part.where(table.c[source.segment] == partition.segment)
        parts.append(part)
    return sa.union_all(*parts)


def _of_table(source: SqlDatabase, column: str | None = None) -> sa.Select[Any]:
    names = (column,) if column else source.columns
    table = _table_of(source, names)
    chosen = [table.c[name] for name in names] or [sa.literal_column("*")]
    query = sa.select(*chosen).select_from(table)
    if source.window:
        window = table.c[source.window]
        query = query.where(window >= sa.bindparam("start"), window < sa.bindparam("end"))
    if source.segment:
        query = query.where(table.c[source.segment] == sa.bindparam("segment"))
    return query


def _table_of(source: SqlDatabase, columns: Sequence[str]) -> sa.TableClause:
    """The table with these columns and those of the window and the segment.

    Without types, since SQLAlchemy's would convert numbers.
    """
    schema, _, name = source.table.rpartition(".")
    return sa.table(name, *map(sa.column, {*columns, source.window, source.segment} - {""}), schema=schema or None)


def _without_rows(source: SqlDatabase) -> sa.TextClause | sa.Select[Any]:
    if source.query:
        return sa.text(f"SELECT * FROM ({source.query}) AS q WHERE 1 = 0")  # noqa: S608 - the dataset's query
    return _of_table(source).where(sa.false())


def segments(source: SqlDatabase) -> list[str]:
    """The values of the segment column; see `SqlDatabase.segments`."""
    table = _table_of(source, ())
    column = table.c[source.segment]
    try:
        with contextlib.closing(_connect(source, "UTC")) as connection:
            found = list(connection.execute(sa.select(column).distinct().where(column.is_not(None))).scalars())
    except SQLAlchemyError as error:
        raise _fault(source, error) from None
    if wrong := [value for value in found if not isinstance(value, str)]:
        raise SourceError(f"column {source.segment} holds {wrong[0]!r}, not a text.", "use a query with a cast")
    return found


def _connect(source: SqlDatabase, timezone: str) -> Connection:
    """A connection of its own transaction, for which dates and times without zone are of this zone."""
    connection = source.engine.connect()
    if source.dialect in SNAPSHOTS:
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
    if source.dialect == "postgresql":
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        connection.execute(sa.text("SELECT set_config('TimeZone', :zone, true)"), {"zone": timezone})
    return connection


def _kind(column: Any) -> pa.DataType | None:
    """The type of a column of PostgreSQL, by DB-API's description, if it holds all values of the column exactly."""
    code, precision, scale = column[1], column[4], column[5]
    if code == _NUMERIC:
        exact = precision is not None and scale is not None and 0 <= scale <= precision <= 38
        return pa.decimal128(18 if precision <= 18 else 38, scale) if exact else None
    return _KINDS.get(code)


def _table(
    names: Sequence[str], kinds: Sequence[pa.DataType | None], rows: Sequence[Any], contract: Contract
) -> pa.Table:
    """Convert rows to a table with the source's names.

    Args:
        names: Names of the columns.
        kinds: Types of the columns; None: that of the values.
        rows: The rows.
        contract: Column names and declared types.

    Raises:
        Unfit: a value cannot be stored exactly. The row is counted from the first of these.
    """
    try:
        columns = columns_of(names, contract.rename)
    except ValueError as error:
        raise Unfit("", str(error)) from None
    made = []
    for name, kind, values in zip(names, kinds, zip(*rows, strict=True), strict=True):
        column = None
        if kind == JSON:
            column = pa.ExtensionArray.from_storage(JSON, pa.array(values, pa.string()))
        elif kind is not None and columns[name] not in contract.columns:
            # A value that does not fit, such as NaN, is named below.
            with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError):
                column = pa.array(values, kind, from_pandas=False)
        made.append(column_of(values, columns[name], contract) if column is None else column)
    return pa.Table.from_arrays(made, names=list(names))


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else bytes(value).decode()


def _fault(source: SqlDatabase, error: SQLAlchemyError, partition: Partition | None = None) -> SourceError:
    """The error of a query, without the query, and with the column if a value has no Python form."""
    cause = getattr(error, "orig", None) or error
    text = redacted(" ".join(str(cause).split())[:300])
    if is_transient(error):
        return SourceUnavailable(f"{type(cause).__name__}: {text}")
    if partition is not None and isinstance(error, DataError) and (column := _unreadable(source, partition)):
        return SourceError(f"column {column}: {text}", f"leave it out, or read it as text: CAST({column} AS text)")
    return SourceError(f"{type(cause).__name__}: {text}", "correct the table, the columns or the query")


def _unreadable(source: SqlDatabase, partition: Partition) -> str:
    """The first column with a value that the driver cannot give; "" if there is none."""
    values = source.values(partition)
    with contextlib.closing(_connect(source, partition.timezone)) as connection:
        names = list(connection.execute(_without_rows(source), values).keys())
    for name in names:
        try:
            with contextlib.closing(_connect(source, partition.timezone)) as connection:
                for _ in connection.execution_options(yield_per=source.batch).execute(statement(source, name), values):
                    pass
        except DataError:
            return str(name)
    return ""
