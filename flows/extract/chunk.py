"""Extract a chunk of a dataset's partitions through one dlt run, stage the files, and return a receipt for each.

One run for many partitions: dlt's own cost is a run's, not a row's. All partitions of a chunk go through one resource,
each row marked with its partition, and are split into one file a partition afterwards. A fault in one never takes its
neighbours along: a reading error ends just that partition, and where dlt itself refuses the run (a contract that is
frozen, say) every partition of the chunk is run again alone.

A chunk has a time, too: when it is over, no further partition is begun, and those that were not are handed back.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flows.datasets import get_dataset
from flows.datasets.model import Dataset, Grain, Partition, parse_partition
from flows.errors import LakeError, NoSource, Rejected, SourceError
from flows.points import reached
from flows.settings import Settings
from flows.stage.inspect import MARK, Inspection, inspect
from flows.stage.layout import new_attempt, staged_path
from flows.stage.receipt import Failure, Outcome, Receipt
from flows.storage import Storage, open_storage

os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
os.environ.setdefault("RUNTIME__LOG_LEVEL", "ERROR")

BATCH = 122_880
"""Rows read and written at once when a chunk is split: one row group of DuckDB's size."""

GATHER = 16 << 20
"""Bytes of Arrow data that dlt is given at once, and writes as one row group. A dictionary of 1 MiB is tried for every
column of each: with groups of 100,000 rows whose values all differ, Arrow takes twice as long to write them."""

SCRATCH = "lake-extract-"
"""How the temporary folders of extraction are named."""


class Stopped(BaseException):
    """The run that wanted this chunk is gone. No fault of a partition, so nothing may take it for one."""


@dataclass
class _Attempt:
    """One partition on its way through a run."""

    partition: Partition
    source_version: str
    id: str = field(default_factory=new_attempt)
    files: list[Path] = field(default_factory=list)
    seen: Inspection | None = None
    error: Exception | None = None
    profile: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.profile.values())


class _Pace:
    """Keeps a chunk from asking its source more often than it may.

    Args:
        seconds: Between two items.
        go_on: Raises `Stopped`; asked while waiting.
    """

    def __init__(self, seconds: float, go_on: Callable[[], None]) -> None:
        self._seconds, self._go_on = seconds, go_on
        # The chunk before this one, in the same place, may have asked just now.
        self._due, self._may = time.monotonic() + seconds, not seconds

    def wait(self) -> None:
        """Before the source is asked. A turn that was not used, since the source had no more, is the next one's."""
        while not self._may:
            left = self._due - time.monotonic()
            self._may = left <= 0
            self._go_on()
            time.sleep(min(max(left, 0), 0.5))
        self._due = time.monotonic() + self._seconds

    def asked(self) -> None:
        """The source has answered."""
        self._may = not self._seconds


@contextlib.contextmanager
def _timed(attempts: Sequence[_Attempt], stage: str) -> Iterator[None]:
    """Add the time of a block to a stage of these attempts, to each its share."""
    began = time.monotonic()
    try:
        yield
    finally:
        for attempt in attempts:
            share = (time.monotonic() - began) / len(attempts)
            attempt.profile[stage] = attempt.profile.get(stage, 0.0) + share


def extract_chunk(
    dataset_key: str,
    versions: Mapping[str, str],
    settings: Settings,
    hints: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    pace: float = 0.0,
    limit: float = math.inf,
) -> list[Outcome]:
    """Extract and stage some partitions of one dataset.

    Args:
        dataset_key: The dataset.
        versions: The partitions' keys, each with the version its source had when the run was planned.
        settings: Where the stage lies. No catalog is opened.
        hints: dlt data types of columns that the raw table has already, so that inference agrees with it.
        stopped: Asked between two of a source's items, and before a file is staged.
        pace: Seconds to leave between two of a source's items.
        limit: Seconds after which no further partition is begun; the first one always is.

    Returns:
        One outcome for each partition that was begun, in the order given. Nothing is raised for one that fails.

    Raises:
        Stopped: ``stopped`` said so.
    """
    reached("before extract")
    dataset = get_dataset(dataset_key)
    attempts = [_Attempt(parse_partition(key, dataset.grain), version) for key, version in versions.items()]
    stage = open_storage(settings.data_path, settings)
    columns = _columns(dataset, hints or {})

    def go_on() -> None:
        if stopped():
            raise Stopped

    between, until = _Pace(pace, go_on), time.monotonic() + limit
    with _scratch() as work:
        begun = _run(dataset, attempts, columns, work / "chunk", go_on, between, until)
        if begun is None:
            begun = []
            for number, attempt in enumerate(attempts):
                if number == 0 or time.monotonic() < until:
                    begun += _run(dataset, [attempt], columns, work / str(number), go_on, between) or []
        outcomes = []
        for attempt in begun:
            go_on()
            outcomes.append(_stage(dataset, attempt, stage))
        return outcomes


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder, locked for as long as this process is at it; see `sweep`."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder, Path(folder, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def sweep() -> None:
    """Remove what killed workers left on this machine: the kernel took their locks away."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        # It may be another user's, in use, or just gone; and a young one may not have its lock yet.
        with contextlib.suppress(OSError), (folder / "lock").open("r+") as lock:
            if time.time() - os.fstat(lock.fileno()).st_mtime > 60:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


def _columns(dataset: Dataset, hints: Mapping[str, str]) -> dict[str, Any]:
    """The column hints for dlt: what the table has already, what the contract declares, and the pipeline's own."""
    columns: dict[str, Any] = {
        name: {"data_type": data_type, "nullable": True}
        for name, data_type in {**hints, **dataset.contract.columns}.items()
    }
    if dataset.partition_column:
        hourly = dataset.grain is Grain.hour
        columns[dataset.partition_column] = (
            {"data_type": "timestamp", "timezone": False, "nullable": True}
            if hourly
            else {"data_type": "date", "nullable": True}
        )
    return columns


def _run(
    dataset: Dataset,
    attempts: Sequence[_Attempt],
    columns: dict[str, Any],
    work: Path,
    go_on: Callable[[], None],
    pace: _Pace,
    until: float = math.inf,
) -> list[_Attempt] | None:
    """One dlt run over these attempts; fills in their files.

    Returns:
        Those that were begun; None when dlt refused the run and there are several, so that nothing is known of any.
    """
    from dlt.pipeline.exceptions import PipelineStepFailed

    begun: list[_Attempt] = []

    def in_time() -> Iterator[_Attempt]:
        for attempt in attempts:
            if begun and time.monotonic() >= until:
                return
            attempt.error = None
            begun.append(attempt)
            yield attempt

    mark = len(attempts) > 1
    try:
        found = _load(_resource(dataset, in_time(), columns, go_on, pace, mark), work, begun)
        with _timed(begun, "inspect"):
            _split(dataset, begun, found, work)
    except PipelineStepFailed as error:
        if mark:
            return None
        attempts[0].error = attempts[0].error or _cause(error)
        return list(attempts)
    except Rejected as error:
        for attempt in begun:
            attempt.error = attempt.error or error
    return begun


def _load(rows: Any, work: Path, attempts: Sequence[_Attempt]) -> list[Path]:
    """Take a resource through one dlt run: extract, normalize, and keep the finished Parquet files.

    Args:
        rows: The resource.
        work: A folder that is not there yet.
        attempts: Whose time it is.

    Raises:
        PipelineStepFailed: dlt refused it.
    """
    import dlt

    work.mkdir()
    found: list[Path] = []

    @dlt.destination(
        batch_size=0,
        loader_file_format="parquet",
        name="stage",
        naming_convention="snake_case",
        max_table_nesting=0,
        skip_dlt_columns_and_tables=True,
    )
    def keep(path: Any, table: Any) -> None:
        target = work / Path(path).name
        target.hardlink_to(path)
        found.append(target)

    pipeline = dlt.pipeline("lake", destination=keep, dataset_name="raw", pipelines_dir=str(work / "dlt"))
    with _timed(attempts, "extract"):
        pipeline.extract(rows, loader_file_format="parquet")
    with _timed(attempts, "normalize"):
        pipeline.normalize()
        pipeline.load(raise_on_failed_jobs=True)
    return found


def _resource(
    dataset: Dataset,
    attempts: Iterator[_Attempt],
    columns: dict[str, Any],
    go_on: Callable[[], None],
    pace: _Pace,
    mark: bool,
) -> Any:
    """All attempts' rows as one dlt resource. One whose source raises ends there and keeps the error."""
    import dlt

    def rows() -> Iterator[Any]:
        for number, attempt in enumerate(attempts):
            pace.wait()
            try:
                for item in dataset.read(attempt.partition):
                    pace.asked()
                    go_on()
                    yield _marked(dataset, attempt.partition, item, number if mark else None)
                    reached("mid extract")
                    pace.wait()
            except Exception as error:  # noqa: BLE001 - any fault of a source is its partition's, not the chunk's
                attempt.error = error
                pace.asked()

    marked: Any = {MARK: {"data_type": "bigint", "nullable": True}} if mark else {}
    contract: Any = {
        "tables": "evolve",
        "columns": dataset.contract.new_columns if dataset.contract.columns else "evolve",
        "data_type": "freeze" if dataset.contract.columns else "evolve",
    }
    return dlt.resource(
        lambda: _coalesced(rows()), name=dataset.key, columns={**columns, **marked}, schema_contract=contract
    )


def _coalesced(items: Iterator[Any]) -> Iterator[Any]:
    """Small Arrow items as fewer large ones: what dlt does for an item costs more than a small item's rows do."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    gathered = 0
    for item in items:
        table = pa.Table.from_batches([item]) if isinstance(item, pa.RecordBatch) else item
        if waiting and (not isinstance(table, pa.Table) or table.schema != waiting[0].schema):
            yield pa.concat_tables(waiting)
            waiting, gathered = [], 0
        if not isinstance(table, pa.Table):
            yield table
            continue
        waiting.append(table)
        gathered += table.nbytes
        if gathered >= GATHER:
            yield pa.concat_tables(waiting)
            waiting, gathered = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _marked(dataset: Dataset, partition: Partition, item: Any, mark: int | None) -> Any:
    """Mark rows with their partition, and fill the partition column in where they lack it.

    Rows whose partition column says something else are found by `inspect`, and the partition rejected.
    """
    column = dataset.partition_column
    value = partition.start if dataset.grain is Grain.hour else partition.start.date()
    if isinstance(item, dict | list):
        own = {**({column: value} if column else {}), **({MARK: mark} if mark is not None else {})}
        return [{**own, **row} for row in ([item] if isinstance(item, dict) else item)]
    import pyarrow as pa

    if column and column not in item.schema.names:
        kind = pa.timestamp("us") if dataset.grain is Grain.hour else pa.date32()
        item = item.append_column(pa.field(column, kind), pa.repeat(pa.scalar(value, kind), item.num_rows))
    if mark is not None:
        item = item.append_column(pa.field(MARK, pa.int64()), pa.repeat(pa.scalar(mark, pa.int64()), item.num_rows))
    return item


def _split(dataset: Dataset, attempts: Sequence[_Attempt], found: Sequence[Path], work: Path) -> None:
    """Inspect a run's files, and give each attempt its own: without the mark and without dlt's own columns."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    seen = inspect(dataset, [a.partition for a in attempts], [str(f) for f in found])
    for attempt, inspection in zip(attempts, seen, strict=True):
        attempt.seen = inspection
    writers: dict[int, pq.ParquetWriter] = {}
    with contextlib.ExitStack() as open_files:
        for path in found:
            parquet = pq.ParquetFile(path)
            names = parquet.schema_arrow.names
            wanted = [n for n in names if n != MARK and not n.startswith("_dlt_")]
            if wanted == names:
                attempts[0].files.append(path)
                continue
            for batch in parquet.iter_batches(BATCH):
                rows = batch.select(wanted)
                runs = pc.run_end_encode(batch.column(MARK)) if MARK in names else None
                marks, ends = (
                    (runs.values.to_pylist(), runs.run_ends.to_pylist()) if runs is not None else ([0], [len(batch)])
                )
                for mark, start, end in zip(marks, [0, *ends], ends, strict=False):
                    if mark not in writers:
                        target = work / f"partition-{mark}.parquet"
                        # Given a path, Arrow looks for its filesystem first: as long again as writing a small file.
                        file = open_files.enter_context(pa.OSFile(str(target), "wb"))
                        writers[mark] = open_files.enter_context(pq.ParquetWriter(file, rows.schema))
                        attempts[mark].files.append(target)
                    writers[mark].write_batch(rows.slice(start, end - start))


def _stage(dataset: Dataset, attempt: _Attempt, stage: Storage) -> Outcome:
    """Put an attempt's files into the stage, unless something is wrong with it."""
    try:
        if attempt.error is not None:
            raise attempt.error
        seen = attempt.seen
        if seen is None:
            raise SourceError("nothing came of it")
        if seen.broken:
            raise Rejected("; ".join(seen.broken))
        staged = {staged_path(dataset, attempt.partition, attempt.id, n): f for n, f in enumerate(attempt.files)}
        with _timed([attempt], "stage"):
            for relative, file in staged.items():
                stage.put(file, relative)
                reached("file written")
    except Exception as error:  # noqa: BLE001 - whatever it is, it goes into the ledger by name
        state: Literal["failed", "rejected", "no source"] = "failed"
        if isinstance(error, NoSource):
            state = "no source"
        elif isinstance(error, Rejected):
            state = "rejected"
        return Failure(
            dataset.key,
            attempt.partition.key,
            attempt.id,
            state,
            _text(error),
            attempt.source_version,
            attempt.seconds,
            attempt.profile,
        )
    return Receipt(
        dataset.key,
        attempt.partition.key,
        attempt.id,
        tuple(staged),
        seen.rows,
        sum(f.stat().st_size for f in attempt.files),
        seen.columns,
        seen.fingerprint,
        attempt.source_version,
        attempt.seconds,
        _peak_rss(),
        seen.warnings,
        profile=attempt.profile,
    )


def _peak_rss() -> int:
    """The most memory this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands `ru_maxrss` down from the parent process, which may have held more than this one ever did.
        return int(status.read_text().partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def warm_up() -> None:
    """Take two rows all the way but to the stage, so that a worker's first chunk takes no longer than its others."""
    import pyarrow as pa

    sweep()
    dataset = Dataset("warm_up", lambda partition: [pa.table({"row": [1]})], partition_column="day")
    attempts = [_Attempt(parse_partition(key, dataset.grain), "") for key in ("2000-01-01", "2000-01-02")]
    with _scratch() as work:
        _run(dataset, attempts, _columns(dataset, {}), work / "run", lambda: None, _Pace(0, lambda: None))


def _cause(error: BaseException) -> Exception:
    """What is behind a failed dlt step, as the user's error."""
    from dlt.common.schema.exceptions import DataValidationError, SchemaException

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, LakeError):
            return link
        if isinstance(link, DataValidationError | SchemaException):
            return Rejected(f"breaks the contract: {_text(link)}")
    return SourceError(_text(chain[-1]))


def _text(error: BaseException) -> str:
    """One line, at most 500 characters; its type too, unless the error is one of ours."""
    text = " ".join((error.message if isinstance(error, LakeError) else str(error)).split())[:500]
    return text if isinstance(error, LakeError) else f"{type(error).__name__}: {text}"
