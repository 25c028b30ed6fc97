"""This project's promises: its sample goes from the source to gold, and the lake is right."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def test_the_sample_reaches_gold(lake: Callable[..., Any]) -> None:
    lake("init")
    lake("backfill", "orders", "--start", "2024-01-01", "--end", "2024-01-03")
    lake("transform")
    lake("verify")
    found = lake("sql", "SELECT order_date, orders, amount FROM gold.orders_daily ORDER BY order_date", "--json")
    assert [(row["order_date"], row["orders"], row["amount"]) for row in found] == [
        ("2024-01-01", 3, "119.75"),
        ("2024-01-02", 2, "64.99"),
        ("2024-01-03", 3, "265.50"),
    ]


def test_the_models_unit_tests_pass() -> None:
    sqlmesh = Path(sys.executable).with_name("sqlmesh")
    subprocess.run([sqlmesh, "--paths", str(PROJECT / "sqlmesh_project"), "test"], check=True)
