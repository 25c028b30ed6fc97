"""DuckLake without a gate: every writer commits by itself, with DuckLake's default retries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.assess.common import TABLE_COLUMNS, Contender, Writer, connect, csv_sql, days_sql, s3_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

    from benchmarks.assess.common import Place

SQL_FILES = "SELECT coalesce(sum(file_count), 0) FROM ducklake_table_info('lake') WHERE table_name LIKE 'flights%'"


class LakeWriter(Writer):
    """One transaction for each call: delete the days, insert them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.con = attach(place)

    def replace(self, days: Sequence[str]) -> None:
        self.con.execute("BEGIN")
        self.con.execute(f"DELETE FROM lake.flights WHERE flight_date IN ({days_sql(days)})")
        self.con.execute(f"INSERT INTO lake.flights BY NAME {csv_sql(self.place, days)}")
        self.con.execute("COMMIT")

    def reset(self) -> None:
        self.con.close()
        self.con = attach(self.place)

    def close(self) -> None:
        self.con.close()


class DuckLakeDirect(Contender):
    name = "DuckLake, no gate"
    how = "4 processes, DELETE and INSERT in one transaction, default retries, PostgreSQL catalog"

    def create(self) -> None:
        with attach(self.place) as con:
            con.execute(f"CREATE TABLE lake.flights ({TABLE_COLUMNS})")
            con.execute("ALTER TABLE lake.flights SET PARTITIONED BY (flight_date)")

    def writer(self) -> Writer:
        return LakeWriter(self.place)

    def reader(self) -> tuple[DuckDBPyConnection, str]:
        return attach(self.place, read_only=True), "lake.flights"

    def commits(self) -> int:
        with attach(self.place, read_only=True) as con:
            return int(con.execute("SELECT count(*) FROM ducklake_snapshots('lake')").fetchall()[0][0])

    def live_files(self) -> int | None:
        with attach(self.place, read_only=True) as con:
            return int(con.execute(SQL_FILES).fetchall()[0][0])

    def mark(self) -> Any:
        with attach(self.place, read_only=True) as con:
            return con.execute("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')").fetchall()[0][0]

    def at(self, mark: Any) -> int:
        con, table = self.reader()
        with con:
            return int(con.execute(f"SELECT count(*) FROM {table} AT (VERSION => {mark})").fetchall()[0][0])


def attach(place: Place, *, read_only: bool = False) -> DuckDBPyConnection:
    """A connection with the place's DuckLake, which is created if there is none."""
    con = connect("ducklake", "postgres_scanner", *(["httpfs"] if place.s3 else []))
    s3_secret(con, place)
    con.execute(f"CREATE SECRET place_catalog (TYPE postgres, PASSWORD '{place.postgres[2]}')")
    options = [f"DATA_PATH '{place.data}'", "META_SECRET 'place_catalog'"] + (["READ_ONLY"] if read_only else [])
    con.execute(f"ATTACH 'ducklake:postgres:{place.libpq}' AS lake ({', '.join(options)})")
    return con
