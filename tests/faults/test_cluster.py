"""SIGKILL to each process of a run on an existing Dask cluster: the run, a worker, the scheduler."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deployments.services import HOST, Service, dask_scheduler, dask_worker, free_port
from ducklake_flows.errors import LakeError
from ducklake_flows.ingest import ingest
from ducklake_flows.orchestration.server import until
from ducklake_flows.states import Mode
from tests.faults.conftest import Contents, Killer, found, free_the_gate, land, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Lake

GONE = 3
"""The exit code of a run that reports that it found no scheduler or lost it."""

DAYS = [f"2024-01-{day:02}" for day in range(1, 9)]


@dataclass
class Cluster:
    """A Dask scheduler and two workers under a supervisor that restarts dead processes."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)

    def __enter__(self) -> Cluster:
        self.scheduler = dask_scheduler(f"tcp://{HOST}:{self.port}", self.folder).start()
        self.workers = [
            dask_worker(n, f"tcp://{HOST}:{self.port}", self.folder, self.environment).start() for n in range(2)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for service in (*self.workers, self.scheduler):
            service.kill()

    @property
    def services(self) -> list[Service]:
        return [self.scheduler, *self.workers]

    def supervise(self) -> None:
        """Restart dead services. Workers exit once they notice that their scheduler died."""
        if not self.scheduler.is_alive:
            for service in (*self.workers, self.scheduler):
                service.kill()
        for service in self.services:
            if not service.is_alive:
                service.start()

    def kill(self, who: str) -> None:
        """Kill the scheduler, or a worker process but not its nanny."""
        if who == "scheduler":
            self.scheduler.kill()
            return
        for child in psutil.Process(self.workers[0].pid).children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()


@pytest.fixture
def cluster(gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    port = free_port()
    monkeypatch.setenv("LAKE_DASK_ADDRESS", f"tcp://{HOST}:{port}")
    environment = {k: v for k, v in os.environ.items() if k.startswith("LAKE_")}
    with Cluster(tmp_path, {**environment, "PREFECT_API_URL": PREFECT_API_URL.value()}, port) as running:
        yield running


def backfill(lake: Lake, url: str, home: str) -> None:
    """A run in a separate process."""
    with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: Path(home)}):
        try:
            ingest(["readings"], date.fromisoformat(DAYS[0]), date.fromisoformat(DAYS[-1]), Mode.all)
        except LakeError as error:
            sys.exit(GONE if "Dask scheduler" in error.message else str(error))


@pytest.mark.short("sqlite+folder")
def test_a_lost_scheduler_ends_the_run_and_the_next_run_finishes(
    gated_lake: Lake, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = gated_lake.settings.home
    home.mkdir(exist_ok=True)  # the S3 settings do not create it
    (home / "wait").touch()

    def kill_it_when_asked() -> None:
        assert until(lambda: list(home.glob("asked-*")))
        cluster.scheduler.kill()

    killer = threading.Thread(target=kill_it_when_asked)
    killer.start()
    with pytest.raises(LakeError, match=r"Dask scheduler at .* was lost"):
        ingest(["waiting"], date(2024, 2, 1), date(2024, 2, 4))
    killer.join()
    assert gated_lake.errors() == []
    assert gated_lake.sql("FROM ops.ledger") == [], "no partition is to blame"
    (home / "wait").unlink()
    cluster.supervise()
    assert ingest(["waiting"], date(2024, 2, 1), date(2024, 2, 4))["published"] == 4


@pytest.mark.soak
def test_a_kill_of_a_run_a_worker_or_the_scheduler_leaves_whole_partitions_and_the_next_run_finishes(
    gated_lake: Lake,
    cluster: Cluster,
    kill: Killer,
    seeds: Callable[[int, int], list[int]],
    record_property: Callable[[str, object], None],
) -> None:
    chosen = seeds(50, 50)
    record_property("cases", len(chosen))
    server = (PREFECT_API_URL.value(), str(PREFECT_HOME.value()))
    before: Contents = {}
    for number in chosen:
        seed = random.Random(number)
        wanted = {day: (seed.randint(1, 50), number) for day in DAYS}
        land(gated_lake, wanted)
        run = kill.start(backfill, *server)
        run.join(seed.uniform(0.5, 4))
        who = seed.choice(["run", "worker", "scheduler"])
        if run.is_alive():
            run.kill() if who == "run" else cluster.kill(who)
        cluster.supervise()
        run.join(120)
        assert run.exitcode in (0, GONE, -signal.SIGKILL), f"seed {number} ({who}): {run.exitcode}"
        here = found(gated_lake) if before else {}
        assert all(content in (wanted[day], before.get(day)) for day, content in here.items()), f"seed {number} ({who})"
        assert gated_lake.errors() == [], f"seed {number} ({who})"
        free_the_gate()

        again = kill.start(backfill, *server)
        again.join(120)
        assert again.exitcode == 0, f"seed {number} ({who})"
        assert found(gated_lake) == wanted, f"seed {number} ({who})"
        assert told(gated_lake) == {day: rows for day, (rows, _) in wanted.items()}, f"seed {number} ({who})"
        assert gated_lake.errors() == [], f"seed {number} ({who})"
        before = wanted
