"""The transform flow builds exactly the intervals with changed input, each in one snapshot, on the native gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName
from prefect.client.schemas.sorting import FlowRunSort

from ducklake_flows.errors import BadInput, RunFailed
from ducklake_flows.lake.builds import environments
from ducklake_flows.lake.checks import read_model
from ducklake_flows.models import runner as room
from ducklake_flows.orchestration.environments import check_promotion, drop
from ducklake_flows.transform import transform
from tests.conftest import MODELS, Lake
from tests.events import asset_events
from tests.flows.test_ingest import flights

DAYS = [1, 2, 3]

RECOMPUTED = """
    SELECT flight_date, carrier, origin, count(*) AS flights,
           count(*) FILTER (arr_delay < 15) AS on_time, sum(arr_delay)::BIGINT AS arrival_delay_minutes
    FROM raw.flights GROUP BY ALL ORDER BY ALL
"""
GOLD = """
    SELECT flight_date, carrier, origin, flights, on_time, arrival_delay_minutes
    FROM gold.carrier_daily ORDER BY ALL
"""


def load(lake: Lake, *days: int, rows: int) -> None:
    for day in days:
        lake.land(f"flights/2013-01-{day:02}.csv", flights(day, rows))
    lake.load("flights", *(f"2013-01-{day:02}" for day in days))


def last_task_runs() -> dict[str, str | None]:
    """The task runs of the last transform: name and state."""
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=["transform prod"]))
        (run,) = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC, limit=1)
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return {str(task.name): task.state_name for task in found}


def built(summary: dict[str, Any], layer: str) -> set[tuple[str, str]]:
    return {(m["start"], m["end"]) for m in summary["models"] if m["model"] == layer}


def test_only_changed_intervals_are_built_and_gold_equals_a_full_recompute(gated_lake: Lake) -> None:
    lake = gated_lake
    load(lake, *DAYS, rows=3)
    first = transform()
    assert built(first, "silver.flights") == {("2013-01-01", "2013-01-03")}
    assert lake.sql(GOLD) == lake.sql(RECOMPUTED)
    tables = {
        row["table"]: f"{row['schema']}.{row['table']}"
        for row in lake.sql(
            "SELECT schema_name AS schema, table_name AS table FROM duckdb_tables() "
            "WHERE schema_name LIKE 'sqlmesh__%' AND table_name LIKE '%flights%'"
        )
    }
    assert len(tables) == 2, "bronze and silver are tables of the lake"

    def written(table: str) -> dict[str, list[int]]:
        """The row ids of each day: a row that is written again has another one."""
        query = f"SELECT flight_date::VARCHAR AS day, list(rowid ORDER BY rowid) AS ids FROM {table} GROUP BY ALL"
        return {row["day"]: row["ids"] for row in lake.sql(query)}

    before = {table: written(table) for table in tables.values()}
    assert all(len(days) == 3 for days in before.values())
    assert transform()["models"] == [], "nothing changed, nothing is built"

    # One old day with other rows, and one new day.
    load(lake, 2, rows=7)
    load(lake, 5, rows=2)
    oldest = lake.column("SELECT max(snapshot_id) FROM lake.snapshots()")[0]
    second = transform()
    assert second["partitions"] == {"flights": 2}
    for model in ("bronze.flights", "silver.flights", "gold.carrier_daily"):
        assert built(second, model) == {("2013-01-02", "2013-01-02"), ("2013-01-05", "2013-01-05")}
    assert lake.sql(GOLD) == lake.sql(RECOMPUTED)
    for table, days in before.items():
        now = written(table)
        assert {day for day in days if now[day] == days[day]} == {"2013-01-01", "2013-01-03"}
        assert set(now) == {*days, "2013-01-05"}

    # Each interval was replaced in one snapshot, which deletes the old rows and inserts the new ones.
    changes = lake.sql(f"SELECT changes FROM lake.snapshots() WHERE snapshot_id > {oldest}")
    deleting = [c["changes"] for c in changes if "tables_deleted_from" in c["changes"]]
    assert len(deleting) == 3
    assert all(c["tables_deleted_from"] == c["tables_inserted_into"] for c in deleting)
    assert lake.errors() == []


def test_an_interval_whose_partition_has_not_landed_is_never_recorded_as_done(gated_lake: Lake) -> None:
    lake = gated_lake
    load(lake, 1, 3, rows=2)
    transform()
    assert lake.column("SELECT DISTINCT day(flight_date) FROM silver.flights ORDER BY 1") == [1, 3]
    load(lake, 2, rows=4)
    assert built(transform(), "silver.flights") == {("2013-01-02", "2013-01-02")}
    assert lake.column("SELECT DISTINCT day(flight_date) FROM silver.flights ORDER BY 1") == [1, 2, 3]


def test_a_refused_day_fails_the_run_and_stops_no_other_day(gated_lake: Lake) -> None:
    """O1: a value that raw accepts and bronze's audit refuses."""
    lake = gated_lake
    load(lake, 1, 2, rows=2)
    transform()
    lake.land("flights/2013-01-01.csv", flights(1, 3).replace(",IAH,", ",NA,", 1))
    lake.load("flights", "2013-01-01")
    load(lake, 3, rows=5)
    with pytest.raises(RunFailed, match="1 interval keeps its earlier rows") as caught:
        transform()
    assert "bronze.flights 2013-01-01: audit not_null refuses 1 row, for example" in caught.value.message
    assert "lake backfill flights --start 2013-01-01" in caught.value.fix
    states = last_task_runs()
    assert states["bronze.flights 2013-01-01"] == "Failed"
    assert states["gold.carrier_daily 2013-01-03"] == "Completed"
    assert "gold.carrier_daily 2013-01-01" not in states
    made = asset_events("transform prod", 7)
    asset = "ducklake://lake/{}/{}".format
    state, upstream, metadata = made[asset("bronze", "flights")]
    assert (state, upstream, metadata["failed"]) == ("succeeded", {asset("raw", "flights")}, 1)
    assert metadata["intervals"] == "2013-01-03"
    assert made[asset("silver", "flights")][1] == {asset("bronze", "flights")}
    state, upstream, metadata = made[asset("gold", "carrier_daily")]
    assert (state, upstream, metadata["failed"]) == ("succeeded", {asset("silver", "flights")}, 0)
    then = lake.column(f"SELECT sum(flights)::INT FROM gold.carrier_daily AT (VERSION => {metadata['snapshot_id']})")
    assert then == [9]
    (refused,) = caught.value.summary["refused"]
    name = "not_null(columns := (time_hour, carrier, flight, origin, dest))"
    assert (refused["check"], refused["rows"], refused["sample"][0]["dest"]) == (name, 1, None)
    results = {(r["name"], r["partition"]): r["passed"] for r in read_model(lake.settings, "bronze.flights").found}
    other = "every_row_of(source := raw.flights, day := flight_date)"
    spans = ("2013-01-01..2013-01-02", "2013-01-01", "2013-01-03")
    # As built at first, refused, and built beside the refused one.
    assert results == {(name, s): s != spans[1] for s in spans} | {(other, s): True for s in spans}
    days = "SELECT day(flight_date) AS d, sum(flights)::INT AS n FROM gold.carrier_daily GROUP BY ALL ORDER BY ALL"
    assert lake.sql(days) == [{"d": 1, "n": 2}, {"d": 2, "n": 2}, {"d": 3, "n": 5}]
    assert transform()["models"] == [], "the refused day is tried again only after a change"
    load(lake, 1, rows=4)
    assert built(transform(), "silver.flights") == {("2013-01-01", "2013-01-01")}
    assert lake.sql(GOLD) == lake.sql(RECOMPUTED)
    assert lake.errors() == []


def test_an_environment_has_tables_that_are_not_those_of_prod(gated_lake: Lake) -> None:
    """O10. Former fault: a transform in dev replaced the intervals of prod's tables."""
    lake = gated_lake
    load(lake, 1, 2, rows=3)
    transform()

    def tables(environment: str) -> dict[str, int]:
        """The tables of an environment, each with the last snapshot that changed it."""
        where = "=" if environment == "dev" else "<>"
        found = lake.column(
            "SELECT table_name FROM duckdb_tables() WHERE schema_name LIKE 'sqlmesh\\_\\_%' ESCAPE '\\' "
            f"AND schema_name {where} 'sqlmesh__dev'"
        )
        changes = lake.sql("SELECT snapshot_id, changes::VARCHAR AS text FROM lake.snapshots()")
        return {name: max(c["snapshot_id"] for c in changes if name in c["text"]) for name in found}

    prod = tables("prod")
    load(lake, 2, rows=7)
    transform("dev")
    assert tables("prod") == prod
    assert len(tables("dev")) == len(prod) == 9
    assert all(key.split("/")[3].endswith("__dev") for key in asset_events("transform dev", 7))
    in_dev = GOLD.replace("gold.", "gold__dev.")
    assert lake.sql(in_dev) == lake.sql(RECOMPUTED)
    assert lake.column("SELECT sum(flights)::INT FROM gold.carrier_daily") == [6]
    state = {e.name: (e.is_current, e.changed) for e in environments(lake.settings)}
    assert state == {"prod": (True, 1), "dev": (True, 0)}
    check_promotion(lake.settings, "dev")

    load(lake, 3, rows=1)
    with pytest.raises(BadInput, match="dev was not built from the current models and partitions"):
        check_promotion(lake.settings, "dev")
    drop(lake.settings, "dev")
    assert tables("dev") == {}
    assert lake.column("SELECT count(*) FROM duckdb_views() WHERE schema_name LIKE '%__dev'") == [0]
    assert [e.built_at is None for e in environments(lake.settings)] == [False, True]
    assert tables("prod") == prod
    assert built(transform("dev"), "silver.flights") == {("2013-01-01", "2013-01-03")}
    transform()
    assert lake.sql(GOLD) == lake.sql(in_dev) == lake.sql(RECOMPUTED)
    with pytest.raises(BadInput, match="no environment 'nope': prod, dev") as caught:
        transform("nope")
    assert 'environments = ["nope"]' in caught.value.fix
    assert lake.errors() == []


def test_a_lost_state_is_rebuilt(gated_lake: Lake) -> None:
    lake = gated_lake
    load(lake, 1, 2, rows=3)
    transform()
    Path(lake.settings.state).unlink()
    load(lake, 3, rows=5)
    assert built(transform(), "silver.flights") == {("2013-01-01", "2013-01-03")}
    assert lake.sql(GOLD) == lake.sql(RECOMPUTED)
    assert transform()["models"] == []


def test_a_killed_build_releases_the_gate_and_is_repeated(gated_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = gated_lake
    load(lake, 1, rows=2)
    real = room._Held.enter

    def enter_then_kill(self: room._Held) -> None:
        real(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(room._Held, "enter", enter_then_kill)
    with pytest.raises(KeyboardInterrupt):
        transform()
    monkeypatch.undo()
    lake_env(lake, monkeypatch)
    from prefect.client.orchestration import get_client

    from ducklake_flows.orchestration import gate

    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(gate.NAME).active_slots == 0
    transform()
    assert lake.sql(GOLD) == lake.sql(RECOMPUTED)
    assert lake.errors() == []


def lake_env(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of the fixture again: undoing a patch undoes it too."""
    for name, value in lake.settings.environment().items():
        monkeypatch.setenv(name, value)


def test_the_models_unit_tests_pass(gated_lake: Lake) -> None:
    from sqlmesh.core.context import Context

    result = Context(paths=[str(MODELS)]).test()
    assert result.testsRun >= 4
    assert result.wasSuccessful(), [*result.failures, *result.errors]


def test_telemetry_is_off_everywhere(gated_lake: Lake) -> None:
    import os

    import dlt

    from ducklake_flows.extract import chunk
    from ducklake_flows.models.config import project_config
    from ducklake_flows.orchestration.server import SERVER_SETTINGS

    assert project_config(gated_lake.settings).disable_anonymized_analytics
    assert SERVER_SETTINGS["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert chunk.__name__
    assert dlt.config["runtime.dlthub_telemetry"] is False
