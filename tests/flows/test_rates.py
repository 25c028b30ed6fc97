"""Runs that share a dataset's rate, against a server that records when each request arrived: it is the judge."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from prefect import get_client

from deployments.services import HOST
from ducklake_flows.orchestration import leases, rates
from ducklake_flows.orchestration.rates import Shares
from ducklake_flows.orchestration.server import SERVER_SETTINGS, until
from tests.conftest import DATASETS, DEMO, make_project
from tests.faults.conftest import free_the_gate
from tests.faults.proxy import no_fault, to_prefect
from tests.faults.test_cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Lake

RATE = 20
PAGES = 8
"""Requests for each partition."""

DATASET = """
from datetime import date
from urllib.request import urlopen

from ducklake_flows import Dataset


def pages(partition):
    for page in range({pages}):
        with urlopen(f"{url}/{{partition.key}}/{{page}}") as answer:
            answer.read()
        yield [{{"page": page}}]


DATASET = Dataset("metered", pages, partition_column="day", start=date(2024, 1, 1), rate={rate})
"""

RUN = """
import sys
from datetime import date

from ducklake_flows.ingest import ingest

start, end, workers = sys.argv[1:]
ingest(["metered"], date.fromisoformat(start), date.fromisoformat(end), workers=int(workers))
"""


class Metered:
    """A server that records the time and the month of each request."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []
        asked, lock = self.asked, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with lock:
                    asked.append((time.monotonic(), self.path[1:8]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def times(self, month: str = "") -> list[float]:
        return [at for at, of in self.asked if of.startswith(month)]

    def count(self, begin: float, end: float, month: str = "") -> int:
        return sum(begin <= at < end for at in self.times(month))


@pytest.fixture
def metered(gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metered]:
    """The server, and a project with the dataset `metered`, which reads from it."""
    found = Metered()
    datasets = tmp_path / "metered"
    datasets.mkdir()
    url = f"http://127.0.0.1:{found.server.server_port}"
    (datasets / "metered.py").write_text(DATASET.format(pages=PAGES, url=url, rate=RATE))
    monkeypatch.setenv("LAKE_PROJECT", str(make_project(tmp_path / "project", DEMO, DATASETS, datasets)))
    yield found
    found.server.shutdown()
    found.server.server_close()
    free_the_gate()  # the shares of the runs that the test has killed
    assert gated_lake.settings


def begin(held: ExitStack, start: str, end: str, workers: int) -> subprocess.Popen[bytes]:
    """A run in a process, which is ended with the test."""
    process = subprocess.Popen([sys.executable, "-c", RUN, start, end, str(workers)], stderr=subprocess.PIPE)

    def end_it() -> None:
        process.kill()
        process.communicate()

    held.callback(end_it)
    return process


def most_in(times: list[float], seconds: float) -> int:
    """The highest number of requests within any window of this length."""
    return max(sum(begin <= at < begin + seconds for at in times) for begin in times)


def held(dataset: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(rates.PREFIX + dataset).active_slots


def exists(dataset: str) -> bool:
    with get_client(sync_client=True) as client:
        return any(limit.name == rates.PREFIX + dataset for limit in client.read_global_concurrency_limits(200))


@pytest.mark.parametrize("is_shared", [False, True], ids=["a cluster each", "one cluster"])
@pytest.mark.soak
def test_two_runs_of_a_dataset_take_half_of_its_rate_each_and_never_more_than_all_of_it(
    metered: Metered, is_shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as running:
        if is_shared:
            cluster = Cluster(tmp_path, {k: v for k, v in os.environ.items() if k.startswith(("LAKE_", "PREFECT_"))})
            monkeypatch.setenv("LAKE_DASK_ADDRESS", f"tcp://{HOST}:{cluster.port}")
            running.enter_context(cluster)
        begin(running, "2024-01-01", "2024-12-31", 2)
        assert until(lambda: len(metered.asked) > 4 * RATE, 120)
        second = begin(running, "2023-06-01", "2023-06-15", 1)
        _, errors = second.communicate(timeout=300)
        assert second.returncode == 0, errors.decode()[-2000:]
        joined, left = metered.times("2023")[0], metered.times("2023")[-1]
        again = left + rates.JOIN_SECONDS
        assert until(lambda: metered.times("2024")[-1] > again + 8, 120)
    assert len(metered.times("2023")) == 15 * PAGES
    # In every window, also in that in which the second run joins. A request that a slow machine delays is in the next.
    window = 5
    assert most_in(metered.times(), window) <= RATE * window * 1.1 + 3
    ours, theirs = metered.count(joined, left, "2024"), metered.count(joined, left, "2023")
    assert 0.6 <= ours / theirs <= 1.7
    # The first one has all of it again, a few seconds after the second one has ended.
    assert metered.count(again, again + 8, "2024") / 8 > 1.4 * ours / (left - joined)


def test_a_run_of_one_partition_without_a_cluster_keeps_the_rate_and_frees_its_share(metered: Metered) -> None:
    from ducklake_flows.ingest import ingest

    assert ingest(["metered"], partitions=["2024-01-01"])["published"] == 1
    times = metered.times()
    assert len(times) == PAGES
    # A request that comes late shortens the time to the next: without a rate, all of them take a few milliseconds.
    assert times[-1] - times[0] >= (PAGES - 1) / RATE / 2
    assert held("metered") == 0


@pytest.mark.soak
def test_runs_count_each_other_in_one_process_and_a_killed_one_frees_its_share(prefect_server: str) -> None:
    assert prefect_server
    told: dict[str, float] = {}
    with Shares({"x": 10.0}, lambda _, pace: bool(told.update(x=pace)) or True) as shares:
        shares.in_flight({"x": 2})
        assert (shares.most(4), told) == ({"x": 4}, {"x": 0.2})
        with Shares({"x": 10.0}, lambda *_: True) as others:
            assert others.most(4) == {"x": 0}, "it waits until the first one is slower"
            assert others.pace("x") == rates.HELD
            assert until(lambda: told == {"x": 0.4}, 20)
            assert until(lambda: others.most(4) == {"x": 2}, 20)
            assert others.pace("x") == 0.2
        assert until(lambda: told == {"x": 0.2}, 20)
        killed = leases.acquire(leases.open_client(), f"{rates.PREFIX}x", 10)
        assert killed
        assert until(lambda: told == {"x": 0.4}, 20)
        period = float(SERVER_SETTINGS["PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS"])
        assert until(lambda: told == {"x": 0.2}, leases.LEASE_SECONDS + 2 * period + 20)
        assert held("x") == 1, "our own lease was renewed"
        with get_client(sync_client=True) as client:
            client.delete_global_concurrency_limit_by_name(f"{rates.PREFIX}x")
        assert until(lambda: exists("x") and held("x") == 1, 20), "someone deleted it"
        shares.in_flight({})
        assert until(lambda: held("x") == 0, 20), "no chunk of it is left"


@pytest.mark.soak
def test_a_server_that_is_away_for_a_moment_changes_no_pace_and_a_lost_lease_is_taken_again(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefect_server
    told: dict[str, float] = {}
    with to_prefect() as proxy, Shares({"y": 10.0}, lambda _, pace: bool(told.update(y=pace)) or True) as shares:
        shares.in_flight({"y": 1})
        away = re.compile(rb"/renew|GET \S+/concurrency_limits/")
        proxy.fault = lambda data: "500" if away.search(data) else "pass"
        assert until(lambda: proxy.count >= 3, 60)
        assert (told, shares.most(2)) == ({"y": 0.1}, {"y": 2})
        with monkeypatch.context() as later:
            later.setattr(leases, "LEASE_SECONDS", 1)
            assert until(lambda: told == {"y": rates.HELD}, 30), "its lease may have expired, and others joined"
            assert shares.most(2) == {"y": 0}
        free_the_gate()  # a server that was started again without its leases
        proxy.fault = no_fault
        assert until(lambda: held("y") == 1 and told == {"y": 0.1}, 20)
        assert shares.most(2) == {"y": 2}
