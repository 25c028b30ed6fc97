"""The embedded lake's Prefect server: `lake` starts it if PREFECT_API_URL is not set, and reuses it.

It is a normal server, not Prefect's ephemeral one, which would start once per Dask worker, never free a dead holder's
slot, and run no schedules.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from ducklake_flows.errors import CatalogError, LakeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ducklake_flows.settings import Settings

PORT = 4200
"""The first port that is tried for a lake's server: Prefect's own default."""

START_SECONDS = 240
"""Maximum seconds until a new server answers; the first start on a machine migrates its database."""

SERVER_SETTINGS = {
    # Leases on disk: a restarted server must know who holds the gate, and free the slot of a killed holder.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "5",
    # The gate is held for fractions of a second: waiters retry after 1 s instead of 30 s.
    "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    # A run that waits for its deployment's concurrency limit retries after 5 s.
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
    # SQLite allows one writer: wait instead of failing, and write less.
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P3D",
    # Hourly: runs that ended 30 days ago are deleted, with their logs, task runs and artifacts. The ledger stays.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "2592000",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
}

CLIENT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_COLORS": "false",
    # Seconds between a run's heartbeats; see `ducklake_flows.orchestration.automations`.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # A worker looks for due runs this often: a run starts seconds earlier than with the default of ten.
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}


def use(settings: Settings) -> str:
    """Point this process and its children at a Prefect server, and wait until it answers; see `begin`."""
    url = begin(settings)
    wait(settings, url)
    return url


def begin(settings: Settings) -> str:
    """Point this process and its children at a Prefect server, and start one if necessary.

    If PREFECT_API_URL is set, that server is used. Otherwise the lake's own server is used, and started if it does not
    run. Call this before Prefect is imported.

    Returns:
        The API's URL. The server may not answer yet: call `wait` before the first request.

    Raises:
        CatalogError: the lake's folder cannot be written.
    """
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = folder(settings)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "server.lock").open("w") as lock:
            # Two concurrent commands must not start two servers on one database.
            fcntl.flock(lock, fcntl.LOCK_EX)
            url = running(settings) or _start(home)
    except OSError as error:
        raise CatalogError(
            f"The lake's folder cannot be written: {error.strerror or error} ({home})",
            "set LAKE_HOME to a writable folder, then run the same command again",
        ) from None
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_API_URL"] = url
    return url


def wait(settings: Settings, url: str) -> None:
    """Wait until the server answers.

    Raises:
        LakeError: it ended or took too long; the message names its log, or the setting with its address.
    """
    state = _state(settings)
    ours = state if state and state["url"] == url else None
    if ours is None and not until(lambda: answers(url), 10):
        raise LakeError(
            f"The Prefect server at {url} does not answer.",
            "start it, or unset PREFECT_API_URL to use a local server; then run the same command again",
        )
    if ours is None:
        return
    pid, port = int(ours["pid"]), urlsplit(url).port or 0
    # A server of another lake may answer at this address: this one's process must listen there.
    until(lambda: not _alive(pid) or (_listens(pid, port) and answers(url)), START_SECONDS)
    if not _alive(pid) and not is_free(port):
        raise LakeError(
            f"Another process took port {port} while the local Prefect server was starting.",
            "run the same command again",
        )
    if not _alive(pid) or not answers(url):
        raise LakeError(
            f"The local Prefect server did not start within {START_SECONDS} s, or it ended.",
            f"read its log: {folder(settings) / 'server.log'}",
        )


def running(settings: Settings) -> str | None:
    """The API URL of the lake's own server; None if its process does not run."""
    state = _state(settings)
    return str(state["url"]) if state and _alive(state["pid"]) else None


def stop(settings: Settings) -> bool:
    """Stop the lake's own server by its process id.

    Returns:
        Whether one was running.
    """
    state = _state(settings)
    _state_file(settings).unlink(missing_ok=True)
    if not state or not _alive(state["pid"]):
        return False
    os.kill(state["pid"], signal.SIGTERM)
    until(lambda: not _alive(state["pid"]), 15)
    if _alive(state["pid"]):
        os.kill(state["pid"], signal.SIGKILL)
    return True


def ui_url(api_url: str) -> str:
    """The address of the server's UI."""
    return api_url.removesuffix("/api")


def folder(settings: Settings) -> Path:
    """The folder of the lake's own server: its database, logs, port and locks."""
    return settings.home / "prefect"


def _state_file(settings: Settings) -> Path:
    return folder(settings) / "server.json"


def _state(settings: Settings) -> dict[str, Any] | None:
    try:
        return dict(json.loads(_state_file(settings).read_text()))
    except (OSError, ValueError):
        return None


def _start(home: Path) -> str:
    port = kept_port(home / "port", PORT)
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, **SERVER_SETTINGS, "PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    (home / "server.json").write_text(json.dumps({"pid": process.pid, "url": url}))
    return url


def kept_port(file: Path, first: int) -> int:
    """The port that this file keeps, if it is free; else the next free one from `first` on."""
    try:
        kept = int(file.read_text())
    except (OSError, ValueError):
        kept = 0
    if kept and is_free(kept):
        return kept
    port = next(filter(is_free, range(first, first + 1000)))
    if not kept:
        # A port that is taken now stays this lake's: its address is the old one again at the next start.
        file.write_text(str(port))
    return port


def is_free(port: int) -> bool:
    """Whether nothing listens at a port of this machine's loopback."""
    with socket.socket() as probe:
        # As the server does: the last server's closed connections do not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _listens(pid: int, port: int) -> bool:
    """Whether a process listens at a port."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def answers(url: str) -> bool:
    """Whether a Prefect API answers at this address."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _alive(pid: int) -> bool:
    """Whether the process runs and is a Prefect server: another process may have got its id meanwhile."""
    with contextlib.suppress(ChildProcessError):
        # A child of this process that ended stays a zombie until it is waited for.
        os.waitpid(pid, os.WNOHANG)
    proc = Path("/proc")
    if proc.exists():
        try:
            command = (proc / str(pid) / "cmdline").read_bytes()
            ended = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            # The command line is empty for a moment during exec.
            return not ended and (not command or b"prefect" in command)
        except (FileNotFoundError, ProcessLookupError):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: Callable[[], object], seconds: float = 60, every: float = 0.1) -> bool:
    """Poll a condition until it holds.

    Args:
        condition: The condition.
        seconds: Maximum time to wait.
        every: Seconds between two polls.

    Returns:
        Whether it held in time.
    """
    try:
        Retrying(retry=retry_if_result(lambda held: not held), stop=stop_after_delay(seconds), wait=wait_fixed(every))(
            condition
        )
    except RetryError:
        return False
    return True
