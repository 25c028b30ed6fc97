"""Fixtures for fault tests: processes that are killed at a failpoint or at a random moment, and the number of cases."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.orchestration.server import SERVER_SETTINGS
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import load_settings
from ducklake_flows.staging.inspect import inspect
from ducklake_flows.staging.layout import new_attempt, staged_path
from ducklake_flows.staging.receipt import Receipt
from ducklake_flows.testing.failpoints import Point, arm
from tests.conftest import Lake, Services

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["dlt", "duckdb", "ducklake_flows.ingest", "ducklake_flows.models.build", "tests.conftest"]
)
"""Creates processes that have already imported everything, so that killing one costs no start-up time."""


def _run(environment: Mapping[str, str], switch: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    arm(Path(switch))
    work(Lake(load_settings()), *arguments)


@dataclass
class Killer:
    """Runs work on a lake in a separate process and lets it be killed."""

    switch: Path

    def start(self, work: Callable[..., None], *arguments: Any) -> Any:
        """Start work in a separate process."""
        environment = {k: v for k, v in os.environ.items() if k.startswith("LAKE_")}
        process = PROCESSES.Process(target=_run, args=(environment, str(self.switch), work, arguments))
        process.start()
        return process

    def at(self, point: Point, work: Callable[..., None], *arguments: Any) -> None:
        """Run work in a process that is killed at a failpoint, and wait for its end."""
        self.switch.write_text(point)
        process = self.start(work, *arguments)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{point!r} was never reached: exit code {process.exitcode}"
        assert not self.switch.exists()


@pytest.fixture
def kill(tmp_path: Path) -> Killer:
    return Killer(tmp_path / "kill-at")


Contents = Mapping[str, tuple[int, int]]
"""Contents of `readings`: for each day its number of rows and the value in every row."""


def land(lake: Lake, contents: Contents) -> None:
    for day, (count, value) in contents.items():
        lake.land(f"readings/{day}.jsonl", [{"id": i, "value": value} for i in range(count)])


def found(lake: Lake, table: str = "raw.readings") -> dict[str, tuple[int, int]]:
    """The contents of each day in the lake. Fails if a day has rows of several attempts."""
    days = lake.sql(
        "SELECT day::VARCHAR AS day, count(*) AS n, count(DISTINCT id) AS ids, list(DISTINCT value) AS found "
        f"FROM {table} GROUP BY ALL ORDER BY ALL"
    )
    mixed = [day for day in days if day["n"] != day["ids"] or len(day["found"]) != 1]
    assert not mixed, mixed
    return {day["day"]: (day["n"], day["found"][0]) for day in days}


def told(lake: Lake) -> dict[str, int]:
    """The number of rows of each day according to the ledger."""
    from ducklake_flows.lake import ledger
    from ducklake_flows.lake.connect import connected

    with connected(lake.settings, read_only=True) as con:
        return {key: entry.rows for (_, key), entry in sorted(ledger.latest(con, "readings").items())}


def load(lake: Lake, *days: str) -> None:
    """Extract and publish, as a run does."""
    lake.load("readings", *days)


def staged(lake: Lake, day: str, rows: int, value: int, chunk: str = "") -> Receipt:
    """Stage a day without dlt, which is faster when many are published."""
    ids, values = pa.array(range(rows), pa.int64()), pa.array([value] * rows, pa.int64())
    return staged_as(lake, day, pa.table({"id": ids, "value": values}), chunk)


def staged_as(lake: Lake, day: str, rows: pa.Table, chunk: str = "") -> Receipt:
    """Stage a day with these rows, columns and types; the partition column is appended."""
    dataset = get_dataset("readings")
    partition = parse_partition(day, dataset.grain)
    attempt = new_attempt()
    rows = rows.append_column("day", pa.array([date.fromisoformat(day)] * len(rows), pa.date32()))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        pq.write_table(rows, file)
        seen = inspect(dataset, [partition], [str(file)])[0]
        path = staged_path(dataset, partition, attempt, 0, chunk)
        lake.data.put(file, path)
        size = file.stat().st_size
    return Receipt("readings", day, attempt, (path,), len(rows), size, seen.columns, seen.fingerprint, "", 0.0, 0)


def held() -> int:
    """The number of holders of the gate."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name("ducklake-commit").active_slots


def free_the_gate() -> None:
    """Release the leases of killed holders at once. The expiry after 60 s is tested in tests/stack."""
    from prefect.client.orchestration import get_client

    leases = Path(os.environ["PREFECT_HOME"], "concurrency_leases")
    assert "filesystem" in SERVER_SETTINGS["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    with get_client(sync_client=True) as client:
        for lease in leases.glob("*-*.json"):
            client.request(
                "POST", "/v2/concurrency_limits/decrement-with-lease", json={"lease_id": lease.stem}
            ).raise_for_status()


@dataclass
class Places:
    """Further places for lakes of the test's storage."""

    services: Services
    storage: str
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    lakes: int = 0

    def fresh(self) -> Lake:
        """A further empty lake, which the settings name from then on."""
        self.lakes += 1
        return self.use(self.services.lake(self.storage, self.folder / f"home{self.lakes}"))

    def elsewhere(self) -> dict[str, str]:
        """The settings of a place where no lake is yet."""
        return self.services.environment(self.storage, self.folder / f"elsewhere{len(list(self.folder.iterdir()))}")

    def use(self, environment: Mapping[str, str]) -> Lake:
        for name, value in environment.items():
            self.monkeypatch.setenv(name, value)
        return Lake(load_settings())


@pytest.fixture
def places(
    request: pytest.FixtureRequest,
    services: Services,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> Iterator[Places]:
    """Needs the fixture `lake`, whose storage it takes."""
    found = Places(services, request.node.callspec.params["lake"], tmp_path, monkeypatch)
    yield found
    record_property("cases", found.lakes)


def in_any_order(machine: type[RuleBasedStateMachine], config: pytest.Config, steps: int) -> None:
    """Run a state machine: once with so many steps, or in `make soak` ten times with 40."""
    soak = soaking(config)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=10 if soak else 1,
            stateful_step_count=40 if soak else steps,
            deadline=None,
            derandomize=not soak,
            print_blob=True,
            database=None,
            phases=[Phase.generate, Phase.shrink] if soak else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def soaking(config: pytest.Config) -> bool:
    return bool(config.getoption("--soak"))


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> Callable[[int, int], list[int]]:
    """The seeds to test: few in `make test`, many in `make soak`; ``--seed N`` repeats one."""

    def choose(few: int, many: int) -> list[int]:
        one = request.config.getoption("--seed")
        return [one] if one is not None else list(range(many if soaking(request.config) else few))

    return choose


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print a table at the end of `make soak`: for each promise and storage, the number of cases and failures."""
    if not soaking(config):
        return
    table: dict[tuple[str, str], list[int]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if "tests/faults/" not in report.nodeid or (outcome == "passed" and report.when != "call"):
                continue
            promise = report.nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
            storage = next((s for s in ("sqlite+folder", "postgres+s3") if s in report.nodeid), "")
            row = table.setdefault((promise, storage), [0, 0, 0])
            row[0] += 1
            row[1] += sum(int(value) for name, value in report.user_properties if name == "cases")
            row[2] += outcome != "passed"
    terminalreporter.write_sep("=", "promises")
    for (promise, storage), (tests, cases, failures) in sorted(table.items()):
        terminalreporter.write_line(f"{failures:3} failed of {max(tests, cases):5}  {storage:14} {promise}")
