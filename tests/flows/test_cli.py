"""The `lake` command as a user runs it: the whole year of the demo, its output, and its error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from prefect import get_client

from ducklake_flows.cli.demo import _packaged
from tests.conftest import DEMO, make_project

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LAKE = str(Path(sys.executable).with_name("lake"))

NOT_THE_TESTS = ("LAKE_", "PREFECT_")


class Command:
    """Runs `lake` in a separate folder."""

    def __init__(self, folder: Path, api: str, *datasets: Path) -> None:
        self.folder = make_project(folder, *(datasets or (DEMO,)))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(NOT_THE_TESTS)}
        self.environment = {**clean, "PREFECT_API_URL": api, "COLUMNS": "160"}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LAKE, *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def __call__(self, *arguments: str, fails: bool = False, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr if fails else done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> tuple[Command, str]:
    """The whole year of the demo, and its output."""
    lake = Command(tmp_path_factory.mktemp("year"), prefect_server)
    return lake, lake("demo")


@pytest.fixture
def lake(tmp_path: Path, prefect_server: str) -> Command:
    return Command(tmp_path, prefect_server)


def oracle(path: str, columns: Sequence[str], day: str) -> str:
    """A query for the row count and a checksum per day over columns of a table or file."""
    hashed = ", ".join(columns)
    checksum = f"sum(hash({hashed})::HUGEINT)::VARCHAR AS checksum"
    return f"SELECT {day}::VARCHAR AS day, count(*) AS n, {checksum} FROM {path} GROUP BY ALL ORDER BY day"


def test_the_demo_prints_its_results_and_next_steps(year: tuple[Command, str]) -> None:
    printed = year[1]
    for words in (
        "Hawaiian Airlines Inc.",
        "heavy rain",
        "La Guardia",
        "2013-12",
        "transform: total",
        "What to try next",
    ):
        assert words in printed
    assert "Published 1,097 partitions, 387,172 rows" in printed
    assert "No source (yet): weather 2013-12-31." in printed


def test_the_demo_shows_a_bad_row_a_rejected_day_a_diff_and_a_rollback(year: tuple[Command, str]) -> None:
    lake, printed = year
    told = [
        "$ lake quarantine weather",
        "weather: 1 row of 1 partition in quarantine",
        "2013-02-12: audit winds are below 200 mph failed",
        '"wind_speed":1048.36058',
        "$ lake backfill flights --start 2013-01-01 --end 2013-01-01 --mode stale",
        "error: 1 partition failed; all others are published.",
        "flights 2013-01-01: audit 'the rows are of this day' failed: 3 rows",
        "next:  fix the cause, then: lake backfill flights --start 2013-01-01 --end 2013-01-01",
        "$ lake backfill flights --start 2013-01-01 --end 2013-01-01",
        "Published 1 partition, 841 rows",
        "$ lake diff flights --partition 2013-01-01",
        "0 added, 1 removed, 1 changed",
        "carrier='UA', flight=1545, origin='EWR': dep_delay: 2 -> 62",
        "$ lake rollback flights --partition 2013-01-01",
        "flights 2013-01-01 is rolled back to 842 rows",
        "gold.carrier_performance",
        "$ lake verify\nThe lake is right.\n",
    ]
    places, at = [], 0
    for text in told:
        at = printed.find(text, at)
        places.append((text, at >= 0))
        at += len(text)
    assert all(found for _, found in places), (places, printed)
    states = lake.json(
        "sql",
        "SELECT state, rows_published AS n FROM ops.ledger WHERE dataset = 'flights' AND partition = '2013-01-01' "
        "ORDER BY token",
    )
    assert states == [
        {"state": "published", "n": 842},
        {"state": "rejected", "n": None},
        {"state": "published", "n": 841},
        {"state": "rolled_back", "n": 842},
    ]


def test_a_second_demo_run_finds_nothing_to_do(year: tuple[Command, str]) -> None:
    printed = year[0]("demo")
    assert "Nothing to do: every partition with a source is published." in printed
    assert "Nothing to do: the models are up to date." in printed
    assert "The lake is right." in printed
    assert "lake rollback" not in printed


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """The packaged CSV files, read by DuckDB alone; of the weather, without the row that is set aside."""
    import zipfile

    folder = tmp_path_factory.mktemp("packaged")
    with zipfile.ZipFile(_packaged("flights.csv.zip")) as archive:
        archive.extract("flights.csv", folder)
    con = duckdb.connect()
    con.execute(f"CREATE VIEW flights AS FROM read_csv('{folder}/flights.csv', nullstr = 'NA', sample_size = -1)")
    weather = _packaged("weather.csv")
    con.execute(
        f"CREATE VIEW weather AS FROM read_csv('{weather}', nullstr = 'NA', sample_size = -1) "
        "WHERE origin <> 'EWR' OR time_hour <> '2013-02-12T08:00:00Z'"
    )
    yield con
    con.close()


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    found = con.execute(query)
    names = [d[0] for d in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


FLIGHTS = [
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
    "distance",
    "hour",
    "minute",
    "time_hour",
]
WEATHER = [
    "origin",
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
    "time_hour",
]
DAY = "make_date(year, month, day)"


def test_raw_and_bronze_have_exactly_the_sources_rows(
    year: tuple[Command, str], packaged: duckdb.DuckDBPyConnection
) -> None:
    for dataset, columns, key, days in (
        ("flights", FLIGHTS, "flight_date", 365),
        ("weather", WEATHER, "weather_date", 364),
    ):
        wanted = rows(packaged, oracle(dataset, columns, DAY))
        assert len(wanted) == days
        assert year[0].json("sql", oracle(f"raw.{dataset}", columns, key)) == wanted
        assert year[0].json("sql", oracle(f"bronze.{dataset}", columns, key)) == wanted


def test_silver_has_exactly_the_sources_rows(year: tuple[Command, str], packaged: duckdb.DuckDBPyConnection) -> None:
    source = ["carrier", "flight", "tailnum", "origin", "dest", "distance", "air_time", "dep_delay", "arr_delay"]
    silver = [
        "carrier",
        "flight_number",
        "tail_number",
        "origin",
        "destination",
        "distance_miles",
        "air_minutes",
        "departure_delay_minutes",
        "arrival_delay_minutes",
    ]
    wanted = rows(packaged, oracle("flights", [*source, "time_hour"], DAY))
    found = year[0].json("sql", oracle("silver.flights", [*silver, "scheduled_hour"], "flight_date"))
    assert found == wanted
    wanted = rows(packaged, oracle("weather", ["origin", "time_hour", "wind_dir", "humid"], DAY))
    names = ["origin", "observed_hour", "wind_degrees", "humidity_percent"]
    assert year[0].json("sql", oracle("silver.weather", names, "weather_date")) == wanted


def test_raw_columns_have_the_expected_types(year: tuple[Command, str]) -> None:
    found = {c["column_name"]: c["column_type"] for c in year[0].json("sql", "DESCRIBE raw.flights")}
    assert found["dep_delay"] == "BIGINT"
    assert found["time_hour"] == "TIMESTAMP WITH TIME ZONE"
    assert found["flight_date"] == "DATE"
    assert found["tailnum"] == "VARCHAR"
    nulls = year[0].json("sql", "SELECT count(*) AS n FROM raw.flights WHERE tailnum = 'NA'")
    assert nulls == [{"n": 0}]


def test_plan_status_and_repair_print_json(year: tuple[Command, str]) -> None:
    planned = year[0].json("plan", "weather", "--start", "2013-12-30", "--end", "2013-12-31")
    assert [(p["partition"], p["state"], p["runs"]) for p in planned] == [
        ("2013-12-30", "published", False),
        ("2013-12-31", "no_source", False),
    ]
    status = year[0].json("status", "flights")
    assert sum(p["rows"] for p in status) == 336_776
    march = year[0].json("status", "flights", "--start", "2013-03-01", "--end", "2013-03-31")
    assert march == [p for p in status if p["partition"].startswith("2013-03")]
    assert "error: --by 'decade' is not known." in year[0]("status", "--by", "decade", fails=True)
    assert year[0].json("repair") == {"dry_run": False, "damaged": [], "changes": []}


@pytest.mark.parametrize("command", ["plan", "status"])
def test_plan_and_status_import_no_heavy_package(year: tuple[Command, str], command: str) -> None:
    lake, _ = year
    heavy = {"dask", "distributed", "dlt", "numpy", "pandas", "prefect", "psycopg", "psycopg2", "pyarrow", "sqlmesh"}
    run = f"main.app(['{command}'], standalone_mode=False)"
    look = f"import sys; from ducklake_flows.cli import main; {run}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=lake.folder, env=lake.environment, capture_output=True, text=True, check=True
    )
    assert heavy & set(done.stdout.splitlines()[-1].split()) == set()


def test_a_transform_builds_only_the_old_day_that_was_published_again(year: tuple[Command, str]) -> None:
    """Must be the last test on the lake of the year: afterwards the lake differs from the packaged source."""
    lake = year[0]
    file = lake.folder / ".lake/landing/flights/2013-03-05.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-10]))
    summary = lake.json("backfill", "flights", "--mode", "stale")
    assert (summary["published"], summary["failed"]) == (1, [])
    assert "1 partition is newer than silver and gold" in lake("verify")
    built = lake.json("transform")["models"]
    assert {(m["start"], m["end"]) for m in built if "flights" in m["model"]} == {("2013-03-05", "2013-03-05")}
    gold = lake.json("sql", "SELECT sum(flights)::INT AS n FROM gold.carrier_daily WHERE flight_date = '2013-03-05'")
    assert gold == [{"n": len(lines) - 11}]
    assert lake.json("verify") == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "nope"], "Unknown dataset: 'nope'"),
        (["backfill", "flights; DROP TABLE x"], "Unknown dataset"),
        (["plan", "flights", "--start", "2013-02-30"], "is not a day"),
        (["backfill", "flights", "--start", "2013-02-02", "--end", "2013-02-01"], "ends (2013-02-01) before it starts"),
        (["backfill", "--partition", "2013-02-01"], "--partition needs the name of a dataset"),
        (["status"], "There is no lake yet"),
        (["verify"], "There is no lake yet"),
        (["sql", "SELECT 1"], "There is no lake yet"),
        (["backfill", "flights"], "There is no lake yet"),
    ],
)
def test_bad_input_is_one_error_with_its_next_step(lake: Command, arguments: list[str], says: str) -> None:
    printed = lake(*arguments, fails=True)
    assert printed.startswith("error: ")
    assert says in printed
    assert printed.count("error:") == printed.count("next:") == 1


def test_a_home_that_cannot_be_written_is_one_error(lake: Command) -> None:
    (lake.folder / "file").write_text("")
    for command in ("init", "demo"):
        printed = lake(command, fails=True, LAKE_HOME=str(lake.folder / "file" / "home"))
        assert printed.startswith("error: "), printed
        assert "next:" in printed
    assert (lake.folder / "file").read_text() == ""


def test_a_full_disk_is_one_error_and_loses_nothing(lake: Command) -> None:
    """Simulates a full disk: the kernel limits each file to 64 KiB."""
    lake("init")
    landing = lake.folder / ".lake/landing"
    landing.mkdir(parents=True, exist_ok=True)
    (landing / "airlines.csv").write_text("carrier,name\n" + "".join(f"C{n},Name {n}\n" for n in range(20_000)))
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 64 && exec "$0" backfill airlines', LAKE],
        cwd=lake.folder,
        # Coverage could not write its file either.
        env={name: value for name, value in lake.environment.items() if not name.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert all(f["severity"] == "note" for f in lake.json("verify"))
    assert lake.json("backfill", "airlines")["published"] == 1
    assert "The lake is right." in lake("verify")
    assert "Nothing to repair." in lake("repair")


LOUD = """
import sys
from datetime import date
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Partition

print("LOADED")


class Source:
    def versions(self, partitions):
        print("LISTED")
        return {p.key: "" for p in partitions}

    def read(self, partition, contract):
        print("READ")
        if partition.key == "2024-01-02":
            raise ValueError("[/] [red]no[/red] postgresql://u:hunter2@db/x?password=hunter2 Bearer hunter2hunter2")
        yield {"n": 1}


DATASET = Dataset("loud", Source(), partition_column="day", start=date(2024, 1, 1), end=date(2024, 1, 2))
"""
ABSENT = "import multiprocessing\nif multiprocessing.parent_process():\n    raise ImportError('only here')\n"


def test_a_run_reports_each_cause_once_and_prints_only_json_to_stdout(lake: Command, tmp_path: Path) -> None:
    """Issue 17, D9 to D12 and P6: dataset files that print, that only workers or no process can load; a secret."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    (folder / "loud.py").write_text(LOUD)
    (folder / "absent.py").write_text(ABSENT + LOUD.replace("loud", "absent"))
    lake.environment["LAKE_DATASETS"] = str(folder)
    lake("init")
    (folder / "broken.py").write_text("1 / 0\n")

    planned = lake.run("plan", "--start", "2024-01-01", "--end", "2024-01-01", "--json")
    assert planned.returncode == 1
    assert {(p["dataset"], p["state"]) for p in json.loads(planned.stdout)} >= {("loud", "missing")}
    assert "LISTED" in planned.stderr
    assert planned.stderr.count("error:") == planned.stderr.count("next:") == 1
    assert f"{folder}/broken.py, line 1 cannot be loaded: ZeroDivisionError" in planned.stderr

    done = lake.run("backfill", "loud", "absent", "--json", "--workers", "1")
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert summary["published"] == 1, summary
    (loud,) = (f["error"] for f in summary["failed"] if f["dataset"] == "loud")
    assert loud == "ValueError: [/] [red]no[/red] postgresql://u:***@db/x?password=*** Bearer ***"
    absent = {f["partition"]: f["error"] for f in summary["failed"] if f["dataset"] == "absent"}
    assert absent.keys() == {"2024-01-01", "2024-01-02"}
    says = f"The dataset file {folder}/absent.py, line 3 cannot be loaded: ImportError: only here"
    assert set(absent.values()) == {says}
    assert done.stderr.count(says) == done.stderr.count(f"absent: all 2: {says} (2024-01-01..02)") == 1
    assert "READ" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert loud in lake("status", "loud")
    # The secret is also not in the ledger or any other file, in an artifact or in Prefect's log.
    told = [path for path in lake.folder.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert {path for path in told if folder not in path.parents} == set()
    with get_client(sync_client=True) as client:
        shown = [
            client.request("POST", "/artifacts/filter", json={"sort": "CREATED_DESC", "limit": 200}).text,
            client.request("POST", "/logs/filter", json={"sort": "TIMESTAMP_DESC", "limit": 200}).text,
        ]
    assert "hunter2" not in "".join(shown)
    assert "Bearer ***" in shown[0]


def test_help_names_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ducklake_flows.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    for command in (
        *("demo", "up", "down", "init", "plan", "backfill", "transform", "status", "verify", "sql"),
        *("report", "lineage", "metrics"),
    ):
        assert f" {command} " in done.stdout
