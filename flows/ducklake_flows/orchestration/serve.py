"""`lake serve`: the lake's Prefect server, deployments, a worker for each of their pools, and metrics, until Ctrl-C.

A worker and its runs are separate processes, as in production: work queues, limits, cancellation and triggers are those
of a work pool, which Prefect's own `serve` does not have.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TextIO

import psutil

from ducklake_flows.errors import LakeError
from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import connected
from ducklake_flows.orchestration import server
from ducklake_flows.report.words import count
from ducklake_flows.settings import PROD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings

STOP_SECONDS = 20
"""Seconds until a worker that was asked to end is killed, and so for its runs."""

METRICS_PORT = 9464
"""The first port that is tried for the lake's metrics."""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNDER_WAY = ("PENDING", "RUNNING", "CANCELLING")


def serve(settings: Settings, datasets: Sequence[Dataset], tell: Callable[[str], None]) -> None:
    """Serve the lake until Ctrl-C, SIGTERM or `stop`: see the module.

    Args:
        settings: The project's settings.
        datasets: Its datasets, whose tables are created if they are missing.
        tell: Shows the user a line.

    Raises:
        LakeError: it is served already, or the server or a worker ended.
    """
    own = "PREFECT_API_URL" not in os.environ
    for number in _STOPPING:
        signal.signal(number, signal.default_int_handler)
    workers: list[subprocess.Popen[bytes]] = []
    pools: list[str] = []
    with _alone(settings) as state, contextlib.ExitStack() as held:
        try:
            url = server.use(settings)
            pools = _deploy(settings, datasets, tell)
            if own:
                _mark_lost(pools)
            for pool in pools:
                workers.append(_start_worker(settings, pool))
                _write(state, [worker.pid for worker in workers])
            _wait_for_workers(settings, workers, pools)
            _catch_up(settings, tell)
            tell(f"Metrics are at {held.enter_context(_metrics(settings))}")
            tell(f"Serving {len(pools)} work pool{'s' * (len(pools) > 1)} at {server.ui_url(url)}; Ctrl-C stops it.")
            tell(f"In another terminal:  export PREFECT_API_URL={url}; prefect deployment run ingest/ingest")
            _watch(settings, workers, own=own)
        except KeyboardInterrupt:
            pass
        finally:
            for number in _STOPPING:
                # A second Ctrl-C must not leave a half of it behind.
                signal.signal(number, signal.SIG_IGN)
            _end([worker.pid for worker in workers])
            if own:
                with contextlib.suppress(Exception):
                    # The server may be what has ended.
                    _mark_lost(pools)
                server.stop(settings)


def serving(settings: Settings) -> bool:
    """Whether `lake serve` runs for this lake."""
    try:
        with _state_file(settings).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def stop(settings: Settings) -> bool:
    """Stop `lake serve` and wait until it has ended; end the workers that a killed one left behind.

    Returns:
        Whether there was one.
    """
    if not serving(settings):
        return _end(_read(settings).get("workers", []))
    with contextlib.suppress(ProcessLookupError):
        os.kill(_read(settings)["pid"], signal.SIGTERM)
    server.until(lambda: not serving(settings), 3 * STOP_SECONDS)
    return True


def _state_file(settings: Settings) -> Path:
    return server.folder(settings) / "serve.json"


def _read(settings: Settings) -> dict[str, Any]:
    try:
        return dict(json.loads(_state_file(settings).read_text()))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[TextIO]:
    """Hold the lake's only `lake serve`. The lock ends with the process, however that ends."""
    _state_file(settings).parent.mkdir(parents=True, exist_ok=True)
    with _state_file(settings).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            address = server.running(settings) or os.environ.get("PREFECT_API_URL", "")
            raise LakeError(
                f"This lake is served already, at {server.ui_url(address)} (process {_read(settings).get('pid')}).",
                "use that one, or stop it with: lake down",
            ) from None
        _end(_read(settings).get("workers", []))
        _write(file, [])
        yield file


def _write(file: TextIO, workers: list[int]) -> None:
    file.truncate(0)
    json.dump({"pid": os.getpid(), "workers": workers}, file)
    file.flush()


def _deploy(settings: Settings, datasets: Sequence[Dataset], tell: Callable[[str], None]) -> list[str]:
    """Create what is missing, as `lake init` and `lake deploy` do. Returns the work pools."""
    # Prefect is imported only now: it reads the server's address at import.
    from ducklake_flows.orchestration import deploy
    from ducklake_flows.orchestration.bootstrap import initialise

    for made in initialise(settings, datasets):
        tell(f"Created {made}.")
    done = deploy.deploy(settings)
    for change in done.changes:
        tell(f"{change[0].upper()}{change[1:]}.")
    for kept in done.kept:
        tell(f"Kept as it is: {kept}.")
    return done.pools


def _metrics(settings: Settings) -> AbstractContextManager[str]:
    """Serve the lake's metrics, at the same address at every start. The context is the URL."""
    from ducklake_flows.report import metrics

    return metrics.serving(settings, server.kept_port(server.folder(settings) / "metrics-port", METRICS_PORT))


def _start_worker(settings: Settings, pool: str) -> subprocess.Popen[bytes]:
    """Start a worker whose runs find the project and the lake from any folder."""
    with (server.folder(settings) / "worker.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", pool, "--name", _name()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **settings.environment(), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"},
            # A Ctrl-C in the terminal must not reach the runs before the worker has stopped them.
            start_new_session=True,
        )


def _name() -> str:
    return f"lake-serve-{os.getpid()}"


def _wait_for_workers(settings: Settings, workers: Sequence[subprocess.Popen[bytes]], pools: Sequence[str]) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:

        def online(pool: str) -> bool:
            names = {"work_pool_name": pool}
            there = client.request(
                "POST", "/work_pools/{work_pool_name}/workers/filter", path_params=names, json={}
            ).json()
            return any(one["name"] == _name() and one["status"] == "ONLINE" for one in there)

        server.until(lambda: all(map(online, pools)) or _ended(workers), server.START_SECONDS, every=0.5)
    _check(settings, workers)


def _catch_up(settings: Settings, tell: Callable[[str], None]) -> None:
    """Start a transform if partitions are newer than the models: its trigger is lost if the server ends meanwhile."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from ducklake_flows.orchestration.events import transform_waits

    with connected(settings, read_only=True) as con:
        newer = ledger.unbuilt(con, PROD) if ledger.built_project(con, PROD) else {}
    if not newer or transform_waits():
        return
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name("transform/transform")
        except ObjectNotFound:
            return  # the project has no models any more
        client.create_flow_run_from_deployment(deployment.id)
    tell(f"Started a transform: {count(len(newer), 'partition')} newer than the models.")


def _watch(settings: Settings, workers: Sequence[subprocess.Popen[bytes]], *, own: bool) -> None:
    """Return never; raise once the server or a worker has ended."""
    while True:
        server.until(lambda: _ended(workers) or (own and not server.running(settings)), 3600, every=1)
        _check(settings, workers)
        if own and not server.running(settings):
            log = server.folder(settings) / "server.log"
            raise LakeError("The local Prefect server ended.", f"read its log: {log}; then: lake serve")


def _ended(workers: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(worker.poll() is not None for worker in workers)


def _check(settings: Settings, workers: Sequence[subprocess.Popen[bytes]]) -> None:
    if _ended(workers):
        log = server.folder(settings) / "worker.log"
        raise LakeError("A worker ended.", f"read its log: {log}; then: lake serve")


def _end(pids: Sequence[int]) -> bool:
    """End workers and everything below them. Returns whether one ran."""
    found = [process for pid in pids if (process := _worker(pid))]
    tree = [*found, *(child for process in found for child in process.children(recursive=True))]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(tree, timeout=STOP_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return bool(found)


def _worker(pid: int) -> psutil.Process | None:
    """The worker of this id; None if it has ended and the id may be another process's."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if "worker" in process.cmdline():
            return process
    return None


def _mark_lost(pools: Sequence[str]) -> None:
    """Mark the runs whose process is gone as crashed: with their worker gone, nothing else would within minutes."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.states import Crashed

    where = {"state": {"type": {"any_": list(_UNDER_WAY)}}}
    pool_filter = WorkPoolFilter.model_validate({"name": {"any_": list(pools)}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(where), work_pool_filter=pool_filter
        ):
            if not (run.infrastructure_pid and _runs(run.infrastructure_pid)):
                message = "`lake serve` was stopped. What the run published stays published: run it again."
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def _runs(pid: str) -> bool:
    return pid.isdigit() and psutil.pid_exists(int(pid))
