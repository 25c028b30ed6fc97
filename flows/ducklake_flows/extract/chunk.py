"""Extract a chunk of a dataset's partitions through one dlt run, stage the files, and return a receipt for each.

One run handles many partitions, because dlt's overhead is per run, not per row. All partitions of a chunk go through
one resource. Each row is marked with its partition, and the result is split into files per partition. An error in one
partition does not affect the others: a value that cannot be stored or a read error ends only that partition. If dlt
itself fails the run, every partition of the chunk is run again separately.

A chunk has a time budget. Once it is used up, no new partition starts, and partitions not started are returned.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.errors import Rejected
from ducklake_flows.extract import dlt_run
from ducklake_flows.extract.attempt import Attempt, said, timed
from ducklake_flows.extract.items import items_of, tables_of
from ducklake_flows.extract.outcome import cause_of, outcome_of
from ducklake_flows.extract.pace import Pace
from ducklake_flows.extract.scratch import scratch, sweep
from ducklake_flows.extract.split import split
from ducklake_flows.extract.stage import put, sync
from ducklake_flows.project import get_dataset
from ducklake_flows.sources.values import Unfit
from ducklake_flows.staging.inspect import MARK
from ducklake_flows.storage import open_storage
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Outcome


class Stopped(BaseException):
    """The run that submitted this chunk has ended. A BaseException, so that it never counts as a partition's error."""


def extract_chunk(
    dataset_key: str,
    versions: Mapping[str, str],
    settings: Settings,
    table: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    pace: float = 0.0,
    limit: float = math.inf,
) -> list[Outcome]:
    """Extract and stage partitions of one dataset.

    Args:
        dataset_key: The dataset's key.
        versions: The partitions' keys, each with its source's version when the run was planned.
        settings: Location of the stage. No catalog is opened.
        table: The raw table's columns and DuckDB types. Staged files match them.
        stopped: Returns whether to stop; called between two items of a source, and before a partition is staged.
        pace: Minimum seconds between two items of a source.
        limit: Time budget in seconds: then no new partition starts. The first partition always starts.

    Returns:
        One outcome for each started partition, in the given order. A failed partition raises nothing.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    return extract(get_dataset(dataset_key), versions, settings, table, stopped, pace, limit)


def extract(
    dataset: Dataset,
    versions: Mapping[str, str],
    settings: Settings,
    table: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    pace: float = 0.0,
    limit: float = math.inf,
) -> list[Outcome]:
    """Extract and stage partitions of a dataset; see `extract_chunk`."""
    failpoint("before extract")
    attempts = [Attempt(parse_partition(key, dataset.grain), version) for key, version in versions.items()]
    stage = open_storage(settings.data_path, settings)

    def go_on() -> None:
        if stopped():
            raise Stopped

    run = _Run(dataset, table or {}, go_on, Pace(pace, go_on), time.monotonic() + limit)
    with scratch() as work:
        begun = run.all(attempts, work)
        for attempt in begun:
            go_on()
            put(dataset, attempt, stage)
        sync(begun, stage)
        return [outcome_of(dataset, attempt) for attempt in begun]


class _Run:
    """Runs partitions of one dataset.

    Args:
        dataset: The dataset.
        table: The raw table's columns and DuckDB types.
        go_on: Raises `Stopped` if the chunk must stop.
        pace: Rate limit of the source.
        until: The time, by `time.monotonic`, after which no new partition starts.
    """

    def __init__(
        self, dataset: Dataset, table: Mapping[str, str], go_on: Callable[[], None], pace: Pace, until: float
    ) -> None:
        self._dataset, self._table, self._go_on, self._pace, self._until = dataset, table, go_on, pace, until

    def all(self, attempts: Sequence[Attempt], work: Path) -> list[Attempt]:
        """Run the attempts together, or each separately if dlt fails the run. Returns the started attempts."""
        begun = self._once(attempts, work / "chunk")
        if begun is not None:
            return begun
        begun = []
        for number, attempt in enumerate(attempts):
            if number == 0 or time.monotonic() < self._until:
                begun += self._once([attempt], work / str(number)) or []
        return begun

    def _once(self, attempts: Sequence[Attempt], work: Path) -> list[Attempt] | None:
        """Run the attempts through dlt once and set their files.

        Returns:
            The started attempts; None if dlt failed a run of several partitions: the failing one is unknown.
        """
        from dlt.pipeline.exceptions import PipelineStepFailed

        begun: list[Attempt] = []
        mark = len(attempts) > 1
        try:
            tables = self._tables(self._in_time(attempts, begun), mark)
            shapes = dlt_run.run(tables, self._dataset.key, work, partial(timed, begun))
            with timed(begun, "inspect"):
                split(self._dataset, begun, shapes, self._table, work)
        except PipelineStepFailed as error:
            if mark:
                return None
            attempts[0].error = attempts[0].error or cause_of(error)
            return list(attempts)
        except Rejected as error:
            for attempt in begun:
                attempt.error = attempt.error or error
        return begun

    def _in_time(self, attempts: Sequence[Attempt], begun: list[Attempt]) -> Iterator[Attempt]:
        for attempt in attempts:
            if begun and time.monotonic() >= self._until:
                return
            attempt.begin()
            begun.append(attempt)
            yield attempt

    def _tables(self, attempts: Iterable[Attempt], mark: bool) -> Iterator[pa.Table]:
        """The rows of all attempts. A source's error or an unfit value ends its attempt, which keeps the error."""
        for number, attempt in enumerate(attempts):
            try:
                for table in tables_of(self._items(attempt), self._dataset.contract):
                    if table is not None and table.num_rows:
                        found = attempt.take(table, self._dataset)
                        if mark:
                            found = found.append_column(
                                MARK, pa.chunked_array([pa.repeat(pa.scalar(number, pa.int64()), found.num_rows)])
                            )
                        yield found
            except Unfit as error:
                attempt.error = said(error)
            except Exception as error:  # noqa: BLE001 - an error of a source fails its partition, not the chunk
                attempt.error = error
                self._pace.asked()

    def _items(self, attempt: Attempt) -> Iterator[Any]:
        """The source's items, no faster than the rate limit."""
        self._pace.wait()
        for item in items_of(self._dataset.read(attempt.partition, self._table)):
            self._pace.asked()
            self._go_on()
            yield item
            failpoint("mid extract")
            self._pace.wait()


def warm_up() -> None:
    """Run a two-row extraction once so that imports and caches are warm."""
    sweep()
    dataset = Dataset("warm_up", lambda _: [pa.table({"row": [1]})], partition_column="day")
    attempts = [Attempt(parse_partition(key, dataset.grain), "") for key in ("2000-01-01", "2000-01-02")]
    with scratch() as work:
        _Run(dataset, {}, lambda: None, Pace(0, lambda: None), math.inf).all(attempts, work)
