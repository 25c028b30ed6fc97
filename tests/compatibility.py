"""COMPATIBILITY.md: what a whole run of the tests has run on, written by `make test ARGS=--write-docs`."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = (
    "duckdb",
    "duckdb-extension-ducklake",
    "dlt",
    "prefect",
    "prefect-dask",
    "distributed",
    "sqlmesh",
    "pyarrow",
)
SERVICES = {
    "sqlite+folder": ("SQLite file", "local folder"),
    "postgres+folder": ("PostgreSQL", "local folder"),
    "postgres+s3": ("PostgreSQL", "S3 server (rclone)"),
    "stack": ("PostgreSQL, Prefect server and worker, Dask scheduler and workers", "S3 server (rclone)"),
}
SUITES = ("lake", "flows", "faults", "regressions", "values", "stack")

PAGE = """# Compatibility

What a whole run of the tests has run on: how many tests of each suite passed on each catalog and data path. An empty
cell was not run; `make soak` runs every suite on every one of them. `make test ARGS=--write-docs` writes this page.

{table}

On Python {python} ({system}), with:

{versions}

The ranges in `pyproject.toml` are wider. What they allow beyond these versions is expected to work, and was not run
here; the workflow in `.github/workflows` runs the tests on Python 3.11, 3.12 and 3.13. Never tried: a DuckDB file or
MySQL as the catalog, Windows, macOS. MinIO and AWS S3 speak the protocol of the tests' S3 server; they were not run.
"""


def versions() -> list[str]:
    """The table of versions, a line each."""
    return ["| package | version |", "| --- | --- |", *(f"| {name} | {version(name)} |" for name in PACKAGES)]


def page(passed: Iterable[str]) -> str:
    """The page, from the ids of the tests that passed."""
    counts: Counter[tuple[str, str]] = Counter()
    for test in passed:
        suite = test.split("/")[1]
        inside = test.rpartition("[")[2]
        storage = next((name for name in SERVICES if name in inside), "stack" if suite == "stack" else "")
        counts[storage, suite] += 1
    head = f"| catalog | data | {' | '.join(f'`tests/{suite}`' for suite in SUITES)} |"
    rows = [
        f"| {catalog} | {data} | {' | '.join(str(counts[storage, suite] or '') for suite in SUITES)} |"
        for storage, (catalog, data) in SERVICES.items()
    ]
    return PAGE.format(
        table="\n".join([head, f"| --- | --- | {' | '.join('---:' for _ in SUITES)} |", *rows]),
        python=platform.python_version(),
        system=platform.system(),
        versions="\n".join(versions()),
    )
