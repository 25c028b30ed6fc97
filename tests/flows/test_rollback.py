"""A rollback of many partitions to a snapshot: one commit, the models follow, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from ducklake_flows.cli.main import app
from ducklake_flows.ingest import ingest
from ducklake_flows.lake.verify import verify
from ducklake_flows.states import Mode
from ducklake_flows.transform import transform
from tests.projects import Project, model

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.conftest import Lake

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")


def command(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code != 0) == fails, (result.output, result.exception)
    return f"{result.output}{result.exception or ''}"


def test_the_whole_lake_goes_back_and_the_models_follow(
    gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = gated_lake
    project = Project(tmp_path / "models", lake, monkeypatch)
    days = "WHERE day BETWEEN @start_date AND @end_date GROUP BY day"
    query = f"SELECT day, sum(value)::INT AS total FROM raw.readings {days}"
    project.write("models/gold.sql", model("gold.daily", query, "day", "signals (published(dataset := 'readings'))"))

    def land(day: str, *values: int) -> None:
        lake.land(f"readings/{day}.jsonl", [{"id": n, "value": value} for n, value in enumerate(values)])

    def load(*days: str) -> None:
        summary: Any = ingest(["readings"], partitions=list(days), mode=Mode.all, workers=1)
        assert summary["published"] == len(days)

    def gold() -> dict[str, int]:
        found = lake.sql("SELECT day::VARCHAR AS day, total FROM gold.daily ORDER BY day")
        return {row["day"]: row["total"] for row in found}

    for day in DAYS[:2]:
        land(day, 1, 2)
    load(*DAYS[:2])
    transform()
    (at,) = lake.column("SELECT id FROM lake.current_snapshot()")
    for day in DAYS:
        land(day, 7)
    load(*DAYS)
    transform()
    assert gold() == dict.fromkeys(DAYS, 7)
    assert "1 added, 1 removed, 1 changed" not in command("diff", "readings", str(at))
    assert "3 partitions would be rolled back" in command("rollback", "--to", str(at), "--dry-run")
    assert gold() == dict.fromkeys(DAYS, 7)
    assert [finding.check for finding in verify(lake.settings)] == [], "it stages nothing"

    # A pattern first, then the rest.
    assert "1 partition rolled back" in command("rollback", "readings", "--to", str(at), "--partition", "*-02")
    assert gold() == {DAYS[0]: 7, DAYS[1]: 3, DAYS[2]: 7}
    before = set(lake.column("SELECT snapshot_id FROM lake.snapshots()"))
    said = command("rollback", "--to", str(at))
    assert "2 partitions rolled back to 2 rows" in said
    assert gold() == {DAYS[0]: 3, DAYS[1]: 3}
    messages = lake.sql("SELECT snapshot_id, commit_message AS text FROM lake.snapshots()")
    new = [str(message["text"]) for message in messages if message["snapshot_id"] not in before]
    assert sum(text.startswith("publish") for text in new) == 1
    assert "Nothing to roll back" in command("rollback", "--to", str(at))
    reasons = lake.column("SELECT DISTINCT reason FROM ops.ledger WHERE state = 'rolled_back'")
    assert reasons == [f"rollback to {at}"]
    assert lake.errors() == []
    assert "There is no snapshot 99999" in command("rollback", "--to", "99999", fails=True)
    assert "Roll back what?" in command("rollback", "readings", fails=True)


def test_a_drop_asks_says_why_and_the_models_follow(
    gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = gated_lake
    project = Project(tmp_path / "models", lake, monkeypatch)
    query = "SELECT day, count(*) AS rows FROM raw.readings WHERE day BETWEEN @start_date AND @end_date GROUP BY day"
    project.write("models/gold.sql", model("gold.daily", query, "day"))
    for day in DAYS:
        lake.land(f"readings/{day}.jsonl", [{"id": 1, "value": 1}])
    summary: Any = ingest(["readings"], partitions=list(DAYS), mode=Mode.all, workers=1)
    assert summary["published"] == 3
    command("transform")
    told = ("drop", "readings", "--partition", DAYS[0], "--reason", "asked for")
    assert "readings: 1 partition with 1 row would be dropped" in command(*told, fails=True), "nobody said yes"
    assert lake.column("SELECT count(*) FROM raw.readings") == [3]
    assert "readings: 1 partition with 1 row dropped, in snapshot" in command(*told, "--yes")
    assert lake.column("SELECT day::VARCHAR FROM gold.daily ORDER BY day") == list(DAYS[1:])
    assert lake.column(f"SELECT reason FROM ops.ledger WHERE partition = '{DAYS[0]}' ORDER BY token") == [
        None,
        "asked for",
    ]
    assert "has no rows of 2024-01-01" in command(*told, "--yes", fails=True)
    assert "readings: 2 partitions with 2 rows dropped" in command("drop", "readings", "--reason", "all", "--yes")
    assert lake.column("SELECT count(*) FROM gold.daily") == [0]
    assert "Neither the project nor the lake" in command("drop", "none", "--reason", "x", "--yes", fails=True)
    assert lake.errors() == []
