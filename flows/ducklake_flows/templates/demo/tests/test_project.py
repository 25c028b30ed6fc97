"""This project's promises: two days of flights and weather reach gold, and the lake is right."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def test_two_days_reach_gold(lake: Callable[..., Any]) -> None:
    lake("demo", "--start", "2013-01-01", "--end", "2013-01-02")
    lake("verify")
    found = lake("sql", "SELECT sum(flights)::INTEGER AS flights FROM gold.carrier_daily", "--json")
    assert found == [{"flights": 842 + 943}]


def test_the_models_unit_tests_pass() -> None:
    sqlmesh = Path(sys.executable).with_name("sqlmesh")
    subprocess.run([sqlmesh, "--paths", str(PROJECT / "sqlmesh_project"), "test"], check=True)
