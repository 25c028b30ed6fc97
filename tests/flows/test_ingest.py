"""The ingest flow on a real Prefect server and a real Dask cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import date
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from prefect import flow, get_client
from prefect.exceptions import ParameterTypeError

from ducklake_flows.errors import GateError, RunFailed
from ducklake_flows.ingest import ingest
from ducklake_flows.lake.connect import connected
from ducklake_flows.orchestration import extraction, gate
from ducklake_flows.plan import make_plan
from ducklake_flows.states import Mode
from tests.events import asset_events
from tests.faults.conftest import held
from tests.faults.proxy import to_prefect

if TYPE_CHECKING:
    from uuid import UUID

    from tests.conftest import Lake

FLIGHT = "2013,1,1,517,515,2,830,819,11,UA,{number},N14228,EWR,IAH,227,1400,5,15,2013-01-{day:02}T10:00:00Z\n"
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,"
    "origin,dest,air_time,distance,hour,minute,time_hour\n"
)


def flights(day: int, rows: int = 3) -> str:
    line = FLIGHT.replace("2013,1,1,", f"2013,1,{day},")
    return HEADER + "".join(line.format(number=n, day=day) for n in range(rows))


def land(lake: Lake, *days: int, rows: int = 3) -> None:
    for day in days:
        lake.land(f"flights/2013-01-{day:02}.csv", flights(day, rows))


def run(dataset: str, start: str, end: str, **more: Any) -> dict[str, Any]:
    summary: dict[str, Any] = ingest([dataset], date.fromisoformat(start), date.fromisoformat(end), **more)
    return summary


def states(lake: Lake, dataset: str, start: str, end: str) -> dict[str, str]:
    from ducklake_flows.project import get_datasets

    planned = make_plan(lake.settings, get_datasets([dataset]), date.fromisoformat(start), date.fromisoformat(end))
    return {p.partition[-2:]: p.state.value for p in planned}


def test_the_three_partitions_that_once_hung_are_published_together(gated_lake: Lake) -> None:
    """2024-10-13, -14 and -15 of raw.records: loaded concurrently, they hung the first version of the pipeline."""
    days = {"2024-10-13": 40, "2024-10-14": 50, "2024-10-15": 60}
    for day, count in days.items():
        gated_lake.land(f"records/{day}.json", [{"id": f"{day}/{n}", "amount": n / 4} for n in range(count)])
    summary = run("records", "2024-10-13", "2024-10-15", workers=3)
    assert (summary["published"], summary["failed"], summary["rows"]) == (3, [], 150)
    found = gated_lake.sql(
        "SELECT record_date::VARCHAR AS d, count(*) AS n, sum(amount) AS a FROM raw.records GROUP BY ALL ORDER BY d"
    )
    assert found == [{"d": d, "n": n, "a": sum(range(n)) / 4} for d, n in days.items()]
    assert gated_lake.errors() == []


def test_a_failing_partition_stops_no_other_and_only_it_runs_again(gated_lake: Lake) -> None:
    land(gated_lake, 1, 2, 3, 4)
    gated_lake.land("flights/2013-01-02.csv", flights(2) + "2013,1,2,x\n")
    with pytest.raises(RunFailed, match="1 partition failed") as caught:
        run("flights", "2013-01-01", "2013-01-05")
    assert "flights 2013-01-02: flights/2013-01-02.csv: line 5: it has 4 columns instead of 19" in caught.value.message
    assert caught.value.summary["published"] == 3
    assert caught.value.summary["no_source"] == ["flights 2013-01-05"]
    assert states(gated_lake, "flights", "2013-01-01", "2013-01-05") == {
        "01": "published",
        "02": "failed",
        "03": "published",
        "04": "published",
        "05": "no_source",
    }
    assert gated_lake.errors() == []

    land(gated_lake, 2)
    summary = run("flights", "2013-01-01", "2013-01-05")
    assert (summary["published"], summary["failed"]) == (1, [])
    again = run("flights", "2013-01-01", "2013-01-05")
    assert (again["published"], again["unchanged"], again["commits"]) == (0, 0, 0)
    assert gated_lake.column("SELECT count(*) FROM raw.flights") == [12]


def test_each_kind_of_bad_landing_file_has_its_own_error_and_leaves_the_lake_correct(gated_lake: Lake) -> None:
    land(gated_lake, *range(1, 10))
    gated_lake.land("flights/2013-01-01.csv", "")
    gated_lake.land("flights/2013-01-02.csv", flights(2)[:-9])
    gated_lake.land("flights/2013-01-03.csv", "a,b\n1,2\n")
    gated_lake.land("flights/2013-01-04.csv", flights(4).replace(",1400,", ",far,"))
    gated_lake.land("flights/2013-01-05.csv", HEADER)
    gated_lake.land("flights/2013-01-06.csv", flights(7))
    gated_lake.land("flights/2013-01-07.csv", flights(7) + flights(7).partition("\n")[2])
    with pytest.raises(RunFailed) as caught:
        run("flights", "2013-01-01", "2013-01-09")
    assert caught.value.fix.endswith("fix the cause, then: lake backfill flights --start 2013-01-07 --end 2013-01-07")
    errors = {f["partition"][-2:]: f["error"] for f in caught.value.summary["failed"]}
    said = {
        "01": "is empty",
        "02": "truncated",
        "03": "wrong header",
        "04": "line 2: column distance: 'far' cannot be bigint",
        "05": "at_least(1)",
        "06": "the rows are of this day",
        "07": "duplicate of the primary key",
    }
    assert errors.keys() == said.keys()
    for day, words in said.items():
        assert words in errors[day], day
    assert gated_lake.column("SELECT DISTINCT day(flight_date) FROM raw.flights ORDER BY 1") == [8, 9]
    assert gated_lake.errors() == []


def test_a_limit_takes_the_newest_and_the_reason_is_in_the_ledger(gated_lake: Lake) -> None:
    land(gated_lake, 1, 2, 3, 4)
    gated_lake.land("flights/2013-01-04.csv", "")
    with pytest.raises(RunFailed):
        run("flights", "2013-01-01", "2013-01-04", limit=2, reason="late files")
    assert states(gated_lake, "flights", "2013-01-01", "2013-01-04") == {
        "01": "missing",
        "02": "missing",
        "03": "published",
        "04": "failed",
    }
    found = gated_lake.sql("SELECT DISTINCT state, reason FROM ops.ledger ORDER BY state")
    assert [tuple(row.values()) for row in found] == [("failed", "late files"), ("published", "late files")]
    with pytest.raises(ParameterTypeError, match="greater than or equal to 1"):
        run("flights", "2013-01-01", "2013-01-04", limit=0)


def test_each_mode_selects_its_partitions(gated_lake: Lake) -> None:
    land(gated_lake, 1, 2)
    run("flights", "2013-01-01", "2013-01-02")
    gated_lake.land("flights/2013-01-03.csv", "")
    with pytest.raises(RunFailed):
        run("flights", "2013-01-03", "2013-01-03")
    land(gated_lake, 2, rows=5)
    land(gated_lake, 4)

    from ducklake_flows.project import get_datasets

    def chosen(mode: Mode) -> list[str]:
        planned = make_plan(gated_lake.settings, get_datasets(["flights"]), date(2013, 1, 1), date(2013, 1, 5), mode)
        return [p.partition[-2:] for p in planned if p.runs]

    assert chosen(Mode.missing) == ["04"]
    assert chosen(Mode.failed) == ["03"]
    assert chosen(Mode.missing_failed) == ["03", "04"]
    assert chosen(Mode.stale) == ["02"]
    assert chosen(Mode.all) == ["01", "02", "03", "04"]

    summary = run("flights", "2013-01-01", "2013-01-05", mode=Mode.stale)
    assert (summary["published"], summary["rows"]) == (1, 5)
    summary = run("flights", "2013-01-01", "2013-01-02", mode=Mode.all)
    assert (summary["published"], summary["unchanged"], summary["commits"]) == (0, 2, 0)

    # Deleted rows are published again: the plan checks the table, not only the ledger.
    with connected(gated_lake.settings) as con:
        con.execute("DELETE FROM raw.flights WHERE flight_date = '2013-01-02'")
    summary = run("flights", "2013-01-01", "2013-01-02", mode=Mode.all)
    assert (summary["published"], summary["unchanged"], summary["older"]) == (1, 1, 0)
    assert gated_lake.errors() == []


def test_no_source_fails_only_a_dataset_that_must_be_complete(gated_lake: Lake) -> None:
    summary = run("records", "2024-10-13", "2024-10-14")
    assert (summary["published"], summary["no_source"]) == (0, ["records 2024-10-13", "records 2024-10-14"])
    assert gated_lake.column("SELECT count(*) FROM ops.ledger") == [0]
    with pytest.raises(RunFailed, match=r"monthly 2024-01: no file matches monthly/2024-01\.parquet"):
        run("monthly", "2024-01-01", "2024-01-31")
    events = asset_events("ingest monthly 2024-01-01..2024-01-31", 1)
    state, _, metadata = events["ducklake://lake/raw/monthly"]
    assert (state, metadata["partitions"], metadata["failed"]) == ("failed", 0, 1)


def test_a_partition_that_kills_its_worker_is_the_only_one_that_fails(gated_lake: Lake) -> None:
    with pytest.raises(RunFailed, match="1 partition failed") as caught:
        run("deadly", "2024-01-01", "2024-01-06")
    assert [f["partition"] for f in caught.value.summary["failed"]] == ["2024-01-03"]
    assert "its worker died" in caught.value.message
    assert gated_lake.column("SELECT day(day) FROM raw.deadly ORDER BY 1") == [1, 2, 4, 5, 6]
    # Alone, another partition would run in this process. This one is known to fail.
    with pytest.raises(RunFailed, match="its worker died"):
        run("deadly", "2024-01-03", "2024-01-03")
    assert gated_lake.errors() == []


def test_a_run_of_one_partition_starts_no_cluster(gated_lake: Lake) -> None:
    land(gated_lake, 1)
    run_one = "main.app(['backfill', 'flights', '--partition', '2013-01-01'], standalone_mode=False)"
    look = f"import sys; from ducklake_flows.cli import main; {run_one}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert ("dlt" in modules, "distributed" in modules, "multiprocessing.forkserver" in modules) == (True, False, False)
    assert gated_lake.column("SELECT count(*) FROM raw.flights") == [3]


def test_without_the_gate_nothing_starts(gated_lake: Lake) -> None:
    from prefect.client.orchestration import get_client

    land(gated_lake, 1)
    with get_client(sync_client=True) as client:
        client.delete_global_concurrency_limit_by_name(gate.NAME)
        with pytest.raises(GateError, match="does not exist") as caught:
            run("flights", "2013-01-01", "2013-01-01")
        assert caught.value.fix == "lake init"
        client.upsert_global_concurrency_limit_by_name(gate.NAME, 3)
        with pytest.raises(GateError, match="3 slots instead of one"):
            run("flights", "2013-01-01", "2013-01-01")
    assert gate.ensure()
    assert not gate.ensure()
    assert gated_lake.column("SELECT count(*) FROM ops.ledger") == [0]


async def _seen(name: str) -> dict[str, Any]:
    """What the Prefect UI shows of the latest run with this name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, TaskRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    async with get_client() as client:
        found = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"name": {"any_": [name]}}),
            sort=FlowRunSort.START_TIME_DESC,
        )
        run_id: UUID = found[0].id
        tasks: list[Any] = []
        # Prefect records task runs from events, shortly after they end.
        while not tasks or not all(t.state and t.state.is_final() for t in tasks):
            tasks = await client.read_task_runs(
                task_run_filter=TaskRunFilter.model_validate({"flow_run_id": {"any_": [str(run_id)]}})
            )
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return {
        "id": str(run_id),
        "parameters": found[0].parameters,
        "tasks": sorted(t.name for t in tasks),
        "artifacts": {a.key: a for a in artifacts if a.key},
    }


def test_the_prefect_ui_shows_a_runs_tasks_progress_and_partitions(gated_lake: Lake, prefect_server: str) -> None:
    land(gated_lake, 1, 2, 3, 4)
    gated_lake.land("flights/2013-01-04.csv", "")
    with pytest.raises(RunFailed):
        run("flights", "2013-01-01", "2013-01-04")
    seen = asyncio.run(_seen("ingest flights 2013-01-01..2013-01-04"))
    assert seen["tasks"] == ["flights 2013-01-01..2013-01-02 (2)", "flights 2013-01-03..2013-01-04 (2)"]
    assert seen["artifacts"].keys() == {"partitions", "partitions-done", "ingest-summary", "flights-partitions"}
    assert seen["artifacts"]["partitions"].type == "progress"
    assert seen["artifacts"]["partitions"].data == 100.0
    table = json.loads(seen["artifacts"]["partitions-done"].data)
    assert [(r["partition"], r["state"], r["rows"]) for r in table] == [
        ("2013-01-04", "failed", None),
        ("2013-01-01", "published", 3),
        ("2013-01-02", "published", 3),
        ("2013-01-03", "published", 3),
    ]
    assert "is empty" in table[0]["error"]
    assert table[1].keys() == {"dataset", "partition", "state", "rows", "bytes", "seconds", "error"}
    events = asset_events("ingest flights 2013-01-01..2013-01-04", 1)
    state, upstream, metadata = events["ducklake://lake/raw/flights"]
    assert (state, upstream, metadata["rows"], metadata["failed"]) == ("succeeded", set(), 9, 1)
    assert (metadata["partitions"], metadata["range"]) == (3, "2013-01-01..03")
    assert gated_lake.column(f"SELECT count(*) FROM raw.flights AT (VERSION => {metadata['snapshot_id']})") == [9]
    told = "flights 2013-01-04: flights/2013-01-04.csv: is empty (0 bytes)"
    step = "lake backfill flights --start 2013-01-04 --end 2013-01-04`"
    summary, grid = (seen["artifacts"][key].data for key in ("ingest-summary", "flights-partitions"))
    assert "| extract and publish |" in summary
    # The grid shows all 365 partitions of the dataset, not only those of the run.
    assert "**3 published, 1 failed, 361 no source**, 9 rows." in grid
    assert "](data:image/svg+xml;base64," in grid
    assert all(told in text and step in text for text in (summary, grid))
    assert f"](http://127.0.0.1:{urlsplit(prefect_server).port}/runs/flow-run/{seen['id']})" in grid


def test_timings_are_in_the_summary_and_in_the_ledger(gated_lake: Lake) -> None:
    land(gated_lake, 1, 2, 3)
    summary = run("flights", "2013-01-01", "2013-01-03", workers=1)
    way = {"dask", "prefect", "extract", "normalize", "inspect", "stage", "receipt"}
    assert summary["seconds"].keys() >= way | {"plan", "wait for the gate", "in the gate", "total"}
    rows = gated_lake.sql("SELECT seconds, profile FROM ops.ledger")
    profiles = [json.loads(row["profile"]) for row in rows]
    assert all(profile.keys() == way | {"gate_wait", "gate"} for profile in profiles)
    for stage in way:
        assert sum(p[stage] for p in profiles) == pytest.approx(summary["seconds"][stage], abs=0.002), stage
    for row, profile in zip(rows, profiles, strict=True):
        worked = sum(profile[stage] for stage in ("extract", "normalize", "inspect", "stage"))
        assert row["seconds"] == pytest.approx(worked, abs=0.001)


def test_a_source_is_called_no_faster_than_its_rate(gated_lake: Lake) -> None:
    assert ingest(["paced"], workers=2)["published"] == 20
    asked = [
        [float(line) for line in file.read_text().splitlines()] for file in gated_lake.settings.home.glob("asked-*")
    ]
    assert (len(asked), sum(map(len, asked))) == (2, 40), "both workers asked"
    # Each worker waits 2/25 s before each of its requests. A request may come late after its wait, which shortens
    # the time to the next: only the sum of the waits is certain, less what the first request was late.
    # Without a limit, all requests of a chunk take a few milliseconds.
    for times in asked:
        assert times[-1] - times[0] >= (len(times) - 1) * 2 / 25 / 2


def test_the_flow_parameters_are_typed() -> None:
    from ducklake_flows.pipeline import pipeline

    properties = pipeline.parameters.properties
    assert properties["datasets"]["anyOf"][0] == {"items": {"type": "string"}, "type": "array"}
    assert properties["start"]["anyOf"][0] == {"format": "date", "type": "string"}
    assert properties["workers"]["type"] == "integer"
    assert pipeline.parameters.definitions is not None
    assert pipeline.parameters.definitions["Mode"]["enum"] == ["missing", "failed", "missing_failed", "stale", "all"]
    assert all("description" in p or "title" in p for p in properties.values())


def test_a_chunk_returns_unstarted_partitions_when_its_time_budget_ends(
    gated_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "CHUNK_SECONDS", 0.0)
    land(gated_lake, *range(1, 7))
    summary = run("flights", "2013-01-01", "2013-01-06", workers=1)
    assert (summary["published"], summary["failed"]) == (6, [])
    assert gated_lake.column("SELECT count(DISTINCT attempt_id) FROM ops.ledger") == [6]
    assert gated_lake.errors() == []


@pytest.mark.parametrize(
    ("status", "times"),
    [
        pytest.param("503", 15, id="busy"),  # a locked SQLite, more often in a row than Prefect's own client retries
        pytest.param("500", 2, id="failing"),  # PostgreSQL's pool of connections is used up
    ],
)
def test_a_prefect_server_that_cannot_answer_is_asked_again(gated_lake: Lake, status: str, times: int) -> None:
    with to_prefect() as proxy:
        proxy.fault = lambda data: status if b"increment-with-lease" in data and proxy.count < times else "pass"
        with gate.hold():
            assert proxy.count == times
            assert held() == 1
    assert held() == 0


def test_a_server_that_refuses_artifacts_fails_no_run(gated_lake: Lake) -> None:
    land(gated_lake, 1)
    with to_prefect() as proxy:
        proxy.fault = lambda data: "500" if b"/artifacts/ " in data else "pass"
        assert run("flights", "2013-01-01", "2013-01-01")["published"] == 1
        assert proxy.count == 4  # progress, the table, the summary and the grid


def test_entering_the_gate_repeatedly_does_not_wrap_the_client_again(gated_lake: Lake) -> None:
    """Prefect returns the same client within a flow: a run of many groups once ended in a RecursionError."""

    @flow
    def often() -> None:
        client = get_client(sync_client=True)
        before = client._client._transport
        for _ in range(3):
            with gate.hold():
                assert held() == 1
        assert get_client(sync_client=True) is client
        assert client._client._transport is before

    often()
