"""The embedded default's Prefect server: `lake` starts it when no PREFECT_API_URL is set, and reuses it.

A normal server, not Prefect's ephemeral one: that starts once per Dask worker, never frees a dead holder's slot and
runs no schedules.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from flows.errors import CatalogError, LakeError
from flows.settings import Settings

START_SECONDS = 120
"""How long a new server may take until it answers; the first start on a machine migrates its database."""

SERVER_SETTINGS = {
    # A restarted server must know who holds the gate, and free what a killed holder left: leases on disk.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "5",
    # The gate is held for fractions of a second: a waiter asks again after one, not after thirty.
    "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    # SQLite has one writer: wait for it instead of failing, and write less.
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P3D",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
}

CLIENT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_CLIENT_MAX_RETRIES": "10",
    "PREFECT_CLI_COLORS": "false",
}


def use(settings: Settings) -> str:
    """Make sure that this process and its children have a Prefect server.

    Where PREFECT_API_URL is set, that server is used as it is. Otherwise the lake's own one is used, and started
    first when it does not run. Call it before Prefect is imported.

    Returns:
        The API's URL.

    Raises:
        LakeError: the server does not come up; names its log.
    """
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    os.environ["PREFECT_HOME"] = str(_home(settings))
    url = running(settings) or _start(settings)
    os.environ["PREFECT_API_URL"] = url
    return url


def running(settings: Settings) -> str | None:
    """The URL of the lake's own server's API, None when it does not run."""
    state = _state(settings)
    return state["url"] if state and _alive(state["pid"]) and _answers(state["url"]) else None


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
    _until(lambda: not _alive(state["pid"]), 15)
    if _alive(state["pid"]):
        os.kill(state["pid"], signal.SIGKILL)
    return True


def ui_url(api_url: str) -> str:
    """The address of the server's UI."""
    return api_url.removesuffix("/api")


def _home(settings: Settings) -> Path:
    return settings.home / "prefect"


def _state_file(settings: Settings) -> Path:
    return _home(settings) / "server.json"


def _state(settings: Settings) -> dict[str, object] | None:
    try:
        return dict(json.loads(_state_file(settings).read_text()))
    except (OSError, ValueError):
        return None


def _start(settings: Settings) -> str:
    home = _home(settings)
    try:
        home.mkdir(parents=True, exist_ok=True)
        log = (home / "server.log").open("ab")
    except OSError as error:
        raise CatalogError(
            f"The lake's folder cannot be written: {error.strerror or error} ({home})",
            "set LAKE_HOME to a folder that can be written",
        ) from None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, **SERVER_SETTINGS, "PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    with log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    if not _until(lambda: process.poll() is not None or _answers(url), START_SECONDS) or process.poll() is not None:
        if process.poll() is None:
            process.kill()
        raise LakeError("The local Prefect server did not start.", f"read {home / 'server.log'}")
    _state_file(settings).write_text(json.dumps({"pid": process.pid, "url": url}))
    return url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _alive(pid: object) -> bool:
    """Whether the process runs and is a Prefect server (a process id may have been given to another since)."""
    try:
        return b"prefect" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        pass
    try:
        os.kill(int(str(pid)), 0)
    except OSError:
        return False
    return not Path("/proc").exists()


def _until(condition: object, seconds: float) -> bool:
    """Poll a condition until it holds."""
    deadline = time.monotonic() + seconds
    while not (held := bool(condition())) and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.1)
    return held
