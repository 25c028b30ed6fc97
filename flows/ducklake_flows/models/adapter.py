"""SQLMesh's DuckDB adapter for the lake: a model's interval is replaced in one gated, fenced transaction.

Stock SQLMesh says that DuckDB has no transactions, so it replaces an interval by a DELETE and an INSERT that each
commit: a reader between them sees the interval empty, and a crash loses it (SQLMesh/sqlmesh#3866 has the doubled
rows of two runs at once).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

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

_MOVES_ROWS = (exp.Insert, exp.Merge)
_READS = (exp.Query, exp.Describe, exp.Use, exp.Set, exp.Pragma)


class LakeAdapter(DuckDBEngineAdapter):
    """Transactions on; each one that writes holds the gate and touches the transforms' fence."""

    SUPPORTS_TRANSACTIONS = True
    gate: ClassVar[Callable[[], AbstractContextManager[None]] | None] = None
    """Entered around every transaction that writes; without one, none is begun. The build's worker asks the run that
    started it, SQLMesh's own command enters the gate itself."""

    _reading = 0
    _settled = False
    """Whether every model's table is safe to add to; a new one is not."""

    @contextlib.contextmanager
    def transaction(self, condition: bool | None = None) -> Iterator[None]:
        """A write transaction: gate, BEGIN, fence, the caller's statements, COMMIT. Nested ones are the outer one."""
        if self._connection_pool.is_transaction_active or self._reading or condition is False:
            yield
            return
        gate = type(self).gate
        if gate is None:
            raise SQLMeshError(
                "There is no gate: build through `lake transform` or a configuration by `sqlmesh_config`."
            )
        with gate():
            if not self._settled:
                self._settle()  # whoever was killed before it
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
        """Run statements; ones that only read need no transaction of their own. An INSERT changes no value."""
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
        """Fetch one row, outside a transaction unless one is open. An audit counts in a subquery."""
        counts = args and isinstance(args[0], exp.Expression) and args[0].find(exp.Subquery)
        with self._read(), self._all_threads() if counts else contextlib.nullcontext():
            return super().fetchone(*args, **kwargs)

    def fetchall(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch all rows, outside a transaction unless one is open."""
        with self._read():
            return super().fetchall(*args, **kwargs)

    def _exact_insert(self, insert: exp.Insert) -> exp.Insert:
        """The same INSERT, but a value that its column cannot hold is an error.

        DuckDB casts on assignment, and a cast may round: 2.5 into a BIGINT is 2. A model's table may have been made
        when its source had another type, and SQLMesh infers a table's types by other rules than DuckDB.
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
            # Of a table made by a query (CREATE TABLE AS). SQLMesh would cast each column to the type that it inferred.
            return self._exact(
                ordered, {n: exp.DataType.build(t) for n, t in target_columns_to_types.items()}, cast=True
            )
        return ordered

    def _exact(self, query: exp.Query, wanted: Mapping[str, exp.DataType], *, cast: bool = False) -> exp.Query:
        """A query whose values are the same after a cast to these types and back; any other value ends it.

        Args:
            query: Any query.
            wanted: Name and type of each column, in the query's order.
            cast: Also cast those that need no check.
        """
        has = self._types(query)
        if len(has) != len(wanted):
            return query  # DuckDB says so
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
        """Use all cores within the block. Elsewhere one: a commit is metadata, and more threads only get in its way."""
        self.cursor.execute("RESET threads")
        try:
            yield
        finally:
            # By another cursor: within a transaction that failed, it would fail, and hide why.
            with self.cursor.cursor() as other:
                other.execute("SET threads = 1")

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        # Were a read to open and close a transaction, the commit would take its pending result along.
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1


def always_exact(of: exp.DataType, to: exp.DataType) -> bool:
    """Whether DuckDB's cast between two types keeps every value, or fails."""
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
    """A value cast to a type; one that would change on the way ends the query, by name."""
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
    """SQLMesh's DuckLake gateway, attached as every other reader and writer of the lake does it."""

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
    """Make sure that there is a lake, before anything is made for it.

    Raises:
        SQLMeshError: what every other command says: no lake yet, or one that cannot be opened.
    """
    try:
        connect(settings, read_only=True).close()
    except LakeError as error:
        raise SQLMeshError(str(error)) from None


def lake_connection(settings: Settings) -> LakeConnection:
    """The gateway's connection. It holds no secret: those are read where the lake is attached."""
    return LakeConnection(
        concurrent_tasks=1,
        catalogs={LAKE: DuckDBAttachOptions(type="ducklake", path=settings.catalog, data_path=settings.data_path)},
    )
