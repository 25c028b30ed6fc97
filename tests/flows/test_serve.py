"""`lake serve` on the embedded lake, as a user runs it: from each way to start a run to gold, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_fixed

from ducklake_flows import templates
from ducklake_flows.lake.connect import connected, rows
from ducklake_flows.orchestration.server import until
from ducklake_flows.settings import Settings
from tests.conftest import DATASETS, prepare_server, settings_from
from tests.regressions.test_metrics import parsed

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent


class Patient(httpx.HTTPTransport):
    """Asks again, as Prefect's own client does, when Prefect answers 503: another write was in its SQLite database."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        busy = retry_if_result(lambda answer: answer.status_code == httpx.codes.SERVICE_UNAVAILABLE)
        return Retrying(retry=busy, stop=stop_after_attempt(50), wait=wait_fixed(0.2))(super().handle_request, request)


class Served:
    """A project of `lake new` with its sample, in a folder whose name needs quoting, and commands in another folder."""

    def __init__(self, folder: Path, prefect_database: Path) -> None:
        self.project, self.elsewhere = folder / "my $lake's home", folder / "elsewhere"
        self.elsewhere.mkdir()
        templates.write_project(self.project, name="shop")
        shutil.copy(DATASETS / "waiting.py", self.project / "datasets")
        shutil.copy(self.project / ".env.example", self.project / ".env")
        self.home = self.project / ".lake"
        self.port = prepare_server(Settings(home=self.home), prefect_database)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAKE_", "PREFECT_"))}
        self.environment = {**clean, "LAKE_PROJECT": str(self.project)}
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=60, transport=Patient())

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api"}
        if command[0] == "lake":
            del environment["PREFECT_API_URL"]
        command = (str(BIN / command[0]), *command[1:])
        return subprocess.run(
            command, cwd=self.elsewhere, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    def lake(self, *arguments: str) -> str:
        done = self.run("lake", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """`lake serve` that has started. Afterwards nothing of it runs."""
        printed = self.project.parent / "printed"
        with printed.open("wb") as output:
            command = [str(BIN / "lake"), "serve"]
            serve = subprocess.Popen(command, cwd=self.project, env=self.environment, stdout=output, stderr=output)
        try:
            assert until(lambda: b"Serving" in printed.read_bytes() or serve.poll() is not None, 200)
            assert serve.poll() is None, printed.read_text()
            self.printed = printed.read_text()
            yield serve
            assert serve.wait(300) == 0, printed.read_text()
            assert self.left() == []
        finally:
            for process in [serve, *self.left()]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    process.kill()
            serve.wait()

    def left(self) -> list[psutil.Process]:
        """Every process with this lake's Prefect home in its environment: server, worker, runs, their children."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == str(self.home / "prefect"):
                    found.append(process)
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def button(self, deployment: str, **body: Any) -> httpx.Response:
        """Start a run as the button in the UI does."""
        return self.api.post(f"deployments/{self.deployment(deployment)['id']}/create_flow_run", json=body)

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.api.get(f"deployments/name/{name}/{name}").raise_for_status().json())

    def states(self) -> dict[str, str]:
        """The states of all runs that a schedule did not create, by the runs' names."""
        found = self.api.post("flow_runs/filter", json={}).raise_for_status().json()
        return {run["name"]: run["state_name"] for run in found if not run["auto_scheduled"]}

    def state(self, run: str) -> str | None:
        answer = self.api.get(f"flow_runs/{run}")
        return str(answer.json()["state_name"]) if answer.is_success else None

    def gold(self) -> dict[str, int]:
        """Orders in gold by day."""
        with connected(settings_from(self.environment, home=self.home), read_only=True) as con:
            if not rows(con, "SELECT 1 AS x FROM duckdb_views() WHERE view_name = 'orders_daily'"):
                return {}
            found = rows(
                con, "SELECT order_date::VARCHAR AS day, sum(orders)::INT AS n FROM gold.orders_daily GROUP BY 1"
            )
        return {row["day"]: row["n"] for row in found}


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which a process listens."""
    with contextlib.suppress(psutil.Error):
        found = process.net_connections("inet")
        return {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
    return set()


@pytest.fixture
def served(tmp_path: Path, prefect_database: Path) -> Served:
    return Served(tmp_path, prefect_database)


def test_every_trigger_brings_its_rows_to_gold_and_ctrl_c_leaves_nothing(served: Served) -> None:
    with served.serving() as serve:
        assert f"Serving 1 work pool at http://127.0.0.1:{served.port};" in served.printed
        second = served.run("lake", "serve")
        assert second.returncode == 1
        assert second.stderr == (
            f"error: This lake is served already, at http://127.0.0.1:{served.port} (process {serve.pid}).\n"
            "next:  use that one, or stop it with: lake down\n"
        )

        # Whoever may start a run may choose its parameters, and neither its command nor its environment.
        found = served.project.parent / "found"
        for variables in ({"command": f"touch {found}"}, {"env": {"PYTHONSTARTUP": "x"}}, {"env.LAKE_HOME": "x"}):
            refused = served.button("ingest", job_variables=variables)
            assert refused.status_code == 422, refused.text

        button_run = served.button(
            "ingest", parameters={"datasets": ["orders"], "partitions": ["2024-01-01"], "workers": 1}
        )
        button = button_run.raise_for_status().json()
        only = '{"datasets": ["orders"], "partitions": ["2024-01-02"], "workers": 1}'
        done = served.run("prefect", "deployment", "run", "ingest/ingest", "--params", only)
        assert done.returncode == 0, done.stdout + done.stderr
        assert served.lake("emit", "orders", "2024-01-03") == "Emitted: orders 2024-01-03.\n"
        days = {"2024-01-01": 3, "2024-01-02": 2, "2024-01-03": 3}
        assert until(lambda: served.gold() == days, 300, every=1), (served.gold(), served.states())
        assert until(lambda: set(served.states().values()) == {"Completed"}, 200, every=1), served.states()

        address = re.search(r"Metrics are at (http://127\.0\.0\.1:\d+/metrics)\n", served.printed)
        assert address
        metrics = parsed(httpx.get(address[1], timeout=60).text)
        assert (metrics["lake_up",], metrics["lake_rows", "orders"]) == (1, 8)
        assert served.deployment("freshness")["schedules"][0]["schedule"]["cron"] == "20 4 * * *"

        # Ctrl-C during a run. It was created past the check of its variables: the job template ignores them.
        (served.home / "wait").touch()
        body = {
            "state": {"type": "SCHEDULED"},
            "flow_id": served.deployment("ingest")["flow_id"],
            "deployment_id": served.deployment("ingest")["id"],
            "work_pool_name": "lake",
            "work_queue_name": "default",
            "parameters": {"datasets": ["waiting"], "workers": 1},
            "job_variables": {"command": f"touch {found}", "env": {"LAKE_PROJECT": "/"}, "env.LAKE_HOME": "/"},
        }
        lost = served.api.post("flow_runs/", json=body).raise_for_status().json()
        assert until(lambda: list(served.home.glob("asked-*")), 300), served.states()
        assert not found.exists()
        # The server has no password: neither it nor anything else may be reached from another machine.
        addresses = {ip for process in served.left() for ip in listening(process)}
        assert addresses
        assert addresses <= {"127.0.0.1", "::1"}
        serve.send_signal(signal.SIGINT)
    (served.home / "wait").unlink()

    # Prefect's own database does not grow for ever: a run of 31 days ago is deleted.
    with contextlib.closing(sqlite3.connect(served.home / "prefect" / "prefect.db")) as database, database:
        age = "UPDATE flow_run SET end_time = datetime(end_time, '-31 days') WHERE id = ?"
        assert database.execute(age, [button["id"]]).rowcount == 1
    # The trigger of a transform was lost with the server: the next start makes up for it.
    with connected(settings_from(served.environment, home=served.home)) as con:
        con.execute("DELETE FROM lake.ops.builds WHERE partition = '2024-01-02'")
    assert re.search(r"orders: [12] partitions? (is|are) newer than silver and gold", served.lake("verify"))
    with served.serving():
        # The same address, and nothing is created a second time.
        assert f"at http://127.0.0.1:{served.port};" in served.printed
        assert "Created" not in served.printed
        assert "Started a transform: " in served.printed
        assert address[0] in served.printed
        assert served.state(lost["id"]) == "Crashed"
        assert until(lambda: served.state(button["id"]) is None, 60)
        assert until(lambda: served.lake("verify") == "The lake is right.\n", 200, every=1), served.lake("verify")
        assert served.lake("down") == "Stopped.\n"
    assert served.lake("down") == "It was not running.\n"
    assert "for that: lake serve" in served.lake("up")
    served.lake("down")
