"""Apache Iceberg by `pyiceberg` with its SQL catalog: each commit replaces the partitions that a filter names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.assess.common import Contender, Writer, arrow, connect, s3_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

    from benchmarks.assess.common import Place

NAME = "raw.flights"


class IcebergWriter(Writer):
    """One commit for each call: `overwrite` with a filter on the partition column."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.con = connect()
        self.table = catalog(place).load_table(NAME)

    def replace(self, days: Sequence[str]) -> None:
        from pyiceberg.expressions import In

        self.table.refresh()
        self.table.overwrite(arrow(self.con, self.place, days), overwrite_filter=In("flight_date", days))

    def close(self) -> None:
        self.con.close()


class Iceberg(Contender):
    name = "Iceberg"
    how = "pyiceberg, SQL catalog on PostgreSQL: 4 processes, table.overwrite(filter), partitioned by day"

    def create(self) -> None:
        from pyiceberg.transforms import IdentityTransform

        with connect() as con:
            schema = arrow(con, self.place, ["2013-01-01"]).schema
        there = catalog(self.place)
        there.create_namespace("raw")
        table = there.create_table(NAME, schema)
        with table.update_spec() as spec:
            spec.add_field("flight_date", IdentityTransform(), "flight_date")

    def writer(self) -> Writer:
        return IcebergWriter(self.place)

    def reader(self) -> tuple[DuckDBPyConnection, str]:
        con = connect("avro", "iceberg", *(["httpfs"] if self.place.s3 else []))
        s3_secret(con, self.place)
        # DuckDB attaches REST catalogs only: with a SQL catalog the reader asks pyiceberg where the metadata is.
        return con, f"iceberg_scan('{self._table().metadata_location.removeprefix('file://')}')"

    def commits(self) -> int:
        return len(self._table().metadata.metadata_log)

    def live_files(self) -> int | None:
        return int(self._table().inspect.files().num_rows)

    def mark(self) -> Any:
        return self._table().metadata.current_snapshot_id

    def at(self, mark: Any) -> int:
        con, _ = self.reader()
        with con:
            place = self._table().metadata_location.removeprefix("file://")
            sql = f"SELECT count(*) FROM iceberg_scan('{place}', snapshot_from_id => {mark}::UBIGINT)"
            return int(con.execute(sql).fetchall()[0][0])

    def _table(self) -> Any:
        return catalog(self.place).load_table(NAME)


def catalog(place: Place) -> Any:
    """The SQL catalog of a place."""
    from pyiceberg.catalog.sql import SqlCatalog

    host, port, password = place.postgres
    keys: dict[str, str] = {}
    if place.s3:
        endpoint, key_id, secret, _ = place.s3
        keys = {
            "s3.endpoint": f"http://{endpoint}",
            "s3.access-key-id": key_id,
            "s3.secret-access-key": secret,
            "s3.region": "us-east-1",
            # PyArrow sends parts without their length, which the S3 server of this machine (rclone) refuses.
            "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
        }
    else:
        place.files.mkdir(exist_ok=True)
    return SqlCatalog(
        "assess",
        uri=f"postgresql+psycopg2://{place.name}:{password}@{host}:{port}/{place.name}",
        warehouse=place.data.rstrip("/") if place.s3 else f"file://{place.data.rstrip('/')}",
        **keys,
    )
