"""`lake lineage`: from a column in gold to raw partitions, their source, attempts, files and runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.cli.main import app
from ducklake_flows.errors import BadInput
from ducklake_flows.report.lineage import lineage
from ducklake_flows.settings import load_settings
from tests.projects import PUBLISHED, READINGS, Project, load, model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake


def test_a_gold_column_leads_to_its_columns_partitions_source_files_and_runs(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path / "models", lake, monkeypatch)
    settings = load_settings()
    load(lake, "2024-01-01", "2024-01-02", "2024-01-03")
    project.write("models/bronze.sql", model("bronze.readings", READINGS, "day", PUBLISHED))
    gold = (
        "SELECT day, SUM(value * 2) AS total, COUNT(*) AS n FROM bronze.readings "
        "WHERE day BETWEEN @start_date AND @end_date GROUP BY day"
    )
    project.write("models/gold.sql", model("gold.daily", gold, "day"))
    assert project.build()
    load(lake, "2024-01-02", value=7)

    app(["lineage", "gold.daily.total", "--partition", "2024-01-02"], standalone_mode=False)
    printed = capsys.readouterr().out
    found = lineage(settings, "gold.daily.total", "2024-01-02")
    assert found["steps"] == [
        {"table": "gold.daily", "columns": {"total": ["bronze.readings.value"]}, "rows_from": ["bronze.readings"]},
        {"table": "bronze.readings", "columns": {"value": ["raw.readings.value"]}, "rows_from": ["raw.readings"]},
        {"table": "raw.readings", "columns": {"value": []}, "rows_from": []},
    ]
    (part,) = found["partitions"]
    first, second = part["attempts"]
    assert [(a["state"], a["rows"], a["source"], a["flow_run_id"]) for a in part["attempts"]] == [
        ("published", 1, "readings/2024-01-02.jsonl", "test")
    ] * 2
    assert first["source_version"] != second["source_version"]
    day = "raw.readings AT (VERSION => {}) WHERE day = '2024-01-02'"
    for attempt, value in ((first, 1), (second, 7)):
        assert lake.column(f"SELECT value FROM {day.format(attempt['snapshot_id'])}") == [value]
        assert lake.column(f"SELECT value FROM {day.format(attempt['snapshot_id'] - 1)}") != [value]
    (file,) = part["files"]
    assert file.endswith(f"/raw/readings/day=2024-01-02/{second['attempt_id']}-0.parquet")
    # The models are still those of the first attempt.
    (built,) = part["builds"]
    assert (built["environment"], built["attempt_id"]) == ("prod", first["attempt_id"])
    for words in ("gold.daily", "total  <-  bronze.readings.value", "source   readings/2024-01-02.jsonl", file):
        assert words in printed

    # A count has no column of its own, but rows; a month has the partitions of its days.
    counted = lineage(settings, "gold.daily.n", "2024-01")
    assert [step["columns"] for step in counted["steps"]] == [{"n": []}, {}, {}]
    assert [part["partition"] for part in counted["partitions"]] == ["2024-01-01", "2024-01-02", "2024-01-03"]
    assert "partitions" not in lineage(settings, "gold.daily")
    json.dumps(counted, default=str)

    for target, partition, says in (
        ("gold.nope", None, "There is no model 'gold.nope'"),
        ("gold.daily.nope", None, "gold.daily has no column 'nope'"),
        ("gold", None, "'gold' is no table or column"),
        ("gold.daily", "2024-1", "'2024-1' is no partition of any grain"),
    ):
        with pytest.raises(BadInput, match=says) as caught:
            lineage(settings, target, partition)
        assert caught.value.fix
