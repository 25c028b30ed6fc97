"""The `sqlmesh` command, run by hand: it finds the lake, reads without the gate, and writes only inside the gate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.ledger import unbuilt
from ducklake_flows.orchestration import gate
from ducklake_flows.orchestration.server import until
from tests.conftest import Lake, make_project
from tests.projects import PUBLISHED, READINGS, Project, load, model

SQLMESH = Path(sys.executable).parent / "sqlmesh"
NOWHERE = "http://127.0.0.1:9/api"
"""No Prefect server answers at this address."""


AUDITS = "audits (not_null(columns := id))"
UNIT_TEST = """
test_readings:
  model: silver.readings
  inputs:
    raw.readings:
      columns: {id: int, value: int, day: date}
      rows: [{id: 1, value: 2, day: 2024-01-01}]
  outputs:
    query: [{id: 1, value: 2, day: 2024-01-01}]
  vars: {start: 2024-01-01, end: 2024-01-01}
"""


@pytest.fixture
def project(gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path / "project" / "sqlmesh_project", gated_lake, monkeypatch)
    made.write("models/readings.sql", model("silver.readings", READINGS, "day", PUBLISHED, AUDITS))
    made.write("tests/test_readings.yaml", UNIT_TEST)
    return made


def sqlmesh(folder: Path, *arguments: str, **environment: str | None) -> subprocess.Popen[str]:
    """Start the command; an environment variable that is None is removed."""
    return subprocess.Popen(
        [SQLMESH, *arguments],
        cwd=folder,
        env={k: v for k, v in {**os.environ, "COLUMNS": "200", **environment}.items() if v is not None},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str], code: int = 0) -> str:
    text = process.communicate(timeout=120)[0]
    assert process.returncode == code, text
    return text


def slots(name: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(name).active_slots


def test_sqlmesh_reads_without_the_gate_waits_for_it_to_write_and_never_writes_outside_it(
    project: Project, tmp_path: Path
) -> None:
    """P9. Former fault: AttributeError, no attribute 'gate'."""
    lake, folder = project.lake, project.folder
    load(lake, "2024-01-01", "2024-01-02")
    with gate.hold():
        plan = sqlmesh(folder, "plan", "--auto-apply", "--no-prompts", "--skip-tests")
        assert until(lambda: slots(gate.TRANSFORM) == 1 or plan.poll() is not None)
        load(lake, "2024-01-03")
        assert plan.poll() is None, "it waits"
        assert lake.column("SELECT count(*) FROM duckdb_schemas() WHERE schema_name = 'silver'") == [0]
    said(plan)
    assert (slots(gate.TRANSFORM), slots(gate.NAME)) == (0, 0)
    before = lake.sql("SELECT * FROM silver.readings ORDER BY day")
    assert len(before) == 3

    assert "connection succeeded" in said(sqlmesh(folder, "info", PREFECT_API_URL=NOWHERE))
    assert "0 audit errors" in said(sqlmesh(folder, "audit", PREFECT_API_URL=NOWHERE))
    day = ("--start", "2024-01-03", "--end", "2024-01-03")
    assert "2024-01-03" in said(sqlmesh(folder, "evaluate", "silver.readings", *day, PREFECT_API_URL=NOWHERE))
    assert "Successfully Ran `1` Tests" in said(sqlmesh(folder, "test", PREFECT_API_URL=NOWHERE))
    # From another folder, the settings of the project that owns the models apply.
    make_project(folder.parent, models=folder)
    (folder.parent / ".env").write_text(f"LAKE_HOME={lake.settings.home}\n")
    (tmp_path / "elsewhere").mkdir()
    query = ("fetchdf", "SELECT count(*) AS n FROM silver.readings")
    elsewhere = {"LAKE_PROJECT": None, "LAKE_HOME": None, "LAKE_MODELS": None, "PREFECT_API_URL": NOWHERE}
    found = sqlmesh(tmp_path / "elsewhere", "--paths", str(folder), *query, **elsewhere)
    assert said(found).split() == ["n", "0", "3"]

    load(lake, "2024-01-04")
    snapshots = lake.column("SELECT max(snapshot_id) FROM lake.snapshots()")
    text = said(sqlmesh(folder, "run", "--ignore-cron", PREFECT_API_URL=NOWHERE), 1)
    assert f"The Prefect server at {NOWHERE} does not answer." in text
    assert lake.column("SELECT max(snapshot_id) FROM lake.snapshots()") == snapshots

    # The command commits an interval after its audits: the bad day stays out, all others are built.
    lake.land("readings/2024-01-05.jsonl", [{"id": None, "value": 9}])
    lake.load("readings", "2024-01-05")
    load(lake, "2024-01-06")
    text = said(sqlmesh(folder, "run", "--ignore-cron"), 1)
    assert "silver.readings 2024-01-05 is not committed: audit not_null refuses 1 row" in " ".join(text.split())
    assert "then run: lake transform" in text
    assert lake.column("SELECT day(day) FROM silver.readings ORDER BY 1") == [1, 2, 3, 4, 6]
    (table,) = lake.column(
        "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE table_name LIKE 'silver%'"
    )
    for snapshot in lake.column(f"SELECT snapshot_id FROM lake.snapshots() WHERE snapshot_id >= {snapshots[0]}"):
        assert lake.column(f"SELECT count(*) FROM {table} AT (VERSION => {snapshot}) WHERE id IS NULL") == [0]
    # A plan that lacks an interval is not promoted: readers keep the model as it was.
    view = "SELECT sql FROM duckdb_views() WHERE schema_name = 'silver'"
    (shown,) = lake.column(view)
    changed = READINGS.replace("value,", "value + 0 AS value,")
    project.write("models/readings.sql", model("silver.readings", changed, "day", PUBLISHED, AUDITS))
    text = said(sqlmesh(folder, "plan", "--auto-apply", "--no-prompts", "--skip-tests"), 1)
    assert "silver.readings 2024-01-05 is not committed" in text
    assert lake.column(view) == [shown]
    load(lake, "2024-01-05")

    # The command does not record its builds in the ops tables: the next transform does, and changes no row.
    with connected(lake.settings, read_only=True) as con:
        assert len(unbuilt(con, "prod")) == 6
    project.build()
    with connected(lake.settings, read_only=True) as con:
        assert unbuilt(con, "prod") == {}
    assert lake.sql("SELECT * FROM silver.readings ORDER BY day")[:3] == before
    assert lake.column("SELECT count(*) FROM silver.readings") == [6]
    assert lake.errors() == []


def test_a_missing_lake_is_one_error_that_names_the_next_command(project: Project) -> None:
    plan = ("plan", "--auto-apply", "--no-prompts", "--skip-tests")
    none = project.folder / "none"
    text = said(sqlmesh(project.folder, *plan, LAKE_HOME=str(none), LAKE_CATALOG=f"sqlite:{none}/catalog.sqlite"), 1)
    assert "There is no lake yet" in text
    assert text.rstrip().endswith("Next: lake init")
    assert "Traceback" not in text
