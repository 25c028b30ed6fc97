"""The demo's API and database: boards on the days of the clock changes, exact rows, and an API that breaks."""

from __future__ import annotations

import contextlib
import csv
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import duckdb
import httpx
import pytest

from ducklake_flows.cli import demo_api
from ducklake_flows.cli.demo import _packaged, land, write_database
from tests.conftest import settings_from
from tests.flows.test_cli import Command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ducklake_flows.settings import Settings

SPRING_DAYS = ("2013-03-09", "2013-03-10", "2013-03-11")
AUTUMN_DAYS = ("2013-11-02", "2013-11-03", "2013-11-04")
"""The clocks change on 2013-03-10 and 2013-11-03."""

BROKEN = "day=2013-03-10&page=2"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> tuple[Command, str]:
    """A lake with the days around both clock changes, and what the demo said when its API first refused a page."""
    lake = Command(tmp_path_factory.mktemp("demo"), prefect_server)
    land(settings(lake))
    with breaking(lake) as url:
        refused = lake("demo", "--start", SPRING_DAYS[0], "--end", SPRING_DAYS[-1], fails=True, DEMO_API=url)
    with demo_api.serve(settings(lake)) as url:
        # One run for both seasons: of the spring's days, only the one that failed is loaded again.
        days = [option for day in (*SPRING_DAYS, *AUTUMN_DAYS) for option in ("--partition", day)]
        lake("backfill", "entries", "flights", *days, DEMO_API=url)
    lake("transform")
    return lake, refused


@pytest.fixture
def changes(loaded: tuple[Command, str]) -> Command:
    return loaded[0]


def settings(lake: Command) -> Settings:
    return settings_from({}, project=lake.folder)


@contextlib.contextmanager
def breaking(lake: Command) -> Iterator[str]:
    """The demo's API, but it refuses one page."""
    with demo_api.serve(settings(lake)) as url:

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = 403, b"{}"
                if BROKEN not in self.path:
                    answer = httpx.get(f"{url}{self.path}")
                    status, body = answer.status_code, answer.content
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def test_a_page_that_the_api_refuses_fails_only_its_partition(loaded: tuple[Command, str]) -> None:
    changes, refused = loaded
    ledger = changes.json(
        "sql",
        "SELECT dataset, partition, state FROM ops.ledger WHERE dataset LIKE 'entries%' AND partition < '2013-11' "
        "ORDER BY recorded_at, dataset, partition",
    )
    own = [(row["partition"], row["state"]) for row in ledger if row["dataset"] == "entries"]
    assert sorted(own[:3]) == [
        ("2013-03-09", "published"),
        ("2013-03-10", "failed"),
        ("2013-03-11", "published"),
    ]
    assert own[3:] == [("2013-03-10", "published")]
    assert "entries 2013-03-10" in refused
    assert "page 2" in refused
    assert changes.json("verify") == []


def landed(lake: Command) -> duckdb.DuckDBPyConnection:
    """DuckDB alone on the landed files of flights, in UTC."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    files = [str(lake.folder / f".lake/landing/flights/{day}.csv") for day in (*SPRING_DAYS, *AUTUMN_DAYS)]
    con.execute(f"CREATE VIEW flights AS FROM read_csv({files}, nullstr = 'NA', sample_size = -1)")
    return con


def test_entries_are_those_of_the_landed_flights_in_utc(changes: Command) -> None:
    """The source writes UTC, too: both sides of each clock change agree with it."""
    wanted = landed(changes).execute(
        "SELECT make_date(year, month, day)::VARCHAR AS day, origin, epoch(time_hour)::BIGINT AS hour, count(*) AS n, "
        "count(dep_time) AS departed FROM flights GROUP BY ALL ORDER BY ALL"
    )
    found = changes.json(
        "sql",
        "SELECT entry_date::VARCHAR AS day, airport, epoch(scheduled_hour)::BIGINT AS hour, scheduled, departed "
        "FROM bronze.entries ORDER BY ALL",
    )
    assert [tuple(row.values()) for row in found] == wanted.fetchall()
    first = changes.json(
        "sql", "SELECT entry_date::VARCHAR AS day, hour(min(scheduled_hour)) AS h FROM raw.entries GROUP BY ALL"
    )
    # The first departures are at 5 or 6 o'clock in New York, an hour earlier in UTC in summer.
    assert {row["day"]: row["h"] for row in first} == {
        "2013-03-09": 10,
        "2013-03-10": 9,
        "2013-03-11": 9,
        "2013-11-02": 9,
        "2013-11-03": 10,
        "2013-11-04": 10,
    }


def test_delays_are_the_late_and_cancelled_flights(changes: Command) -> None:
    wanted = landed(changes).execute(
        "SELECT make_date(year, month, day)::VARCHAR AS day, origin, epoch(time_hour)::BIGINT AS hour, carrier, "
        "flight, dest, epoch(time_hour)::BIGINT + 60 * minute AS scheduled, "
        "CASE WHEN dep_time IS NULL THEN 'cancelled' ELSE 'late' END AS status, dep_delay AS minutes "
        "FROM flights WHERE dep_time IS NULL OR dep_delay >= 15 ORDER BY ALL"
    )
    found = changes.json(
        "sql",
        "SELECT entry_date::VARCHAR AS day, entries_airport, epoch(entries_scheduled_hour)::BIGINT AS hour, carrier, "
        "flight, destination, epoch(scheduled_departure)::BIGINT AS scheduled, status, minutes "
        "FROM raw.entries__delays ORDER BY ALL",
    )
    assert [tuple(row.values()) for row in found] == wanted.fetchall()
    gaps = changes.json(
        "sql",
        "SELECT entries_airport FROM raw.entries__delays GROUP BY entries_airport, entries_scheduled_hour "
        "HAVING min(position) <> 0 OR max(position) <> count(*) - 1 OR count(DISTINCT position) <> count(*)",
    )
    assert gaps == []


def test_gold_joins_the_boards_with_the_airports(changes: Command) -> None:
    wanted = landed(changes).execute(
        "SELECT origin, count(*) AS departures, round(100 * count(*) FILTER (dep_delay >= 15) / count(*), 1) AS late, "
        "round(100 * count(*) FILTER (dep_time IS NULL) / count(*), 1) AS cancelled FROM flights "
        "GROUP BY ALL ORDER BY ALL"
    )
    found = changes.json(
        "sql", "SELECT airport, departures, late_percent, cancelled_percent FROM gold.airport_delays ORDER BY ALL"
    )
    assert [tuple(row.values()) for row in found] == wanted.fetchall()
    names = changes.json("sql", "SELECT name FROM gold.airport_delays ORDER BY airport")
    assert [row["name"] for row in names] == ["Newark Liberty Intl", "John F Kennedy Intl", "La Guardia"]


def test_planes_are_those_of_the_package(changes: Command) -> None:
    columns = ("tailnum", "year", "type", "manufacturer", "model", "engines", "seats", "speed", "engine")
    with _packaged("planes.csv").open(newline="", encoding="utf-8") as file:
        wanted = [tuple(None if row[c] == "NA" else row[c] for c in columns) for row in csv.DictReader(file)]
    texts = ", ".join(f"{column}::VARCHAR AS {column}" for column in columns)
    found = changes.json("sql", f"SELECT {texts} FROM raw.planes ORDER BY tailnum")
    assert [tuple(row.values()) for row in found] == sorted(wanted)


def test_without_its_api_and_database_the_demo_has_no_source_and_fails_no_run(
    tmp_path: Path, prefect_server: str
) -> None:
    lake = Command(tmp_path, prefect_server)
    lake("init")
    done = lake.json("backfill", "entries", "planes", "--start", "2013-03-10", "--end", "2013-03-10")
    assert (done["published"], done["failed"]) == (0, [])
    assert sorted(done["no_source"]) == ["entries 2013-03-10", "planes full"]
    write_database(lake.folder / ".lake" / "demo.sqlite")
    assert lake.json("backfill", "planes")["published"] == 1


def test_the_api_has_no_other_pages(changes: Command) -> None:
    with demo_api.serve(settings(changes)) as url, httpx.Client(base_url=url) as api:
        board = api.get("/board", params={"day": "2013-03-10", "page": 1}).json()
        assert board["pages"] == 3
        lengths = [
            len(api.get("/board", params={"day": "2013-03-10", "page": page}).json()["entries"]) for page in (1, 2, 3)
        ]
        assert lengths[:2] == [demo_api.PAGE] * 2
        assert 0 < lengths[2] <= demo_api.PAGE
        for query in ("day=2013-03-10&page=4", "day=2013-03-10&page=0", "day=2013-03-10&page=x", "day=2014-01-01", ""):
            assert api.get(f"/board?{query}").status_code == 404
        assert api.get("/other?day=2013-03-10").status_code == 404
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/board")
