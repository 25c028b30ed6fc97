"""One dlt run (extract, normalize and load) from Arrow tables to Parquet files, without changes to the values.

dlt merges the schemas of a table's items, renames columns, and adds a zone to timestamps without one. So every shape of
tables is a separate dlt table, and the naming convention keeps names unchanged.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
os.environ.setdefault("RUNTIME__LOG_LEVEL", "ERROR")

GATHER = 16 << 20
"""Bytes of Arrow data that dlt gets at once and writes as one row group. Arrow tries a dictionary of 1 MiB for every
column of a row group: groups of 100,000 rows whose values all differ take twice as long to write."""


class Timer(Protocol):
    """Measures the time of a stage."""

    def __call__(self, stage: str) -> AbstractContextManager[None]:
        """A context manager whose duration is added to the stage."""
        ...


@dataclass
class Shape:
    """The tables of a run that have the same columns.

    Args:
        schema: The tables' schema.
        files: The Parquet files with the tables' rows, in order. JSON is text in them.
    """

    schema: pa.Schema
    files: list[Path] = field(default_factory=list)


def run(tables: Iterable[pa.Table], name: str, work: Path, timed: Timer) -> list[Shape]:
    """Run tables through dlt.

    Args:
        tables: The rows, in order.
        name: The dataset's key.
        work: A folder that does not exist yet.
        timed: Measures the time of each stage.

    Returns:
        The shapes of the tables with their files, in order of first appearance.

    Raises:
        dlt.pipeline.exceptions.PipelineStepFailed: dlt failed, or iterating over the tables raised an error.
    """
    import dlt

    work.mkdir()
    shapes: dict[pa.Schema, Shape] = {}
    found: dict[str, list[Path]] = {}

    @dlt.destination(
        batch_size=0,
        loader_file_format="parquet",
        name="stage",
        naming_convention="direct",
        max_table_nesting=0,
        skip_dlt_columns_and_tables=True,
    )
    def keep(path: Any, table: Any) -> None:
        target = work / Path(path).name
        target.hardlink_to(path)
        found.setdefault(table["name"], []).append(target)

    def items() -> Iterator[Any]:
        for table in _gathered(tables):
            shape = shapes.setdefault(table.schema, Shape(table.schema))
            number = list(shapes.values()).index(shape)
            local: Any = {
                column.name: {"data_type": "timestamp", "timezone": False}
                for column in table.schema
                if pa.types.is_timestamp(column.type) and column.type.tz is None
            }
            hints = dlt.mark.make_hints(table_name=f"shape_{number}", columns=local)
            yield dlt.mark.with_hints(_without_json(table), hints, create_table_variant=True)

    pipeline = dlt.pipeline("lake", destination=keep, dataset_name="raw", pipelines_dir=str(work / "dlt"))
    with timed("extract"):
        pipeline.extract(dlt.resource(items, name=name), loader_file_format="parquet")
    if not shapes:
        return []  # without tables, dlt would wait for a second
    with timed("normalize"):
        pipeline.normalize()
        pipeline.load(raise_on_failed_jobs=True)
    for number, shape in enumerate(shapes.values()):
        shape.files = sorted(found.get(f"shape_{number}", []))
    return list(shapes.values())


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Combine small tables into larger ones: dlt's overhead per item exceeds the cost of a few rows."""
    waiting: list[pa.Table] = []
    gathered = 0
    for table in tables:
        if waiting and table.schema != waiting[0].schema:
            yield pa.concat_tables(waiting)
            waiting, gathered = [], 0
        waiting.append(table)
        gathered += table.nbytes
        if gathered >= GATHER:
            yield pa.concat_tables(waiting)
            waiting, gathered = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _without_json(table: pa.Table) -> pa.Table:
    """Convert JSON columns to text: dlt does not support extension types."""
    for number, column in enumerate(table.schema):
        if isinstance(column.type, pa.BaseExtensionType):
            texts = pa.chunked_array([chunk.storage for chunk in table.column(number).chunks], pa.string())
            table = table.set_column(number, column.name, texts)
    return table
