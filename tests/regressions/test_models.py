"""Models that were built too early, too late, from incomplete data, or with values that differ from the raw tables."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlglot import exp

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.partitions import Grain, partition_at
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.builds import project_digest, refused_of
from ducklake_flows.lake.checks import read_model
from ducklake_flows.lake.connect import connect, connected
from ducklake_flows.lake.ledger import append
from ducklake_flows.lake.migrate import migrator
from ducklake_flows.lake.verify import verify
from ducklake_flows.models.adapter import LakeAdapter, lake_connection
from ducklake_flows.models.signals import ready
from ducklake_flows.project import get_dataset
from tests.conftest import DATASETS, Lake
from tests.projects import PUBLISHED, READINGS, Project, load, model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlmesh.core.engine_adapter.base import EngineAdapter


@pytest.fixture
def project(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path / "project", lake, monkeypatch)


def load_hours(lake: Lake, day: str, *hours: int, count: int = 1) -> None:
    keys = [f"{day}T{hour:02}" for hour in hours]
    for key in keys:
        lake.land(f"hourly/{key}/a.csv", f"name,count\nx,{count}\n")
    assert len(lake.load("hourly", *keys).receipts) == len(keys)


# Ready


def test_a_daily_model_over_hourly_data_waits_for_every_hour(lake: Lake, project: Project) -> None:
    """D7. Former fault: hour 00 alone was enough, and the 23 other hours without it never were."""
    hours = "FROM raw.hourly WHERE hour_at BETWEEN @start_dt AND @end_dt"
    signal = "signals (published(dataset := 'hourly'))"
    project.write(
        "models/daily.sql",
        model("silver.daily", f"SELECT hour_at::DATE AS day, sum(count) AS n {hours} GROUP BY ALL", "day", signal),
    )
    project.write(
        "models/by_hour.sql",
        model("silver.by_hour", f"SELECT hour_at, count {hours}", "hour_at", "cron '@hourly'", signal),
    )
    load_hours(lake, "2024-01-05", *range(1, 24))
    load_hours(lake, "2024-01-06", 0, 5)
    built = project.build()
    # The run shows two hours of one day as different intervals.
    assert {(e["model"], e["start"], e["end"]) for e in built} == {
        ("silver.by_hour", "2024-01-05T01", "2024-01-06T00"),
        ("silver.by_hour", "2024-01-06T05", "2024-01-06T05"),
    }
    load_hours(lake, "2024-01-05", 0)
    assert project.built("silver.daily") == [("2024-01-05", "2024-01-05")]
    # One hour is loaded again: its day is built again.
    load_hours(lake, "2024-01-05", 7, count=10)
    assert project.built("silver.daily") == [("2024-01-05", "2024-01-05")]
    assert lake.sql("SELECT day, n::BIGINT AS n FROM silver.daily") == [{"day": date(2024, 1, 5), "n": 33}]


def test_monthly_models_of_daily_data_and_the_reverse_are_built_from_whole_partitions(
    lake: Lake, project: Project, tmp_path: Path
) -> None:
    """A month over daily data waits for its last day; a day over monthly data needs one partition."""
    project.write(
        "models/months.sql",
        model(
            "silver.months",
            "SELECT date_trunc('month', day)::DATE AS month_from, sum(value) AS total FROM raw.readings "
            "WHERE day BETWEEN @start_date AND @end_date GROUP BY ALL",
            "month_from",
            "cron '@monthly'",
            PUBLISHED,
        ),
    )
    project.write(
        "models/days.sql",
        model(
            "silver.days",
            "SELECT d::DATE AS day, m.total FROM raw.monthly AS m "
            "JOIN generate_series(@start_date::TIMESTAMP, @end_date::TIMESTAMP, INTERVAL 1 DAY) AS s(d) "
            "ON date_trunc('month', d)::DATE = m.month_from",
            "day",
            "signals (published(dataset := 'monthly'))",
        ),
    )
    days = [f"2024-01-{day:02}" for day in range(1, 32)]
    load(lake, *days[:-1])
    table = pa.table({"name": ["x"], "total": [2.5]})
    pq.write_table(table, tmp_path / "month.parquet")
    lake.land("monthly/2024-02.parquet", (tmp_path / "month.parquet").read_bytes())
    lake.load("monthly", "2024-02")
    built = {(e["model"], e["start"], e["end"]) for e in project.build()}
    assert built == {("silver.days", "2024-02-01", "2024-02-29")}
    load(lake, days[-1])
    assert project.built("silver.months") == [("2024-01-01", "2024-01-31")]
    load(lake, days[4], value=10)
    assert project.built("silver.months") == [("2024-01-01", "2024-01-31")]
    assert lake.column("SELECT total::BIGINT FROM silver.months") == [40]
    assert lake.column("SELECT count(*) FROM silver.days WHERE total = 2.5") == [29]


UNITS: dict[str, Callable[[datetime], datetime]] = {
    "hour": lambda start: start + timedelta(hours=1),
    "day": lambda start: start + timedelta(days=1),
    "week": lambda start: start + timedelta(days=7),
    "month": lambda start: (start + timedelta(days=32)).replace(day=1),
}


@pytest.mark.parametrize("grain", Grain)
def test_an_interval_is_ready_when_every_possible_partition_that_overlaps_it_is_published(
    lake: Lake, grain: Grain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every grain with every interval, compared with a count of hours, with and without the dataset's bounds."""
    from dataclasses import replace

    from ducklake_flows.models import signals as module

    first, last = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 4, 1, tzinfo=UTC)
    hours = [first + timedelta(hours=n) for n in range(int((last - first) / timedelta(hours=1)))]
    gaps = {first + timedelta(days=n, hours=n % 24) for n in (0, 3, 10, 58)}
    missing = {partition_at(hour, grain).key for hour in gaps} if grain is not Grain.full else set()
    published = sorted({partition_at(hour, grain).key for hour in hours} - missing)
    with connected(lake.settings) as con:
        row = {"dataset": "x", "state": "published", "attempt_id": "a", "recorded_at": first, "token": 1}
        append(con, "ledger", [{**row, "partition": key} for key in published])
        # A failure after a publish leaves the partition published; one that only failed is not published.
        append(con, "ledger", [{**row, "partition": key, "state": "failed", "token": 2} for key in published[:3]])
        append(con, "ledger", [{**row, "partition": key, "state": "failed"} for key in missing])
        for bounds in ((None, None), (date(2024, 1, 5), date(2024, 2, 20))):
            dataset = replace(
                get_dataset("airlines" if grain is Grain.full else "readings"),
                grain=grain,
                start=bounds[0],
                end=bounds[1],
            )
            monkeypatch.setattr(module, "get_dataset", lambda _, d=dataset: d)
            inside = [h for h in hours if (bounds[0] or h.date()) <= h.date() <= (bounds[1] or h.date())]
            for unit, step in UNITS.items():
                batch, start = [], first
                while start < last:
                    batch.append((start, step(start)))
                    start = step(start)
                expected = []
                for start, end in batch:
                    there = [h for h in hours if start <= h < end]
                    counted = [h for h in there if h in inside] or there
                    if {partition_at(h, grain).key for h in counted} <= set(published):
                        expected.append((start, end))
                assert ready(batch, con, "x") == expected, (grain, unit, bounds)


# Where models begin


def test_a_model_without_a_start_begins_at_the_earliest_data(lake: Lake, project: Project) -> None:
    """D6. Former fault: data before 2013 was silently missing, as were its changes by a refreshed reference."""
    query = (
        "SELECT r.id, r.value, r.day, a.name FROM raw.readings AS r LEFT JOIN bronze.airlines AS a "
        "ON a.carrier = 'UA' WHERE r.day BETWEEN @start_date AND @end_date"
    )
    project.write("models/readings.sql", model("silver.readings", query, "day", PUBLISHED))
    project.write(
        "models/airlines.sql", "MODEL (name bronze.airlines, kind VIEW); SELECT carrier, name FROM raw.airlines"
    )
    lake.land("airlines.csv", "carrier,name\nUA,United\n")
    lake.load("airlines", "full")
    load(lake, "2009-03-05", "2024-01-02")
    assert project.built("silver.readings") == [("2009-03-05", "2009-03-05"), ("2024-01-02", "2024-01-02")]
    # Later data with an earlier day than all data so far.
    load(lake, "1999-12-31")
    assert project.built("silver.readings") == [("1999-12-31", "1999-12-31")]
    lake.land("airlines.csv", "carrier,name\nUA,Renamed\n")
    lake.load("airlines", "full")
    assert [start for start, _ in project.built("silver.readings")] == ["1999-12-31", "2009-03-05", "2024-01-02"]
    assert lake.sql("SELECT DISTINCT name, count(*) AS n FROM silver.readings GROUP BY ALL") == [
        {"name": "Renamed", "n": 3}
    ]


# Values and columns


def widen(lake: Lake, column: str, data_type: str) -> None:
    """Change the type of a raw column, as schema evolution by a rewrite does."""
    con = connect(lake.settings)
    con.execute("BEGIN")
    con.execute(f"CREATE TABLE raw.other AS SELECT * REPLACE ({column}::{data_type} AS {column}) FROM raw.readings")
    con.execute("DROP TABLE raw.readings")
    con.execute("ALTER TABLE raw.other RENAME TO readings")
    con.execute("ALTER TABLE raw.readings SET PARTITIONED BY (day)")
    con.execute("COMMIT")
    con.close()


def test_a_changed_raw_column_type_rebuilds_the_models_instead_of_rounding(lake: Lake, project: Project) -> None:
    project.write("models/readings.sql", model("silver.readings", READINGS, "day", PUBLISHED))
    project.write("models/gold.sql", model("gold.readings", READINGS.replace("raw.", "silver."), "day"))
    load(lake, "2024-01-01", value=9007199254740993)
    load(lake, "2024-01-02", value=2)
    project.build()
    widen(lake, "value", "DECIMAL(38,3)")
    con = connect(lake.settings)
    con.execute("UPDATE raw.readings SET value = 2.5 WHERE day = '2024-01-02'")
    con.execute("UPDATE ops.ledger SET attempt_id = 'other' WHERE partition = '2024-01-02'")
    con.close()
    project.build()
    for table in ("silver.readings", "gold.readings"):
        assert lake.column(f"SELECT value::VARCHAR FROM {table} ORDER BY day") == ["9007199254740993.000", "2.500"]


def test_a_migrated_column_rebuilds_the_models(lake: Lake, project: Project) -> None:
    project.write("models/readings.sql", model("silver.readings", READINGS, "day", PUBLISHED))
    load(lake, "2024-01-01", "2024-01-02")
    project.build()
    plan = migrator(lake.settings, replace(get_dataset("readings"), contract=Contract({"value": "text"})), {}, [])
    plan.prepare()
    plan.add(plan.copy(plan.pending()))
    plan.check()
    plan.swap()
    project.build()
    assert lake.column("SELECT DISTINCT typeof(value) FROM silver.readings") == ["VARCHAR"]
    assert lake.column("SELECT count(*) FROM silver.readings") == [2]
    assert project.build() == []


def test_a_model_that_gets_an_earlier_version_again_has_what_was_published_meanwhile(
    lake: Lake, project: Project
) -> None:
    """SQLMesh takes the table of that version as it was left."""

    def write(factor: int) -> None:
        query = f"SELECT sum(value) * {factor} AS total, day FROM ({READINGS}) GROUP BY day"
        project.write("models/gold.sql", model("gold.daily", query, "day", PUBLISHED))

    def totals() -> list[float]:
        return lake.column("SELECT total FROM gold.daily ORDER BY day")

    load(lake, "2024-01-01", "2024-01-02", value=1)
    write(1)
    project.build()
    write(10)
    project.build()
    load(lake, "2024-01-01", value=5)
    project.build()
    assert totals() == [50, 10]
    write(1)
    project.build()
    assert totals() == [5, 1]
    # Without a change, an earlier version costs a build only once.
    assert project.build() == []


def test_a_value_that_a_model_column_cannot_store_exactly_is_refused_with_its_column(
    lake: Lake, project: Project
) -> None:
    """DuckDB casts 2.5 to 2 when it is inserted into a BIGINT."""
    project.write(
        "models/readings.sql",
        model("silver.readings", READINGS, "day", PUBLISHED, "columns (id INT, value INT, day DATE)"),
    )
    project.write(
        "models/full.sql",
        "MODEL (name silver.whole, kind FULL, columns (id INT, value FLOAT)); SELECT id, value FROM raw.readings",
    )
    load(lake, "2024-01-01", value=2.5)
    project.build()
    assert "column value: 2.5 (DOUBLE) cannot be stored exactly as INT" in project.refused[0].error
    assert lake.sql("SELECT value FROM silver.readings") == []
    load(lake, "2024-01-01", value=3.0)
    project.build()
    assert lake.sql("SELECT value FROM silver.readings") == [{"value": 3}]
    assert lake.sql("SELECT value FROM silver.whole") == [{"value": 3.0}]
    load(lake, "2024-01-01", value=0.1)
    project.build()
    assert {r.model for r in project.refused} == {"silver.readings", "silver.whole"}
    assert all("column value: 0.1 (DOUBLE) cannot be stored exactly" in r.error for r in project.refused)
    assert lake.sql("SELECT value FROM silver.whole") == [{"value": 3.0}]


def test_an_added_column_rebuilds_no_model_and_a_changed_description_still_rebuilds_changed_days(
    lake: Lake, project: Project
) -> None:
    """A model with a changed description inherits the intervals of its previous version, including outdated ones."""
    project.write("models/readings.sql", model("silver.readings", READINGS, "day", PUBLISHED))
    star = READINGS.replace("id, value, day", "*")
    project.write("models/star.sql", model("silver.star", star, "day", PUBLISHED))
    project.write("models/codes.sql", "MODEL (name silver.codes, kind SEED (path '../seeds/codes.csv'));")
    project.write("seeds/codes.csv", "code\n1\n")
    # An external model with unknown columns: an older release left such models in SQLMesh's state.
    project.write("external_models.yaml", "- name: lake.raw.records\n")
    load(lake, "2024-01-01", "2024-01-02")
    project.build()
    project.write("models/readings.sql", model("silver.readings", READINGS, "day", PUBLISHED, "description 'other'"))
    project.write("seeds/codes.csv", "code\n1\n2\n")
    load(lake, "2024-01-01", value=7)
    lake.land("readings/2024-01-03.jsonl", [{"id": 1, "value": 1, "unit": "m"}])
    lake.load("readings", "2024-01-03")
    lake.land("records/2024-10-13.json", [{"id": 1}])
    lake.load("records", "2024-10-13")
    assert sorted(project.built("silver.readings")) == [("2024-01-01", "2024-01-01"), ("2024-01-03", "2024-01-03")]
    assert lake.column("SELECT value FROM silver.readings ORDER BY day") == [7, 1, 1]
    found = lake.sql("SELECT value, unit FROM silver.star ORDER BY day")
    assert [tuple(row.values()) for row in found] == [(7, None), (1, None), (1, "m")]
    assert lake.column("SELECT code FROM silver.codes ORDER BY 1") == [1, 2]


# Refused


BRONZE = model("bronze.readings", READINGS, "day", PUBLISHED, "audits (not_null(columns := (value)))")
SILVER = model("silver.readings", READINGS.replace("raw.", "bronze."), "day")
GOLD = model(
    "gold.daily",
    "SELECT day, sum(value) AS total FROM silver.readings WHERE day BETWEEN @start_date AND @end_date GROUP BY ALL",
    "day",
)


def year(lake: Lake, bad: str) -> None:
    """365 published days with the row number as value; one day has a null."""
    load(lake, "2023-01-01")
    with connected(lake.settings) as con:
        con.execute("DELETE FROM raw.readings")
        con.execute(
            "INSERT INTO raw.readings (id, value, day) SELECT n, CASE WHEN d::DATE <> ? THEN n END, d::DATE FROM "
            "(SELECT unnest(range(365)) AS n, DATE '2023-01-01' + n::INT AS d)",
            [bad],
        )
        row = {"dataset": "readings", "state": "published", "recorded_at": datetime.now(UTC)}
        days = [date(2023, 1, 1) + timedelta(days=n) for n in range(365)]
        append(con, "ledger", [{**row, "partition": str(d), "attempt_id": f"0{d}", "token": 1} for d in days])


def test_one_bad_day_of_365_stops_no_other_day_and_no_reader_sees_it(lake: Lake, project: Project) -> None:
    """O1. Former fault: gold stood still for all days, and the bad rows were visible before the audit."""
    for name, text in (("bronze", BRONZE), ("silver", SILVER), ("gold", GOLD)):
        project.write(f"models/{name}.sql", text)
    year(lake, "2023-03-05")
    events = project.build()
    assert len([e for e in events if e["model"] == "gold.daily"]) == 2, "one stretch before the day, one after it"
    (refused,) = project.refused
    assert (refused.model, refused.span, refused.rows) == ("bronze.readings", "2023-03-05", 1)
    assert refused.name == "not_null(columns := (value))"
    assert refused.sample == [{"id": 63, "value": None, "day": "2023-03-05"}]
    assert "lake backfill readings --start 2023-03-05 --end 2023-03-05" in refused.fix
    wanted = "SELECT day, value::DOUBLE AS total FROM raw.readings WHERE value IS NOT NULL ORDER BY day"
    assert len(lake.sql("FROM gold.daily")) == 364
    assert lake.sql("SELECT day, total::DOUBLE AS total FROM gold.daily ORDER BY day") == lake.sql(wanted)
    found = "FROM __ducklake_metadata_lake.ducklake_table WHERE table_name LIKE 'bronze__readings__%'"
    ((name, first),) = (row.values() for row in lake.sql(f"SELECT table_name, begin_snapshot {found}"))
    (last,) = lake.column("SELECT max(snapshot_id) FROM lake.snapshots()")
    seen = [
        lake.column(f"SELECT count(*) FROM sqlmesh__bronze.{name} AT (VERSION => {n}) WHERE value IS NULL")[0]
        for n in range(first, last + 1)
    ]
    assert set(seen) == {0}

    # Another day changes: the refused one is not tried again.
    load(lake, "2023-06-10", value=7)
    assert {(e["model"], e["start"]) for e in project.build()} == {
        (name, "2023-06-10") for name in ("bronze.readings", "silver.readings", "gold.daily")
    }
    assert project.refused == []
    notes = [f for f in verify(lake.settings) if f.check == "model audit"]
    assert [(f.subject, f.severity) for f in notes] == [("bronze.readings 2023-03-05", "note")]
    with connected(lake.settings, read_only=True) as con:
        assert [r.span for r in refused_of(con, "readings")] == ["2023-03-05"]
        assert refused_of(con, "hourly") == []

    # The day is corrected: it is built down to gold.
    load(lake, "2023-03-05", value=8)
    assert {(e["model"], e["start"]) for e in project.build()} == {
        (name, "2023-03-05") for name in ("bronze.readings", "silver.readings", "gold.daily")
    }
    assert lake.column("SELECT count(*) FROM gold.daily") == [365]
    assert [f for f in verify(lake.settings) if f.check == "model audit"] == []


def test_a_refused_interval_keeps_its_earlier_rows_and_a_changed_audit_tries_it_again(
    lake: Lake, project: Project
) -> None:
    limit = "audits (accepted_range(column := value, min_v := 1))"
    months = (
        "SELECT date_trunc('month', day)::DATE AS month_from, sum(value) AS total FROM bronze.readings "
        "WHERE day BETWEEN @start_date AND @end_date GROUP BY ALL"
    )
    project.write("models/bronze.sql", model("bronze.readings", READINGS, "day", PUBLISHED, limit))
    project.write("models/view.sql", "MODEL (name silver.view, kind VIEW); SELECT day, value FROM bronze.readings")
    through = "SELECT day, value FROM silver.view WHERE day BETWEEN @start_date AND @end_date"
    project.write("models/gold.sql", model("gold.readings", through, "day"))
    project.write("models/months.sql", model("gold.months", months, "month_from", "cron '@monthly'"))
    project.write("models/whole.sql", "MODEL (name gold.whole, kind FULL); SELECT sum(value) AS s FROM bronze.readings")
    days = [f"2024-01-{n:02}" for n in range(1, 32)]
    load(lake, *days)
    project.build()
    load(lake, days[4], value=0)
    load(lake, days[9], value=5)
    built = {(e["model"], e["start"]) for e in project.build()}
    assert [str(r) for r in project.refused] == [
        'bronze.readings 2024-01-05: audit accepted_range refuses 1 row, for example {"id": 1, "value": 0, '
        '"day": "2024-01-05"}'
    ]
    # The month contains the refused day, so it keeps its rows. The full table reads the earlier day.
    assert not [m for m, _ in built if m == "gold.months"]
    assert ("gold.readings", days[9]) in built
    assert ("gold.readings", days[4]) not in built
    for table, total in (("bronze.readings", 35), ("gold.readings", 35), ("gold.months", 31), ("gold.whole", 35)):
        column = {"gold.months": "total", "gold.whole": "s"}.get(table, "sum(value)")
        assert lake.column(f"SELECT ({column})::INT FROM {table}") == [total], table
    project.write("models/bronze.sql", model("bronze.readings", READINGS, "day", PUBLISHED, limit.replace("1", "0")))
    project.build()
    assert project.refused == []
    assert lake.column("SELECT total::INT FROM gold.months") == [34]
    assert lake.column("SELECT s::INT FROM gold.whole") == [34]
    assert [f for f in verify(lake.settings) if f.check == "model audit"] == []


def test_every_result_of_a_models_audits_is_recorded_and_a_warning_is_no_refusal(lake: Lake, project: Project) -> None:
    """Passed, warned and refused, by the interval that an audit is about; a later build replaces what it covers."""
    audits = (
        "audits (not_null(columns := (value)), accepted_range(column := value, min_v := 1, blocking := false), few)"
    )
    null, low = "not_null(columns := (value))", "accepted_range(column := value, min_v := 1)"
    project.write(
        "audits/few.sql",
        "AUDIT (name few, blocking false); SELECT count(*) AS n FROM @this_model "
        "WHERE day BETWEEN @start_date AND @end_date HAVING count(*) > 12",
    )
    project.write("models/bronze.sql", model("bronze.readings", READINGS, "day", PUBLISHED, audits))
    days = [f"2024-01-{n:02}" for n in range(1, 31)]
    load(lake, *days, value=3)
    load(lake, days[4], value=0)
    load(lake, days[9], value=-1)
    lake.land(f"readings/{days[19]}.jsonl", [{"id": 1, "value": None}, {"id": 2, "value": 0}])
    lake.load("readings", days[19])
    project.build()
    assert [r.span for r in project.refused] == [days[19]]
    assert lake.column("SELECT count(*) FROM bronze.readings") == [29]

    def failed(**more: Any) -> set[tuple[str, str, str, str]]:
        found = read_model(lake.settings, "bronze.readings", limit=1000, **more).found
        return {(r["name"], r["partition"], r["on_fail"], r["observed"]) for r in found if not r["passed"]}

    first = {
        (low, days[4], "warn", "1 row"),
        (low, days[9], "warn", "1 row"),
        (low, days[19], "warn", "1 row"),
        (null, days[19], "reject", "1 row"),
        ("few", f"{days[0]}..{days[14]}", "warn", "1 row"),  # only together: 15 of the 30 days
    }
    assert failed() == first
    found = read_model(lake.settings, "bronze.readings", moments=[days[4]], name=low)
    assert [json.loads(r["sample"])[0]["value"] for r in found.found if not r["passed"]] == [0]
    # Each day that was built is in one passed result of the audit that refuses.
    rows = lake.sql("SELECT interval_start AS a, interval_end AS b, name FROM ops.checks WHERE passed ORDER BY a")
    spans = [(row["a"], row["b"]) for row in rows if row["name"] == null]
    covered = [str((a + timedelta(n)).date()) for a, b in spans for n in range((b - a).days)]
    assert covered == [day for day in days if day != days[19]]

    with connected(lake.settings, read_only=True) as con:
        assert [(r.span, r.name) for r in refused_of(con)] == [(days[19], null)]
    load(lake, days[4], days[19], value=-2)
    load(lake, days[9], value=5)
    project.build()
    with connected(lake.settings, read_only=True) as con:
        assert refused_of(con) == [], "an audit that warns refuses nothing"
    assert failed() == {row for row in first if row[0] != null and row[1] != days[9]}
    assert failed(history=True) == first
    assert [f for f in verify(lake.settings) if f.check == "model audit"] == []
    with pytest.raises(BadInput, match=r"prod has no model bronze\.other"):
        read_model(lake.settings, "bronze.other")


# What is planned


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("models/a.sql", True),
        ("seeds/a.csv", True),
        ("external_models.yml", True),
        ("schema/external_models.yaml", True),
        ("macros/a.py", True),
        ("config.yml", True),
        ("tests/test_a.yaml", False),
        ("logs/sqlmesh.log", False),
        ("signals/__pycache__/a.pyc", False),
        (".cache/a", False),
        ("models/.a.sql.swp", False),
    ],
)
def test_the_project_digest_covers_exactly_the_files_that_affect_a_build(
    tmp_path: Path, path: str, counts: bool
) -> None:
    """P10. Former fault: a changed seed or .yml was not planned."""
    before = project_digest(tmp_path)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("1")
    made = project_digest(tmp_path)
    (tmp_path / path).write_text("2")
    changed = project_digest(tmp_path)
    assert (before != made, made != changed) == (counts, counts)


def test_a_broken_dataset_file_does_not_stop_models_of_other_datasets(
    lake: Lake, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "datasets"
    folder.mkdir()
    for name in ("readings", "odd"):
        text = (DATASETS / "readings.py").read_text()
        (folder / f"{name}.py").write_text(text.replace('"readings', f'"{name}'))
        query = READINGS.replace("readings", name)
        signal = PUBLISHED.replace("readings", name)
        project.write(f"models/{name}.sql", model(f"silver.{name}", query, "day", signal))
    monkeypatch.setenv("LAKE_DATASETS", str(folder))
    load(lake, "2024-01-01")
    lake.land("odd/2024-01-01.jsonl", [{"id": 1, "value": 1}])
    assert lake.load("odd", "2024-01-01").receipts
    assert {e["model"] for e in project.build()} == {"silver.odd", "silver.readings"}
    (folder / "odd.py").write_text("1 / 0\n")
    load(lake, "2024-01-02")
    assert [(e["model"], e["start"]) for e in project.build()] == [("silver.readings", "2024-01-02")]


def test_the_interval_after_a_failed_commit_is_one_transaction_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLMesh took the failed transaction for open: each statement of the next one was committed alone."""
    monkeypatch.setattr(LakeAdapter, "gate", contextlib.nullcontext)
    model, other = (lake_connection(lake.settings).create_engine_adapter() for _ in range(2))
    model.create_schema("silver")
    model.create_table("silver.made", {"n": exp.DataType.build("bigint")})

    def write(adapter: EngineAdapter, number: int, meanwhile: Callable[[], object]) -> None:
        with adapter.transaction():
            adapter.execute("DELETE FROM silver.made WHERE n < 0")
            adapter.execute(f"INSERT INTO silver.made VALUES ({number})")
            meanwhile()

    with pytest.raises(duckdb.TransactionException):
        write(model, 1, lambda: write(other, 2, int))
    with pytest.raises(ZeroDivisionError):
        write(model, 3, lambda: 1 // 0)
    assert lake.column("SELECT n FROM silver.made") == [2]
    write(model, 4, int)
    assert sorted(lake.column("SELECT n FROM silver.made")) == [2, 4]
    model.close()
    other.close()
