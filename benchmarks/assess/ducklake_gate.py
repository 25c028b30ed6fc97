"""Option D, this project's protocol: writers stage Parquet in parallel, one publisher registers what is ready.

Stage, publisher, fence and ledger are this project's. The publisher is a process that takes the receipts that wait,
as a run does; it is alone, so it needs no limit. `make bench` has the whole pipeline with Prefect, Dask and dlt.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any

from benchmarks.assess.common import DATASET, Writer, connect, csv_sql, s3_secret
from benchmarks.assess.ducklake_direct import DuckLakeDirect
from benchmarks.measure import ROOT
from benchmarks.staging import stage
from deployments.services import Service
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.lake.connect import connect as connect_lake
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.orchestration.chunks import GROUP
from ducklake_flows.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duckdb import DuckDBPyConnection

    from benchmarks.assess.common import Place


class GateWriter(Writer):
    """Stage the days, hand the receipts to the publisher, and wait until they are published."""

    def __init__(self, place: Place) -> None:
        self.place, self.settings = place, settings(place)
        self.con = connect(*(["httpfs"] if place.s3 else []))
        s3_secret(self.con, place)
        self.publisher = Client(_address(place), authkey=place.postgres[2].encode())

    def replace(self, days: Sequence[str]) -> None:
        partitions = [parse_partition(day, DATASET.grain) for day in days]
        self.publisher.send(stage(self.settings, DATASET, partitions, csv_sql(self.place, days), self.con))
        if error := self.publisher.recv():
            raise ValueError(error)

    def reset(self) -> None:
        self.close()
        self.publisher = Client(_address(self.place), authkey=self.place.postgres[2].encode())

    def close(self) -> None:
        self.publisher.close()


class DuckLakeGate(DuckLakeDirect):
    name = "D: DuckLake with our gate"
    how = "4 processes stage Parquet, one publishes all that waits: fence, DELETE, registration, ledger, COMMIT"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.service: Service | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "service": None}

    @contextlib.contextmanager
    def start(self) -> Iterator[None]:
        if not (self.place.folder / "made").exists():
            bootstrap(settings(self.place), [DATASET])
            (self.place.folder / "made").touch()
        environment = {
            "PYTHONPATH": str(ROOT),
            "LAKE_PROJECT": str(ROOT),
            **{f"LAKE_{name.upper()}": str(value) for name, value in _values(self.place).items()},
        }
        command = [sys.executable, "-m", "benchmarks.assess.ducklake_gate", _address(self.place)]
        with contextlib.suppress(FileNotFoundError):
            os.remove(_address(self.place))  # noqa: PTH107 - a socket
        ready = self.place.folder / "publisher"
        self.service = Service(
            "publisher",
            command,
            self.place.folder,
            environment,
            ready=lambda: os.path.exists(str(ready)),  # noqa: PTH110
        )
        with self.service:
            yield

    def create(self) -> None:
        pass

    def crash(self) -> None:
        assert self.service
        self.service.kill()

    def writer(self) -> Writer:
        return GateWriter(self.place)

    def reader(self) -> tuple[DuckDBPyConnection, str]:
        return connect_lake(settings(self.place), read_only=True), "lake.raw.flights"


def settings(place: Place) -> Settings:
    """The lake of a place."""
    return Settings(**{"_env_file": None, **_values(place)})


def _values(place: Place) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    if place.s3:
        endpoint, key_id, secret, _ = place.s3
        keys = {"s3_endpoint": endpoint, "s3_key_id": key_id, "s3_secret": secret, "s3_use_ssl": False}
    return {
        "home": place.folder,
        "catalog": f"postgres:{place.libpq}",
        "catalog_password": place.postgres[2],
        "data_path": place.data,
        "landing": f"{place.landing.parent}/",
        **keys,
    }


def _address(place: Place) -> str:
    return str(place.folder / "publisher")


def _serve(address: str) -> None:
    """Publish what the writers hand over, until the process is stopped."""
    lake = load_settings()
    assert lake.catalog_password
    waiting: queue.Queue[tuple[Connection[Any, Any], list[Any]]] = queue.Queue()
    publisher = Publisher(lake, [DATASET], "assess")

    def listen() -> None:
        with Listener(address, authkey=lake.catalog_password.get_secret_value().encode()) as listener:  # type: ignore[union-attr]
            while True:
                threading.Thread(target=receive, args=(listener.accept(),), daemon=True).start()

    def receive(connection: Connection[Any, Any]) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                waiting.put((connection, connection.recv()))

    threading.Thread(target=listen, daemon=True).start()
    while True:
        group = [waiting.get()]
        while sum(len(receipts) for _, receipts in group) < GROUP:
            try:
                group.append(waiting.get_nowait())
            except queue.Empty:
                break
        done = publisher.publish([receipt for _, receipts in group for receipt in receipts])
        failed = {failure.partition: failure.error for failure in done.failures}
        for connection, receipts in group:
            with contextlib.suppress(OSError):
                connection.send(next((failed[r.partition] for r in receipts if r.partition in failed), ""))


if __name__ == "__main__":
    _serve(sys.argv[1])
