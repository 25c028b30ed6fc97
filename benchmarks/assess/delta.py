"""Delta Lake by `deltalake` (delta-rs): each commit replaces the partitions that a predicate names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.assess.common import Contender, Writer, arrow, connect, days_sql, s3_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

    from benchmarks.assess.common import Place


class DeltaWriter(Writer):
    """One commit for each call: `mode="overwrite"` with a predicate on the partition column."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.con = connect()

    def replace(self, days: Sequence[str]) -> None:
        from deltalake import write_deltalake

        write_deltalake(
            place_uri(self.place),
            arrow(self.con, self.place, days),
            mode="overwrite",
            predicate=f"flight_date IN ({days_sql(days)})",
            storage_options=options(self.place),
        )

    def close(self) -> None:
        self.con.close()


class Delta(Contender):
    name = "Delta"
    how = "deltalake: 4 processes, write_deltalake(mode='overwrite', predicate=...), partitioned by day"

    def create(self) -> None:
        from deltalake import DeltaTable

        if not self.place.s3:
            self.place.files.mkdir()
        with connect() as con:
            schema = arrow(con, self.place, ["2013-01-01"]).schema
        DeltaTable.create(
            place_uri(self.place), schema, partition_by=["flight_date"], storage_options=options(self.place)
        )

    def writer(self) -> Writer:
        return DeltaWriter(self.place)

    def reader(self) -> tuple[DuckDBPyConnection, str]:
        con = connect("delta", *(["httpfs"] if self.place.s3 else []))
        s3_secret(con, self.place)
        return con, f"delta_scan('{place_uri(self.place)}')"

    def commits(self) -> int:
        return int(self._table().version())

    def live_files(self) -> int | None:
        return len(self._table().file_uris())

    def mark(self) -> Any:
        return self.commits()

    def at(self, mark: Any) -> int:
        con, _ = self.reader()
        with con:
            sql = f"SELECT count(*) FROM delta_scan('{place_uri(self.place)}', version => {mark})"
            return int(con.execute(sql).fetchall()[0][0])

    def _table(self) -> DeltaTable:
        from deltalake import DeltaTable

        return DeltaTable(place_uri(self.place), storage_options=options(self.place))


def place_uri(place: Place) -> str:
    """The table's address."""
    return f"{place.data}flights"


def options(place: Place) -> dict[str, str] | None:
    """The object store's keys. Commits use conditional puts, delta-rs's default."""
    if place.s3 is None:
        return None
    endpoint, key_id, secret, _ = place.s3
    return {
        "AWS_ENDPOINT_URL": f"http://{endpoint}",
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
