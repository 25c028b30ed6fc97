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
    from ducklake_flows.datasets.scheme import Scheme
    from ducklake_flows.settings import Secret

NAMES = ("start", "end", "last", "partition", "segment", "period")

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
            to its end (exclusive). A date, or a timestamp without zone, counts as one of the dataset's zone; of an hour
            that comes twice there, as one of the second. Rows without a value belong to none.
        segment: The column that says to which segment a row belongs, of a dataset with segments: a text.
        columns: The columns to read; all if empty.
        query: SQL instead of a table. ``:start``, ``:end``, ``:last``, ``:partition``, ``:segment`` and ``:period`` are
            bound, never pasted.
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
    segment: str = ""
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
        if parts.scheme.startswith("postgres") and parts.scheme.partition("+")[2] in ("", "psycopg2"):
            raise BadInput(
                "psycopg2 reads infinity, of a date or a timestamp, as another value.",
                "use psycopg: postgresql+psycopg://",
            )
        if bool(self.table) == bool(self.query):
            raise BadInput("A database source reads a table or a query.", 'table="shop.orders", or query="SELECT ..."')
        if self.query and (self.window or self.segment or self.columns or self.version):
            raise BadInput("window, segment, columns and version belong to a table.", "put the others into the query")
        if self.table and not re.fullmatch(rf"({_IDENTIFIER}\.)?{_IDENTIFIER}", self.table):
            raise BadInput(f"{self.table!r} is not the name of a table.", 'table="shop.orders"')
        if isinstance(self.columns, str):
            raise BadInput(f"columns is {self.columns!r}.", 'columns=("id", "amount")')
        if self.batch < 1:
            raise BadInput(f"batch must be at least 1, not {self.batch}.")

    def check(self, key: str, scheme: Scheme) -> None:
        """Check that the query distinguishes the partitions of a dataset.

        Raises:
            BadInput: it does not.
        """
        used, grain = set(_NAMED.findall(self.query)), scheme.grain
        if not scheme.segmented and (self.segment or "segment" in used):
            raise BadInput(f"{key}: the dataset has no segments.", 'segment_column="region"')
        if scheme.segmented and self.table and not self.segment:
            raise BadInput(f"{key}: which segment does a row of {self.table} belong to?", 'segment="region"')
        if scheme.segmented and self.query and not used & {"segment", "partition"}:
            raise BadInput(f"{key}: the query does not say which segment it asks for.", "WHERE region = :segment")
        if grain is Grain.full:
            if self.window or used - ({"segment", "partition"} if scheme.segmented else set()):
                raise BadInput(
                    f"{key}: a dataset of grain full has no times.",
                    "leave out window, :start, :end, :last, :period and :partition",
                )
        elif self.table and not self.window:
            raise BadInput(f"{key}: which {grain} does a row of {self.table} belong to?", 'window="ordered_at"')
        elif self.query and not used - {"segment"}:
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

    def segments(self, scheme: Scheme) -> Sequence[str]:  # noqa: ARG002 - the column says it all
        """The values of the segment column.

        Raises:
            BadInput: the source is a query.
            SourceError: the database refuses the query, or a value is not a text.
            SourceUnavailable: the database does not answer.
        """
        if not self.segment:
            raise BadInput("A query cannot list its segments.", 'declare them in the dataset: segments=("eu", "us")')
        from ducklake_flows.sources.sql_rows import segments

        return segments(self)

    def origin(self, partition: Partition) -> str:
        """The database, the table or query, and the window."""
        parts = urlsplit(self.url)
        where = f"{self.dialect}://{parts.hostname or ''}{parts.path}"
        what = self.table or " ".join(self.query.split())[:200]
        bounds = f", {self.window} from {partition.start} to {partition.end}" if self.window else f" {partition.key}"
        segment = f", {self.segment} {partition.segment}" if self.segment else ""
        return f"{where}: {what}{bounds}{segment}"

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
        """What a query may bind: the partition's names, and its bounds as the database compares them."""
        names = {"partition": partition.key, "segment": partition.segment, "period": partition.period}
        timed = () if partition.grain is Grain.full else NAMES[:3]
        return names | {name: self._written(moment(partition, name)) for name in timed}

    def _written(self, value: Any) -> Any:
        form = self.format or ("%Y-%m-%d" if self.dialect == "sqlite" else "")
        if form in ("unix", "unix_ms"):
            return int(value.timestamp()) * (1000 if form == "unix_ms" else 1)
        if form:
            return value.strftime(form)
        # PostgreSQL compares a time with a zone with dates and timestamps of both kinds, in the session's zone.
        return value if self.dialect == "postgresql" else value.replace(tzinfo=None)

    @cached_property
    def engine(self) -> Engine:
        """Connections of this process.

        Raises:
            BadInput: the driver is not installed, or the password is not set.
        """
        from ducklake_flows.sources.sql_rows import engine

        return engine(self.url, self.password.reveal() if self.password else None)
