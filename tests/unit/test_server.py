"""The local server's port: the same one at every start, unless another process has it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ducklake_flows.orchestration import server

if TYPE_CHECKING:
    from pathlib import Path


def test_a_lake_keeps_its_servers_port(tmp_path: Path) -> None:
    file = tmp_path / "port"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        # The first choice is taken: the next free one, from now on.
        kept = server.kept_port(file, first)
        assert kept > first
        assert file.read_text() == str(kept)
    assert server.kept_port(file, first) == kept
    # Another process has it: a third one for this time. The file does not change.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", kept))
        taken.listen()
        assert server.kept_port(file, first) not in (kept, 0)
    assert file.read_text() == str(kept)
    assert server.kept_port(file, first) == kept
