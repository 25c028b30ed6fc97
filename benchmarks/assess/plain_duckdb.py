"""Option C: one DuckDB database file, one process, a transaction per group of days."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import duckdb

from benchmarks.assess.common import TABLE_COLUMNS, Contender, Writer, csv_sql, days_sql, prepare
from ducklake_flows.lake.connect import START_CONFIG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

    from benchmarks.assess.common import Place

_opened: dict[str, Any] = {}
_lock = threading.Lock()


class FileWriter(Writer):
    """A cursor of the process's one connection: the file is locked by this process."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.con = shared(place).cursor()

    def replace(self, days: Sequence[str]) -> None:
        self.con.execute("BEGIN")
        self.con.execute(f"DELETE FROM flights WHERE flight_date IN ({days_sql(days)})")
        self.con.execute(f"INSERT INTO flights BY NAME {csv_sql(self.place, days)}")
        self.con.execute("COMMIT")

    def reset(self) -> None:
        self.con.close()
        self.con = shared(self.place).cursor()

    def close(self) -> None:
        self.con.close()


class PlainDuckDB(Contender):
    name = "C: plain DuckDB"
    how = "one database file; one process with 4 threads, since a second process cannot open the file"
    processes = 1
    threads = 4

    def create(self) -> None:
        with duckdb.connect(file(self.place)) as con:
            con.execute(f"CREATE TABLE flights ({TABLE_COLUMNS})")

    def writer(self) -> Writer:
        return FileWriter(self.place)

    def reader(self) -> tuple[DuckDBPyConnection, str]:
        return duckdb.connect(file(self.place), read_only=True), "flights"


def file(place: Place) -> str:
    """The database file."""
    place.files.mkdir(exist_ok=True)
    return str(place.files / "year.duckdb")


def shared(place: Place) -> DuckDBPyConnection:
    """This process's connection."""
    with _lock:
        if place.name not in _opened:
            _opened[place.name] = duckdb.connect(file(place), config={**START_CONFIG, "threads": 2})
            prepare(_opened[place.name])
        con: DuckDBPyConnection = _opened[place.name]
        return con
