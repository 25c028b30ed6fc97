"""`make bench`: runs the benchmarks one after the other and prints a table and the targets of each.

make bench                        all benchmarks, about an hour on two cores
make bench ARGS="year startup"    only these
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import plots, simulation, sources
from benchmarks.measure import LANDED, ROOT, Bench, Target, about, contend
from deployments.services import ObjectStore, Postgres, new_secret
from ducklake_flows.cli.demo import land
from ducklake_flows.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
PACKAGES = ("duckdb", "dlt", "dagster", "prefect", "distributed", "sqlmesh", "pyarrow")


class Bencher:
    """A folder with the year's landing files and the benchmarks' lakes."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        land(Settings(home=folder))
        self.landing = f"{folder / 'landing'}/"
        self.local = {
            "LAKE_LANDING": self.landing,
            LANDED: self.landing,
            "LAKE_DATASETS": f"{ROOT}/flows/datasets:{ROOT}/benchmarks/datasets",
            "LAKE_MODELS": str(ROOT / "sqlmesh_project"),
        }

    def one(self, module: str, *arguments: object) -> Bench:
        """Run a benchmark that is one process."""
        found = contend(module, self.folder / module, self.local, *arguments)
        return Bench(found["title"], found["rows"], [_target(t) for t in found["targets"]], found["notes"])

    def year(self) -> Bench:
        """Run a year of flights on SQLite and a folder."""
        return self._year("SQLite + folder", lambda name: self.local)

    def year_s3(self) -> Bench:
        """Run the same on PostgreSQL and S3, with the landing files in S3."""
        with _services(self.folder) as settings:
            return self._year("PostgreSQL + S3", lambda name: self.local | settings(name))

    def _year(self, title: str, settings: Callable[[str], dict[str, str]]) -> Bench:
        contenders: dict[str, tuple[str, tuple[object, ...]]] = {
            "DuckDB alone": ("alone", ()),
            "this project": ("ours", ()),
            "dlt, sequential": ("dlt_destination", (self.seconds, 1)),
            "dlt, 2 processes": ("dlt_destination", (self.seconds, 2)),
            "Dagster, single run": ("dagster_asset", ("single-run", self.seconds)),
            "Dagster, a run each": ("dagster_asset", ("multi-run", self.seconds)),
            "Dagster, in parallel": ("dagster_asset", ("parallel", self.seconds)),
            # Repeated to show the variation between two runs.
            "DuckDB alone again": ("alone", ()),
            "this project again": ("ours", ()),
        }
        rows = []
        for number, (name, (module, arguments)) in enumerate(contenders.items()):
            home = f"{'s3' if 'S3' in title else 'local'}{number}"
            run = contend(module, self.folder / home, settings(home), *arguments)
            rows.append(
                {
                    "run": name,
                    "partitions": len(run["days"]),
                    "failed": run["failed"],
                    "seconds": run["wall"],
                    "partitions/s": len(run["days"]) / run["wall"],
                    "rows/s": run["rows"] / run["wall"],
                    "peak RSS, MiB": ", ".join(f"{kind} {peak}" for kind, peak in run["peak_rss"].items()),
                    "how": run["how"],
                    **run["counts"],
                    "profile": {what: round(took, 2) for what, took in run["seconds"].items()},
                }
            )
        by = {row["run"]: row for row in rows}

        def rate(name: str) -> float:
            return float(max(row["partitions/s"] for run, row in by.items() if run.startswith(name)))

        ours = rate("this project")
        dagster = max(rate("Dagster, a run"), rate("Dagster, in"))
        return Bench(
            f"A year of flights, a file a day, {title}",
            rows,
            [
                Target(f"{title}: seconds, times DuckDB alone", rate("DuckDB") / ours, 2),
                Target(f"{title}: partitions/s, times dlt one after the other", ours / rate("dlt, seq"), 30, True),
                Target(f"{title}: partitions/s, times dlt by 2 processes", ours / rate("dlt, 2"), 40, True),
                Target(f"{title}: partitions/s, times Dagster with partitions of their own", ours / dagster, 5, True),
                Target(f"{title}: partitions/s, times Dagster's single run", ours / rate("Dagster, single"), 5, True),
            ],
            ["the better of two runs counts for DuckDB and for this project"],
        )

    def growth_postgres(self) -> Bench:
        """Run `growth` on a PostgreSQL catalog and a folder."""
        password = new_secret()
        with Postgres(self.folder / "postgres", self.folder) as postgres:
            postgres.database("growth", password)
            catalog = f"postgres:host=127.0.0.1 port={postgres.port} dbname=growth user=growth"
            settings = {"LAKE_CATALOG": catalog, "LAKE_CATALOG_PASSWORD": password}
            found = contend("growth", self.folder / "growth", self.local | settings)
        targets = [_target(target) for target in found["targets"]]
        return Bench(f"{found['title']}, PostgreSQL", found["rows"], targets, found["notes"])

    def shapes(self) -> Bench:
        """Run the wide, deep and skewed partitions."""
        rows, targets = [], []
        for shape, key, end in (
            ("wide: 10 M rows in one", "wide", "2024-01-01"),
            ("deep: 50,000 of 20 rows", "events", "2005-09-14"),
            ("skewed: one has 1,000 times the rest", "skewed", "2024-04-09"),
        ):
            rates = {}
            for who in ("ours", "dlt"):
                run = contend("shapes", self.folder / f"{key}-{who}", self.local, who, key, end, self.seconds)
                rates[who] = run["rows"] / run["wall"]
                rows.append(
                    {
                        "shape": shape,
                        "by": {"ours": "this project", "dlt": "dlt, sequential"}[who],
                        "partitions": len(run["days"]),
                        "seconds": run["wall"],
                        "rows/s": rates[who],
                        "peak RSS, MiB": ", ".join(f"{kind} {peak}" for kind, peak in run["peak_rss"].items()),
                    }
                )
                if who == "ours":
                    targets.append(Target(f"{shape}: peak RSS, MiB", max(run["peak_rss"].values()), 1024))
            targets.append(Target(f"{shape}: rows/s, times dlt's", rates["ours"] / rates["dlt"], 1, at_least=True))
        return Bench("Shapes", rows, targets)

    def sources(self) -> Bench:
        """Run a million rows of an API and five million of a database."""
        rows, targets = [], []
        password = new_secret()
        with sources.api() as url, Postgres(self.folder / "postgres", self.folder) as postgres:
            postgres.database("orders", password)
            of = {"api": url, "database": sources.fill(postgres.port, "orders", password)}
            for kind, what in (("api", "API, 1 M rows in pages of 1,000"), ("database", "PostgreSQL, 5 M rows")):
                settings = self.local | {sources.URL: of[kind], sources.PASSWORD: password}
                rates: dict[str, list[float]] = {"ours": [], "dlt": []}
                peak = 0
                # Repeated in turn to show the variation between two runs.
                for number, who in enumerate(("ours", "dlt") * 2):
                    run = contend("sources", self.folder / f"{kind}{number}", settings, who, kind)
                    rates[who].append(run["rows"] / run["wall"])
                    by = {"ours": "this project, one worker", "dlt": "dlt"}[who] + " again" * (number > 1)
                    rows.append(
                        {
                            "source": what,
                            "by": by,
                            "rows": run["rows"],
                            "rows/s": rates[who][-1],
                            "peak RSS, MiB": run["peak_rss"]["process"],
                        }
                    )
                    if who == "ours":
                        peak = max(peak, run["peak_rss"]["process"])
                ratio = max(rates["ours"]) / max(rates["dlt"])
                targets.append(Target(f"{what}: peak RSS, MiB", peak, 1024))
                targets.append(Target(f"{what}: rows/s, times dlt's", ratio, 1, at_least=True))
        return Bench("Sources into Parquet", rows, targets, ["the better of two runs counts"])


BENCHES: dict[str, Callable[[Bencher], Bench]] = {
    "year": Bencher.year,
    "year-s3": Bencher.year_s3,
    "groups": lambda b: b.one("groups"),
    "startup": lambda b: b.one("startup"),
    "workers": lambda b: b.one("workers"),
    "shapes": Bencher.shapes,
    "sources": Bencher.sources,
    "backends": lambda b: b.one("backends"),
    "growth": lambda b: b.one("growth"),
    "growth-postgres": Bencher.growth_postgres,
    "simulation": lambda b: simulation.run(RESULTS),
}


def main() -> None:
    """Run the chosen benchmarks; write ``benchmarks/results/<name>.json`` for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=", ".join(BENCHES))
    parser.add_argument("--seconds", type=float, default=60, help="time limit of the slow contenders")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.benches if name not in BENCHES]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(BENCHES)}")
    RESULTS.mkdir(exist_ok=True)
    console, missed = Console(), 0
    for name in chosen.benches or BENCHES:
        with tempfile.TemporaryDirectory(prefix="lake-bench-") as folder:
            Path(folder).chmod(0o755)  # PostgreSQL runs as another user and must be able to enter
            bench = BENCHES[name](Bencher(Path(folder), chosen.seconds))
        (RESULTS / f"{name}.json").write_text(json.dumps({**about(PACKAGES), **asdict(bench)}, indent=2) + "\n")
        plots.draw(name, bench, IMAGES)
        _show(console, bench)
        missed += sum(not target.reached for target in bench.targets)
    console.print(f"{missed} targets missed." if missed else "Every target is reached.")


def _target(found: dict[str, Any]) -> Target:
    return Target(**found)


@contextmanager
def _services(folder: Path) -> Iterator[Callable[[str], dict[str, str]]]:
    """Start PostgreSQL and S3 with the landing files in S3; yields a function that returns a named lake's settings."""
    password, key_id, secret = new_secret(), new_secret(), new_secret()
    with (
        Postgres(folder / "postgres", folder) as postgres,
        ObjectStore(folder / "s3", folder, key_id, secret) as store,
    ):
        common = {
            "LAKE_CATALOG_PASSWORD": password,
            "LAKE_S3_ENDPOINT": store.endpoint,
            "LAKE_S3_KEY_ID": key_id,
            "LAKE_S3_SECRET": secret,
            "LAKE_S3_USE_SSL": "false",
            "LAKE_LANDING": "s3://landing/",
        }
        values = {k.removeprefix("LAKE_").lower(): v for k, v in common.items()}
        land(Settings(_env_file=None, home=folder / "s3-landing", data_path="s3://lake/", **values))  # type: ignore[call-arg,arg-type]

        def settings(name: str) -> dict[str, str]:
            postgres.database(name, password)
            catalog = f"postgres:host=127.0.0.1 port={postgres.port} dbname={name} user={name}"
            return {**common, "LAKE_CATALOG": catalog, "LAKE_DATA_PATH": f"s3://lake/{name}/"}

        yield settings


def _show(console: Console, bench: Bench) -> None:
    """Print a benchmark's table and targets."""
    hidden = ("how", "profile", "chunks", "commits")
    shown = [name for name in bench.rows[0] if name not in hidden]
    table = Table(title=bench.title, box=SIMPLE, collapse_padding=True, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="left" if isinstance(bench.rows[0][name], str) else "right")
    for row in bench.rows:
        table.add_row(*(_figure(row[name]) for name in shown))
    console.print(table)
    for target in bench.targets:
        mark = "[green]reached[/]" if target.reached else "[red]missed [/]"
        sign = "≥" if target.at_least else "≤"
        console.print(f"  {mark}  {target.what}: {_figure(target.value)} ({sign} {_figure(target.limit)})")
    for note in bench.notes:
        console.print(f"  {note}", style="dim")


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
