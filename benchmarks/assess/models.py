"""Question 3: the same three models by seven ways of building them, on the same raw table in the same lake.

bronze.flights, silver.flights and gold.carrier_daily are built for all days. Then one day of the raw table changes and
is built again. After each step gold is compared with what DuckDB computes from the CSV files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.assess.common import COLUMNS, DATASET, connect, csv_sql, days_of_year, one_line
from benchmarks.assess.ducklake_direct import attach
from benchmarks.assess.ducklake_gate import settings
from benchmarks.assess.table_per_partition import day_table
from benchmarks.measure import ROOT
from benchmarks.staging import stage
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.schema import bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duckdb import DuckDBPyConnection

    from benchmarks.assess.common import Place, Services

BRONZE = (
    "SELECT flight_date, time_hour, carrier, flight, tailnum, origin, dest, dep_time, dep_delay, arr_delay, air_time, "
    "distance, minute FROM {source}"
)
SILVER = (
    "SELECT flight_date, time_hour + minute * INTERVAL '1 minute' AS scheduled_departure, carrier, "
    "flight AS flight_number, tailnum AS tail_number, origin, dest AS destination, distance AS distance_miles, "
    "air_time AS air_minutes, dep_delay AS departure_delay_minutes, arr_delay AS arrival_delay_minutes, "
    "CASE WHEN dep_time IS NULL THEN 'cancelled' WHEN arr_delay IS NULL THEN 'diverted' "
    "WHEN arr_delay < 15 THEN 'on time' ELSE 'late' END AS outcome FROM {source}"
)
GOLD = (
    "SELECT flight_date, carrier, origin, COUNT(*) AS flights, "
    "COUNT(*) FILTER (WHERE outcome = 'on time') AS on_time, COUNT(*) FILTER (WHERE outcome = 'late') AS late, "
    "CAST(SUM(arrival_delay_minutes) AS BIGINT) AS arrival_delay_minutes, "
    "CAST(SUM(distance_miles) AS BIGINT) AS distance_miles FROM {source}"
)
GROUPED = " GROUP BY flight_date, carrier, origin"
CHAIN = (
    ("bronze.flights", BRONZE, "", "raw.flights"),
    ("silver.flights", SILVER, "", "bronze.flights"),
    ("gold.carrier_daily", GOLD, GROUPED, "silver.flights"),
)
"""Name, query, its end, and the source of each model."""
COLUMN_NAMES = ", ".join(f'"{name}"' for name in (*COLUMNS, "flight_date"))
BATCH = 400
"""Days of one interval: the whole year at once."""


class Builder(ABC):
    """One way to build the three models."""

    name: ClassVar[str]
    how: ClassVar[str]
    where: ClassVar[str] = "the lake"

    def __init__(self, place: Place, days: Sequence[str]) -> None:
        self.place, self.days = place, days
        self.folder = place.folder / "models"

    def set_up(self) -> None:  # noqa: B027 - the default: nothing
        """Write the project; not timed."""

    def landed(self, days: Sequence[str]) -> None:  # noqa: B027 - the default: nothing
        """Called when the raw table has new rows of these days; not timed."""

    @abstractmethod
    def build(self, first: str, last: str, *, again: bool) -> None:
        """Build the days from ``first`` to ``last``; ``again``: they were built before."""

    def read(self, table: str) -> list[tuple[Any, ...]]:
        """All rows of a model's table, read by a new connection."""
        with attach(self.place, read_only=True) as con:
            return con.execute(f"FROM lake.{table}").fetchall()

    def environment(self) -> dict[str, str]:
        """Environment variables of a command."""
        return {
            **os.environ,
            "PGPASSWORD": self.place.postgres[2],
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": str(ROOT),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        }

    def command(self, *arguments: str, **environment: str) -> None:
        """Run a command of this environment's programs.

        Raises:
            RuntimeError: it failed; with the end of its output.
        """
        done = subprocess.run(
            [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]],
            cwd=self.folder,
            env={**self.environment(), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{arguments[0]}: {(done.stdout + done.stderr)[-280:]}")


class Python(Builder):
    name = "1. SQL in Python"
    how = "DuckDB on the lake: DELETE and INSERT of all three models in one transaction"

    def build(self, first: str, last: str, *, again: bool) -> None:
        with attach(self.place) as con:
            con.execute("BEGIN")
            for table, query, end, source in CHAIN:
                con.execute(f"CREATE SCHEMA IF NOT EXISTS lake.{table.partition('.')[0]}")
                when = f" WHERE flight_date BETWEEN '{first}' AND '{last}'"
                sql = query.format(source=f"lake.{source}") + when + end
                con.execute(f"CREATE TABLE IF NOT EXISTS lake.{table} AS {sql} LIMIT 0")
                con.execute(f"DELETE FROM lake.{table}{when}")
                con.execute(f"INSERT INTO lake.{table} {sql}")
            con.execute("COMMIT")


class Dbt(Builder):
    """A dbt project of three incremental models, `delete+insert` by day."""

    strategy: ClassVar[str] = "delete+insert"

    @abstractmethod
    def profile(self) -> dict[str, Any]:
        """The target of dbt's profile."""

    def source(self) -> str:
        """How the first model names the raw table."""
        return "{{ source('raw', 'flights') }}"

    def set_up(self) -> None:
        (self.folder / "models").mkdir(parents=True)
        (self.folder / "macros").mkdir()
        profile = {"assess": {"target": "prod", "outputs": {"prod": self.profile()}}}
        (self.folder / "profiles.yml").write_text(json.dumps(profile))
        project = {
            "name": "assess",
            "version": "1.0",
            "profile": "assess",
            "flags": {"send_anonymous_usage_stats": False},
        }
        (self.folder / "dbt_project.yml").write_text(json.dumps(project))
        sources = {
            "version": 2,
            "sources": [{"name": "raw", "schema": "raw", **self.database(), "tables": [{"name": "flights"}]}],
        }
        (self.folder / "models" / "sources.yml").write_text(json.dumps(sources))
        # dbt's default would put the target's schema in front.
        (self.folder / "macros" / "schema.sql").write_text(
            "{% macro generate_schema_name(name, node) %}{{ name or target.schema }}{% endmacro %}"
        )
        for table, query, end, source in CHAIN:
            schema, _, model = table.partition(".")
            above = self.source() if source.startswith("raw") else f"{{{{ ref('{source.replace('.', '_')}') }}}}"
            config = (
                f"{{{{ config(materialized='incremental', incremental_strategy='{self.strategy}', "
                f"unique_key='flight_date', schema='{schema}', alias='{model}') }}}}\n"
            )
            when = (
                " {% if is_incremental() %}WHERE flight_date BETWEEN CAST('{{ var(\"first\") }}' AS DATE) "
                "AND CAST('{{ var(\"last\") }}' AS DATE){% endif %}"
            )
            path = self.folder / "models" / f"{table.replace('.', '_')}.sql"
            path.write_text(config + query.format(source=above) + when + end)

    def database(self) -> dict[str, str]:
        """The database of the source, if it is not the target's."""
        return {}

    def build(self, first: str, last: str, *, again: bool) -> None:
        variables = json.dumps({"first": first, "last": last})
        self.command("dbt", "run", "--profiles-dir", ".", "--vars", variables, "--threads", "1")


class DbtFile(Dbt):
    name = "2a. dbt, own file, copied"
    how = (
        "dbt-duckdb builds in a DuckDB file that attaches the lake read-only; the day is then copied in one transaction"
    )
    where = "a file; the lake by a copy"

    def profile(self) -> dict[str, Any]:
        return {
            "type": "duckdb",
            "path": str(self.folder / "own.duckdb"),
            "extensions": ["ducklake", "postgres_scanner"],
            "attach": [{"path": f"ducklake:postgres:{self.place.libpq}", "alias": "lake", "read_only": True}],
        }

    def database(self) -> dict[str, str]:
        return {"database": "lake"}

    def build(self, first: str, last: str, *, again: bool) -> None:
        super().build(first, last, again=again)
        with attach(self.place) as con:
            con.execute(f"ATTACH '{self.folder / 'own.duckdb'}' AS own (READ_ONLY)")
            con.execute("BEGIN")
            for table, *_ in CHAIN:
                when = f" WHERE flight_date BETWEEN '{first}' AND '{last}'"
                con.execute(f"CREATE SCHEMA IF NOT EXISTS lake.{table.partition('.')[0]}")
                con.execute(f"CREATE TABLE IF NOT EXISTS lake.{table} AS FROM own.{table} LIMIT 0")
                con.execute(f"DELETE FROM lake.{table}{when}")
                con.execute(f"INSERT INTO lake.{table} BY NAME FROM own.{table}{when}")
            con.execute("COMMIT")


class DbtPostgres(Dbt):
    name = "2b. dbt into PostgreSQL"
    how = "the raw days are copied into PostgreSQL, dbt-postgres builds marts there"
    where = "PostgreSQL, not the lake"

    def profile(self) -> dict[str, Any]:
        host, port, _ = self.place.postgres
        return {
            "type": "postgres",
            "host": host,
            "port": port,
            "user": self.place.name,
            "password": "{{ env_var('PGPASSWORD') }}",
            "dbname": self.place.name,
            "schema": "marts",
            "threads": 1,
        }

    def build(self, first: str, last: str, *, again: bool) -> None:
        with attach(self.place, read_only=True) as con:
            con.execute(f"ATTACH '{self.place.libpq}' AS marts (TYPE postgres, SECRET place_catalog)")
            con.execute("CREATE SCHEMA IF NOT EXISTS marts.raw")
            con.execute("CREATE TABLE IF NOT EXISTS marts.raw.flights AS FROM lake.raw.flights LIMIT 0")
            con.execute("BEGIN")
            when = f" WHERE flight_date BETWEEN '{first}' AND '{last}'"
            con.execute(f"DELETE FROM marts.raw.flights{when}")
            con.execute(f"INSERT INTO marts.raw.flights BY NAME FROM lake.raw.flights{when}")
            con.execute("COMMIT")
        super().build(first, last, again=again)

    def read(self, table: str) -> list[tuple[Any, ...]]:
        with connect("postgres_scanner") as con:
            con.execute(f"CREATE SECRET place_catalog (TYPE postgres, PASSWORD '{self.place.postgres[2]}')")
            con.execute(f"ATTACH '{self.place.libpq}' AS marts (TYPE postgres, READ_ONLY, SECRET place_catalog)")
            return con.execute(f"FROM marts.{table}").fetchall()


class DbtLake(Dbt):
    name = "3. dbt-duckdb attached to the lake"
    how = "`attach` of dbt-duckdb's profile with `is_ducklake`, the lake as the target's database"

    def profile(self) -> dict[str, Any]:
        return {
            "type": "duckdb",
            "path": ":memory:",
            "database": "lake",
            "extensions": ["ducklake", "postgres_scanner"],
            "attach": [{"path": f"ducklake:postgres:{self.place.libpq}", "alias": "lake", "is_ducklake": True}],
        }


class SqlMeshStock(Builder):
    name = "4a. SQLMesh, stock"
    how = "SQLMesh's DuckDB connection with a catalog of type ducklake; `plan`, then `plan --restate-model`"

    def set_up(self) -> None:
        (self.folder / "models").mkdir(parents=True)
        catalog = {"type": "ducklake", "path": f"postgres:{self.place.libpq}", "data_path": self.place.data}
        config = {
            "gateways": {
                "lake": {
                    "connection": {
                        "type": "duckdb",
                        "catalogs": {"lake": catalog},
                        "extensions": [{"name": "ducklake"}, {"name": "postgres_scanner"}],
                    },
                    "state_connection": {"type": "duckdb", "database": str(self.folder / "state.duckdb")},
                }
            },
            "default_gateway": "lake",
            "model_defaults": {"dialect": "duckdb", "start": self.days[0], "cron": "@daily"},
            "disable_anonymized_analytics": True,
        }
        (self.folder / "config.yaml").write_text(json.dumps(config))
        write_models(self.folder / "models", self.days[0], "")

    def build(self, first: str, last: str, *, again: bool) -> None:
        restate = ["--restate-model", "bronze.flights", "--start", first, "--end", last] if again else []
        # Shortly after the last day is over: otherwise it would build until today.
        now = ["--execution-time", f"{date.fromisoformat(self.days[-1]) + timedelta(days=1)} 01:00:00"]
        self.command("sqlmesh", "plan", "--auto-apply", "--no-prompts", "--skip-tests", *restate, *now)


class SqlMeshUnion(SqlMeshStock):
    name = "4a. SQLMesh, stock, over a table a day"
    how = "option B: a view model with a UNION ALL of all days' tables below bronze; every new day changes its query"

    def set_up(self) -> None:
        super().set_up()
        union = " UNION ALL ".join(f"SELECT {COLUMN_NAMES} FROM days.{day_table(day)}" for day in self.days)
        (self.folder / "models" / "union.sql").write_text(f"MODEL (name united.flights, kind VIEW);\n{union};\n")
        bronze = self.folder / "models" / "bronze_flights.sql"
        bronze.write_text(bronze.read_text().replace("FROM raw.flights", "FROM united.flights"))

    def landed(self, days: Sequence[str]) -> None:
        with attach(self.place) as con:
            con.execute("BEGIN")
            con.execute("CREATE SCHEMA IF NOT EXISTS lake.days")
            for day in days:
                rows = f"FROM lake.raw.flights WHERE flight_date = '{day}'"
                con.execute(f"CREATE OR REPLACE TABLE lake.days.{day_table(day)} AS {rows}")
            con.execute("COMMIT")


class Ours(Builder):
    name = "4b. this project"
    how = "SQLMesh with this project's adapter, signals and ledger: what `lake transform` does, without Prefect"

    def set_up(self) -> None:
        shutil.copytree(
            ROOT / "sqlmesh_project",
            self.folder,
            ignore=shutil.ignore_patterns("models", "audits", "tests", "__pycache__", ".cache"),
        )
        (self.folder / "models").mkdir()
        write_models(self.folder / "models", self.days[0], ", signals (published(dataset := 'flights'))")

    def build(self, first: str, last: str, *, again: bool) -> None:
        place = self.place
        self.command(
            *("python", "-m", "benchmarks.assess.models_ours", str(place.folder / "gate")),
            LAKE_PROJECT=str(ROOT),
            LAKE_MODELS=str(self.folder),
            LAKE_HOME=str(place.folder),
            LAKE_CATALOG=f"postgres:{place.libpq}",
            LAKE_CATALOG_PASSWORD=place.postgres[2],
            LAKE_DATA_PATH=place.data,
            LAKE_LANDING=f"{place.landing.parent}/",
        )


def write_models(folder: Path, start: str, more: str) -> None:
    """Write the three models for SQLMesh; ``more`` goes into the first one's header."""
    for table, query, end, source in CHAIN:
        kind = f"INCREMENTAL_BY_TIME_RANGE (time_column flight_date, batch_size {BATCH})"
        last = more if source.startswith("raw") else ""
        header = f"MODEL (name {table}, kind {kind}, start '{start}', cron '@daily'{last});\n"
        sql = query.format(source=source) + " WHERE flight_date BETWEEN @start_date AND @end_date" + end
        (folder / f"{table.replace('.', '_')}.sql").write_text(header + sql + ";\n")


BUILDERS: list[type[Builder]] = [Python, DbtFile, DbtPostgres, DbtLake, SqlMeshStock, SqlMeshUnion, Ours]


def run(services: Services, corrected: Path, days: int, repeats: int, only: str = "") -> Iterator[dict[str, Any]]:
    """Build, then change one day and build it again, by every builder.

    Args:
        services: Hands out places.
        corrected: The landing folder with one more row on each day.
        days: Days of the year.
        repeats: How often each.
        only: A word of the builders' names; "" for all of them.

    Yields:
        A row for each run.
    """
    for number in range(repeats):
        for builder in BUILDERS:
            if only.lower() in builder.name.lower():
                row = {"run": number, **_one(builder, services, corrected, days_of_year(days))}
                print(row, file=sys.stderr, flush=True)
                yield row


def _one(kind: type[Builder], services: Services, corrected: Path, days: Sequence[str]) -> dict[str, Any]:
    place = services.place()
    bootstrap(settings(place), [DATASET])
    _publish(place, days)
    builder = kind(place, days)
    builder.set_up()
    builder.landed(days)
    row: dict[str, Any] = {"builder": kind.name, "how": kind.how, "where": kind.where}
    try:
        began = time.monotonic()
        builder.build(days[0], days[-1], again=False)
        row["build, s"] = time.monotonic() - began
        row["right"] = _gold(builder) == _truth(place, days)
        row["in the lake"] = _in_lake(place)
        day = days[len(days) // 2]
        _publish(replace(place, landing=corrected), [day])
        builder.landed([day])
        at = _snapshot(place)
        began = time.monotonic()
        builder.build(day, day, again=True)
        row["one day, s"] = time.monotonic() - began
        row["one day right"] = _gold(builder) == _truth(place, [d for d in days if d != day], corrected, [day])
        row |= _change(place, at, day)
    except Exception as error:  # noqa: BLE001 - the answer is that it does not work
        row["error"] = one_line(error)
    return row


def _publish(place: Place, days: Sequence[str]) -> None:
    """Load days of the place's landing folder into the raw table."""
    publisher = Publisher(settings(place), [DATASET], "assess")
    partitions = [parse_partition(day, DATASET.grain) for day in days]
    publisher.publish(stage(settings(place), DATASET, partitions, csv_sql(place, days)))
    publisher.close()


def _gold(builder: Builder) -> set[tuple[Any, ...]]:
    return set(builder.read("gold.carrier_daily"))


def _truth(place: Place, days: Sequence[str], corrected: Path | None = None, more: Sequence[str] = ()) -> set[Any]:
    """Gold as DuckDB computes it from the CSV files."""
    with connect() as con:
        raw = csv_sql(place, days)
        if corrected:
            raw += f" UNION ALL {csv_sql(replace(place, landing=corrected), more)}"
        silver = SILVER.format(source=f"({BRONZE.format(source=f'({raw})')})")
        return set(con.execute(GOLD.format(source=f"({silver})") + GROUPED).fetchall())


def _in_lake(place: Place) -> bool:
    """Whether a new connection finds gold in the lake."""
    with attach(place, read_only=True) as con:
        sql = "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake' AND table_name LIKE '%carrier_daily%'"
        tables = con.execute(sql).fetchall()[0][0]
        sql = "SELECT count(*) FROM duckdb_views() WHERE database_name = 'lake' AND view_name LIKE '%carrier_daily%'"
        return bool(tables or con.execute(sql).fetchall()[0][0])


def _snapshot(place: Place) -> int:
    with attach(place, read_only=True) as con:
        return int(con.execute("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')").fetchall()[0][0])


def _tables(con: DuckDBPyConnection) -> list[str]:
    """The models' tables in the lake, wherever their builder keeps them."""
    sql = (
        "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE database_name = 'lake' "
        "AND regexp_matches(schema_name || '.' || table_name, '(bronze|silver|gold).*(flights|carrier_daily)') "
        "AND NOT regexp_matches(schema_name, '^(raw|ops)')"
    )
    return sorted(name for (name,) in con.execute(sql).fetchall())


def _change(place: Place, at: int, day: str) -> dict[str, Any]:
    """What the second build did to the lake, by its snapshots.

    Returns:
        ``snapshots``; ``rows written`` of the models; ``torn snapshots``: those in which a model has neither the old
        nor the new number of the day's rows, so that a reader at that moment sees a hole or a double.
    """
    with attach(place, read_only=True) as con:
        last = con.execute("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')").fetchall()[0][0]
        torn: set[int] = set()
        written = 0
        for table in _tables(con):

            def count(version: int, table: str = table) -> int:
                sql = f"SELECT count(*) FROM lake.{table} AT (VERSION => {version}) WHERE flight_date = '{day}'"
                return int(con.execute(sql).fetchall()[0][0])

            try:
                right = {count(at), count(last)}
                torn |= {version for version in range(at, last + 1) if count(version) not in right}
                schema, _, name = table.partition(".")
                sql = f"SELECT count(*) FROM ducklake_table_insertions('lake', '{schema}', '{name}', {at + 1}, {last})"
                written += con.execute(sql).fetchall()[0][0] if last > at else 0
            except Exception as error:  # noqa: BLE001 - a table made anew has no earlier version
                print(f"{table}: {error}", file=sys.stderr)
                torn.add(last)
        return {"snapshots": last - at, "rows written": written, "torn snapshots": len(torn)}
