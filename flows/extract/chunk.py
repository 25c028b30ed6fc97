"""Extract a chunk of a dataset's partitions through one dlt run, stage the files, and return a receipt for each.

One run for many partitions costs a quarter of a run each. Each partition is a dlt resource of its own, and a fault in
one never takes its neighbours along: a reading error ends just that resource, and where dlt itself refuses the run (a
contract that is frozen, say) every partition of the chunk is run again alone.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flows.datasets import get_dataset
from flows.datasets.model import Dataset, Grain, Partition, parse_partition
from flows.errors import LakeError, NoSource, Rejected, SourceError
from flows.settings import Settings
from flows.stage.inspect import inspect
from flows.stage.layout import new_attempt, staged_path
from flows.stage.receipt import Failure, Outcome, Receipt
from flows.storage import Storage, open_storage

os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
os.environ.setdefault("RUNTIME__LOG_LEVEL", "ERROR")


@dataclass
class _Attempt:
    """One partition on its way through a run."""

    partition: Partition
    source_version: str
    resource: str
    id: str = field(default_factory=new_attempt)
    files: list[Path] = field(default_factory=list)
    error: Exception | None = None
    seconds: float = 0.0


def extract_chunk(
    dataset_key: str, versions: Mapping[str, str], settings: Settings, hints: Mapping[str, str] | None = None
) -> list[Outcome]:
    """Extract and stage some partitions of one dataset.

    Args:
        dataset_key: The dataset.
        versions: The partitions' keys, each with the version its source had when the run was planned.
        settings: Where the stage lies. No catalog is opened.
        hints: dlt data types of columns that the raw table has already, so that inference agrees with it.

    Returns:
        One outcome a partition, in the order given. Nothing is raised for a partition that fails.
    """
    dataset = get_dataset(dataset_key)
    attempts = [
        _Attempt(parse_partition(key, dataset.grain), version, f"{dataset.key}__p{_identifier(key)}")
        for key, version in versions.items()
    ]
    stage = open_storage(settings.data_path, settings)
    columns = _columns(dataset, hints or {})
    with tempfile.TemporaryDirectory(prefix="lake-extract-") as work:
        if not _run(dataset, attempts, columns, Path(work) / "chunk"):
            for number, attempt in enumerate(attempts):
                _run(dataset, [attempt], columns, Path(work) / str(number))
        return [_stage(dataset, attempt, stage) for attempt in attempts]


def _identifier(key: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in key).lower()


def _columns(dataset: Dataset, hints: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The column hints for dlt: what the table has already, what the contract declares, and the partition column."""
    columns: dict[str, dict[str, Any]] = {
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


def _run(dataset: Dataset, attempts: Sequence[_Attempt], columns: dict[str, dict[str, Any]], work: Path) -> bool:
    """One dlt run over these attempts; fills in their files.

    Returns:
        False when dlt refused the run and there is more than one attempt, so that nothing is known of any.
    """
    import dlt
    from dlt.pipeline.exceptions import PipelineStepFailed

    started = time.monotonic()
    work.mkdir()
    found: dict[str, list[Path]] = defaultdict(list)

    @dlt.destination(
        batch_size=0,
        loader_file_format="parquet",
        name="stage",
        naming_convention="snake_case",
        max_table_nesting=0,
        skip_dlt_columns_and_tables=True,
    )
    def keep(path: str, table: dict[str, Any]) -> None:
        target = work / Path(path).name
        target.hardlink_to(path)
        found[table["name"]].append(target)

    for attempt in attempts:
        attempt.error = None
    pipeline = dlt.pipeline("lake", destination=keep, dataset_name="raw", pipelines_dir=str(work / "dlt"))
    refused = None
    try:
        pipeline.extract([_resource(dataset, a, columns) for a in attempts], loader_file_format="parquet")
        pipeline.normalize()
        pipeline.load(raise_on_failed_jobs=True)
    except PipelineStepFailed as error:
        if len(attempts) > 1:
            return False
        refused = _cause(error)
    seconds = (time.monotonic() - started) / len(attempts)
    for attempt in attempts:
        attempt.files = sorted(found[attempt.resource])
        attempt.error = attempt.error or refused
        attempt.seconds += seconds
    return True


def _resource(dataset: Dataset, attempt: _Attempt, columns: dict[str, dict[str, Any]]) -> Any:
    """The attempt's rows as a dlt resource that ends at a reading error and keeps it."""
    import dlt

    def rows() -> Iterator[Any]:
        try:
            for item in dataset.read(attempt.partition):
                yield _with_partition(dataset, attempt.partition, item)
        except Exception as error:  # noqa: BLE001 - any fault of a source is its partition's, not the chunk's
            attempt.error = error

    contract = dataset.contract
    return dlt.resource(
        rows,
        name=attempt.resource,
        columns=columns,
        schema_contract={
            "tables": "evolve",
            "columns": contract.new_columns if contract.columns else "evolve",
            "data_type": "freeze" if contract.columns else "evolve",
        },
    )


def _with_partition(dataset: Dataset, partition: Partition, item: Any) -> Any:
    """Fill the partition column in where the rows lack it; `inspect` rejects those that disagree."""
    column = dataset.partition_column
    if column is None:
        return item
    value = partition.start if dataset.grain is Grain.hour else partition.start.date()
    if isinstance(item, dict):
        return {column: value, **item}
    if isinstance(item, list):
        return [{column: value, **row} for row in item]
    import pyarrow as pa

    if column in item.schema.names:
        return item
    kind = pa.timestamp("us") if dataset.grain is Grain.hour else pa.date32()
    return item.append_column(pa.field(column, kind), pa.repeat(pa.scalar(value, kind), item.num_rows))


def _stage(dataset: Dataset, attempt: _Attempt, stage: Storage) -> Outcome:
    """Inspect an attempt's files and put them into the stage."""
    started = time.monotonic()
    try:
        if attempt.error is not None:
            raise attempt.error
        files = [_without_dlt_columns(path) for path in attempt.files]
        seen = inspect(dataset, attempt.partition, [str(f) for f in files])
        if seen.broken:
            raise Rejected("; ".join(seen.broken))
        staged = {staged_path(dataset, attempt.partition, attempt.id, n): f for n, f in enumerate(files)}
        for relative, file in staged.items():
            stage.put(file, relative)
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
            attempt.seconds + time.monotonic() - started,
        )
    return Receipt(
        dataset.key,
        attempt.partition.key,
        attempt.id,
        tuple(staged),
        seen.rows,
        sum(f.stat().st_size for f in files),
        seen.columns,
        seen.fingerprint,
        attempt.source_version,
        attempt.seconds + time.monotonic() - started,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seen.warnings,
    )


def _without_dlt_columns(path: Path) -> Path:
    """The file without dlt's own columns, which differ at every load."""
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(path)
    names = parquet.schema_arrow.names
    wanted = [n for n in names if not n.startswith("_dlt_")]
    if wanted == names:
        return path
    target = path.with_suffix(".plain.parquet")
    schema = parquet.schema_arrow
    for name in names:
        if name not in wanted:
            schema = schema.remove(schema.get_field_index(name))
    with pq.ParquetWriter(target, schema) as writer:
        for batch in parquet.iter_batches(columns=wanted):
            writer.write_batch(batch.cast(schema))
    return target


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
