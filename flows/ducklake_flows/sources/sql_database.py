"""The shared ``sql_database`` source: one window of a table or query per partition, through SQLAlchemy."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ducklake_flows.datasets.partitions import Grain, Partition
from ducklake_flows.errors import BadInput
from ducklake_flows.sources.placeholders import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from sqlalchemy.engine import Engine

    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.settings import Secret

NAMES = ("partition", "start", "end", "last")

_NAMED = re.compile(rf"(?<![:\\]):({'|'.join(NAMES)})\b")
_IDENTIFIER = r"[^\s.\"'`\[\];]+"


@dataclass(frozen=True)
class SqlDatabase:
    """A table, or a query, of a database that SQLAlchemy knows.

    Values are read as the database's driver gives them and stored exactly, or refused with their column: decimals with
    all digits, timestamps with their zone, JSON with its numbers. An interval has no exact form and is refused.

    Args:
        url: SQLAlchemy's URL without the password: ``postgresql+psycopg://reader@db.example.com/shop``,
            ``sqlite:////data/shop.sqlite``. The project needs the driver.
        table: The table, with its schema if it is not the default one. Needs `window`, unless the grain is ``full``.
        window: The column that says to which partition a row belongs: a date or a timestamp from the partition's start
            to its end (exclusive), in UTC. Rows without a value belong to none.
        columns: The columns to read; all if empty.
        query: SQL instead of a table. ``:start``, ``:end``, ``:last`` and ``:partition`` are bound, never pasted.
        password: The password, by the name of a secret.
        format: How times are written if they are not a type of the database: a `strftime` format such as
            ``%Y-%m-%d %H:%M:%S``, ``unix`` or ``unix_ms``. SQLite needs it for hours; its default is ``%Y-%m-%d``.
        batch: Rows that are read and converted at once.
        version: A column of the table that grows with each change of a row, such as ``updated_at``. A partition's
            version is then its number of rows and the greatest value: if they change, the partition is stale, and
            `recheck` of the dataset loads it again. Without it, a change at the source is not seen.
    """

    url: str
    table: str = ""
    window: str = ""
    columns: tuple[str, ...] = ()
    query: str = ""
    password: Secret | None = None
    format: str = ""
    batch: int = 10_000
    version: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\+[a-z0-9_]+)?", parts.scheme):
            raise BadInput(
                f"{parts.scheme or self.url!r} is not a database URL.", "postgresql+psycopg://user@host/name"
            )
        if parts.password is not None:
            raise BadInput(f"The URL of {parts.hostname} contains a password.", 'use password=Secret("NAME")')
        if bool(self.table) == bool(self.query):
            raise BadInput("A database source reads a table or a query.", 'table="shop.orders", or query="SELECT ..."')
        if self.query and (self.window or self.columns or self.version):
            raise BadInput("window, columns and version belong to a table.", "put the first two into the query")
        if self.table and not re.fullmatch(rf"({_IDENTIFIER}\.)?{_IDENTIFIER}", self.table):
            raise BadInput(f"{self.table!r} is not the name of a table.", 'table="shop.orders"')
        if isinstance(self.columns, str):
            raise BadInput(f"columns is {self.columns!r}.", 'columns=("id", "amount")')
        if self.batch < 1:
            raise BadInput(f"batch must be at least 1, not {self.batch}.")

    def check(self, key: str, grain: Grain) -> None:
        """Check that the query distinguishes partitions of this grain.

        Raises:
            BadInput: it does not.
        """
        used = set(_NAMED.findall(self.query))
        if grain is Grain.full:
            if self.window or used:
                raise BadInput(
                    f"{key}: a dataset of grain full has only one partition.",
                    "leave out window, :start, :end, :last and :partition",
                )
        elif self.table and not self.window:
            raise BadInput(f"{key}: which {grain} does a row of {self.table} belong to?", 'window="ordered_at"')
        elif self.query and not used:
            raise BadInput(
                f"{key}: the query does not say which {grain} it asks for.",
                "WHERE ordered_at >= :start AND ordered_at < :end",
            )
        if grain is Grain.hour and self.dialect == "sqlite" and not self.format:
            raise BadInput(
                f"{key}: SQLite has no type for times, so it must be said how they are written.",
                "format='%Y-%m-%d %H:%M:%S', or format='unix'",
            )

    @property
    def dialect(self) -> str:
        """The database's kind, as in the URL: ``postgresql``, ``sqlite``."""
        return urlsplit(self.url).scheme.partition("+")[0]

    def versions(self, partitions: Sequence[Partition]) -> Mapping[str, str]:
        """The number of rows and the greatest value of `version`; "" without it.

        Raises:
            SourceError: the database refuses the query.
            SourceUnavailable: the database does not answer.
        """
        if not self.version:
            return {partition.key: "" for partition in partitions}
        from ducklake_flows.sources.sql_rows import versions

        return versions(self, partitions)

    def origin(self, partition: Partition) -> str:
        """The database, the table or query, and the window."""
        parts = urlsplit(self.url)
        where = f"{self.dialect}://{parts.hostname or ''}{parts.path}"
        what = self.table or " ".join(self.query.split())[:200]
        bounds = f", {self.window} from {partition.start} to {partition.end}" if self.window else f" {partition.key}"
        return f"{where}: {what}{bounds}"

    def read(self, partition: Partition, contract: Contract) -> Iterator[pa.Table]:
        """Stream one partition's rows in a transaction of its own; see `chunk` for one that several share.

        Raises:
            SourceError: the database refuses the query.
            SourceUnavailable: the database does not answer.
            Unfit: a value cannot be stored exactly.
        """
        with self.chunk() as read:
            yield from read(partition, contract)

    @contextlib.contextmanager
    def chunk(self) -> Iterator[Callable[[Partition, Contract], Iterator[pa.Table]]]:
        """Read partitions over one connection, and in one snapshot if the database offers it."""
        from ducklake_flows.sources.sql_rows import Opened

        with contextlib.closing(Opened(self)) as opened:
            yield opened.read

    def values(self, partition: Partition) -> dict[str, Any]:
        """What a query may bind: ``partition``, and the bounds as the database compares them."""
        timed = () if partition.grain is Grain.full else NAMES[1:]
        return {"partition": partition.key} | {name: self._written(moment(partition, name)) for name in timed}

    def _written(self, value: Any) -> Any:
        form = self.format or ("%Y-%m-%d" if self.dialect == "sqlite" else "")
        if form in ("unix", "unix_ms"):
            return int(value.timestamp()) * (1000 if form == "unix_ms" else 1)
        if form:
            return value.strftime(form)
        # PostgreSQL compares a time with a zone with dates and timestamps of both kinds, in the session's zone: UTC.
        return value if self.dialect == "postgresql" else value.replace(tzinfo=None)

    @cached_property
    def engine(self) -> Engine:
        """Connections of this process.

        Raises:
            BadInput: the driver is not installed, or the password is not set.
        """
        from ducklake_flows.sources.sql_rows import engine

        return engine(self.url, self.password.reveal() if self.password else None)
