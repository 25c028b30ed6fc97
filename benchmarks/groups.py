"""Publishing staged files in groups of 1, 8, 64 and 365, compared to one DuckDB transaction that registers them all."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from benchmarks.measure import DATASET, DAYS, Bench, Target, hand_over
from benchmarks.staging import stage
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.datasets.types import declared_types
from ducklake_flows.lake.connect import connect, literal
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.settings import LAKE, Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ducklake_flows.staging.receipt import Receipt

SIZES = (1, 8, 64, 365)
ROUNDS = 3


def staged(settings: Settings) -> list[Receipt]:
    """Stage the year again, since a file can be registered only once."""
    types = {name: t for name, t in declared_types(DATASET).items() if name != DATASET.partition_column}
    files = [f"{settings.landing}flights/{day}.csv" for day in DAYS]
    query = (
        "SELECT * EXCLUDE filename, parse_filename(filename, true)::DATE AS flight_date "
        f"FROM read_csv({files}, columns = {types}, header = true, auto_detect = false, delim = ',', nullstr = 'NA', "
        "filename = true)"
    )
    return stage(settings, DATASET, [parse_partition(day, DATASET.grain) for day in DAYS], query)


def maintain(settings: Settings) -> None:
    """Expire replaced files, so that every contender starts with the same catalog: one year of files and no older."""
    for step in steps(settings, timedelta(0), datetime.now(UTC)):
        if step.todo:
            step.run()


def alone(settings: Settings, receipts: Sequence[Receipt]) -> float:
    """Time one DuckDB transaction that replaces the year, in seconds."""
    con = connect(settings)
    con.execute("SET threads = 1")
    files = [settings.data_path + path for receipt in receipts for path in receipt.files]
    began = time.monotonic()
    con.execute("BEGIN")
    con.execute(f"DELETE FROM {LAKE}.raw.flights WHERE flight_date IN ({', '.join(map(literal, DAYS))})")
    con.execute(
        f"CALL ducklake_add_data_files('{LAKE}', 'flights', ?, schema => 'raw', hive_partitioning => true)", [files]
    )
    con.execute("COMMIT")
    took = time.monotonic() - began
    con.close()
    return took


def ours(settings: Settings, receipts: Sequence[Receipt], size: int) -> list[float]:
    """Time each group of the year, in seconds; this is how long the gate would be held."""
    publisher = Publisher(settings, [DATASET], "groups", DAYS)
    publisher.publish([])  # opens the connection, as a run does before its first group
    took = []
    for first in range(0, len(receipts), size):
        began = time.monotonic()
        publisher.publish(receipts[first : first + size])
        took.append(time.monotonic() - began)
    publisher.close()
    return took


def run(settings: Settings) -> Bench:
    """Time each way in turn over several rounds. The first publish fills the lake and is not timed."""
    bootstrap(settings, [DATASET])
    ours(settings, staged(settings), 365)
    limit: list[float] = []
    whole: dict[int, list[float]] = {size: [] for size in SIZES}
    held: dict[int, list[float]] = {size: [] for size in SIZES}
    for number in range(ROUNDS):
        maintain(settings)
        limit.append(alone(settings, staged(settings)))
        for size in SIZES if number == 0 else SIZES[2:]:
            # A new fingerprint each time, because unchanged partitions are not published.
            receipts = [_touched(receipt, f"{number}-{size}") for receipt in staged(settings)]
            maintain(settings)
            took = ours(settings, receipts, size)
            whole[size].append(sum(took))
            held[size] += took
    one = statistics.median(limit)
    rows = [{"group": "DuckDB, all in one", "seconds": one, "times DuckDB": 1.0, "gate held, p95, ms": one * 1000}]
    targets = []
    for size in SIZES:
        seconds, p95 = statistics.median(whole[size]), _p95(held[size])
        rows.append(
            {"group": size, "seconds": seconds, "times DuckDB": seconds / one, "gate held, p95, ms": p95 * 1000}
        )
        if size >= 64:
            targets.append(Target(f"groups of {size}: seconds, times DuckDB's one transaction", seconds / one, 1.3))
        targets.append(Target(f"groups of {size}: gate held, p95, ms", p95 * 1000, 50 + 8 * size))
    return Bench("Publishing 365 staged partitions", rows, targets)


def _touched(receipt: Receipt, mark: str) -> Receipt:
    return replace(receipt, fingerprint=f"{receipt.fingerprint}-{mark}")


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


if __name__ == "__main__":
    hand_over(run(load_settings()))
