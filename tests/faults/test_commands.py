"""SIGKILL during a whole command, at the points that only a run reaches; then the same command again."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ducklake_flows.orchestration.server import until
from ducklake_flows.settings import load_settings
from ducklake_flows.testing.failpoints import POINTS, Point
from ducklake_flows.transform import transform
from tests.faults.conftest import Contents, found, free_the_gate, held, land, soaking, told
from tests.faults.proxy import Proxy
from tests.flows.test_ingest import flights
from tests.flows.test_transform import GOLD, RECOMPUTED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.conftest import Lake, Services

LAKE = str(Path(sys.executable).with_name("lake"))
ARMED = Path(__file__).parent / "armed"
"""With this folder on PYTHONPATH, its `sitecustomize` arms every process of a command."""
RECEIPTED, BUILD = POINTS[3:5] + POINTS[12:14], POINTS[14:17]
in_short_on_sqlite = pytest.mark.short("sqlite+folder")
IN_THE_GATE = {"gate held", "before the slot is freed", "before the build is recorded"}


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAKE, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> None:
    said = process.communicate(timeout=300)[0]
    assert process.returncode == code, said


def kill_at(switch: Path, point: Point, *arguments: str) -> None:
    """Run a command whose process, or whose build process, is killed at a point."""
    switch.write_text(point)
    armed = {"PYTHONPATH": str(ARMED), "TESTS_KILL_AT": str(switch)}
    finish(command(*arguments, **armed), 1 if point in ("mid interval", "interval committed") else -9)
    assert not switch.exists()


@in_short_on_sqlite
@pytest.mark.parametrize(
    ("days", "short", "long"),
    [
        (("2024-01-01", "2024-01-02", "2024-01-03"), RECEIPTED[1:4:2], RECEIPTED),
        (("2024-01-01",), POINTS[1:2], POINTS[:3] + RECEIPTED),  # it is extracted in the run's process
    ],
)
def test_a_kill_in_a_backfill_leaves_no_row_lost_duplicated_or_partially_published(
    gated_lake: Lake,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    days: tuple[str, ...],
    short: Sequence[Point],
    long: Sequence[Point],
) -> None:
    backfill = ("backfill", "readings", "--start", days[0], "--end", days[-1], "--mode", "all", "--workers", "1")
    before: Contents = {}
    for number, point in enumerate(long if soaking(request.config) else short, start=1):
        wanted = {day: (n + number, number) for n, day in enumerate(days)}
        land(gated_lake, wanted)
        kill_at(tmp_path / "kill-at", point, *backfill)
        here = found(gated_lake) if before or "raw.readings" in tables(gated_lake) else {}
        committed = point in ("before the slot is freed", "before the event")
        # Chunks are published as they finish: the lake holds some of them, each one completely.
        assert all(here[day] in (wanted[day], before.get(day)) for day in here), f"{point}: {here}"
        assert any(content in wanted.values() for content in here.values()) == committed, point
        assert gated_lake.errors() == [], point
        assert held() == (point in IN_THE_GATE), point
        if point in IN_THE_GATE:
            free_the_gate()

        finish(command(*backfill))
        assert found(gated_lake) == wanted, point
        assert told(gated_lake) == {day: rows for day, (rows, _) in wanted.items()}, point
        assert gated_lake.errors() == [], point
        assert held() == 0
        before = wanted


def tables(lake: Lake) -> list[str]:
    return lake.column("SELECT schema_name || '.' || table_name FROM duckdb_tables()")


def land_flights(lake: Lake, rows: int) -> None:
    for day in (1, 2):
        lake.land(f"flights/2013-01-{day:02}.csv", flights(day, rows + day))
    lake.load("flights", "2013-01-01", "2013-01-02")


@in_short_on_sqlite
def test_the_next_transform_completes_a_killed_transform(
    gated_lake: Lake, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    land_flights(gated_lake, 1)
    transform()
    for number, point in enumerate(BUILD if soaking(request.config) else BUILD[:1], start=2):
        land_flights(gated_lake, number)
        kill_at(tmp_path / "kill-at", point, "transform")
        assert gated_lake.errors() == [], point
        free_the_gate()  # a killed transform also leaves its own limit occupied
        transform()
        assert gated_lake.sql(GOLD) == gated_lake.sql(RECOMPUTED), point
        assert gated_lake.errors() == [], point
        assert held() == 0
    assert transform()["models"] == []


@pytest.mark.soak
@pytest.mark.parametrize("lake", ["postgres+s3"], indirect=True)
def test_the_next_transform_completes_a_model_whose_commit_was_cut_off(
    lake: Lake, prefect_server: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ducklake_flows.errors import LakeError
    from ducklake_flows.orchestration import gate

    gate.ensure()
    land_flights(lake, 1)
    with Proxy(services.postgres.port) as proxy, monkeypatch.context() as through:
        direct = lake.settings.catalog
        through.setenv("LAKE_CATALOG", direct.replace(f"port={services.postgres.port}", f"port={proxy.port}"))
        commits = itertools.count()
        # The first commits are for views and schemas; a later one is for an interval.
        proxy.fault = lambda data: (
            "cut after" if data.startswith(b"Q") and b"COMMIT" in data and next(commits) == 6 else "pass"
        )
        with pytest.raises(LakeError):
            transform()
        assert proxy.count == 1
    assert load_settings().catalog == direct
    assert lake.errors() == []
    transform()
    assert lake.sql(GOLD) == lake.sql(RECOMPUTED)
    assert lake.errors() == []


def processes_of(pid: int) -> Mapping[str, list[psutil.Process]]:
    """The process of a run and its Dask workers, without those that end meanwhile."""
    workers = []
    with contextlib.suppress(psutil.NoSuchProcess):
        run = psutil.Process(pid)
        for child in run.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.ppid() != pid and "forkserver" in " ".join(child.cmdline()):
                    workers.append(child)
        return {"run": [run], "worker": workers}
    return {"run": [], "worker": []}


def kill_somewhere(process: subprocess.Popen[str], seed: random.Random) -> None:
    """Kill a run or one of its workers after they have started; the seed selects the moment."""
    victim = seed.choice(["run", "worker"])

    def is_over() -> bool:
        return process.poll() is not None

    assert until(lambda: is_over() or len(processes_of(process.pid)["worker"]) == 2, 120)
    if not until(is_over, seed.uniform(0, 4)):
        for one in processes_of(process.pid)[victim][:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.communicate(timeout=300)


@pytest.mark.soak
def test_after_a_kill_of_a_run_or_its_worker_at_any_moment_the_next_run_finishes(
    gated_lake: Lake, seeds: Callable[[int, int], list[int]], record_property: Callable[[str, object], None]
) -> None:
    """The Dask scheduler of a local cluster is part of the run's process."""
    days = [f"2024-01-{day:02}" for day in range(1, 9)]
    backfill = ("backfill", "readings", "--start", days[0], "--end", days[-1], "--mode", "all", "--workers", "2")
    chosen = seeds(40, 40)
    record_property("cases", len(chosen))
    for number in chosen:
        seed = random.Random(number)
        wanted = {day: (seed.randint(1, 50), number) for day in days}
        land(gated_lake, wanted)
        kill_somewhere(command(*backfill), seed)
        if "raw.readings" in tables(gated_lake):
            found(gated_lake)
        assert gated_lake.errors() == [], f"seed {number}"
        free_the_gate()
        finish(command(*backfill))
        assert found(gated_lake) == wanted, f"seed {number}"
        assert told(gated_lake) == {day: rows for day, (rows, _) in wanted.items()}, f"seed {number}"
        assert gated_lake.errors() == [], f"seed {number}"
