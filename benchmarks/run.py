"""`make bench`: the same year through DuckDB alone, this project and dlt's own destination, one after the other."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from flows import server
from flows.demo import land
from flows.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
PACKAGES = ("duckdb", "dlt", "prefect", "distributed", "sqlmesh", "pyarrow")
CONTENDERS = {
    "duckdb": "benchmarks.alone",
    "ours": "benchmarks.ours",
    "dlt": "benchmarks.dlt_destination",
    # Again, to show how far two runs of the same lie apart.
    "duckdb again": "benchmarks.alone",
}


def main() -> None:
    """Run all contenders, print what came of them, and write it to ``benchmarks/results/latest.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="time limit for dlt's destination")
    limit = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="lake-bench-") as folder:
        land(Settings(home=Path(folder)))
        runs = {name: _contend(name, Path(folder), limit) for name in CONTENDERS}
    result = {
        "when": date.today().isoformat(),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        },
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
        "runs": runs,
        "ratios": {
            # The better one of its two runs is the limit.
            "wall_vs_duckdb": _ratio(
                runs["ours"]["wall_seconds"], min(runs[name]["wall_seconds"] for name in ("duckdb", "duckdb again"))
            ),
            "partitions_per_s_vs_dlt": _ratio(
                runs["ours"]["partitions_per_second"], runs["dlt"]["partitions_per_second"]
            ),
        },
    }
    _show(result)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def _contend(name: str, folder: Path, limit: float) -> dict[str, Any]:
    """Run one contender in a process and a lake of its own."""
    output = folder / f"{name}.json"
    # What a user has set for his own lake must not leak in.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAKE_", "PREFECT_", "DASK_"))}
    environment = {
        **kept,
        "LAKE_HOME": str(folder / name),
        "LAKE_LANDING": str(folder / "landing"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "",
        "DLT_DATA_DIR": str(folder / "dlt"),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "DO_NOT_TRACK": "1",
    }
    Console(stderr=True).rule(name)
    process = subprocess.Popen(
        [sys.executable, "-m", CONTENDERS[name], str(output), str(limit)], env=environment, cwd=folder
    )
    try:
        code = process.wait()
    finally:
        # An interrupt reaches it, too: it ends by itself, and needs the server until then.
        process.wait()
        server.stop(Settings(home=folder / name))
    if code:
        raise SystemExit(f"{name} failed with exit code {code}; nothing is reported.")
    run = json.loads(output.read_text())
    partitions = len(run["days"])
    return {
        "how": run["how"],
        "partitions": partitions,
        "rows": run["rows"],
        "wall_seconds": round(run["wall"], 3),
        "partitions_per_second": round(partitions / run["wall"], 2),
        "rows_per_second": round(run["rows"] / run["wall"]),
        "peak_rss_mib": run["peak_rss"],
        "seconds": {what: round(took, 3) for what, took in run["seconds"].items()},
    }


def _ratio(one: float, other: float) -> float:
    return round(one / other, 2)


def _show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("run", title="One year of flights, one file a day", box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in ("parti-\ntions", "rows", "wall\nseconds", "partitions\na second", "rows\na second", "peak RSS\nMiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, run in result["runs"].items():
        table.add_row(
            name,
            str(run["partitions"]),
            f"{run['rows']:,}",
            f"{run['wall_seconds']:.2f}",
            f"{run['partitions_per_second']:.1f}",
            f"{run['rows_per_second']:,}",
            "\n".join(f"{kind} {peak}" for kind, peak in run["peak_rss_mib"].items()),
        )
    console.print(table)
    for name, run in result["runs"].items():
        parts = ", ".join(f"{what} {took:.2f} s" for what, took in run["seconds"].items())
        console.print(f"[bold]{name}[/bold]: {run['how']}; {parts}")
    ratios = result["ratios"]
    console.print(f"ours takes {ratios['wall_vs_duckdb']} times as long as DuckDB alone")
    console.print(
        f"and does {ratios['partitions_per_s_vs_dlt']} times as many partitions a second as dlt's destination"
    )


if __name__ == "__main__":
    main()
