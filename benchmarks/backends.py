"""Ways to read a million rows of PostgreSQL as Arrow tables, and whether they change a value without an error.

ADBC and connectorx are no dependencies of this project; without them, their rows are left out:
.venv/bin/uv pip install --python .venv/bin/python adbc-driver-postgresql connectorx
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Bench, Target, hand_over
from benchmarks.sources import DAY, PASSWORD, fill
from deployments.services import Postgres, new_secret
from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import LakeError
from ducklake_flows.settings import Secret
from ducklake_flows.sources.sql_database import SqlDatabase
from ducklake_flows.sources.values import Unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pyarrow as pa

ROWS, BATCH, ROUNDS = 1_000_000, 10_000, 4
BOUNDS = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC))

PROBES: dict[str, Any] = {
    "numeric '0.12345678901'": Decimal("0.12345678901"),
    "ARRAY[[1, 2], [3, 4]]": [[1, 2], [3, 4]],
    "date 'infinity'": None,
    "timestamp 'infinity'": None,
    "jsonb '0.12345678901234567890'": "0.12345678901234567890",
}
"""Values that are easily lost, and how Python writes them exactly; None: nothing does."""


def ours(url: str, query: str) -> Iterator[pa.Table]:
    """This project's source."""
    source = SqlDatabase(url, query=query.replace("$1", ":start").replace("$2", ":end"), password=Secret(PASSWORD))
    return source.read(parse_partition(DAY, Grain.day), Contract())


def psycopg2(url: str, query: str) -> Iterator[pa.Table]:
    """This project's source with a driver whose rows SQLAlchemy makes."""
    return ours(url.replace("+psycopg", "+psycopg2"), query)


def dlt(url: str, query: str) -> Iterator[pa.Table]:
    """dlt's source, which reads the whole table."""
    from dlt.sources.sql_database import sql_table

    assert "FROM orders" in query
    yield from sql_table(_full(url, "+psycopg"), table="orders", backend="pyarrow", chunk_size=BATCH)


def adbc(url: str, query: str) -> Iterator[pa.Table]:
    """ADBC: the only way to bind values and to read in batches is a cursor that SQL declares."""
    dbapi = importlib.import_module("adbc_driver_postgresql.dbapi")
    with dbapi.connect(_full(url)) as con, con.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.postgresql.use_copy": "false"})
        cursor.execute(f"DECLARE c CURSOR FOR {query}", BOUNDS if "$1" in query else None)
        while True:
            cursor.execute(f"FETCH {BATCH} FROM c")
            table = cursor.fetch_arrow_table()
            if not table.num_rows:
                return
            yield table


def connectorx(url: str, query: str) -> Iterator[pa.Table]:
    """connectorx, which binds no values and holds all rows."""
    for place, value in enumerate(BOUNDS, 1):
        query = query.replace(f"${place}", f"timestamptz '{value.isoformat()}'")
    yield importlib.import_module("connectorx").read_sql(_full(url), query, return_type="arrow")


def _full(url: str, driver: str = "") -> str:
    return url.replace("+psycopg", driver).replace("@", f":{os.environ[PASSWORD]}@", 1)


CONTENDERS: dict[str, tuple[str, Callable[[str, str], Iterable[pa.Table]]]] = {
    "this project, psycopg": ("psycopg", ours),
    "this project, psycopg again": ("psycopg", ours),
    "this project, psycopg2": ("psycopg2", psycopg2),
    "dlt, pyarrow backend": ("dlt", dlt),
    "ADBC": ("adbc_driver_postgresql", adbc),
    "connectorx": ("connectorx", connectorx),
}


def changed(url: str, read: Callable[[str, str], Iterable[pa.Table]]) -> list[str]:
    """The probes that a backend gives as another value."""
    found = []
    for sql, exact in PROBES.items():
        bounded = "" if read in (adbc, connectorx) else " WHERE :start < :end"
        try:
            (value,) = (v for table in read(url, f"SELECT {sql} AS v{bounded}") for v in table["v"].to_pylist())
        except (LakeError, Unfit, OverflowError) as error:
            # Python cannot show ADBC's infinity, which is the greatest number of the type.
            if isinstance(error, OverflowError):
                found.append(sql)
            continue
        except Exception as error:  # noqa: BLE001 - a refusal of whatever library
            print(f"{sql}: {type(error).__name__}")
            continue
        if isinstance(exact, list) and isinstance(value, str):
            value = json.loads(value)
        same = Decimal(value) == exact if isinstance(exact, Decimal) else value == exact
        if not same:
            found.append(sql)
    return found


def main() -> Bench:
    """Read the rows by each backend in turn, several times."""
    password = new_secret()
    os.environ[PASSWORD] = password
    folder = Path(mkdtemp(prefix="lake-bench-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user and must be able to enter
    rows: dict[str, dict[str, Any]] = {}
    with Postgres(folder / "postgres", folder) as postgres:
        postgres.database("orders", password)
        url = fill(postgres.port, "orders", password, ROWS)
        query = "SELECT * FROM orders WHERE at >= $1 AND at < $2"
        there = {name: read for name, (module, read) in CONTENDERS.items() if importlib.util.find_spec(module)}
        for _ in range(ROUNDS):
            for name, read in there.items():
                wall, cpu = time.monotonic(), time.process_time()
                count = sum(table.num_rows for table in read(url, query))
                wall, cpu = time.monotonic() - wall, time.process_time() - cpu
                assert count == ROWS, (name, count)
                row = rows.setdefault(name, {"backend": name, "rows/s": 0.0, "CPU, s": cpu})
                row["rows/s"] = max(row["rows/s"], count / wall)
                row["CPU, s"] = min(row["CPU, s"], cpu)
        for name, read in there.items():
            rows[name]["changed without an error"] = "-" if read is dlt else ", ".join(changed(url, read)) or "none"
    ratio = rows["this project, psycopg"]["rows/s"] / rows["dlt, pyarrow backend"]["rows/s"]
    return Bench(
        "Backends of a database source, 1 M rows to Arrow",
        list(rows.values()),
        [Target("PostgreSQL, 1 M rows to Arrow: rows/s, times dlt's", ratio, 1, at_least=True)],
        [f"the best of {ROUNDS} rounds in turn, in one process; CPU is that of the client"],
    )


if __name__ == "__main__":
    hand_over(main())
