"""A TCP proxy that stands before PostgreSQL or S3 and does to its connections what networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from deployments.services import HOST

Fault = Callable[[bytes], str]
"""Sees what a client is about to send, and says: pass, cut (before it is sent), cut after (once it was answered),
slow (sent after a second), hold (send nothing more, answer nothing), or an HTTP status to answer with instead."""


@contextlib.contextmanager
def to_prefect() -> Iterator[Proxy]:
    """A proxy before the Prefect server, which the block talks to."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    port = urlsplit(PREFECT_API_URL.value()).port
    assert port
    with Proxy(port) as proxy:
        through = PREFECT_API_URL.value().replace(f":{port}/", f":{proxy.port}/")
        with temporary_settings({PREFECT_API_URL: through}):
            yield proxy


def no_fault(data: bytes) -> str:
    """Pass everything."""
    return "pass"


@dataclass
class Proxy:
    """Listens on a port of its own and forwards to another one on loopback.

    Args:
        target: The port behind it.
        fault: What happens to what clients send; may be set at any time.
        count: How often a fault struck.
    """

    target: int
    fault: Fault = no_fault
    count: int = 0
    _sockets: set[socket.socket] = field(default_factory=set)
    _open: bool = True

    def __enter__(self) -> Self:
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut every connection there is."""
        for end in list(self._sockets):
            _close(end)
        self._sockets.clear()

    def _accept(self) -> None:
        while self._open:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self.target), timeout=10)
            except OSError:
                if self._open:
                    _close(client)
                continue
            server.settimeout(None)
            self._sockets |= {client, server}
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        """One thread a direction; the client's says when the answers are no longer passed on."""
        muted = threading.Event()
        answered = threading.Event()
        threading.Thread(target=self._answers, args=(server, client, muted, answered), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                verdict = self.fault(data)
                if verdict == "pass":
                    server.sendall(data)
                    continue
                self.count += 1
                if verdict == "slow":
                    time.sleep(1)
                    server.sendall(data)
                    continue
                if verdict.isdigit():
                    body = f"HTTP/1.1 {verdict} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    client.sendall(body.encode())
                    break
                if verdict == "hold":
                    muted.set()
                    continue
                if verdict == "cut after":
                    muted.set()
                    server.sendall(data)
                    answered.wait(30)
                break
        for end in (client, server):
            _close(end)
            self._sockets.discard(end)

    def _answers(
        self, server: socket.socket, client: socket.socket, muted: threading.Event, answered: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if muted.is_set():
                    answered.set()
                else:
                    client.sendall(data)
        _close(client)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
