"""An HTTP API for tests: a real server, whose answers each test gives as a function of the request."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True)
class Asked:
    """A request.

    Args:
        method: GET, HEAD or POST.
        path: Its path.
        query: Its parameters.
        headers: Its headers, by names in lower case.
        body: Its body.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: str


@dataclass
class Answer:
    """An answer.

    Args:
        body: JSON; a text is sent as it is.
        status: HTTP status.
        headers: Further headers.
        cut: Bytes of the body that are promised, but not sent.
    """

    body: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0


@dataclass
class Api:
    """A running server.

    Args:
        url: Its address.
        asked: All requests so far.
    """

    url: str
    asked: list[Asked] = field(default_factory=list)


@contextlib.contextmanager
def serving(answer: Callable[[Asked], Any]) -> Iterator[Api]:
    """Serve what a function answers: an `Answer`, or a body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
            api.asked.append(asked)
            found = answer(asked)
            found = found if isinstance(found, Answer) else Answer(found)
            text = found.body if isinstance(found.body, str) else json.dumps(found.body)
            self.send_response(found.status)
            for name, value in {"Content-Type": "application/json", **found.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode()) + found.cut))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())
            self.close_connection = bool(found.cut)

        def do_POST(self) -> None:
            self.do_GET()

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        api = Api(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield api
        server.shutdown()
