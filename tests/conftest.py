"""Fixtures: a fresh lake for each test, one real Prefect server for the session, and helpers to land and stage data."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import hypothesis
import psycopg
import pytest

# Before anything imports Prefect: the session uses its own server, in its own folder.
for name in [n for n in os.environ if n.startswith(("AWS_", "LAKE_", "PREFECT_"))]:
    del os.environ[name]
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
# A deploy step starts a temporary server, which on a busy machine takes longer than the default of 20 s.
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"

from deployments.services import ObjectStore, Postgres, free_port, new_secret  # noqa: E402
from ducklake_flows import credentials  # noqa: E402
from ducklake_flows.extract.chunk import extract_chunk  # noqa: E402
from ducklake_flows.lake import connect as connections  # noqa: E402
from ducklake_flows.lake.connect import connect, renew, rows  # noqa: E402
from ducklake_flows.lake.publish import Published, Publisher  # noqa: E402
from ducklake_flows.lake.schema import bootstrap, table_columns  # noqa: E402
from ducklake_flows.lake.verify import verify  # noqa: E402
from ducklake_flows.orchestration import server  # noqa: E402
from ducklake_flows.project import all_datasets, get_dataset  # noqa: E402
from ducklake_flows.settings import Settings, load_settings  # noqa: E402
from ducklake_flows.staging.receipt import Outcome, Receipt  # noqa: E402
from ducklake_flows.storage import Storage, check, open_storage  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from tests.tokens import TokenStore

ROOT = Path(__file__).parent.parent
# No test asserts a duration; under coverage or load, an example takes longer than Hypothesis allows.
hypothesis.settings.register_profile("lake", deadline=None)
hypothesis.settings.load_profile("lake")
# The test processes share the cores: more threads of DuckDB only get in each other's way.
connections.THREADS = 1

DATASETS = Path(__file__).parent / "datasets"
DEMO = ROOT / "flows" / "datasets"
MODELS = ROOT / "sqlmesh_project"


def make_project(folder: Path, *datasets: Path, models: Path = MODELS) -> Path:
    """Make a folder a project with these dataset folders and models."""
    folders = ", ".join(f'"{path}"' for path in datasets or (DEMO, DATASETS))
    folder.mkdir(parents=True, exist_ok=True)
    table = f'[tool.ducklake-flows]\ndatasets = [{folders}]\nmodels = "{models}"\nenvironments = ["dev"]\n'
    (folder / "pyproject.toml").write_text(table)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long versions of the tests")
    parser.addoption("--seed", type=int, help="repeat a fault test with this seed")
    parser.addoption("--write-docs", action="store_true", help="write the generated tables into docs/data.md")
    parser.addoption("--screenshots", action="store_true", help="write the screenshots into docs/images")


FOLDERS = ("stack", "flows", "faults", "regressions", "values", "sources", "lake", "compat", "unit")
"""The test folders in order of their files' duration, longest first, since several processes share the files."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    items.sort(key=lambda item: FOLDERS.index(Path(item.path).parent.name))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode, config: pytest.Config
) -> None:
    """After a whole run with --write-docs in which everything passed: write COMPATIBILITY.md."""
    stats = terminalreporter.stats
    if config.getoption("--write-docs") and config.args_source.name != "ARGS" and exitstatus == pytest.ExitCode.OK:
        from tests import compatibility

        passed = [report.nodeid for report in stats.get("passed", [])]
        (ROOT / "COMPATIBILITY.md").write_text(compatibility.page(passed))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run a file's tests in one process, since they may share a lake; run all stack tests in one, to share the stack.

    Soak tests last up to an hour, so each storage's tests of a file are distributed separately.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if config.getoption("--soak"):
                return f"{file} {nodeid.rpartition('[')[2]}"
            return "stack" if "/stack/" in file else file

    return ByFile(config, log)


def settings_from(environment: Mapping[str, str], **changed: Any) -> Settings:
    """The settings of an environment's `LAKE_` variables, some of them changed. No `.env` of this folder is read."""
    values: dict[str, Any] = {
        name.removeprefix("LAKE_").lower(): value for name, value in environment.items() if name.startswith("LAKE_")
    }
    return Settings(**{"_env_file": None, **values, **changed})


@dataclass
class Lake:
    """A lake under test with helpers."""

    settings: Settings
    _reader: DuckDBPyConnection | None = field(default=None, repr=False, compare=False)

    @contextlib.contextmanager
    def reading(self) -> Iterator[DuckDBPyConnection]:
        """A connection that only reads. It stays open for the next time: opening takes six times as long as reading.

        After an error, the next one is new.
        """
        reader, self._reader = self._reader, None
        if reader is None:
            reader = connect(self.settings, read_only=True)
        try:
            renew(reader, self.settings)
            yield reader
        except BaseException:
            reader.close()
            raise
        self.close()
        self._reader = reader

    def close(self) -> None:
        """Close the connection of `reading`."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def data(self) -> Storage:
        return open_storage(self.settings.data_path, self.settings)

    def land(self, path: str, content: str | bytes | Sequence[Mapping[str, Any]]) -> None:
        """Write a file into the landing zone. Rows become JSON lines, or a JSON list for .json."""
        if not isinstance(content, str | bytes):
            lines = [json.dumps(row) for row in content]
            content = f"[{','.join(lines)}]" if path.endswith(".json") else "".join(f"{line}\n" for line in lines)
        write(open_storage(self.settings.landing, self.settings), path, content)

    def extract(self, dataset: str, *partitions: str) -> list[Outcome]:
        """Extract partitions in this process with the table's columns, as a run does."""
        definition = get_dataset(dataset)
        with self.reading() as con:
            there = table_columns(con).get(definition.table, {})
        wanted = [p for p in definition.partitions(*_bounds(partitions)) if p.key in partitions]
        versions = definition.versions(wanted)
        return extract_chunk(dataset, {key: versions.get(key, "") for key in partitions}, self.settings, there)

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
        with self.reading() as con:
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


def write(storage: Storage, path: str, content: str | bytes) -> None:
    """Write a file into a storage, replacing an existing one."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        storage.put(Path(file.name), path)


MOVE: LiteralString = "UPDATE ducklake_metadata SET value = {} WHERE key = 'data_path'"
"""Gives a copied catalog its own data path. All other paths in it are relative to that one."""

STORAGES = ("sqlite+folder", "postgres+folder", "postgres+s3")
"""The combinations of catalog and data storage. In `make soak`, the lake suite runs on all, otherwise on the first and
the last; the flow tests on the first."""


@dataclass
class Services:
    """One PostgreSQL and one S3 server for the session. Each test has its own database and prefix."""

    folder: Path
    _held: contextlib.ExitStack
    _count: int = 0
    _initialised: dict[bool, Settings] = field(default_factory=dict)
    _postgres: Postgres | None = None
    _store: ObjectStore | None = None
    password: str = field(default_factory=new_secret)
    key_id: str = field(default_factory=new_secret)
    secret: str = field(default_factory=new_secret)

    @property
    def postgres(self) -> Postgres:
        if self._postgres is None:
            # No fsync: tests kill processes, not the machine, so data handed to the kernel is safe.
            postgres = Postgres(self.folder / "postgres", self.folder, "-c", "fsync=off")
            self._postgres = self._held.enter_context(postgres)
        return self._postgres

    @property
    def store(self) -> ObjectStore:
        if self._store is None:
            store = ObjectStore(self.folder / "s3", self.folder, self.key_id, self.secret)
            self._store = self._held.enter_context(store)
        return self._store

    def lake(self, storage: str, home: Path) -> dict[str, str]:
        """The LAKE_ settings of a fresh, initialised lake on one of the `STORAGES`.

        Its catalog is a copy of one that `bootstrap` made, which takes a tenth of the time of a `bootstrap`.
        """
        in_postgres = storage.startswith("postgres")
        if in_postgres not in self._initialised:
            place = self.folder / ("in-postgres" if in_postgres else "in-sqlite")
            first = settings_from(self.environment("postgres+folder" if in_postgres else storage, place))
            with pytest.MonkeyPatch.context() as here:
                here.setenv("LAKE_PROJECT", str(place / "project"))
                bootstrap(first, list(all_datasets().values()))
            self._initialised[in_postgres] = first
        first = self._initialised[in_postgres]
        environment = self.environment(storage, home, copy_of=first)
        settings = settings_from(environment)
        check(settings, create=True)
        if settings.catalog_file is None:
            with psycopg.connect(settings.catalog.removeprefix("postgres:"), password=self.password) as copy:
                copy.execute(MOVE.format("%s"), [settings.data_path])
        else:
            assert first.catalog_file is not None
            with (
                contextlib.closing(sqlite3.connect(settings.catalog_file)) as target,
                contextlib.closing(sqlite3.connect(first.catalog_file)) as source,
            ):
                source.backup(target)
                target.execute(MOVE.format("?"), [settings.data_path])
                target.commit()
        return environment

    def environment(self, storage: str, home: Path, copy_of: Settings | None = None) -> dict[str, str]:
        """The LAKE_ settings of a lake on one of the `STORAGES` that does not exist yet.

        Args:
            storage: The storage.
            home: The lake's folder.
            copy_of: The settings of another lake: the catalog's PostgreSQL database is a copy of that lake's.
        """
        environment = {"LAKE_HOME": str(home), "LAKE_PROJECT": str(make_project(home / "project"))}
        self._count += 1
        name = f"lake{self._count}"
        if storage.startswith("postgres"):
            self.postgres.database(name, self.password, copy_of.catalog.rpartition("=")[2] if copy_of else None)
            catalog = f"postgres:host=127.0.0.1 port={self.postgres.port} dbname={name} user={name}"
            environment |= {"LAKE_CATALOG": catalog, "LAKE_CATALOG_PASSWORD": self.password}
        if storage.endswith("s3"):
            environment |= {
                "LAKE_S3_ENDPOINT": self.store.endpoint,
                "LAKE_S3_KEY_ID": self.key_id,
                "LAKE_S3_SECRET": self.secret,
                "LAKE_S3_USE_SSL": "false",
                "LAKE_DATA_PATH": f"s3://lake/{name}/data/",
                "LAKE_LANDING": f"s3://lake/{name}/landing/",
            }
        return environment


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """The real services, each started on first use."""
    # Not pytest's temporary folder: PostgreSQL runs as another user, who cannot enter it.
    with tempfile.TemporaryDirectory(prefix="lake-services-") as folder, contextlib.ExitStack() as held:
        Path(folder).chmod(0o755)
        yield Services(Path(folder), held)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lake" in metafunc.fixturenames:
        folder = Path(metafunc.definition.path).parent.name
        ends = STORAGES[::2]
        long = {"lake": STORAGES, **dict.fromkeys(("faults", "values", "regressions", "sources"), ends)}
        chosen = long.get(folder, STORAGES[:1])
        if not metafunc.config.getoption("--soak"):
            default = ends if folder in ("lake", "faults", "sources") else STORAGES[:1]
            chosen = next((mark.args for mark in metafunc.definition.iter_markers("short")), default)
        if not any("lake" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")):
            metafunc.parametrize("lake", chosen, indirect=True)


@pytest.fixture
def lake(
    request: pytest.FixtureRequest, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lake]:
    """A fresh, initialised lake with the tests' datasets."""
    for name, value in services.lake(request.param, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    made = Lake(load_settings())
    yield made
    made.close()


@pytest.fixture(name="store")
def token_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenStore]:
    """A store that gives out and checks tokens, the settings of a lake and a landing zone in it, and no credentials."""
    from tests.tokens import TokenStore

    with TokenStore() as store:
        store.make_bucket("lake")
        for name, value in {
            "HOME": str(tmp_path),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_STS": f"http://{store.endpoint}",
            "LAKE_HOME": str(tmp_path / "home"),
            "LAKE_PROJECT": str(make_project(tmp_path / "project")),
            "LAKE_S3_ENDPOINT": store.endpoint,
            "LAKE_S3_USE_SSL": "false",
            "LAKE_DATA_PATH": "s3://lake/data/",
            "LAKE_LANDING": "s3://lake/landing/",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        credentials.forget()
        yield store
    credentials.forget()


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """An empty database of Prefect's, made once for all test processes: a server takes 6 s of CPU to make one."""
    common = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    home = common / "prefect-database"
    with (common / "prefect-database.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "prefect.db").exists():
            upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            subprocess.run(upgrade, env={**os.environ, "PREFECT_HOME": str(home)}, check=True, capture_output=True)
    return home / "prefect.db"


def prepare_server(settings: Settings, prefect_database: Path) -> int:
    """Give the lake's own server an empty database, and a port that no other test uses."""
    folder = server.folder(settings)
    folder.mkdir(parents=True)
    shutil.copy(prefect_database, folder)
    (folder / "port").write_text(str(port := free_port()))
    return port


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[str]:
    """A real Prefect server, as `lake up` starts it."""
    settings = Settings(home=tmp_path_factory.mktemp("prefect"))
    prepare_server(settings, prefect_database)
    url = server.use(settings)
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    # Prefect was imported before the server started, so its settings need the address.
    try:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: settings.home / "prefect"}):
            yield url
            # Send pending logs and events now: after the server has stopped, they would be retried for minutes.
            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)
    finally:
        server.stop(settings)


@pytest.fixture
def gated_lake(lake: Lake, prefect_server: str) -> Lake:
    """A fresh lake behind the gate."""
    from ducklake_flows.orchestration import gate

    gate.ensure()
    return lake
