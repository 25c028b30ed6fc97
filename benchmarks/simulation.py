"""Extrapolation beyond this machine: a backfill as a queueing model with the costs measured by other benchmarks.

Workers process chunks, and one publisher publishes finished partitions in groups through the gate. The costs come from
`benchmarks/results`. The model is checked against one measured run, the year.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import simpy

from benchmarks.measure import Bench, Target
from ducklake_flows.orchestration.chunks import CHUNK, CHUNK_SECONDS, GROUP

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EXTRACT = (0.02, 0.1, 1.0, 10.0)
"""Seconds that a worker needs for one partition."""

GROUPS = (1, 8, 32, 128, 512, 2048)
PARTITIONS_A_WORKER = 200


@dataclass(frozen=True)
class Costs:
    """Costs in seconds.

    Args:
        chunk: A worker's fixed cost per chunk: the Prefect task and Dask's transport.
        extract: A worker's time per partition of the year.
        enter: Entering and leaving a free gate.
        commit: Time in the gate per group.
        partition: Time in the gate per partition of the group.
        server: CPU time of the Prefect server per chunk.
    """

    chunk: float
    extract: float
    enter: float
    commit: float
    partition: float
    server: float

    def gate(self, size: int) -> float:
        """Seconds for a group of this size, including entering the gate."""
        return self.enter + self.commit + self.partition * size


def measured(results: Path) -> Costs:
    """The costs, from the last results of `year` and `groups`.

    Raises:
        SystemExit: these benchmarks have not been run.
    """
    year, groups = _read(results, "year"), _read(results, "groups")
    ours = _best(year)
    profile = ours["profile"]
    worked = sum(profile[stage] for stage in ("extract", "normalize", "inspect", "stage"))
    # A line through the times of the group sizes: seconds per group = commit + partition * size.
    new = {row["group"]: row["seconds"] for row in groups["rows"] if row["partitions"] == "new"}
    (few, short), (many, long) = ((size, new[size] / -(-365 // size)) for size in (min(new), max(new)))
    partition = (long - short) / (many - few)
    return Costs(
        chunk=profile["prefect"] / ours["chunks"],
        extract=worked / ours["partitions"],
        enter=profile["wait for the gate"] / ours["commits"],
        commit=max(short - partition * few, 0.0),
        partition=partition,
        server=profile["server processor"] / ours["chunks"],
    )


@dataclass
class Outcome:
    """The result of a simulated backfill; times in seconds."""

    wall: float
    commits: int
    in_gate: float


def backfill(costs: Costs, partitions: int, workers: int, extract: float, group: int = GROUP) -> Outcome:
    """Simulate a backfill.

    Args:
        costs: The costs.
        partitions: Number of partitions.
        workers: Number of Dask workers, with one thread each.
        extract: Seconds that a worker needs for one partition.
        group: Maximum partitions per transaction.
    """
    env = simpy.Environment()
    staged: simpy.Store = simpy.Store(env)
    rounds = -(-partitions // (workers * CHUNK))
    size = min(-(-partitions // (workers * rounds)), math.ceil(CHUNK_SECONDS / extract))
    todo = [min(size, partitions - first) for first in range(0, partitions, size)]
    result = Outcome(0.0, 0, 0.0)

    def worker() -> Generator[Any, Any, None]:
        while todo:
            chunk = todo.pop()
            yield env.timeout(costs.chunk + chunk * extract)
            yield staged.put(chunk)

    def publisher() -> Generator[Any, Any, None]:
        waiting, published = 0, 0
        while published < partitions:
            if not waiting:
                waiting = yield staged.get()
            waiting += sum(staged.items)
            staged.items.clear()
            taken = min(waiting, group)
            yield env.timeout(costs.gate(taken))
            waiting, published = waiting - taken, published + taken
            result.commits += 1
            result.in_gate += costs.gate(taken)
        result.wall = env.now

    for _ in range(workers):
        env.process(worker())
    env.process(publisher())
    env.run()
    return result


def run(results: Path) -> Bench:
    """Simulate the throughput by workers and seconds per partition, and compare the simulated to the measured year."""
    costs, year = measured(results), _best(_read(results, "year"))
    rows: list[dict[str, Any]] = []
    for extract in EXTRACT:
        row: dict[str, Any] = {"seconds a partition": extract}
        for workers in WORKERS:
            partitions = max(PARTITIONS_A_WORKER, 20) * workers
            row[f"{workers} w"] = partitions / backfill(costs, partitions, workers, extract).wall
        rows.append(row)
    check = backfill(costs, year["partitions"], 2, costs.extract)
    off = check.wall / year["profile"]["extract and publish"]
    limit = [{"group": size, "partitions/s": size / costs.gate(size)} for size in GROUPS]
    return Bench(
        "Partitions a second by workers and by a worker's seconds over one partition (simulated)",
        rows,
        [Target("the year, simulated, times the measured (or the other way round)", max(off, 1 / off), 1.25)],
        [
            f"costs: {costs}",
            "the gate's own limit: " + ", ".join(f"{r['partitions/s']:.0f}/s in groups of {r['group']}" for r in limit),
            f"a million partitions in one backfill: {1_000_000 / GROUP:,.0f} commits, "
            f"{1_000_000 / GROUP * costs.gate(GROUP) / 3600:.1f} hours of the gate",
            f"the Prefect server's processor is full at {1 / costs.server:,.0f} chunks a second"
            if costs.server
            else "the Prefect server's share was not measured",
        ],
    )


def _read(results: Path, name: str) -> Mapping[str, Any]:
    path = results / f"{name}.json"
    if not path.exists():
        raise SystemExit(f'The simulation needs the results of {name}. Run: make bench ARGS="{name}"')
    return dict(json.loads(path.read_text()))


def _best(year: Mapping[str, Any]) -> Mapping[str, Any]:
    ours: Sequence[Mapping[str, Any]] = [row for row in year["rows"] if row["run"].startswith("this project")]
    return min(ours, key=lambda row: float(row["seconds"]))
