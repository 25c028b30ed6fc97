"""The maintain flow next to other runs: it runs the steps that it can and reports those that it postponed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from prefect.exceptions import ParameterTypeError

from ducklake_flows import maintain as module
from ducklake_flows.cli import show
from ducklake_flows.errors import BadInput, CommitConflict, RunFailed
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.maintain import maintain
from ducklake_flows.models import runner
from ducklake_flows.orchestration import gate
from tests.projects import load

if TYPE_CHECKING:
    from tests.conftest import Lake


def by_step(summary: dict[str, Any]) -> dict[str, int]:
    return {s["step"]: s["done"] for s in summary["steps"] if s["found"]}


def test_a_step_blocked_by_a_running_transform_is_postponed_and_reported(
    gated_lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regression: it waited 15 minutes for the limit of the transforms and then ran no step."""
    load(gated_lake, "2024-01-01")
    with gate.hold(gate.TRANSFORM):
        summary = maintain()
    assert by_step(summary)["flush"] == 1
    assert summary["left"] == ["SQLMesh's janitor: a transform is running."]
    show.maintained(summary)
    assert "Postponed to the next run: SQLMesh's janitor" in capsys.readouterr().out


def test_a_conflicting_step_or_a_failed_janitor_does_not_stop_the_other_steps(
    gated_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both tables need a merge. Another writer changes one of them meanwhile, without the gate."""
    lake = gated_lake
    con = connect(lake.settings)
    con.execute("CREATE SCHEMA bronze")
    for table in ("one", "two"):
        con.execute(f"CREATE TABLE bronze.{table} (n BIGINT)")
        for n in range(3):
            con.execute(f"INSERT INTO bronze.{table} VALUES ({n})")

    def overtaken(*arguments: Any) -> Any:
        for step in steps(*arguments):
            if step.subject == "bronze.one":
                monkeypatch.setattr(
                    "ducklake_flows.lake.maintenance.failpoint", lambda _: con.execute("DELETE FROM bronze.one")
                )
            yield step
            monkeypatch.setattr("ducklake_flows.lake.maintenance.failpoint", lambda _: None)

    def broken(*_: Any) -> None:
        raise RunFailed("SQLMesh's janitor failed: no")

    monkeypatch.setattr(module, "steps", overtaken)
    monkeypatch.setattr(runner, "run", broken)
    with pytest.raises(RunFailed, match="janitor failed") as caught:
        maintain()
    con.close()
    (left,) = caught.value.summary["left"]
    assert left.startswith("merge bronze.one: Another writer changed the lake first")
    assert lake.column("SELECT count(*) FROM bronze.one") == [0]
    assert lake.column("SELECT count(*) FROM ducklake_list_files('lake', 'two', schema => 'bronze')") == [1]


def test_a_commit_that_ducklake_refuses_is_a_conflict(lake: Lake) -> None:
    con = connect(lake.settings)
    load(lake, "2024-01-01")
    flush = next(s for s in steps(lake.settings, timedelta(days=30)) if s.name == "flush")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ducklake_flows.lake.maintenance.failpoint",
            lambda _: con.execute("INSERT INTO ops.builds (token) VALUES (0)"),
        )
        with pytest.raises(CommitConflict) as caught:
            flush.run()
    con.close()
    assert isinstance(caught.value.__cause__, duckdb.TransactionException)


def test_a_negative_retention_is_refused(gated_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """O10: it would have expired all history."""
    with pytest.raises(ParameterTypeError, match="greater than or equal to 0"):
        maintain(retention_days=-1)
    monkeypatch.setenv("LAKE_RETENTION_DAYS", "-1")
    with pytest.raises(BadInput, match="-1 days"):
        maintain()
