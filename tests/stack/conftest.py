"""The production stack, started once for its tests, with helpers for them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from distributed import Client, Security

from deployments.stack import Stack
from ducklake_flows.lake.connect import connected, rows
from ducklake_flows.lake.verify import verify
from ducklake_flows.orchestration import certificates
from ducklake_flows.orchestration.server import until
from ducklake_flows.storage import open_storage
from tests.conftest import DATASETS, DEMO, settings_from, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ducklake_flows.settings import Settings

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Running:
    """A running stack with access to its API, lake and landing zone."""

    stack: Stack
    api: httpx.Client
    settings: Settings

    def land(self, path: str, content: str | bytes) -> None:
        write(open_storage(self.settings.landing, self.settings), path, content)

    def sql(self, query: str) -> list[dict[str, Any]]:
        with connected(self.settings, read_only=True) as con:
            return rows(con, query)

    def errors(self) -> list[str]:
        return [f"{f.check}: {f.subject}: {f.message}" for f in verify(self.settings) if f.severity == "error"]

    def lake(self, *arguments: str, check: bool = True) -> str:
        """Run the `lake` command. Returns its output, or its errors if it must fail (``check=False``)."""
        done = self.stack.run("lake", *arguments, check=False)
        assert (done.returncode == 0) == check, done.stdout + done.stderr
        return done.stdout if check else done.stderr

    def post(self, path: str, json: Any) -> Any:
        answer = self.api.post(path, json=json)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        flow = "ingest" if name in ("arrived", "backfill") else name
        return dict(self.api.get(f"deployments/name/{flow}/{name}").raise_for_status().json())

    def start(self, name: str, **parameters: Any) -> str:
        """Start a run of a deployment, as the button in the UI does. Returns the run's id."""
        created = self.post(f"deployments/{self.deployment(name)['id']}/create_flow_run", {"parameters": parameters})
        return str(created["id"])

    def runs(self, **where: Any) -> list[dict[str, Any]]:
        return list(self.post("flow_runs/filter", {"flow_runs": where, "limit": 200}))

    def ended(self, *ids: str, seconds: float = 300) -> Mapping[str, dict[str, Any]]:
        """Wait until these runs have ended; an error after so many seconds."""

        def all_final() -> bool:
            return all(run["state_type"] in FINAL for run in self.runs(id={"any_": list(ids)}))

        assert until(all_final, seconds, every=1), [
            (r["name"], r["state_name"]) for r in self.runs(id={"any_": list(ids)})
        ]
        return {run["id"]: run for run in self.runs(id={"any_": list(ids)})}

    def told(self, run: str) -> list[str]:
        """The state and log of a run and of its child runs, to show why a test failed."""
        (found,) = self.runs(id={"any_": [run]})
        logs = self.post("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
        children = self.runs(parent_flow_run_id={"any_": [run]})
        return [
            f"{found['name']}: {found['state']}",
            *(f"{log['timestamp']} {log['message']}" for log in logs),
            *(line for child in children for line in self.told(child["id"])),
        ]

    def failed(self, runs: Mapping[str, dict[str, Any]]) -> str:
        """The state and log of each of these runs that did not complete. A text: pytest would shorten a list."""
        return "\n".join(
            line for key, run in runs.items() if run["state_type"] != "COMPLETED" for line in self.told(key)
        )

    @contextlib.contextmanager
    def endless(self, month: str = "2024-02") -> Iterator[str]:
        """A running run of the ingest deployment, of four days, whose source yields rows until the end of the block."""
        home = Path(self.stack.environment["LAKE_HOME"])
        home.mkdir(exist_ok=True)
        for asked in home.glob("asked-*"):  # of a run that went on after its block
            asked.unlink()
        (home / "wait").touch()
        try:
            run = self.start("ingest", datasets=["waiting"], start=f"{month}-01", end=f"{month}-04")
            assert until(lambda: list(home.glob("asked-*")), 180), self.told(run)
            yield run
        finally:
            (home / "wait").unlink()
            for asked in home.glob("asked-*"):
                asked.unlink()

    def security(self) -> Security:
        """The certificates of a client of the stack's Dask scheduler."""
        ca, cert, key = (str(self.stack.certificates / name) for name in certificates.FILES)
        return Security(  # type: ignore[no-untyped-call]
            require_encryption=True, tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key
        )

    def assert_nothing_is_left(self) -> None:
        """Assert that an endless run has left nothing: no running chunk, no held gate, no ledger row, no error."""
        with Client(self.stack.environment["LAKE_DASK_ADDRESS"], security=self.security()) as dask:  # type: ignore[no-untyped-call]

            def threads() -> int:
                return sum(dask.run(lambda dask_worker: len(dask_worker.active_threads)).values())

            assert until(lambda: threads() == 0, 30)
        assert self.api.get("v2/concurrency_limits/ducklake-commit").json()["active_slots"] == 0
        assert self.sql("SELECT * FROM ops.ledger WHERE dataset = 'waiting' AND partition > '2024-02'") == []
        assert self.errors() == []

    def quiet(self) -> None:
        """Wait until no run is in progress or due."""
        under_way = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}
        soon = {"type": {"any_": ["SCHEDULED"]}}

        def nothing() -> bool:
            due = [r for r in self.runs(state=soon) if not r["auto_scheduled"]]
            return not due and not self.runs(state=under_way)

        assert until(nothing, 300, every=1), [(r["name"], r["state_name"]) for r in self.runs(state=under_way)]


@pytest.fixture(scope="package")
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """The stack as `make stack` starts it, with three of the tests' datasets in addition to the project's.

    With --screenshots, without them: the pictures are of the project.
    """
    # Not pytest's temporary folder: PostgreSQL runs as another user, who cannot enter it.
    with tempfile.TemporaryDirectory(prefix="lake-stack-") as folder:
        Path(folder).chmod(0o755)
        datasets = Path(folder, "datasets")
        datasets.mkdir()
        for name in ("records.py", "big.py", "waiting.py"):
            shutil.copy(DATASETS / name, datasets)
        folders = str(DEMO) if request.config.getoption("--screenshots") else f"{DEMO}:{datasets}"
        with Stack(Path(folder, "stack"), extra={"LAKE_DATASETS": folders}) as stack:
            user, _, password = stack.environment["PREFECT_API_AUTH_STRING"].partition(":")
            with httpx.Client(base_url=stack.environment["PREFECT_API_URL"], auth=(user, password), timeout=60) as api:
                yield Running(stack, api, settings_from(stack.environment))


@pytest.fixture(scope="package")
def killed(running: Running) -> str:
    """A run whose worker was stopped: the worker kills it without reporting it (PrefectHQ/prefect#16746)."""
    running.quiet()
    with running.endless() as run:
        running.stack.worker.stop()
        try:
            running.assert_nothing_is_left()
        finally:
            running.stack.worker.start()
    return run
