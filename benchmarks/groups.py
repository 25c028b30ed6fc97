"""Publishing staged files in groups of 1, 8, 64 and 365, compared to one DuckDB transaction that registers them all.

New partitions in an empty table, and partitions that replace those of a merged file.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from benchmarks.measure import DATASET, DAYS, Bench, Target, hand_over
from benchmarks.staging import stage
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.datasets.types import declared_types
from ducklake_flows.lake.connect import connect, connected, literal
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.orchestration.chunks import CHUNK
from ducklake_flows.settings import LAKE, Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ducklake_flows.staging.receipt import Receipt

SIZES = (1, 8, 64, 365)
ROUNDS = 3


def staged(settings: Settings, chunk: int = CHUNK) -> list[Receipt]:
    """Stage the year again in chunks of this size, since a file can be registered only once."""
    types = {name: t for name, t in declared_types(DATASET).items() if name != DATASET.partition_column}
    receipts = []
    with connected(settings) as con:
        for first in range(0, len(DAYS), chunk):
            days = DAYS[first : first + chunk]
            query = (
                "SELECT * EXCLUDE filename, parse_filename(filename, true)::DATE AS flight_date "
                f"FROM read_csv({[f'{settings.landing}flights/{day}.csv' for day in days]}, columns = {types}, "
                "header = true, auto_detect = false, delim = ',', nullstr = 'NA', filename = true)"
            )
            receipts += stage(settings, DATASET, [parse_partition(day, DATASET.grain) for day in days], query, con)
    return receipts


def emptied(settings: Settings) -> None:
    """Delete the year, so that the next one is new."""
    with connected(settings) as con:
        con.execute(f"DELETE FROM {LAKE}.raw.flights")
    maintain(settings)


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
    whole: dict[tuple[str, int], list[float]] = defaultdict(list)
    held: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(ROUNDS):
        maintain(settings)
        limit.append(alone(settings, staged(settings)))
        for size in SIZES if number == 0 else SIZES[2:]:
            for kind, prepare in (("replaced", maintain), ("new", emptied)):
                # A new fingerprint each time, because unchanged partitions are not published.
                mark = f"{number}-{size}-{kind}"
                receipts = [_touched(receipt, mark) for receipt in staged(settings, min(size, CHUNK))]
                prepare(settings)
                took = ours(settings, receipts, size)
                whole[kind, size].append(sum(took))
                held[kind, size] += took
    one = statistics.median(limit)
    limits = {"seconds": one, "times DuckDB": 1.0, "gate held, p95, ms": one * 1000}
    rows: list[dict[str, Any]] = [{"group": "DuckDB, all in one", "partitions": "replaced", **limits}]
    targets = []
    for (kind, size), times in whole.items():
        seconds, p95 = statistics.median(times), _p95(held[kind, size])
        found = {"seconds": seconds, "times DuckDB": seconds / one, "gate held, p95, ms": p95 * 1000}
        rows.append({"group": size, "partitions": kind, **found})
        if kind == "new":
            continue
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
