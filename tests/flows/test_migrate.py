"""`lake migrate`: the plan names what must change, the command changes it, the models follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from ducklake_flows.cli.main import app
from ducklake_flows.ingest import ingest
from ducklake_flows.states import Mode
from tests.projects import Project, model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from tests.conftest import Lake

DATASETS = """
from datetime import date

from ducklake_flows import Contract, Dataset, Files

SALES = Dataset(
    "sales",
    Files("sales/{partition}.csv", "csv"),
    partition_column="day",
    contract=Contract(COLUMNS),
    start=date(2024, 1, 1),
    end=date(2024, 1, 2),
)
"""


def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Declares the columns in a file of its own: a process imports a file once."""

    def change(columns: str) -> None:
        folder = tmp_path / f"datasets{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "sales.py").write_text(DATASETS.replace("COLUMNS", columns))
        monkeypatch.setenv("LAKE_DATASETS", str(folder))

    return change


def lake_command(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code != 0) == fails, (result.output, result.exception)
    return f"{result.output}{result.exception or ''}"


def test_a_contract_that_does_not_fit_is_migrated_and_undone(
    gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = gated_lake
    project = Project(tmp_path / "models", lake, monkeypatch)

    def gold(column: str) -> None:
        query = f"SELECT day, sum({column})::DOUBLE AS total FROM raw.sales WHERE day BETWEEN @start_date AND @end_date"
        text = model("gold.daily", f"{query} GROUP BY day", "day", "signals (published(dataset := 'sales'))")
        project.write("models/gold.sql", text)

    def totals() -> list[float]:
        return lake.column("SELECT total FROM gold.daily ORDER BY day")

    declare = declared(tmp_path, monkeypatch)
    declare('{"id": "bigint", "amount": "text"}')
    lake.land("sales/2024-01-01.csv", "id,amount\n1,1.5\n2,2.5\n")
    lake.land("sales/2024-01-02.csv", "id,amount\n3,n/a\n")
    summary: Any = ingest(["sales"], workers=1)
    assert summary["published"] == 2
    gold("TRY_CAST(amount AS DOUBLE)")
    lake_command("transform")
    declare('{"id": "bigint", "price": "decimal(10,2)"}')
    assert "amount" in lake_command("migrate", "sales", "--rename", "amount", fails=True)
    refused = lake_command("migrate", "sales", "--rename", "amount=price", "--dry-run", fails=True)
    assert "sales 2024-01-02: column price: 'n/a' cannot be decimal" in refused
    declare('{"id": "bigint", "amount": "text"}')
    lake.land("sales/2024-01-02.csv", "id,amount\n3,4\n")
    ingest(["sales"], workers=1, mode=Mode.stale)

    declare('{"id": "bigint", "amount": "decimal(10,2)"}')
    blocked = lake_command("plan", fails=True)
    assert "convert the table: lake migrate sales" in blocked
    gold("amount")
    assert "3 rows of 2 partitions would be migrated" in lake_command("migrate", "sales", "--dry-run")
    assert lake.column("SELECT typeof(amount) FROM raw.sales LIMIT 1") == ["VARCHAR"]
    said = lake_command("migrate", "sales")
    assert "amount: VARCHAR -> DECIMAL(10,2)" in said
    assert "3 rows of 2 partitions" in said
    assert totals() == [4.0, 4.0]
    assert "Nothing to migrate" in lake_command("migrate", "sales")
    assert "nothing was left" in lake_command("migrate", "sales", "--abandon")
    assert lake.errors() == []

    declare('{"id": "bigint", "price": "decimal(10,2)"}')
    gold("price")
    assert "amount becomes price" in lake_command("migrate", "sales", "--rename", "amount=price")
    assert lake_command("plan").count("->") == 0
    lake.land("sales/2024-01-01.csv", "id,price\n1,10\n")
    ingest(["sales"], workers=1, mode=Mode.stale)
    lake_command("transform")
    assert totals() == [10.0, 4.0]

    declare('{"id": "bigint", "amount": "decimal(10,2)"}')
    gold("amount")
    assert "price becomes amount" in lake_command("migrate", "sales", "--undo")
    assert totals() == [10.0, 4.0]
    assert lake.errors() == []
