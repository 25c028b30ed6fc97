"""Nothing of the stack can be reached from another machine, and Dask only with its certificate."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from distributed import Client, Security
from distributed.comm.core import connect

from ducklake_flows.orchestration import certificates
from tests.regressions.test_metrics import parsed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stack.conftest import Running


def test_everything_listens_on_loopback_only(running: Running) -> None:
    """Before: Dask's HTTP servers listened on all interfaces, with or without the dashboard."""
    listening: set[tuple[str, int]] = set()
    with running.endless("2023-06"):
        for process in psutil.Process(os.getpid()).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found = process.net_connections("inet")
                listening |= {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}
    assert {running.stack.port, running.stack.dask_port, running.stack.postgres.port, running.stack.store.port} <= {
        port for _, port in listening
    }
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1"}, sorted(listening)


def test_prometheus_reads_the_lake_at_the_address_in_the_env_file(running: Running) -> None:
    running.land("airlines.csv", "carrier,name\nUA,United\n")
    metrics = parsed(httpx.get(running.stack.environment["METRICS_URL"], timeout=60).text)
    assert metrics["lake_up",] == 1
    assert metrics["lake_broken_datasets",] == 0
    assert sum(value for key, value in metrics.items() if key[:2] == ("lake_partitions", "airlines")) == 1


async def greet(address: str, **arguments: Any) -> None:
    """Connect as a client does. A `Client` that is refused leaves a thread behind, which delays the next one."""
    comm = await connect(address, timeout=5, **arguments)  # type: ignore[no-untyped-call]
    await comm.close()


def test_dask_takes_work_only_from_who_has_its_certificate(running: Running, tmp_path: Path) -> None:
    """Whoever reaches a scheduler without TLS can run code on its workers."""
    address = running.stack.environment["LAKE_DASK_ADDRESS"]
    with Client(address, security=running.security()) as client:  # type: ignore[no-untyped-call]
        assert client.submit(sum, [1, 2]).result() == 3
    asyncio.run(greet(address, **running.security().get_connection_args("client")))  # type: ignore[no-untyped-call]
    certificates.ensure(tmp_path)
    ca = str(running.stack.certificates / "ca.pem")
    foreign = {"tls_client_cert": str(tmp_path / "cert.pem"), "tls_client_key": str(tmp_path / "key.pem")}
    for keys in ({}, foreign):
        security = Security(require_encryption=True, tls_ca_file=ca, **keys)  # type: ignore[no-untyped-call]
        with pytest.raises((OSError, TypeError)):
            asyncio.run(greet(address, **security.get_connection_args("client")))  # type: ignore[no-untyped-call]
    with pytest.raises(OSError, match=r"reset by peer|Timed out|closed"):
        asyncio.run(greet(address.replace("tls://", "tcp://")))
