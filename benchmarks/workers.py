"""1, 2 and 4 Dask workers on a slow source: an HTTP API that answers each page after 100 ms.

Also 4 workers on the same API with a rate limit below their throughput. They must keep it: no request is refused.
"""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.measure import Bench, Target, hand_over
from ducklake_flows.orchestration import server
from ducklake_flows.settings import load_settings

LATENCY = 0.1
WORKERS = (1, 2, 4)
BURST = 5
"""Burst size of the rate limit: concurrent requests that are allowed after a pause."""


class Bucket:
    """A token bucket, the usual rate limiter."""

    def __init__(self, rate: float) -> None:
        self._rate, self._tokens, self._at, self._lock = rate, float(BURST), time.monotonic(), threading.Lock()

    def take(self) -> bool:
        """Take a token; returns whether one was available."""
        with self._lock:
            now = time.monotonic()
            self._tokens, self._at = min(BURST, self._tokens + (now - self._at) * self._rate), now
            enough = self._tokens >= 1
            self._tokens -= enough
            return enough


class Api(BaseHTTPRequestHandler):
    """Answers after `LATENCY` seconds and counts requests."""

    asked = refused = round = 0
    limit: Bucket | None = None
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.limit is not None and not self.limit.take():
            type(self).refused += 1
            self.send_error(429)
            return
        time.sleep(LATENCY)
        page = int(self.path.rpartition("/")[2])
        # Different rows in each round, because unchanged partitions would not be published.
        first = 1000 * self.round + 20 * page
        body = json.dumps([{"id": first + number, "page": page} for number in range(20)]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


def run() -> Bench:
    """Ingest the same range once for each number of workers."""
    api = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    os.environ["BENCH_API"] = f"http://127.0.0.1:{api.server_port}"
    settings = load_settings()
    server.use(settings)
    from benchmarks.datasets.api import PAGES
    from benchmarks.datasets.limited import RATE
    from ducklake_flows.ingest import ingest
    from ducklake_flows.orchestration.bootstrap import initialise
    from ducklake_flows.project import get_dataset
    from ducklake_flows.states import Mode

    initialise(settings, [get_dataset("api"), get_dataset("limited")])
    rows = []
    for number, (key, workers) in enumerate([*(("api", n) for n in WORKERS), ("limited", WORKERS[-1])]):
        Api.asked, Api.round, Api.limit = 0, number, Bucket(RATE) if key == "limited" else None
        summary = ingest([key], workers=workers, mode=Mode.all)
        partitions = summary["published"]
        if Api.asked != partitions * PAGES:
            raise ValueError(f"the API got {Api.asked} requests for {partitions * PAGES} pages")
        seconds = summary["seconds"]["extract and publish"]
        rows.append(
            {
                "workers": workers,
                "rate": RATE if key == "limited" else 0,
                "seconds": seconds,
                "pages a second": Api.asked / seconds,
                "refused": Api.refused,
            }
        )
    *free, limited = rows
    for row in free:
        row["of linear"] = rows[0]["seconds"] / row["seconds"] / row["workers"]
    limited["of linear"] = limited["pages a second"] / RATE
    return Bench(
        f"{partitions} partitions of {PAGES} pages, each answered after {LATENCY * 1000:.0f} ms",
        rows,
        [
            *(Target(f"{row['workers']} workers, of linear", row["of linear"], 0.9, at_least=True) for row in free[1:]),
            Target("4 workers, of the source's limit", limited["of linear"], 0.9, at_least=True),
            Target("4 workers, requests that the limited source refused", limited["refused"], 0),
        ],
        ["cluster start left out", "with a rate, `of linear` is of that rate"],
    )


if __name__ == "__main__":
    hand_over(run())
