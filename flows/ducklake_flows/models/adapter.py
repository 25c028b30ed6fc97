"""SQLMesh's DuckDB adapter for the lake: a model's interval is replaced in one gated, fenced transaction.

Stock SQLMesh declares that DuckDB has no transactions. It replaces an interval with a DELETE and an INSERT that commit
separately: a reader between them sees an empty interval, and a crash loses the interval's rows. Two concurrent runs
duplicate rows (SQLMesh/sqlmesh#3866).
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import duckdb
from sqlglot import exp
from sqlmesh.core.config.connection import DuckDBAttachOptions, DuckDBConnectionConfig
from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter
from sqlmesh.utils import columns_to_types_all_known
from sqlmesh.utils.errors import SQLMeshError

from ducklake_flows.credentials import Credentials, current
from ducklake_flows.errors import LakeError
from ducklake_flows.lake.connect import attach_sql, check_access, commit_message, connected, prepare, renew
from ducklake_flows.lake.fence import check_release
from ducklake_flows.lake.repair import settle
from ducklake_flows.lake.schema import record_change
from ducklake_flows.settings import LAKE, Settings, load_settings
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlmesh.core.engine_adapter.base import EngineAdapter

_MOVES_ROWS = (exp.Insert, exp.Merge)
_READS = (exp.Query, exp.Describe, exp.Use, exp.Set, exp.Pragma)


@dataclass
class _Shared:
    """What all adapters of one connection share: SQLMesh makes several with `EngineAdapter.with_settings`."""

    opened: contextlib.ExitStack | None = None
    """The open transaction; None outside of one."""
    begun: bool = False
    """Whether it holds the gate. False until its first statement that writes."""
    settled: bool = False
    """Whether files can be added to every model's table safely. False after a new table was created."""
    credentials: Credentials | None = None
    """Those of the S3 secret; None if they are not known."""
    replaced: tuple[str, Sequence[str]] | None = None
    """A column and the values whose rows the next replacement by partition replaces; None: those of its query."""


class LakeAdapter(DuckDBEngineAdapter):
    """Enables transactions. Each transaction that writes holds the gate."""

    SUPPORTS_TRANSACTIONS = True
    gate: ClassVar[Callable[[], AbstractContextManager[None]] | None] = None
    """Entered around every write transaction; None: write transactions raise an error. The build's worker asks its
    parent run for the gate; SQLMesh's own command enters the gate itself."""

    def __init__(self, *args: Any, shared: _Shared | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared = shared or _Shared()

    def with_settings(self, **kwargs: Any) -> EngineAdapter:
        """An adapter with other settings on the same connection and transaction."""
        return super().with_settings(shared=self._shared, **kwargs)

    @contextlib.contextmanager
    def transaction(self, condition: bool | None = None) -> Iterator[None]:
        """A transaction, which begins with its first statement that writes. Nested ones join the outer one.

        So a read takes no gate and commits nothing.
        """
        shared = self._shared
        if shared.opened is not None or condition is False:
            yield
            return
        with contextlib.ExitStack() as opened:
            shared.opened = opened
            try:
                yield
            finally:
                shared.opened, shared.begun = None, False

    @contextlib.contextmanager
    def session(self, properties: Any) -> Iterator[None]:
        """Begin the transaction. SQLMesh enters a session within each transaction that builds, creates or promotes.

        It copies a DataFrame into the lake without `execute`.
        """
        self._begin()
        with super().session(properties):
            yield

    def _renew(self) -> None:
        """Replace the S3 secret if the credentials were renewed: a build may take longer than they live."""
        settings = load_settings()
        if settings.in_s3 and (found := current(settings)) != self._shared.credentials:
            renew(self.cursor, settings)
            self._shared.credentials = found

    def _begin(self) -> None:
        """Begin the open transaction, unless it has begun."""
        shared = self._shared
        if shared.opened is not None and not shared.begun:
            shared.opened.enter_context(self._writing())
            shared.begun = True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Gate, BEGIN, the caller's statements, COMMIT."""
        gate = type(self).gate
        if gate is None:
            raise SQLMeshError(
                "No gate is set, so nothing was written.\n"
                "Next: run `lake transform`, or create the configuration with `sqlmesh_config`."
            )
        with gate():
            self._settle()  # a killed process may have left new tables unsettled
            self._renew()
            try:
                with super().transaction():
                    commit_message(self.cursor, "transform")
                    yield
                    failpoint("mid interval")
            except duckdb.Error:
                # SQLMesh (0.236) takes a transaction whose COMMIT failed for open. The next interval would begin none,
                # and each of its statements would be committed alone. A new connection has no transaction.
                with contextlib.suppress(duckdb.Error):
                    self.cursor.execute("ROLLBACK")
                self.close()
                raise
            finally:
                self._shared.credentials = None  # a rollback brings back the secret from before
            failpoint("interval committed")
            self._settle()

    def _settle(self) -> None:
        if not self._shared.settled:
            settle(load_settings())
            self._shared.settled = True

    def execute(self, expressions: Any, *args: Any, **kwargs: Any) -> None:
        """Run statements; reads begin no transaction. An INSERT stores every value exactly or fails."""
        if isinstance(expressions, exp.Create) and expressions.kind == "TABLE" and not expressions.expression:
            self._shared.settled = False
        if isinstance(expressions, exp.Insert) and isinstance(expressions.expression, exp.Query):
            expressions = self._exact_insert(expressions)
        with self.transaction():
            self._renew()
            if not _only_reads(expressions):
                self._begin()
            with self._all_threads() if isinstance(expressions, _MOVES_ROWS) else contextlib.nullcontext():
                try:
                    super().execute(expressions, *args, **kwargs)
                except duckdb.HTTPException as error:
                    _check_access(error)
                    raise
            for each in expressions if isinstance(expressions, list | tuple) else [expressions]:
                if isinstance(each, exp.Alter):
                    record_change(self.cursor, exp.table_name(each.this), each.sql("duckdb"))

    def fetchone(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Fetch one row. Audits count over a subquery, so those use all threads."""
        counts = isinstance(query, exp.Expression) and query.find(exp.Subquery)
        with self._all_threads() if counts else contextlib.nullcontext():
            return super().fetchone(query, *args, **kwargs)

    def ctas(
        self, table_name: Any, query_or_df: Any, target_columns_to_types: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Create a table from a query; fails on a value that its column cannot store exactly."""
        exact = self._exact_source(query_or_df, target_columns_to_types)
        super().ctas(table_name, exact, target_columns_to_types, *args, **kwargs)

    def replace_query(
        self, table_name: Any, query_or_df: Any, target_columns_to_types: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Replace a table by a query's rows; fails on a value that its column cannot store exactly."""
        if not target_columns_to_types and self.table_exists(table_name):
            target_columns_to_types = self.columns(table_name)
        exact = self._exact_source(query_or_df, target_columns_to_types)
        super().replace_query(table_name, exact, target_columns_to_types, *args, **kwargs)

    @contextlib.contextmanager
    def replacing(self, column: str, values: Sequence[str]) -> Iterator[None]:
        """Within the block, `insert_overwrite_by_partition` replaces the rows with these values of a column."""
        self._shared.replaced = column, values
        try:
            yield
        finally:
            self._shared.replaced = None

    def insert_overwrite_by_partition(
        self,
        table_name: Any,
        query_or_df: Any,
        partitioned_by: list[exp.Expr],
        target_columns_to_types: Any = None,
        source_columns: Any = None,
    ) -> None:
        """Replace the partitions that the query has rows of, or those of `replacing`, also those without new rows."""
        if self._shared.replaced is None:
            super().insert_overwrite_by_partition(
                table_name, query_or_df, partitioned_by, target_columns_to_types, source_columns
            )
            return
        column, values = self._shared.replaced
        wanted = exp.column(column, quoted=True).isin(*values)
        with self.transaction():
            self.delete_from(table_name, wanted)
            # DuckDB applies the filter where the rows are read, below a GROUP BY of the column.
            rows = exp.select("*").from_(query_or_df.subquery("changed")).where(wanted)
            self.insert_append(table_name, rows, target_columns_to_types, source_columns=source_columns)

    @contextlib.contextmanager
    def temp_table(
        self, query_or_df: Any, name: Any = "diff", target_columns_to_types: Any = None, *args: Any, **kwargs: Any
    ) -> Iterator[exp.Table]:
        """A table for the length of a block; fails on a value that its column cannot store exactly."""
        exact = self._exact_source(query_or_df, target_columns_to_types)
        with super().temp_table(exact, name, target_columns_to_types, *args, **kwargs) as table:
            yield table

    def _exact_source(self, source: Any, types: Mapping[str, exp.DataType] | None) -> Any:
        """The same query, but it fails on a value that a cast to these types would change.

        For CREATE TABLE AS, SQLMesh casts each column to its inferred type. A DataFrame is returned as it is.
        """
        if not isinstance(source, exp.Query) or not types or not columns_to_types_all_known(dict(types)):
            return source
        wanted = {name.lower(): exp.DataType.build(of) for name, of in types.items()}
        has = self._types(source)
        return self._exact(source, {name: wanted.get(name.lower(), of) for name, of in has.items()})

    def _exact_insert(self, insert: exp.Insert) -> exp.Insert:
        """The same INSERT, but it fails on a value that its column cannot store exactly.

        DuckDB casts on assignment, and a cast may round: 2.5 becomes 2 in a BIGINT column. Types can differ because
        the model's table may be older than a type change of its source, and because SQLMesh's type inference differs
        from DuckDB's.
        """
        target = insert.this
        table = target.this if isinstance(target, exp.Schema) else target
        types = self._types(table)
        names = [column.name for column in target.expressions] if isinstance(target, exp.Schema) else list(types)
        exact = insert.copy()
        exact.set("expression", self._exact(insert.expression, {name: types[name] for name in names}))
        return exact

    def _exact(self, query: exp.Query, wanted: Mapping[str, exp.DataType]) -> exp.Query:
        """Wrap a query so that it fails on any value that a cast to the wanted types and back would change.

        Args:
            query: Any query.
            wanted: Name and type of each column, in the query's order.
        """
        has = self._types(query)
        if len(has) != len(wanted):
            return query  # DuckDB reports the mismatch
        columns = []
        for (column, of), (name, to) in zip(has.items(), wanted.items(), strict=True):
            value = exp.column(column, "checked", quoted=True)
            columns.append(value if always_exact(of, to) else _refusing(value, name, of, to))
        if all(isinstance(column, exp.Column) for column in columns):
            return query
        named = [c.as_(n, quoted=True) for c, n in zip(columns, wanted, strict=True)]
        return exp.select(*named).from_(query.subquery("checked"))

    def _types(self, relation: exp.Expr) -> dict[str, exp.DataType]:
        """The columns of a table or a query, and their types."""
        described = self.cursor.execute(f"DESCRIBE {relation.sql(dialect=self.dialect, identify=True)}").fetchall()
        return {name: exp.DataType.build(data_type, dialect=self.dialect) for name, data_type, *_ in described}

    @contextlib.contextmanager
    def _all_threads(self) -> Iterator[None]:
        """Use all cores within the block, one elsewhere: a commit only writes metadata, and more threads slow it."""
        self.cursor.execute("RESET threads")
        try:
            yield
        finally:
            # On another cursor: in a failed transaction, SET would fail and hide the original error.
            with self.cursor.cursor() as other:
                other.execute("SET threads = 1")


def _check_access(error: duckdb.Error) -> None:
    """Raise the error to show if the object store refuses the credentials."""
    try:
        check_access(error, load_settings())
    except LakeError as found:
        raise SQLMeshError(str(found)) from error


def always_exact(of: exp.DataType, to: exp.DataType) -> bool:
    """Whether DuckDB's cast from `of` to `to` either keeps a value exactly or fails."""
    if of == to or (of.this in _INTEGERS and to.this in _INTEGERS | {exp.DataType.Type.DECIMAL}):
        return True
    if of.this is to.this is exp.DataType.Type.DECIMAL:
        (_, before), (_, after) = (_digits(of), _digits(to))
        return before <= after
    return (of.this, to.this) in _WIDER


def _digits(decimal: exp.DataType) -> tuple[int, int]:
    """A decimal's precision and scale."""
    precision, scale = (int(e.name) for e in decimal.expressions) if len(decimal.expressions) == 2 else (18, 3)
    return precision, scale


_INTEGERS = exp.DataType.INTEGER_TYPES
_WIDER = {
    (exp.DataType.Type.TINYINT, exp.DataType.Type.DOUBLE),
    (exp.DataType.Type.SMALLINT, exp.DataType.Type.DOUBLE),
    (exp.DataType.Type.INT, exp.DataType.Type.DOUBLE),
    (exp.DataType.Type.FLOAT, exp.DataType.Type.DOUBLE),
    (exp.DataType.Type.DATE, exp.DataType.Type.TIMESTAMP),
}


def _refusing(value: exp.Column, name: str, of: exp.DataType, to: exp.DataType) -> exp.Expression:
    """A cast that fails with the column's name if it would change the value."""
    there = exp.cast(value, to)
    types = f"({of.sql('duckdb')}) cannot be stored exactly as {to.sql('duckdb')}"
    message = exp.func("concat", exp.Literal.string(f"column {name}: "), value, exp.Literal.string(f" {types}"))
    return (
        exp.case()
        .when(exp.NullSafeEQ(this=exp.TryCast(this=there, to=of), expression=value), there)
        .else_(exp.func("error", message))
    )


def _only_reads(expressions: Any) -> bool:
    several = expressions if isinstance(expressions, list | tuple) else [expressions]
    return all(
        e.split(maxsplit=1)[0].upper() in ("SELECT", "DESCRIBE", "USE") if isinstance(e, str) else isinstance(e, _READS)
        for e in several
    )


class LakeConnection(DuckDBConnectionConfig):
    """SQLMesh's DuckLake gateway, attached in the same way as by every other reader and writer of the lake."""

    adapter: ClassVar[type[DuckDBEngineAdapter]] = LakeAdapter

    def create_engine_adapter(
        self, register_comments_override: bool = False, concurrent_tasks: int | None = None
    ) -> EngineAdapter:
        """A new adapter on a new connection, which attaches the lake when it is first used."""
        return self.adapter(
            duckdb.connect,
            multithreaded=(concurrent_tasks or self.concurrent_tasks) > 1,
            cursor_init=_attach,
            default_catalog=self.get_catalog(),
            register_comments=register_comments_override or self.register_comments,
            pretty_sql=self.pretty_sql,
            shared_connection=self.shared_connection,
        )


def _attach(cursor: Any) -> None:
    settings = load_settings()
    check_lake(settings)
    prepare(cursor, settings)
    cursor.execute(attach_sql(settings))
    cursor.execute(f"USE {LAKE}")
    cursor.execute("SET threads = 1")


@functools.lru_cache(maxsize=1)
def check_lake(settings: Settings) -> None:
    """Check that the lake exists before SQLMesh creates any file or state.

    Raises:
        SQLMeshError: the lake does not exist or cannot be opened; the same text as in every other command.
    """
    try:
        with connected(settings, read_only=True) as con:
            check_release(con)
    except LakeError as error:
        raise SQLMeshError(str(error)) from None


def lake_connection(settings: Settings) -> LakeConnection:
    """The gateway's connection. It holds no secrets: they are read when the lake is attached."""
    return LakeConnection(
        concurrent_tasks=1,
        catalogs={LAKE: DuckDBAttachOptions(type="ducklake", path=settings.catalog, data_path=settings.data_path)},
    )
