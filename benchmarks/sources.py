"""A million rows of an API and five million of a database: this project's worker or plain dlt, each into Parquet."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import psycopg

from benchmarks.measure import Run, hand_over, peak_rss
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.errors import SourceError
from ducklake_flows.extract.chunk import extract, warm_up
from ducklake_flows.settings import Secret, Settings, load_settings
from ducklake_flows.sources.rest_api import RestApi
from ducklake_flows.sources.sql_database import SqlDatabase
from ducklake_flows.staging.receipt import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = "2024-01-01"
PAGES, PAGE = 1000, 1000
"""The API's pages, and rows in each."""
ROWS = 5_000_000
"""The table's rows."""
URL, PASSWORD = "BENCH_SOURCE", "BENCH_SOURCE_PASSWORD"
PAGINATOR = {"type": "page_number", "base_page": 0, "total_path": "pages"}


@contextlib.contextmanager
def api() -> Iterator[str]:
    """Serve the API's pages; yields the URL."""
    rows = [
        {
            "id": number,
            "name": f"customer {number % 1000}",
            "amount": number / 8,
            "at": "2024-01-01T00:00:00Z",
            "tags": {"a": number % 7, "b": ["x", "y"]},
        }
        for number in range(PAGE)
    ]
    page = json.dumps({"pages": PAGES, "rows": rows}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert parse_qs(urlsplit(self.path).query)["day"] == [DAY]
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/orders"
        server.shutdown()


def fill(port: int, name: str, password: str, rows: int = ROWS) -> str:
    """Create the table in a PostgreSQL database; returns SQLAlchemy's URL without the password."""
    with psycopg.connect(f"host=127.0.0.1 port={port} dbname={name} user={name}", password=password) as con:
        con.execute(
            "CREATE TABLE orders AS SELECT n AS id, 'customer ' || n % 1000 AS name, "
            "(n / 7.0)::numeric(12, 2) AS amount, "
            f"timestamptz '{DAY}' + n * interval '10 ms' AS at, n % 2 = 0 AS paid, (n / 7.0)::float8 AS score "
            f"FROM generate_series(1, {rows}) n"
        )
    return f"postgresql+psycopg://{name}@127.0.0.1:{port}/{name}"


def ours(settings: Settings, kind: str) -> Run:
    """Time the extraction of one partition to staged Parquet, as in a worker, after its warm-up."""
    url = os.environ[URL]
    source = (
        RestApi(url, rows="rows", params={"day": "{partition}"}, paginator=PAGINATOR)
        if kind == "api"
        else SqlDatabase(url, table="orders", window="at", password=Secret(PASSWORD))
    )
    dataset = Dataset("orders", source, partition_column="day", start=date.fromisoformat(DAY))
    warm_up()
    began = time.monotonic()
    (outcome,) = extract(dataset, {DAY: ""}, settings)
    wall = time.monotonic() - began
    if isinstance(outcome, Failure):
        raise SourceError(outcome.error)
    return Run("extract_chunk", [DAY], wall, dict(outcome.profile), {"process": peak_rss()}, 0, outcome.rows)


def dlt(settings: Settings, kind: str) -> Run:
    """Time dlt's own source into Parquet files in a folder, after a run of one row."""
    import dlt as library
    from dlt.sources.rest_api import rest_api_source
    from dlt.sources.sql_database import sql_table

    bucket = library.destinations.filesystem(bucket_url=str(settings.home / "files"))
    pipeline = library.pipeline("orders", destination=bucket, dataset_name="raw")
    pipeline.run(library.resource([{"row": 1}], name="warm_up"), loader_file_format="parquet")
    url = os.environ[URL]
    endpoint = {"path": "", "params": {"day": DAY}, "data_selector": "rows", "paginator": PAGINATOR}
    config: Any = {
        "client": {"base_url": url},
        "resources": [{"name": "orders", "max_table_nesting": 0, "endpoint": endpoint}],
    }
    source: Any = (
        rest_api_source(config)
        if kind == "api"
        else sql_table(
            url.replace("@", f":{os.environ[PASSWORD]}@", 1), table="orders", backend="pyarrow", chunk_size=10_000
        )
    )
    began = time.monotonic()
    pipeline.run(source, loader_file_format="parquet")
    wall = time.monotonic() - began
    trace: Any = pipeline.last_trace
    rows = trace.last_normalize_info.row_counts["orders"]
    return Run("dlt to Parquet files", [DAY], wall, {}, {"process": peak_rss()}, 0, rows)


if __name__ == "__main__":
    lake = load_settings()
    hand_over({"ours": ours, "dlt": dlt}[sys.argv[2]](lake, sys.argv[3]))
