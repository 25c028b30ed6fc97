"""SQLMesh's DuckDB adapter for the lake: a model's interval is replaced in one gated, fenced transaction.

Stock SQLMesh declares that DuckDB has no transactions. It replaces an interval with a DELETE and an INSERT that commit
separately: a reader between them sees an empty interval, and a crash loses the interval's rows. Two concurrent runs
duplicate rows (SQLMesh/sqlmesh#3866).
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from sqlglot import exp
from sqlmesh.core.config.connection import DuckDBAttachOptions, DuckDBConnectionConfig
from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter
from sqlmesh.utils.errors import SQLMeshError

from ducklake_flows.errors import LakeError
from ducklake_flows.lake.connect import attach_sql, commit_message, connect, prepare
from ducklake_flows.lake.fence import advance_fence
from ducklake_flows.lake.repair import settle
from ducklake_flows.settings import LAKE, Settings, load_settings
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MOVES_ROWS = (exp.Insert, exp.Merge)
_READS = (exp.Query, exp.Describe, exp.Use, exp.Set, exp.Pragma)


class LakeAdapter(DuckDBEngineAdapter):
    """Enables transactions. Each write transaction holds the gate and advances the transforms' fence."""

    SUPPORTS_TRANSACTIONS = True
    gate: ClassVar[Callable[[], AbstractContextManager[None]] | None] = None
    """Entered around every write transaction; None: write transactions raise an error. The build's worker asks its
    parent run for the gate; SQLMesh's own command enters the gate itself."""

    _reading = 0
    _settled = False
    """Whether files can be added to every model's table safely. False after a new table was created."""

    @contextlib.contextmanager
    def transaction(self, condition: bool | None = None) -> Iterator[None]:
        """A write transaction: gate, BEGIN, fence, the caller's statements, COMMIT. Nested ones join the outer one."""
        if self._connection_pool.is_transaction_active or self._reading or condition is False:
            yield
            return
        gate = type(self).gate
        if gate is None:
            raise SQLMeshError(
                "No gate is set, so nothing was written.\n"
                "Next: run `lake transform`, or create the configuration with `sqlmesh_config`."
            )
        with gate():
            if not self._settled:
                self._settle()  # a killed process may have left new tables unsettled
            with super().transaction():
                advance_fence(self.cursor, "transform_fence")
                commit_message(self.cursor, "transform")
                yield
                failpoint("mid interval")
            failpoint("interval committed")
            if not self._settled:
                self._settle()

    def _settle(self) -> None:
        settle(load_settings())
        self._settled = True

    def execute(self, expressions: Any, *args: Any, **kwargs: Any) -> None:
        """Run statements; reads open no transaction. An INSERT stores every value exactly or fails."""
        if isinstance(expressions, exp.Create) and expressions.kind == "TABLE" and not expressions.expression:
            self._settled = False
        if isinstance(expressions, exp.Insert) and isinstance(expressions.expression, exp.Query):
            expressions = self._exact_insert(expressions)
        with (
            self._read() if _only_reads(expressions) else contextlib.nullcontext(),
            self._all_threads() if isinstance(expressions, _MOVES_ROWS) else contextlib.nullcontext(),
        ):
            super().execute(expressions, *args, **kwargs)

    def fetchone(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch one row without opening a transaction. Audits count over a subquery, so those use all threads."""
        counts = args and isinstance(args[0], exp.Expression) and args[0].find(exp.Subquery)
        with self._read(), self._all_threads() if counts else contextlib.nullcontext():
            return super().fetchone(*args, **kwargs)

    def fetchall(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch all rows without opening a transaction."""
        with self._read():
            return super().fetchall(*args, **kwargs)

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

    def _order_projections_and_filter(
        self, query: Any, target_columns_to_types: Any, where: Any = None, coerce_types: bool = False
    ) -> Any:
        ordered = super()._order_projections_and_filter(query, target_columns_to_types, where)
        if coerce_types and isinstance(ordered, exp.Query):
            # CREATE TABLE AS: SQLMesh would cast each column to its inferred type without a check.
            return self._exact(
                ordered, {n: exp.DataType.build(t) for n, t in target_columns_to_types.items()}, cast=True
            )
        return ordered

    def _exact(self, query: exp.Query, wanted: Mapping[str, exp.DataType], *, cast: bool = False) -> exp.Query:
        """Wrap a query so that it fails on any value that a cast to the wanted types and back would change.

        Args:
            query: Any query.
            wanted: Name and type of each column, in the query's order.
            cast: Also cast the columns that need no check.
        """
        has = self._types(query)
        if len(has) != len(wanted):
            return query  # DuckDB reports the mismatch
        columns = []
        for (column, of), (name, to) in zip(has.items(), wanted.items(), strict=True):
            value = exp.column(column, "checked", quoted=True)
            if not always_exact(of, to):
                columns.append(_refusing(value, name, of, to))
            else:
                columns.append(exp.cast(value, to) if cast and of != to else value)
        if all(isinstance(column, exp.Column) for column in columns):
            return query
        named = [c.as_(n, quoted=True) for c, n in zip(columns, wanted, strict=True)]
        return exp.select(*named).from_(query.subquery("checked"))

    def _types(self, relation: exp.Expr) -> dict[str, exp.DataType]:
        """The columns of a table or a query, and their types."""
        described = self.cursor.execute(f"DESCRIBE {relation.sql(dialect=self.dialect, identify=True)}").fetchall()
        return {name: exp.DataType.build(data_type, dialect=self.dialect) for name, data_type, *_ in described}

    def _fetch_native_df(self, *args: Any, **kwargs: Any) -> Any:
        with self._read():
            return super()._fetch_native_df(*args, **kwargs)

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

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        # A read must not open a transaction: its commit would discard the pending result.
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1


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

    @property
    def _engine_adapter(self) -> type[LakeAdapter]:
        return LakeAdapter

    @property
    def _cursor_init(self) -> Callable[[Any], None]:
        def attach(cursor: Any) -> None:
            settings = load_settings()
            check_lake(settings)
            prepare(cursor, settings)
            cursor.execute(attach_sql(settings))
            cursor.execute(f"USE {LAKE}")
            cursor.execute("SET threads = 1")

        return attach


@functools.lru_cache(maxsize=1)
def check_lake(settings: Settings) -> None:
    """Check that the lake exists before SQLMesh creates any file or state.

    Raises:
        SQLMeshError: the lake does not exist or cannot be opened; the same text as in every other command.
    """
    try:
        connect(settings, read_only=True).close()
    except LakeError as error:
        raise SQLMeshError(str(error)) from None


def lake_connection(settings: Settings) -> LakeConnection:
    """The gateway's connection. It holds no secrets: they are read when the lake is attached."""
    return LakeConnection(
        concurrent_tasks=1,
        catalogs={LAKE: DuckDBAttachOptions(type="ducklake", path=settings.catalog, data_path=settings.data_path)},
    )
