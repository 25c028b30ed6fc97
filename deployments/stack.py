"""`make stack`: the production stack on this machine, without Docker.

It starts separate processes on loopback: PostgreSQL (catalog, SQLMesh's state and Prefect's database, each with its own
role), an S3 server, a Prefect server with a password and its database in this PostgreSQL, a Prefect worker, a Dask
scheduler and its workers, with TLS between them, and the lake's metrics for Prometheus.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deployments.services import (
    BIN,
    HOST,
    ObjectStore,
    Postgres,
    Service,
    dask_scheduler,
    dask_worker,
    free_port,
    listening,
    new_secret,
)
from ducklake_flows.orchestration import certificates
from ducklake_flows.orchestration.server import CLIENT_SETTINGS, SERVER_SETTINGS, answers, is_free

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
POOL = "lake"
PORTS = ("postgres", "s3", "prefect", "dask", "metrics")


@dataclass
class Stack:
    """All services. Entering the context starts them in order and creates the deployments.

    Args:
        folder: The folder of data, logs, ports and generated passwords; reused at the next start.
        dask_workers: Number of Dask workers.
        worker_memory: Memory limit of each Dask worker in Dask's notation.
        extra: Further settings for every process, for example LAKE_DATASETS.
    """

    folder: Path
    dask_workers: int = 2
    worker_memory: str = "1GiB"
    extra: dict[str, str] = field(default_factory=dict)
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        self.folder = self.folder.absolute()
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._secrets = self._generated_secrets()
        self._ports = kept_ports(self.folder / "ports.json")
        with contextlib.ExitStack() as held:
            self._start(held)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _start(self, held: contextlib.ExitStack) -> None:
        logs, secrets = self.folder / "logs", self._secrets
        self.postgres = held.enter_context(Postgres(self.folder / "postgres", logs, port=self._ports["postgres"]))
        for name in ("lake", "sqlmesh", "prefect"):
            self.postgres.database(name, secrets[name])
        self.store = held.enter_context(
            ObjectStore(self.folder / "s3", logs, secrets["s3_key_id"], secrets["s3_secret"], self._ports["s3"])
        )
        self.port, self.dask_port = self._ports["prefect"], self._ports["dask"]
        self.environment = self._environment()
        self.server = held.enter_context(self.prefect_server())
        self.run(str(ROOT / "deployments/init"))
        address = self.environment["LAKE_DASK_ADDRESS"]
        self.scheduler = held.enter_context(dask_scheduler(address, logs, certificates.environment(self.certificates)))
        self.workers = [
            held.enter_context(dask_worker(n, address, logs, self.environment, self.worker_memory))
            for n in range(self.dask_workers)
        ]
        self.worker = held.enter_context(
            Service(
                "prefect-worker",
                [str(BIN / "prefect"), "worker", "start", "--pool", POOL, "--type", "process"],
                logs,
                self.environment,
            )
        )
        metrics = self._ports["metrics"]
        self.metrics = held.enter_context(
            Service(
                "metrics",
                [str(BIN / "lake"), "metrics", "--port", str(metrics)],
                logs,
                self.environment,
                ready=lambda: listening(metrics),
            )
        )

    def prefect_server(self) -> Service:
        """The Prefect server, with its database in PostgreSQL."""
        database = f"postgresql+asyncpg://prefect:{self._secrets['prefect']}@{HOST}:{self.postgres.port}/prefect"
        return Service(
            "prefect-server",
            [str(BIN / "prefect"), "server", "start", "--host", HOST, "--port", str(self.port)],
            self.folder / "logs",
            {
                **self.environment,
                **SERVER_SETTINGS,
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
                "PREFECT_SERVER_API_AUTH_STRING": self._secrets["prefect_auth"],
            },
            ready=lambda: answers(self.environment["PREFECT_API_URL"]),
        )

    @property
    def ui(self) -> str:
        """The address of Prefect's UI."""
        return f"http://{HOST}:{self.port}"

    @property
    def certificates(self) -> Path:
        """The folder of Dask's certificates, which `deployments/init` makes."""
        return self.folder / "dask-tls"

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command with the stack's settings, as a user would."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **self.environment, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=check,
        )

    def _environment(self) -> dict[str, str]:
        secrets, port = self._secrets, self.postgres.port
        return {
            **CLIENT_SETTINGS,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": f"http://{HOST}:{self.port}/api",
            "PREFECT_API_AUTH_STRING": secrets["prefect_auth"],
            "LAKE_PROJECT": str(ROOT),
            "LAKE_HOME": str(self.folder / "home"),
            "LAKE_CATALOG": f"postgres:host={HOST} port={port} dbname=lake user=lake",
            "LAKE_CATALOG_PASSWORD": secrets["lake"],
            "LAKE_STATE": f"postgres://sqlmesh@{HOST}:{port}/sqlmesh",
            "LAKE_STATE_PASSWORD": secrets["sqlmesh"],
            "LAKE_DATA_PATH": "s3://lake/data/",
            "LAKE_LANDING": "s3://landing/",
            "LAKE_S3_ENDPOINT": self.store.endpoint,
            "LAKE_S3_KEY_ID": secrets["s3_key_id"],
            "LAKE_S3_SECRET": secrets["s3_secret"],
            "LAKE_S3_USE_SSL": "false",
            "LAKE_DASK_ADDRESS": f"tls://{HOST}:{self.dask_port}",
            "METRICS_URL": f"http://{HOST}:{self._ports['metrics']}/metrics",
            "TLS_FOLDER": str(self.certificates),
            **certificates.environment(self.certificates),
            **taken_over(),
            **self.extra,
        }

    def _generated_secrets(self) -> dict[str, str]:
        """Read the passwords, or generate them at the first start, in a file that only its owner can read."""
        file = self.folder / "secrets.json"
        if file.exists():
            return dict(json.loads(file.read_text()))
        names = ("lake", "sqlmesh", "prefect", "s3_key_id", "s3_secret")
        made = {**{name: new_secret() for name in names}, "prefect_auth": f"lake:{new_secret()}"}
        _write_private(file, json.dumps(made))
        return made


def taken_over() -> dict[str, str]:
    """The settings of the caller's environment that the stack uses."""
    return {name: os.environ[name] for name in ("LAKE_DATASETS", "LAKE_NOTIFY_URL") if os.environ.get(name)}


def kept_ports(file: Path) -> dict[str, int]:
    """The ports of the last start; another one, for this time, for each that a process has taken meanwhile."""
    kept = dict(json.loads(file.read_text())) if file.exists() else {}
    if not kept.keys() >= set(PORTS):
        kept = {**{name: free_port() for name in PORTS}, **kept}
        file.write_text(json.dumps(kept))
    found = {name: port if is_free(port) else free_port() for name, port in kept.items()}
    for name, port in found.items():
        if port != kept[name]:
            print(f"Port {kept[name]} of {name} is taken by another process: this time it is {port}.", flush=True)
    return found


def env_file(environment: Mapping[str, str]) -> str:
    """A shell script that sets these variables and puts `lake` and `prefect` on the PATH."""
    folder = shlex.quote(str(BIN))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(f'case ":$PATH:" in *:{folder}:*) ;; *) export PATH={folder}:"$PATH" ;; esac')
    return "".join(f"{line}\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start all services, print their addresses, and stop them on Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="make stack", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".lake/stack"))
    parser.add_argument("--workers", type=int, default=2, help="Dask workers")
    chosen = parser.parse_args(arguments)
    for stopping in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stopping, signal.default_int_handler)
    try:
        print("Starting PostgreSQL, S3, Prefect, Dask, metrics ...", flush=True)
        with Stack(chosen.folder, chosen.workers) as stack:
            settings = stack.folder / "env"
            _write_private(settings, env_file(stack.environment))
            print(f"Prefect       {stack.ui}  (user and password: prefect_auth in {stack.folder}/secrets.json)")
            print(f"S3            http://{stack.store.endpoint}  (buckets lake, landing)")
            print(f"PostgreSQL    {HOST}:{stack.postgres.port}  (databases lake, sqlmesh, prefect)")
            print(f"Dask          {stack.environment['LAKE_DASK_ADDRESS']}")
            print(f"Metrics       {stack.environment['METRICS_URL']}")
            print(f"Use it from another terminal:  . {shlex.quote(str(settings))}; lake status")
            print("Ctrl-C stops all services. The data is kept.", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    print("Stopped.")
    return 0


def _write_private(file: Path, text: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as sink:
        sink.write(text)


if __name__ == "__main__":
    sys.exit(main())
