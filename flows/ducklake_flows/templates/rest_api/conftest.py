"""For the tests: an HTTP server on the sample, in place of the API."""

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parent / "sample"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session", autouse=True)
def api() -> Iterator[None]:
    """The sample's API, on a free port of this machine."""
    handler = functools.partial(Quiet, directory=str(SAMPLE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["ORDERS_URL"] = f"http://127.0.0.1:{server.server_port}"
        yield
        server.shutdown()
