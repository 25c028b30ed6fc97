"""Option A: DuckLake with one writer, one day after the other."""

from benchmarks.assess.ducklake_direct import DuckLakeDirect


class Sequential(DuckLakeDirect):
    name = "A: DuckLake, sequential"
    how = "one process, otherwise as without a gate"
    processes = 1
