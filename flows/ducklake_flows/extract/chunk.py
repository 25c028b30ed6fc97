"""Extract a chunk of a dataset's partitions through one dlt run, stage the files, and return a receipt for each.

One run handles many partitions, because dlt's overhead is per run, not per row. All partitions of a chunk go through
one resource. Each row is marked with its partition, and the result is split into files per partition. An error in one
partition does not affect the others: a value that cannot be stored or a read error ends only that partition. If dlt
itself fails the run, every partition of the chunk is run again separately.

A chunk has a time budget. Once it is used up, no new partition starts, and partitions not started are returned.

A partition whose source failed in a way that may pass is read again after the others, up to the dataset's `retries`.
The chunk waits only if it has nothing else to read, and for all failed partitions together: a source that is down costs
a chunk the sum of the delays, once. What was read of a failed try is discarded.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_exponential, wait_random

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.errors import NoSource, Rejected
from ducklake_flows.extract import dlt_run
from ducklake_flows.extract.attempt import ROWS, Attempt, said, timed
from ducklake_flows.extract.items import ROWS as ITEM_ROWS
from ducklake_flows.extract.items import items_of, parts_of, tables_of
from ducklake_flows.extract.nested import Spool, named, refused_rows, rows_of
from ducklake_flows.extract.outcome import cause_of, outcome_of
from ducklake_flows.extract.pace import Pace
from ducklake_flows.extract.reader import Reader
from ducklake_flows.extract.split import split
from ducklake_flows.extract.stage import put, sync
from ducklake_flows.project import get_dataset
from ducklake_flows.scratch import scratch, sweep
from ducklake_flows.sources.transient import is_transient
from ducklake_flows.sources.values import Unfit
from ducklake_flows.staging.inspect import MARK
from ducklake_flows.staging.layout import new_chunk
from ducklake_flows.storage import open_storage
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tenacity import AttemptManager

    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.datasets.dataset import Member
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.datasets.source import Rows
    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Outcome

LONGEST_DELAY = 60.0
"""Maximum seconds before a retry, without its random part."""


class Stopped(BaseException):
    """The run that submitted this chunk has ended. A BaseException, so that it never counts as a partition's error."""


def extract_chunk(
    dataset_key: str,
    versions: Mapping[str, str],
    settings: Settings,
    table: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    pace: Callable[[], float] = lambda: 0.0,
    limit: float = math.inf,
    others: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Outcome]:
    """Extract and stage partitions of one dataset.

    Args:
        dataset_key: The dataset's key.
        versions: The partitions' keys, each with its source's version when the run was planned.
        settings: Location of the stage. No catalog is opened.
        table: The raw table's columns and DuckDB types. Staged files match them.
        stopped: Returns whether to stop; called between two items of a source, and before a partition is staged.
        pace: Returns the minimum seconds between two items of a source, which may change; 0: no limit.
        limit: Time budget in seconds: then no new partition starts. The first partition always starts.
        others: The same of the dataset's other tables, by key.

    Returns:
        One outcome for each started partition, in the given order. A failed partition raises nothing.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    return extract(get_dataset(dataset_key), versions, settings, table, stopped, pace, limit, others)


def extract(
    dataset: Dataset,
    versions: Mapping[str, str],
    settings: Settings,
    table: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    pace: Callable[[], float] = lambda: 0.0,
    limit: float = math.inf,
    others: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Outcome]:
    """Extract and stage partitions of a dataset; see `extract_chunk`."""
    failpoint("before extract")
    attempts = [Attempt(dataset.partition(key), version) for key, version in versions.items()]
    stage = open_storage(settings.data_path, settings)

    def go_on() -> None:
        if stopped():
            raise Stopped

    run = _Run(dataset, table or {}, go_on, Pace(pace, go_on), time.monotonic() + limit)
    with scratch() as work, dataset.chunk() as run.using, contextlib.closing(run):
        run.spool = Spool(work / "spool")
        begun = run.all(attempts, work)
        for member in dataset.members:
            _extract_member(member, begun, run.spool, (others or {}).get(member.key, {}), work / member.key, go_on)
        chunk = new_chunk() if len(begun) > 1 else ""
        for attempt in begun:
            go_on()
            put(dataset, attempt, chunk, stage)
        sync(begun, stage)
        return [outcome_of(dataset, attempt) for attempt in begun]


def _extract_member(
    member: Member,
    parents: Sequence[Attempt],
    spool: Spool,
    table: Mapping[str, str],
    work: Path,
    go_on: Callable[[], None],
) -> None:
    """Extract another table of a dataset from what its attempts gave. An error is that of its parent's attempt."""
    good = {attempt.partition: attempt for attempt in parents if attempt.error is None}
    if not good:
        return
    work.mkdir()
    dataset = replace(member, source=lambda partition: spool.tables(member, good[partition]))
    with contextlib.closing(_Run(dataset, table, go_on, Pace(lambda: 0.0, go_on), math.inf)) as run:
        for attempt in run.all([Attempt(p, parent.source_version) for p, parent in good.items()], work):
            good[attempt.partition].members.append((member, attempt))
            if attempt.error is not None:
                good[attempt.partition].error = named(member, attempt.error)


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
        self.spool: Spool | None = None
        """Where the rows of the dataset's other tables are kept."""
        self.using: Callable[[Partition, Contract], Rows] | None = None
        """How a source reads that reads a chunk's partitions together."""
        self._reader: Reader[pa.Table] = Reader(lambda: dataset.timeout and dataset.timeout + pace.seconds, go_on)

    def close(self) -> None:
        """End the thread that reads the source."""
        self._reader.close()

    def all(self, attempts: Sequence[Attempt], work: Path) -> list[Attempt]:
        """Run the attempts together, or each separately if dlt fails the run.

        Returns:
            The last tries of the started attempts.
        """
        if len(attempts) > 1:
            begun = self._once(attempts, work / "chunk")
            if begun is not None:
                return begun
        begun = []
        for number, attempt in enumerate(attempts):
            if number == 0 or time.monotonic() < self._until:
                begun.append(self._alone(attempt, work / str(number)))
        return begun

    def _alone(self, attempt: Attempt, work: Path) -> Attempt:
        """Run one attempt, and further tries if they may succeed. Returns the last."""
        work.mkdir()
        for number in self._tries():
            attempt = attempt if number.retry_state.attempt_number == 1 else attempt.again()
            self._once([attempt], work / str(attempt.tries))
            number.retry_state.set_result(_may_succeed(attempt))
        return attempt

    def _once(self, attempts: Sequence[Attempt], work: Path) -> list[Attempt] | None:
        """Run the attempts through dlt once and set their files.

        Returns:
            The last tries of the started attempts; None if dlt or DuckDB failed a run of several partitions: the
            failing one is unknown.
        """
        import duckdb
        from dlt.pipeline.exceptions import PipelineStepFailed

        begun: list[Attempt] = []
        mark = len(attempts) > 1
        try:
            tables = self._tables(self._in_turn(attempts, begun), mark)
            shapes = dlt_run.run(tables, self._dataset.key, work, partial(timed, begun))
            with timed(begun, "inspect"):
                split(self._dataset, begun, shapes, self._table, work, self.spool)
                for attempt in begun:
                    self._check_quarantine(attempt)
        except (PipelineStepFailed, duckdb.Error) as error:
            if mark:
                return None
            attempts[0].error = attempts[0].error or cause_of(error)
            return list(attempts)
        except Rejected as error:
            for attempt in begun:
                attempt.error = attempt.error or error
        return _last(begun)

    def _in_turn(self, attempts: Sequence[Attempt], begun: list[Attempt]) -> Iterator[Attempt]:
        """Start the attempts, as many as the time allows; then, of several, further tries of those that may succeed."""
        for attempt in attempts:
            if begun and time.monotonic() >= self._until:
                break
            attempt.begin()
            begun.append(attempt)
            yield attempt
        if len(attempts) == 1:
            return  # `_alone` runs it again: without a mark, the rows of its tries could not be told apart
        for number in self._tries():
            if number.retry_state.attempt_number > 1:
                for attempt in filter(_may_succeed, _last(begun)):
                    begun.append(attempt.again())
                    begun[-1].begin()
                    yield begun[-1]
            number.retry_state.set_result(any(map(_may_succeed, _last(begun))))

    def _tries(self) -> Iterable[AttemptManager]:
        """Yields once, and again after a delay while the result is true, up to the dataset's retries."""
        delay = self._dataset.retry_delay
        return Retrying(
            retry=retry_if_result(bool),
            stop=stop_after_attempt(1 + self._dataset.retries),
            wait=wait_exponential(delay, max=LONGEST_DELAY) + wait_random(0, delay),
            sleep=self._wait,
            retry_error_callback=lambda _: None,
        )

    def _wait(self, seconds: float) -> None:
        """Wait before the next tries, unless the chunk must stop."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._go_on()
            time.sleep(min(left, 0.5))

    def _tables(self, attempts: Iterable[Attempt], mark: bool) -> Iterator[pa.Table]:
        """The rows of all attempts. A source's error or an unfit value ends its attempt, which keeps the error."""
        for number, attempt in enumerate(attempts):
            try:
                with contextlib.closing(self._reader.read(self._read(attempt))) as tables:
                    for table in tables:
                        if table.num_rows:
                            found = self._taken(attempt, table)
                            if len(attempt.refused) >= ITEM_ROWS:
                                self._keep_refused(attempt)
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

    def _keep_refused(self, attempt: Attempt) -> None:
        """Keep the rows that are set aside for the quarantine table."""
        if self.spool is not None and attempt.refused and (quarantine := self._dataset.quarantine):
            self.spool.put(quarantine, attempt, refused_rows(attempt.refused))
        attempt.refused = []

    def _check_quarantine(self, attempt: Attempt) -> None:
        """Keep what is left to keep; reject the attempt if more rows are set aside than the dataset allows."""
        self._keep_refused(attempt)
        rows, total = attempt.given[ROWS], sum(attempt.set_aside.values())
        if attempt.error is None and total and self._dataset.is_over_limit(total, rows):
            why = "; ".join(f"{reason}: {count:,}" for reason, count in attempt.set_aside.most_common(3))
            attempt.error = Rejected(
                f"{total:,} of {total + rows:,} rows would be set aside, more than the dataset's limit of "
                f"{self._dataset.quarantine_limit}: {why}",
                "correct the source or the rule, or raise quarantine_limit in the dataset",
            )

    def _taken(self, attempt: Attempt, table: pa.Table) -> pa.Table:
        """A table as its attempt takes it. The lists with a table of their own are kept for that."""
        aside = sum(attempt.set_aside.values())
        before = attempt.given[ROWS] + aside
        found, lists = attempt.take(table, self._dataset)
        for member in self._dataset.members:
            if self.spool is not None and member.name in lists:
                try:
                    for rows in rows_of(member, lists[member.name], found):
                        self.spool.put(member, attempt, rows)
                except Unfit as error:
                    # Once a row of the table is set aside, the places of the others are not known.
                    is_known = aside == sum(attempt.set_aside.values())
                    row = before + error.row if error.row is not None and is_known else None
                    raise Unfit(error.column, error.why, row) from None
        return found

    def _read(self, attempt: Attempt) -> Iterator[pa.Table | None]:
        """The tables of an attempt's rows. None: no table is complete yet, see `tables_of`."""
        for source in self._dataset.read_from(attempt.partition):
            try:
                contract = self._dataset.contract
                if contract.discards_rows:
                    contract = replace(contract, aside=attempt.refuser(source))
                for table in tables_of(self._items(attempt, source), contract):
                    yield table if table is None else attempt.own(table, self._dataset, source)
            except NoSource:
                if source == attempt.partition:
                    raise

    def _items(self, attempt: Attempt, source: Partition) -> Iterator[Any]:
        """The source's items, no faster than the rate limit. The rows of other resources are kept for their tables."""
        self._pace.wait()
        found = self._dataset.read(source, self._table, self.using, attempt.refuser(source))
        given, others = parts_of(found, self._dataset)
        yield from self._paced(given)
        for member, resource in others:
            for table in tables_of(self._paced(resource), member.contract):
                if self.spool is not None and table is not None:
                    self.spool.put(member, attempt, table)

    def _paced(self, given: Any) -> Iterator[Any]:
        for item in items_of(given):
            self._pace.asked()
            self._go_on()
            yield item
            failpoint("mid extract")
            self._pace.wait()


def _last(begun: Sequence[Attempt]) -> list[Attempt]:
    """The last try of each partition, in the order in which the partitions began."""
    return list({attempt.partition.key: attempt for attempt in begun}.values())


def _may_succeed(attempt: Attempt) -> bool:
    """Whether an attempt failed in a way that may pass."""
    return attempt.error is not None and is_transient(attempt.error)


def warm_up() -> None:
    """Prepare this process for a run, while it may extract for other runs: sweep, and warm imports and caches once."""
    sweep()
    _warm_up_once()


@cache
def _warm_up_once() -> None:
    """Run a two-row extraction."""
    dataset = Dataset("warm_up", lambda _: [pa.table({"row": [1]})], partition_column="day")
    attempts = [Attempt(dataset.partition(key), "") for key in ("2000-01-01", "2000-01-02")]
    run = _Run(dataset, {}, lambda: None, Pace(lambda: 0.0, lambda: None), math.inf)
    with scratch() as work, contextlib.closing(run):
        run.all(attempts, work)
