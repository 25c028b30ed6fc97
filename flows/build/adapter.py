"""SQLMesh's DuckDB adapter for the lake: a model's interval is replaced in one gated, fenced transaction.

Stock SQLMesh says that DuckDB has no transactions, so it replaces an interval by a DELETE and an INSERT that each
commit: a reader between them sees the interval empty, and a crash loses it (SQLMesh/sqlmesh#3866 has the doubled
rows of two runs at once).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from sqlglot import exp
from sqlmesh.core.config.connection import DuckDBAttachOptions, DuckDBConnectionConfig
from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter

from flows.lake.connect import attach_sql, commit_message, prepare
from flows.lake.publish import raise_fence
from flows.points import reached
from flows.settings import LAKE, Settings, load_settings

_MOVES_ROWS = (exp.Insert, exp.Merge)
_READS = (exp.Query, exp.Describe, exp.Use, exp.Set, exp.Pragma)


class LakeAdapter(DuckDBEngineAdapter):
    """Transactions on; each one that writes holds the gate and touches the transforms' fence."""

    SUPPORTS_TRANSACTIONS = True
    gate: ClassVar[Callable[[], AbstractContextManager[None]]]
    """Entered around every transaction; set once by the process that builds."""

    _reading = 0

    @contextlib.contextmanager
    def transaction(self, condition: bool | None = None) -> Iterator[None]:
        """A write transaction: gate, BEGIN, fence, the caller's statements, COMMIT. Nested ones are the outer one."""
        if self._connection_pool.is_transaction_active or self._reading or condition is False:
            yield
            return
        with type(self).gate():
            with super().transaction():
                raise_fence(self.cursor, "transform_fence")
                commit_message(self.cursor, "transform")
                yield
                reached("mid interval")
            reached("interval committed")

    def execute(self, expressions: Any, *args: Any, **kwargs: Any) -> None:
        """Run statements; ones that only read need no transaction of their own."""
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
            self.cursor.execute("SET threads = 1")

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        # Were a read to open and close a transaction, the commit would take its pending result along.
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1


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
            prepare(cursor, settings)
            cursor.execute(attach_sql(settings))
            cursor.execute(f"USE {LAKE}")
            cursor.execute("SET threads = 1")

        return attach


def lake_connection(settings: Settings) -> LakeConnection:
    """The gateway's connection. It holds no secret: those are read where the lake is attached."""
    return LakeConnection(
        concurrent_tasks=1,
        catalogs={LAKE: DuckDBAttachOptions(type="ducklake", path=settings.catalog, data_path=settings.data_path)},
    )
