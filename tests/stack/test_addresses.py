"""Nothing of the stack can be reached from another machine."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from tests.stack.conftest import Running


def test_everything_listens_on_loopback_only(running: Running) -> None:
    """Before: Dask's HTTP servers listened on all interfaces, with or without the dashboard."""
    listening: set[tuple[str, int]] = set()
    with running.endless():
        for process in psutil.Process(os.getpid()).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found = process.net_connections("inet")
                listening |= {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}
    assert {running.stack.port, running.stack.dask_port, running.stack.postgres.port, running.stack.store.port} <= {
        port for _, port in listening
    }
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1"}, sorted(listening)
