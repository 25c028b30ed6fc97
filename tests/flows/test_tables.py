"""Datasets of several tables through the flows: on a cluster, with models on a child, repaired and rolled back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.errors import BadInput
from ducklake_flows.ingest import ingest
from ducklake_flows.lake.connect import connect
from ducklake_flows.project import get_dataset, get_datasets
from ducklake_flows.repair import repair
from ducklake_flows.rollback import rollback
from ducklake_flows.settings import load_settings
from ducklake_flows.transform import transform
from tests.projects import Project, model
from tests.sources.api import Asked, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake

DATASETS = """
from datetime import date

from ducklake_flows import Contract, Dataset, Files, Table

ORDERS = Dataset(
    "orders",
    Files("orders/{partition}.jsonl", "jsonl"),
    partition_column="day",
    primary_key=("id",),
    contract=Contract({"id": "bigint"}),
    children={"items": Table(Contract({"sku": "text", "price": "decimal(10,2)"}))},
    start=date(2024, 1, 1),
    end=date(2024, 1, 3),
)
"""

SOURCE = """
import dlt
from dlt.sources.rest_api import rest_api_resources

from .settings import BASE_URL


@dlt.source
def tracker_source(day: str):
    client = {"base_url": BASE_URL, "paginator": "single_page"}
    resources = [{"name": name, "endpoint": {"path": name, "params": {"day": day}}} for name in ("issues", "comments")]
    return rest_api_resources({"client": client, "resources": resources})
"""
"""A package in the project's folder, as `dlt init` copies a source there."""

TRACKER = """
from datetime import date

from ducklake_flows import Dataset, Table


def tracker(partition):
    from tracker_of_the_test import tracker_source

    return tracker_source(partition.key)


ISSUES = Dataset(
    "issues",
    tracker,
    partition_column="day",
    resources={"comments": Table(primary_key=("id",))},
    start=date(2024, 1, 1),
    end=date(2024, 1, 2),
)
"""


@pytest.fixture
def project(gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A lake with the datasets above, and a model on the child."""
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "several.py").write_text(DATASETS)
    monkeypatch.setenv("LAKE_DATASETS", str(tmp_path / "several"))
    made = Project(tmp_path / "models", gated_lake, monkeypatch)
    within = "day BETWEEN @start_date AND @end_date"
    query = f"SELECT day, sum(price) AS revenue FROM raw.orders__items WHERE {within} GROUP BY day"
    signal = "signals (published(dataset := 'orders__items'))"
    made.write("models/gold.sql", model("gold.revenue", query, "day", signal))
    return made


def land(lake: Lake, day: int, *prices: float) -> None:
    items = [{"sku": f"s{number}", "price": price} for number, price in enumerate(prices)]
    lake.land(f"orders/2024-01-0{day}.jsonl", [{"id": day, "items": items}])


def loaded(key: str, **more: Any) -> int:
    summary: Any = ingest([key], **{"workers": 1, **more})
    return int(summary["published"])


def revenue(lake: Lake) -> list[str]:
    return lake.column("SELECT strftime(day, '%d') || ': ' || revenue FROM gold.revenue ORDER BY day")


def test_a_childs_model_follows_its_parent(project: Project) -> None:
    lake = project.lake
    for day in (1, 2, 3):
        land(lake, day, day, 0.5)
    assert loaded("orders", workers=2) == 3
    transform()
    assert revenue(lake) == ["01: 1.50", "02: 2.50", "03: 3.50"]
    land(lake, 2, 20)
    assert loaded("orders", mode="stale") == 1
    built: Any = transform()
    assert [(one["model"], one["start"], one["end"]) for one in built["models"]] == [
        ("gold.revenue", "2024-01-02", "2024-01-02")
    ]
    rollback("orders", "2024-01-02")
    assert revenue(lake) == ["01: 1.50", "02: 2.50", "03: 3.50"]
    assert lake.errors() == []

    # Rows of the child are lost: the parent's partition is loaded again, and both are right.
    with connect(load_settings()) as con:
        con.execute("DELETE FROM lake.raw.orders__items WHERE day = '2024-01-01' AND position = 1")
    assert [error for error in lake.errors() if "orders__items 2024-01-01" in error]
    found: Any = repair()
    assert [(row["dataset"], row["partition"], row["done"]) for row in found["damaged"]] == [
        ("orders__items", "2024-01-01", "published from its source")
    ]
    assert lake.errors() == []

    # A partition whose item is refused keeps its rows, and so does its parent.
    lake.land("orders/2024-01-03.jsonl", [{"id": 9, "items": [{"sku": "a", "price": "free"}]}])
    with pytest.raises(Exception, match=r"orders__items: row 1: column price: 'free' cannot be decimal"):
        loaded("orders", mode="stale")
    assert lake.column("SELECT id FROM raw.orders ORDER BY id") == [1, 2, 3]
    assert lake.errors() == []

    assert get_dataset("orders__items").table == "raw.orders__items"
    with pytest.raises(BadInput, match="orders__items is loaded with orders"):
        get_datasets(["orders__items"])


def test_two_resources_of_one_dlt_source_fill_two_tables(project: Project, tmp_path: Path) -> None:
    def answer(asked: Asked) -> Any:
        day = int(asked.query["day"][-2:])
        if asked.path == "/issues":
            return [{"id": day, "labels": ["a", "b"]}]
        return [{"id": 10 * day + n, "issue": day, "text": f"comment {n}"} for n in range(2)]

    with serving(answer) as api:
        (tmp_path / "several" / "tracker.py").write_text(TRACKER)
        root = load_settings().project
        assert root is not None
        package = root / "tracker_of_the_test"
        package.mkdir()
        (package / "__init__.py").write_text(SOURCE)
        (package / "settings.py").write_text(f"BASE_URL = {api.url!r}")
        assert loaded("issues", workers=2) == 2
        assert sorted((a.path, a.query["day"]) for a in api.asked) == [
            (f"/{name}", f"2024-01-0{day}") for name in ("comments", "issues") for day in (1, 2)
        ]
    lake = project.lake
    assert lake.column("SELECT id FROM raw.issues ORDER BY id") == [1, 2]
    assert lake.column("SELECT id FROM raw.issues__comments ORDER BY id") == [10, 11, 20, 21]
    assert lake.errors() == []
