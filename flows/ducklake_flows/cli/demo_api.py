"""The demo's HTTP API: the departure boards of New York's airports, made of the flights in the landing zone."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from ducklake_flows.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ducklake_flows.settings import Settings

ADDRESS = "DEMO_API"
"""The environment variable with the API's address, for the dataset `entries`."""

PAGE = 20
"""Entries of a page; a day has about 54."""

LATE = 15
"""Minutes after the scheduled time from which a departure is late."""

_KEPT = 32
"""Days whose boards are kept: the pages of a day are asked for one after the other."""


def board(day: str, flights: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """The entries of one day: one for each airport and hour with scheduled departures, in New York's local time.

    Args:
        day: The day, ``2013-01-31``.
        flights: Its flights, as in the package's CSV file.

    Returns:
        The entries, sorted by airport and hour. ``delays`` lists the late and the cancelled flights; ``minutes`` is
        None for a cancelled one.
    """
    entries: dict[tuple[str, int], dict[str, Any]] = {}
    for flight in flights:
        airport, hour, minute = flight["origin"], int(flight["hour"]), int(flight["minute"])
        entry = entries.setdefault(
            (airport, hour),
            {
                "airport": airport,
                "scheduled_hour": f"{day}T{hour:02}:00:00",
                "scheduled": 0,
                "departed": 0,
                "delays": [],
            },
        )
        departed = flight["dep_time"] != "NA"
        minutes = int(flight["dep_delay"]) if departed else None
        entry["scheduled"] += 1
        entry["departed"] += departed
        if minutes is None or minutes >= LATE:
            entry["delays"].append(
                {
                    "carrier": flight["carrier"],
                    "flight": int(flight["flight"]),
                    "destination": flight["dest"],
                    "scheduled_departure": f"{day}T{hour:02}:{minute:02}:00",
                    "status": "cancelled" if minutes is None else "late",
                    "minutes": minutes,
                }
            )
    return [entries[place] for place in sorted(entries)]


@contextlib.contextmanager
def serve(settings: Settings) -> Iterator[str]:
    """Serve ``GET /board?day=2013-01-31&page=1`` on a free port of loopback. Yields the API's address.

    Args:
        settings: Where the landing zone is. A day without a file of flights there answers 404.
    """
    landing = open_storage(settings.landing, settings)

    @lru_cache(_KEPT)
    def entries(day: str) -> list[dict[str, Any]]:
        path = f"flights/{day}.csv"
        if not landing.find(path):
            return []
        with landing.fs.open_input_stream(landing.path(path)) as stream:
            text = stream.read().decode()
        return board(day, csv.DictReader(io.StringIO(text)))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        """Otherwise each answer on a kept connection waits 40 ms for an acknowledgement."""

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked = parse_qs(url.query)
            day, number = asked.get("day", [""])[0], asked.get("page", ["1"])[0]
            page = int(number) if number.isdecimal() else 0
            found = entries(day) if url.path == "/board" else []
            shown = found[(page - 1) * PAGE : page * PAGE] if page else []
            self.answer(
                200 if shown else 404, {"day": day, "page": page, "pages": -(-len(found) // PAGE), "entries": shown}
            )

        def answer(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Print nothing: the demo's output is its results."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="demo's API", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
