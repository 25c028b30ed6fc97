"""Faults of networks, servers and disks: cut and silent connections, error bursts, a killed server, a full disk."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay

from ducklake_flows import storage
from ducklake_flows.errors import CatalogError
from ducklake_flows.lake import publish as protocol
from ducklake_flows.lake.connect import connect
from ducklake_flows.settings import load_settings
from ducklake_flows.staging.receipt import Failure, Receipt
from tests.conftest import Lake, Services
from tests.faults.conftest import Contents, Killer, found, land, staged, told
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD: Contents = {"2024-01-01": (10, 1), "2024-01-02": (20, 1)}
NEW: Contents = {"2024-01-01": (11, 2), "2024-01-03": (5, 2)}
BOTH = {**OLD, **NEW}
on_postgres_and_s3 = pytest.mark.parametrize("lake", ["postgres+s3"], indirect=True)


@pytest.fixture
def catalog(lake: Lake, services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of PostgreSQL; settings loaded from now on use it."""
    with Proxy(services.postgres.port) as proxy:
        through = lake.settings.catalog.replace(f"port={services.postgres.port}", f"port={proxy.port}")
        monkeypatch.setenv("LAKE_CATALOG", through)
        yield proxy


@pytest.fixture
def store(lake: Lake, services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of S3; settings loaded from now on use it."""
    with Proxy(services.store.port) as proxy:
        monkeypatch.setenv("LAKE_S3_ENDPOINT", f"127.0.0.1:{proxy.port}")
        yield proxy


def once(proxy: Proxy, word: bytes, verdict: str, times: int = 1) -> None:
    """Apply the verdict the first ``times`` times that a client sends this word."""
    before = proxy.count
    proxy.fault = lambda data: verdict if word in data and proxy.count < before + times else "pass"


@on_postgres_and_s3
@pytest.mark.parametrize("moment", ["cut", "cut after"])
def test_a_publish_whose_commit_is_cut_off_is_published_once(lake: Lake, catalog: Proxy, moment: str) -> None:
    """The connection is cut right before or right after COMMIT reaches PostgreSQL."""
    land(lake, OLD)
    lake.load("readings", *OLD)
    land(lake, NEW)
    outcomes = lake.extract("readings", *NEW)
    publisher = Lake(load_settings()).publisher()
    publisher._connection()
    once(catalog, b"COMMIT", moment)
    result = publisher.publish(outcomes)
    publisher.close()
    assert catalog.count == 1
    assert [r.partition for r in result.receipts] == list(NEW)
    assert found(lake) == BOTH
    assert lake.column("SELECT count(*) FROM ops.ledger") == [4]
    assert lake.errors() == []


@on_postgres_and_s3
@pytest.mark.parametrize(
    "verdict", ["503", "cut", *(pytest.param(v, marks=pytest.mark.soak) for v in ("cut after", "slow"))]
)
def test_transient_errors_of_the_object_store_are_retried(lake: Lake, store: Proxy, verdict: str) -> None:
    """Three requests in a row fail or are slow, while files are staged and again while they are registered."""
    land(lake, OLD)
    through = Lake(load_settings())
    once(store, b"PUT ", verdict, times=3)
    outcomes = through.extract("readings", *OLD)
    assert store.count == (len(OLD) if verdict == "slow" else 3)
    assert all(isinstance(o, Receipt) for o in outcomes), outcomes
    publisher = through.publisher()
    publisher._connection()
    before = store.count
    once(store, b"HTTP/1.1", verdict, times=3)
    publisher.publish(outcomes)
    publisher.close()
    assert store.count == before + 3
    assert found(lake) == OLD
    assert lake.errors() == []


@on_postgres_and_s3
@pytest.mark.parametrize("verdict", ["503", *(pytest.param(v, marks=pytest.mark.soak) for v in ("cut", "hold"))])
def test_an_unavailable_object_store_fails_cleanly_and_the_next_run_finishes(
    lake: Lake, store: Proxy, monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    monkeypatch.setattr(storage, "READ_SECONDS", 0.5)
    land(lake, OLD)
    lake.load("readings", *OLD)
    land(lake, NEW)
    through = Lake(load_settings())
    store.fault = lambda data: verdict if b"PUT " in data else "pass"
    outcomes = through.extract("readings", *NEW)
    assert store.count >= 2
    assert all(isinstance(o, Failure) and o.state == "failed" for o in outcomes), outcomes
    assert not any(secret in str(outcomes) for secret in lake.settings.secrets)
    lake.publish(outcomes)
    assert found(lake) == OLD
    assert lake.errors() == []
    lake.load("readings", *NEW)
    assert found(lake) == BOTH
    assert lake.errors() == []


@on_postgres_and_s3
def test_tcp_keepalive_is_on_so_that_dropped_packets_are_noticed(lake: Lake, services: Services) -> None:
    """The test cannot drop packets. It checks that the kernel has a keepalive timer for each connection."""
    con = connect(lake.settings)
    con.execute("SELECT count(*) FROM ops.ledger").fetchall()
    to = f":{services.postgres.port:04X}"
    sockets = [line.split() for line in Path(f"/proc/{os.getpid()}/net/tcp").read_text().splitlines()[1:]]
    inodes = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and fd.exists()}
    timers = [s[5].partition(":")[0] for s in sockets if s[2].endswith(to) and f"socket:[{s[9]}]" in inodes]
    con.close()
    assert timers
    assert set(timers) == {"02"}, "keepalive"


def load_each(lake: Lake, contents: Contents) -> None:
    """Publish the days one at a time over one connection."""
    publisher = lake.publisher()
    for day, (rows, value) in contents.items():
        publisher.publish([staged(lake, day, rows, value)])
    publisher.close()


@on_postgres_and_s3
def test_a_postgres_killed_and_restarted_under_load_fails_no_run(lake: Lake, kill: Killer, services: Services) -> None:
    days: Contents = {f"2024-01-{day:02}": (day, day) for day in range(1, 13)}
    process = kill.start(load_each, days)
    con = connect(lake.settings, read_only=True)
    while con.execute("SELECT count(*) FROM ops.ledger").fetchall()[0][0] < 3:
        assert process.is_alive()
    con.close()
    services.postgres.service.kill()
    # Like an init system: the start succeeds once the last process of the old server has exited.
    Retrying(retry=retry_if_exception_type(RuntimeError), stop=stop_after_delay(60), reraise=True)(
        services.postgres.service.start
    )
    process.join(120)
    assert process.exitcode == 0
    assert lake.column("SELECT error FROM ops.ledger WHERE error IS NOT NULL") == []
    assert found(lake) == days
    assert told(lake) == {day: rows for day, (rows, _) in days.items()}
    assert lake.errors() == []


def publish_on_a_full_disk(lake: Lake, receipts: list[Receipt]) -> None:
    """Publish with a simulated full disk: the kernel limits the file size of this process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    protocol.LOST_SECONDS = 1
    with pytest.raises(CatalogError, match="disk I/O error"):
        lake.publish(receipts)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)  # under coverage, the process writes a file at its end


@pytest.mark.parametrize("lake", ["sqlite+folder"], indirect=True)
def test_a_catalog_on_a_full_disk_keeps_its_contents(lake: Lake, kill: Killer) -> None:
    lake.publish([staged(lake, day, *content) for day, content in OLD.items()])
    receipts = [staged(lake, day, *content) for day, content in NEW.items()]
    process = kill.start(publish_on_a_full_disk, receipts)
    process.join(120)
    assert process.exitcode == 0
    assert found(lake) == OLD
    assert lake.errors() == []
    assert len(lake.publish(receipts).receipts) == 2
    assert found(lake) == BOTH
    assert lake.errors() == []
