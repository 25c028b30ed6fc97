"""1, 2 and 4 Dask workers on a source that waits: an HTTP API that answers each page after 100 ms."""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.measure import Bench, Target, hand_over
from flows import server
from flows.settings import load_settings

LATENCY = 0.1
WORKERS = (1, 2, 4)


class Api(BaseHTTPRequestHandler):
    """Answers after a while; counts."""

    asked = 0
    round = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        type(self).asked += 1
        time.sleep(LATENCY)
        page = int(self.path.rpartition("/")[2])
        # Other rows each time: what has not changed would not be published.
        first = 1000 * self.round + 20 * page
        body = json.dumps([{"id": first + number, "page": page} for number in range(20)]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def run() -> Bench:
    """The same range anew with each number of workers."""
    api = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    os.environ["BENCH_API"] = f"http://127.0.0.1:{api.server_port}"
    settings = load_settings()
    server.use(settings)
    from benchmarks.datasets.api import PAGES
    from flows.datasets import get_dataset
    from flows.ingest import ingest
    from flows.plan import Mode
    from flows.setup import initialise

    dataset = get_dataset("api")
    initialise(settings, [dataset])
    rows = []
    for workers in WORKERS:
        Api.asked, Api.round = 0, workers
        summary = ingest(["api"], workers=workers, mode=Mode.all)
        partitions = summary["published"]
        if Api.asked != partitions * PAGES:
            raise ValueError(f"the API was asked {Api.asked} times for {partitions * PAGES} pages")
        seconds = summary["seconds"]["extract and publish"]
        rows.append({"workers": workers, "seconds": seconds, "pages a second": Api.asked / seconds})
    for row in rows:
        row["of linear"] = rows[0]["seconds"] / row["seconds"] / row["workers"]
    return Bench(
        f"{partitions} partitions of {PAGES} pages, each answered after {LATENCY * 1000:.0f} ms",
        rows,
        [Target(f"{row['workers']} workers, of linear", row["of linear"], 0.9, at_least=True) for row in rows[1:]],
        ["cluster start left out"],
    )


if __name__ == "__main__":
    hand_over(run())
