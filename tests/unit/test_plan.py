"""Which partitions of a plan run, in which order; and which datasets the models read."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.datasets.dataset import Dataset, Table
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.lake.builds import is_read
from ducklake_flows.plan import Planned, chosen
from ducklake_flows.states import Order, State
from tests.conftest import MODELS

if TYPE_CHECKING:
    from pathlib import Path

DAILY = Dataset("days", source=lambda _: [], start=date(2024, 1, 1), partition_column="day")
MONTHLY = Dataset("months", source=lambda _: [], grain=Grain.month, start=date(2024, 1, 1), partition_column="month")


def planned(dataset: str, *keys: str, runs: bool = True) -> list[Planned]:
    return [Planned(dataset, key, State.missing, runs, "", None) for key in keys]


TODO = [
    *planned("days", "2024-01-30", "2024-02-01"),
    *planned("days", "2024-02-02", runs=False),
    *planned("months", "2024-01", "2024-02"),
]


@pytest.mark.parametrize(
    ("order", "limit", "keys"),
    [
        (Order.newest, None, ["2024-02-01", "2024-02", "2024-01-30", "2024-01"]),
        (Order.oldest, None, ["2024-01", "2024-01-30", "2024-02-01", "2024-02"]),
        (Order.newest, 2, ["2024-02-01", "2024-02"]),
        (Order.oldest, 9, ["2024-01", "2024-01-30", "2024-02-01", "2024-02"]),
    ],
)
def test_the_order_and_the_limit_are_over_all_datasets(order: Order, limit: int | None, keys: list[str]) -> None:
    assert [p.partition for p in chosen(TODO, [DAILY, MONTHLY], order, limit)] == keys


def test_a_resumed_run_does_the_rest_within_its_limit() -> None:
    done = {("days", "2024-02-01"), ("days", "2023-12-31")}
    assert [p.partition for p in chosen(TODO, [DAILY, MONTHLY], limit=3, done=done)] == ["2024-02"]
    assert chosen(TODO, [DAILY, MONTHLY], limit=1, done=done) == []


def read(models: Path, *datasets: str | Dataset) -> list[str]:
    """The keys of those datasets that the models read."""
    full = [Dataset(each, lambda _: [], Grain.full) if isinstance(each, str) else each for each in datasets]
    return [dataset.key for dataset in full if is_read(models, dataset)]


def test_a_dataset_is_read_if_its_key_is_a_word_in_a_file_of_the_models(tmp_path: Path) -> None:
    assert read(MODELS, "flights", "weather", "fligh", "no_such") == ["flights", "weather"]
    (tmp_path / "models").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "models" / "a.sql").write_text('SELECT 1 FROM lake."raw"."Orders", raw.big_items, @x(visits)')
    (tmp_path / "tests" / "test_a.yaml").write_text("raw.returns: []")
    found = read(tmp_path, "orders", "big", "items", "big_items", "visits", "returns")
    assert found == ["orders", "big_items", "visits"]


def test_a_dataset_of_which_models_read_another_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "revenue.sql").write_text("SELECT sum(price) FROM raw.orders__items")
    nested = Dataset("orders", lambda _: [], Grain.full, primary_key=("id",), children={"items": Table()})
    assert read(tmp_path, nested, "items") == ["orders"]
    assert read(tmp_path, replace(nested, children={"notes": Table()})) == []
