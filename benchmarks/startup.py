"""The time of read-only commands from a cold start, compared to the import of DuckDB."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.groups import ours, staged
from benchmarks.measure import DATASET, Bench, Target, hand_over
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.settings import Settings, load_settings

ROUNDS = 9
LAKE = str(Path(sys.executable).with_name("lake"))
COMMANDS = {
    "import duckdb": [sys.executable, "-c", "import duckdb"],
    "lake plan flights": [LAKE, "plan", "flights"],
    "lake status flights": [LAKE, "status", "flights"],
    "lake --help": [LAKE, "--help"],
}


def run(settings: Settings) -> Bench:
    """Time each command in turn over several rounds, on a lake with a year of partitions."""
    bootstrap(settings, [DATASET])
    ours(settings, staged(settings), 365)
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            began = time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            took[name].append(time.monotonic() - began)
    medians = {name: statistics.median(found) for name, found in took.items()}
    limit = medians["import duckdb"]
    return Bench(
        "Cold start",
        [{"command": name, "seconds": found, "times import duckdb": found / limit} for name, found in medians.items()],
        [Target(f"{name}, times import duckdb", medians[name] / limit, 6) for name in list(COMMANDS)[1:3]],
    )


if __name__ == "__main__":
    hand_over(run(load_settings()))
