"""Rows in quarantine: shown, loaded again after a fix, and in one of the two tables once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from ducklake_flows.cli.main import app
from ducklake_flows.ingest import ingest
from ducklake_flows.lake.quarantine import read
from ducklake_flows.project import get_dataset
from ducklake_flows.report.metrics import metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Lake

DATASETS = """
from datetime import date

from ducklake_flows import Contract, Dataset, Files, expect

SALES = Dataset(
    "sales",
    Files("sales/{partition}.csv", "csv"),
    partition_column="day",
    segment_column="region",
    segments=("eu", "us"),
    contract=Contract({"id": "bigint", "amount": "bigint"}, schema_contract={"data_type": "discard_row"}),
    audits=(expect("positive", "amount > LIMIT", on_fail="quarantine"),),
    start=date(2024, 1, 1),
    end=date(2024, 1, 2),
)
PLAIN = Dataset("plain", Files("plain/{partition}.csv", "csv"), partition_column="day")
"""


@pytest.fixture(name="above")
def audit_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the amount above which the audit accepts a row, in a file of its own: a process imports a file once."""

    def change(limit: int) -> None:
        folder = tmp_path / f"above{limit}"
        folder.mkdir()
        (folder / "sales.py").write_text(DATASETS.replace("LIMIT", str(limit)))
        monkeypatch.setenv("LAKE_DATASETS", str(folder))

    return change


def lake_command(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code != 0) == fails, (result.output, result.exception)
    return f"{result.output}{result.exception or ''}"


def there(lake: Lake) -> list[tuple[Any, ...]]:
    query = "SELECT region, strftime(day, '%d') AS d, id FROM raw.sales ORDER BY ALL"
    return [tuple(row.values()) for row in lake.sql(query)]


def test_rows_in_quarantine_are_shown_and_replayed(gated_lake: Lake, above: Callable[[int], None]) -> None:
    ruled = gated_lake
    above(5)
    ruled.land("sales/eu/2024-01-01.csv", "id,amount\n1,6\n2,3\n3,x\n")
    ruled.land("sales/us/2024-01-01.csv", "id,amount\n4,4\n5,9\n")
    ruled.land("sales/us/2024-01-02.csv", "id,amount\n6,7\n")
    summary: Any = ingest(["sales"], workers=1)
    assert summary["published"] == 3
    assert there(ruled) == [("eu", "01", 1), ("us", "01", 5), ("us", "02", 6)]
    assert "sales: 3 rows of 2 partitions in quarantine" in lake_command("status")
    figures = metrics(ruled.settings).decode()
    assert 'lake_quarantined_rows{dataset="sales"} 3.0' in figures
    assert 'lake_failing_audits{dataset="sales",on_fail="quarantine"} 2.0' in figures
    shown = lake_command("quarantine", "sales")
    assert "sales: 3 rows of 2 partitions in quarantine" in shown
    assert "2  audit positive failed" in shown
    assert "1  amount: cannot be bigint" in shown
    assert "eu/2024-01-01 sales/eu/2024-01-01.csv line 4: amount: 'x' cannot be bigint" in shown
    assert "next:  correct the source, the contract or the audit, then run: lake replay sales" in shown
    told = read(ruled.settings, get_dataset("sales"), ["us/2024-01-01"])
    assert told.partitions == {"us/2024-01-01": 1}
    (row,) = told.sample
    assert (row["partition"], json.loads(row["content"])["id"]) == ("us/2024-01-01", 4)
    attempts = ruled.column("SELECT attempt_id FROM ops.ledger WHERE dataset = 'sales__quarantine' ORDER BY partition")
    assert row["attempt_id"] == attempts[1]

    # The audit was wrong, and a file is corrected: only the partitions with such rows are loaded again.
    above(3)
    ruled.land("sales/eu/2024-01-01.csv", "id,amount\n1,6\n2,3\n3,8\n")
    assert "sales: 1 row of 1 partition in quarantine" in lake_command("replay", "sales")
    assert there(ruled) == [("eu", "01", 1), ("eu", "01", 3), ("us", "01", 4), ("us", "01", 5), ("us", "02", 6)]
    assert ruled.column(
        "SELECT partition FROM ops.ledger WHERE reason = 'replay' AND dataset = 'sales' ORDER BY 1"
    ) == [
        "eu/2024-01-01",
        "us/2024-01-01",
    ]
    above(0)
    assert "Nothing of sales is in quarantine." in lake_command("replay", "sales")
    assert "Nothing of sales is in quarantine." in lake_command("replay", "sales")
    assert len(there(ruled)) == 6
    assert "quarantine" not in lake_command("status")
    assert ruled.errors() == []
    assert "plain sets no rows aside" in lake_command("quarantine", "plain", fails=True)
