"""Fixtures: a fresh lake for each test, one real Prefect server for the session, and how to lay and stage data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before anything imports Prefect: the session has a server of its own, told apart from any other by its folder.
for name in [n for n in os.environ if n.startswith(("LAKE_", "PREFECT_"))]:
    del os.environ[name]
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"

from flows import server  # noqa: E402
from flows.datasets import all_datasets, get_dataset  # noqa: E402
from flows.extract.chunk import extract_chunk  # noqa: E402
from flows.lake.connect import connected, rows  # noqa: E402
from flows.lake.publish import Published, Publisher  # noqa: E402
from flows.lake.schema import bootstrap, hints, table_columns  # noqa: E402
from flows.lake.verify import verify  # noqa: E402
from flows.settings import Settings, load_settings  # noqa: E402
from flows.stage.receipt import Outcome, Receipt  # noqa: E402

DATASETS = Path(__file__).parent / "datasets"


@dataclass
class Lake:
    """A lake under test, and what tests do with it."""

    settings: Settings

    @property
    def landing(self) -> Path:
        return Path(self.settings.landing)

    def land(self, path: str, content: str | bytes | Sequence[Mapping[str, Any]]) -> Path:
        """Lay a file into the landing zone; rows become JSON lines, or a JSON list for .json."""
        target = self.landing / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        elif isinstance(content, str):
            target.write_text(content)
        elif target.suffix == ".json":
            target.write_text(json.dumps(list(content)))
        else:
            target.write_text("".join(json.dumps(row) + "\n" for row in content))
        return target

    def extract(self, dataset: str, *partitions: str) -> list[Outcome]:
        """Extract partitions in this process, with the table's columns as hints, as a run does."""
        definition = get_dataset(dataset)
        with connected(self.settings, read_only=True) as con:
            there = table_columns(con).get(definition.table, {})
        wanted = [p for p in definition.partitions(*_bounds(partitions)) if p.key in partitions]
        versions = definition.versions(wanted)
        return extract_chunk(
            dataset, {key: versions.get(key, "") for key in partitions}, self.settings, hints(there, definition)
        )

    def publish(self, outcomes: Sequence[Outcome], run: str = "test") -> Published:
        publisher = self.publisher(run)
        try:
            return publisher.publish(outcomes)
        finally:
            publisher.close()

    def publisher(self, run: str = "test") -> Publisher:
        return Publisher(self.settings, list(all_datasets().values()), run)

    def load(self, dataset: str, *partitions: str) -> Published:
        return self.publish(self.extract(dataset, *partitions))

    def sql(self, query: str) -> list[dict[str, Any]]:
        with connected(self.settings, read_only=True) as con:
            return rows(con, query)

    def column(self, query: str) -> list[Any]:
        return [next(iter(row.values())) for row in self.sql(query)]

    def errors(self) -> list[str]:
        return [f"{f.check}: {f.subject}: {f.message}" for f in verify(self.settings) if f.severity == "error"]


def _bounds(partitions: Sequence[str]) -> tuple[Any, Any]:
    from datetime import date

    if partitions == ("full",):
        return None, None
    days = sorted((p + "-01")[:10] for p in partitions)
    return date.fromisoformat(days[0]), date.fromisoformat(days[-1])


def receipts(outcomes: Sequence[Outcome]) -> list[Receipt]:
    assert all(isinstance(o, Receipt) for o in outcomes), outcomes
    return [o for o in outcomes if isinstance(o, Receipt)]


Storage = Callable[[Path], dict[str, str]]

STORAGES: dict[str, Storage] = {"sqlite+folder": lambda home: {"LAKE_HOME": str(home)}}
"""The environment of each combination of catalog and data; the lake suite runs on every one."""


@pytest.fixture(params=STORAGES)
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A fresh, initialised lake that knows the tests' datasets."""
    for name, value in STORAGES[request.param](tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAKE_DATASETS", str(DATASETS))
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    bootstrap(settings, list(all_datasets().values()))
    return Lake(settings)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server, as `lake up` starts it."""
    settings = Settings(home=tmp_path_factory.mktemp("prefect"))
    url = server.use(settings)
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    # Prefect was imported with the tests, before there was a server.
    try:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: settings.home / "prefect"}):
            yield url
            # What is still on its way to the server would be tried again for minutes once it is gone.
            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)
    finally:
        server.stop(settings)


@pytest.fixture
def gated_lake(lake: Lake, prefect_server: str) -> Lake:
    """A fresh lake behind the gate."""
    from flows import gate

    gate.ensure()
    return lake
