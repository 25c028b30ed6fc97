"""DuckDB behind Quack: a server process owns the database file, and writers in other processes are its clients."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.assess.common import TABLE_COLUMNS, Contender, Writer, connect, csv_sql, days_sql
from benchmarks.assess.plain_duckdb import file
from benchmarks.measure import ROOT
from deployments.services import Service, free_port, listening, new_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duckdb import DuckDBPyConnection

    from benchmarks.assess.common import Place

TOKEN = "ASSESS_QUACK_TOKEN"  # noqa: S105 - the name of a variable


class QuackWriter(Writer):
    """One transaction on the server for each call."""

    def __init__(self, contender: Quack) -> None:
        self.contender = contender
        self.con = contender.client()

    def replace(self, days: Sequence[str]) -> None:
        # The server runs all of it: a client cannot DELETE from an attached table (duckdb/duckdb-quack#176), and its
        # ROLLBACK does not undo its INSERT (duckdb/duckdb-quack#173; see `rolls_back`).
        self.con.execute(
            "FROM quack_query_by_name('quack', $$ BEGIN; "
            f"DELETE FROM flights WHERE flight_date IN ({days_sql(days)}); "
            f"INSERT INTO flights BY NAME {csv_sql(self.contender.place, days)}; COMMIT $$)"
        ).fetchall()

    def reset(self) -> None:
        self.con.close()
        self.con = self.contender.client()

    def close(self) -> None:
        self.con.close()


class Quack(Contender):
    name = "C: DuckDB behind Quack"
    how = "one server process with the database file, 4 client processes send it one transaction each"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.port, self.token = free_port(), new_secret()

    @contextlib.contextmanager
    def start(self) -> Iterator[None]:
        with server(file(self.place), self.port, self.token, self.place):
            yield

    def create(self) -> None:
        with self.client() as con:
            con.execute(f"CREATE TABLE quack.flights ({TABLE_COLUMNS})")

    def writer(self) -> Writer:
        return QuackWriter(self)

    def reader(self) -> tuple[DuckDBPyConnection, str]:
        return self.client(), "quack.flights"

    def rolls_back(self) -> bool:
        """Whether a client's ROLLBACK undoes its INSERT."""
        with self.client() as con:
            con.execute("CREATE TABLE quack.undone (a INTEGER)")
            con.execute("BEGIN")
            con.execute("INSERT INTO quack.undone VALUES (1)")
            con.execute("ROLLBACK")
            return con.execute("SELECT count(*) FROM quack.undone").fetchall() == [(0,)]

    def client(self) -> DuckDBPyConnection:
        """A connection with the server's database as ``quack``."""
        con = connect("quack")
        con.execute(f"CREATE SECRET (TYPE quack, TOKEN '{self.token}', SCOPE 'quack:127.0.0.1:{self.port}')")
        con.execute(f"ATTACH 'quack:127.0.0.1:{self.port}' AS quack (TYPE quack)")
        return con


def server(path: str, port: int, token: str, place: Place) -> Any:
    """A server of a DuckDB file on loopback; a context manager."""
    return Service(
        "quack",
        [sys.executable, "-m", "benchmarks.assess.quack", path, str(port)],
        place.folder,
        {TOKEN: token, "PYTHONPATH": str(ROOT), "LAKE_PROJECT": str(ROOT)},
        ready=lambda: listening(port),
    )


def _serve(path: str, port: str) -> None:
    import signal

    import duckdb

    from benchmarks.assess.common import prepare
    from ducklake_flows.lake.connect import START_CONFIG

    con = duckdb.connect(path, config=START_CONFIG)
    prepare(con, "quack")
    con.execute(f"CALL quack_serve('quack:127.0.0.1:{port}', token => '{os.environ[TOKEN]}')").fetchall()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.pause()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
