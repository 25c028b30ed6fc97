"""Common parts of the assessment: the place of a contender's tables, its interface, and the landed days."""

from __future__ import annotations

import abc
import contextlib
import fcntl
import functools
import re
import statistics
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import duckdb

from deployments.services import ObjectStore, Postgres, new_secret
from ducklake_flows.datasets.types import declared_type
from ducklake_flows.lake.connect import ENGINE_CONFIG, START_CONFIG
from ducklake_flows.project import get_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

DATASET = get_dataset("flights")
COLUMNS = {name: declared_type(data_type) for name, data_type in DATASET.contract.columns.items()}
TABLE_COLUMNS = ", ".join(f'"{name}" {kind}' for name, kind in {**COLUMNS, "flight_date": "DATE"}.items())
BUSY = 60.0
"""Seconds after which a writer that does not end is stopped and counted as stuck."""


@dataclass(frozen=True)
class Place:
    """Where a contender may write.

    Args:
        name: A name that no other contender's place has; also the database and its user.
        folder: A new folder.
        landing: The folder with one CSV file a day.
        postgres: Host, port and password of a PostgreSQL server that has a database of this name.
        s3: Endpoint, key id, secret and the folder of the buckets; None: the data goes to ``folder``.
    """

    name: str
    folder: Path
    landing: Path
    postgres: tuple[str, int, str]
    s3: tuple[str, str, str, Path] | None = None

    @property
    def data(self) -> str:
        """The prefix of the data, with a slash at its end."""
        return f"s3://lake/{self.name}/" if self.s3 else f"{self.folder}/data/"

    @property
    def files(self) -> Path:
        """The local folder with the same files: the object store keeps a file per object."""
        return self.s3[3] / "lake" / self.name if self.s3 else self.folder / "data"

    @property
    def libpq(self) -> str:
        """The connection string of the database, without its password."""
        host, port, _ = self.postgres
        return f"host={host} port={port} dbname={self.name} user={self.name}"


class Writer(abc.ABC):
    """An open connection of one writer, which replaces whole days."""

    @abc.abstractmethod
    def replace(self, days: Sequence[str]) -> None:
        """Replace these days by the rows of their files, atomically. Raises what the contender raises."""

    def reset(self) -> None:  # noqa: B027 - optional
        """Get ready to try again after an error."""

    def close(self) -> None:  # noqa: B027 - optional
        """Close it."""


class Contender(abc.ABC):
    """One way to keep the year's days. An instance is sent to every process, so it holds values only."""

    name: ClassVar[str]
    how: ClassVar[str]
    processes: ClassVar[int] = 4
    """How many processes write at once; where 1 has to do, ``threads`` may be more."""
    threads: ClassVar[int] = 1
    day_by_day: ClassVar[bool] = False
    """Whether it can only commit one day at a time."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def start(self) -> Any:
        """Start what must run beside the writers; a context manager."""
        return contextlib.nullcontext()

    def crash(self) -> None:  # noqa: B027 - optional
        """Kill what `start` started on the side of the writers. Servers of the storage stay."""

    @abc.abstractmethod
    def create(self) -> None:
        """Create the empty table."""

    def finish(self) -> None:  # noqa: B027 - optional
        """Do what has to be done once after all days were written."""

    @abc.abstractmethod
    def writer(self) -> Writer:
        """Open a writer in this process."""

    @abc.abstractmethod
    def reader(self) -> tuple[DuckDBPyConnection, str]:
        """Open a DuckDB connection, and the name or function that stands for the table in its FROM."""

    def commits(self) -> int:
        """How many commits or versions the table has; 0 if it keeps no history."""
        return 0

    def live_files(self) -> int | None:
        """How many data files the current version has; None if it keeps its rows in one file."""
        return None

    def mark(self) -> Any:
        """The current version, for `at`; None if it keeps no history of the whole table."""
        return None

    def at(self, mark: Any) -> int:
        """Rows of the year at a version.

        Raises:
            LookupError: it keeps no history of the whole table.
        """
        raise LookupError(f"{self.name} keeps no history of the whole table")


def connect(*extensions: str, threads: int = 1) -> DuckDBPyConnection:
    """A DuckDB connection with extensions from their wheels."""
    con = duckdb.connect(config={**START_CONFIG, "threads": threads})
    prepare(con, *extensions)
    return con


def prepare(con: DuckDBPyConnection, *extensions: str) -> None:
    """Load extensions from their wheels; nothing is downloaded."""
    con.execute("SET enable_progress_bar = false")
    for name, value in ENGINE_CONFIG.items():
        con.execute(f"SET GLOBAL {name} = '{value}'")
    for name in extensions:
        try:
            con.execute(f"LOAD {name}")
        except duckdb.Error:
            import duckdb_extensions

            duckdb_extensions.import_extension(name)
            con.execute(f"LOAD {name}")


def s3_secret(con: DuckDBPyConnection, place: Place) -> None:
    """Give a connection the keys of the place's object store, if it has one."""
    if place.s3 is None:
        return
    endpoint, key_id, secret, _ = place.s3
    con.execute(
        f"CREATE OR REPLACE SECRET place_s3 (TYPE s3, KEY_ID '{key_id}', SECRET '{secret}', ENDPOINT '{endpoint}', "
        "URL_STYLE path, USE_SSL false, REGION 'us-east-1')"
    )


def csv_sql(place: Place, days: Sequence[str]) -> str:
    """The rows of some days' files, with the day as ``flight_date``."""
    files = [str(place.landing / f"{day}.csv") for day in days]
    return (
        "SELECT * EXCLUDE filename, parse_filename(filename, true)::DATE AS flight_date "
        f"FROM read_csv({files}, columns = {COLUMNS}, header = true, auto_detect = false, delim = ',', "
        "nullstr = 'NA', filename = true)"
    )


def arrow(con: DuckDBPyConnection, place: Place, days: Sequence[str]) -> pa.Table:
    """The same as an Arrow table."""
    return con.execute(csv_sql(place, days)).to_arrow_table()


def days_sql(days: Sequence[str]) -> str:
    """The days as a SQL list."""
    return ", ".join(f"'{day}'" for day in days)


@functools.cache
def days_of_year(count: int) -> list[str]:
    """The first days of 2013."""
    return [(date(2013, 1, 1) + timedelta(days=n)).isoformat() for n in range(count)]


def landed_rows(place: Place, days: Sequence[str]) -> dict[str, int]:
    """Rows of each day's file, counted in its bytes: no value has a line break."""
    return {day: (place.landing / f"{day}.csv").read_bytes().count(b"\n") - 1 for day in days}


@contextlib.contextmanager
def gate(path: Path) -> Iterator[None]:
    """One holder at a time among the processes of this machine. It stands in for Prefect's limit."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Services]:
    """PostgreSQL and an S3 server, each from its wheel."""
    password, key_id, secret = new_secret(), new_secret(), new_secret()
    with (
        Postgres(folder / "postgres", folder) as postgres,
        ObjectStore(folder / "s3", folder, key_id, secret) as store,
    ):
        (folder / "s3" / "lake").mkdir()
        yield Services(folder, postgres, password, (store.endpoint, key_id, secret, folder / "s3"))


@dataclass
class Services:
    """Hands out places; see `services`."""

    folder: Path
    postgres: Postgres
    password: str
    s3: tuple[str, str, str, Path]
    landing: Path = Path()
    made: int = 0

    def place(self, storage: str = "folder") -> Place:
        """A new place, in a folder or in S3."""
        self.made += 1
        name = f"place{self.made}"
        self.postgres.database(name, self.password)
        (self.folder / name).mkdir()
        return Place(
            name,
            self.folder / name,
            self.landing,
            ("127.0.0.1", self.postgres.port, self.password),
            self.s3 if storage == "S3" else None,
        )


def timed(work: Any, times: int = 3, patience: float = 2.0) -> float:
    """The median of some runs, in seconds; of one run if it takes longer than ``patience``."""
    took: list[float] = []
    while not took or (len(took) < times and took[0] < patience):
        began = time.monotonic()
        work()
        took.append(time.monotonic() - began)
    return statistics.median(took)


def one_line(error: Exception | str) -> str:
    """An error as one short line without this machine's paths and processes."""
    text = str(error) if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return re.sub(r"(file://)?/\S+|\(PID \d+\)", "...", " ".join(text.split()))[:300]
