"""Split the files of a dlt run into files per partition, each converted to one schema, inspected and counted."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ducklake_flows.datasets.contract import Refused
from ducklake_flows.errors import LakeError, Rejected
from ducklake_flows.extract.attempt import ROWS, Attempt, as_arrow, said, with_neighbours
from ducklake_flows.sources.sift import row_text
from ducklake_flows.sources.values import Unfit, fit
from ducklake_flows.staging.footers import complete
from ducklake_flows.staging.inspect import MARK, breaking, broken_rows, inspect, with_keys
from ducklake_flows.staging.lattice import contract_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.extract.dlt_run import Shape
    from ducklake_flows.extract.nested import Spool
    from ducklake_flows.staging.receipt import Checked

LONGEST_SAMPLE = 10_000
"""Characters of a row that is shown as an example."""

BATCH = 122_880
"""Rows per batch: one row group of DuckDB's size."""


def split(
    dataset: Dataset,
    attempts: Sequence[Attempt],
    shapes: Sequence[Shape],
    table: Mapping[str, str],
    work: Path,
    spool: Spool | None = None,
) -> None:
    """Set the files and the inspection of each attempt, or its error.

    Args:
        dataset: The dataset of the attempts.
        attempts: The attempts in the order of the mark.
        shapes: The run's files, grouped by their columns.
        table: The raw table's columns and DuckDB types.
        work: The folder to write files to.
        spool: The rows of the dataset's other tables.

    Raises:
        Rejected: an audit does not fit the columns.
    """
    targets: dict[int, dict[str, str]] = {}
    known = with_neighbours(table, [attempt for attempt in attempts if attempt.error is None])
    for number, attempt in enumerate(attempts):
        if attempt.error is None:
            try:
                targets[number] = attempt.target(dataset, known)
            except LakeError as error:
                attempt.error = error
    schemas = {number: as_arrow(types) for number, types in targets.items()}
    wanted = {tuple(schema) for number, schema in schemas.items() if attempts[number].given[ROWS]}
    whole = len(shapes) == 1 and {tuple(f for f in shapes[0].schema if f.name != MARK)} == wanted
    if whole:
        # The usual case: all partitions have one schema, so one pass inspects all of them.
        _inspect(dataset, attempts, [str(f) for f in shapes[0].files], targets)
    _cut(attempts, shapes, schemas, work, whole)
    if not whole:
        for number, attempt in enumerate(attempts):
            if attempt.error is None:
                _inspect(dataset, [attempt], [str(f) for f in attempt.files], {0: targets[number]})
    for number, attempt in enumerate(attempts):
        if attempt.error is not None or attempt.seen is None:
            continue
        if all(check.passed for check in attempt.seen.checks):
            continue
        aside: dict[str, Checked] = {}
        if attempt.seen.aside:
            found = [check for check in attempt.seen.checks if check.on_fail == "quarantine"]
            aside = {check.name: _with_sample(dataset, check, attempt.files) for check in found}
            try:
                _set_aside(dataset, attempt, work / f"kept-{number}", spool)
            except (Rejected, Unfit) as error:
                attempt.error = said(error) if isinstance(error, Unfit) else error
                continue
            _inspect(dataset, [attempt], [str(f) for f in attempt.files], {0: targets[number]})
        checks = (aside.get(c.name) or _with_sample(dataset, c, attempt.files) for c in attempt.seen.checks)
        attempt.seen = replace(attempt.seen, checks=tuple(checks))
    for number, attempt in enumerate(attempts):
        if attempt.error is None:
            is_json = [name for name, data_type in targets[number].items() if data_type == "JSON"]
            attempt.files = [complete(file, is_json) for file in attempt.files]
            attempt.staged = _counted(attempt)
            attempt.error = _lost(attempt, attempt.staged)


def _inspect(
    dataset: Dataset, attempts: Sequence[Attempt], files: list[str], targets: Mapping[int, dict[str, str]]
) -> None:
    found = inspect(dataset, [a.partition for a in attempts], files)
    for number, (attempt, seen) in enumerate(zip(attempts, found, strict=True)):
        # A text column of the file may be JSON in the target.
        attempt.seen = replace(seen, columns={n: targets.get(number, {}).get(n, t) for n, t in seen.columns.items()})


def _with_sample(dataset: Dataset, check: Checked, files: Sequence[Path]) -> Checked:
    """The result of an audit, with some of the rows that break it."""
    audit = next((audit for audit in dataset.audits if audit.name == check.name and not audit.is_of_the_whole), None)
    if not check.failed_rows or audit is None:
        return check
    texts = [text for row in breaking(audit, list(map(str, files))) if len(text := row_text(row)) <= LONGEST_SAMPLE]
    return replace(check, sample=f"[{', '.join(texts)}]")


def _set_aside(dataset: Dataset, attempt: Attempt, work: Path, spool: Spool | None) -> None:
    """Take the rows that break an audit which sets rows aside out of an attempt's files, with the rows of their lists.

    Raises:
        Rejected: a row that is kept has the key of one that is not, so the rows of their lists cannot be told apart.
    """
    work.mkdir()
    children = [member for member in dataset.members if member.is_child] if spool is not None else []
    keys: list[pa.Table] = []
    refused: list[tuple[str, dict[str, Any]]] = []
    names = [audit.name for audit in dataset.audits if audit.on_fail == "quarantine"]
    kept: list[Path] = []
    for number, file in enumerate(attempt.files):
        broken = broken_rows(dataset, str(file))
        bad = functools.reduce(pc.or_, broken.columns)
        target, source, first = work / f"{number}.parquet", pq.ParquetFile(file), 0
        with pq.ParquetWriter(target, source.schema_arrow) as writer:
            for batch in source.iter_batches(BATCH):  # not the whole file: a partition may be larger than the memory
                rows, here = pa.Table.from_batches([batch]), bad.slice(first, len(batch))
                gone = rows.filter(here)
                for row, audits in zip(
                    gone.to_pylist(), broken.slice(first, len(batch)).filter(here).to_pylist(), strict=True
                ):
                    why = ", ".join(name for name, is_broken in zip(names, audits.values(), strict=True) if is_broken)
                    row.pop(MARK, None)
                    refused.append((f"audit {why} failed", row))
                if children:
                    keys.append(gone.select(dataset.primary_key))
                attempt.given[ROWS] -= gone.num_rows
                for name in gone.column_names:
                    if values := gone.num_rows - gone.column(name).null_count:
                        attempt.given[name] -= values
                if gone.num_rows < rows.num_rows:
                    writer.write_table(rows.filter(pc.invert(here)))
                first += len(batch)
        if not pc.all(bad).as_py():
            kept.append(target)
    attempt.files = kept
    if keys and spool is not None:
        gone_keys = pa.concat_tables(keys)
        if twice := with_keys(gone_keys, list(map(str, kept))):
            raise Rejected(
                f"the key {twice} is that of a row that an audit sets aside and of another one, so that their "
                f"{' and '.join(member.name for member in children)} cannot be told apart",
                "correct the source",
            )
        for member in children:
            for number, elements in spool.take(member, attempt, gone_keys).items():
                refused[number][1][member.name] = elements
    for reason, row in refused:
        attempt.refuse(Refused(reason, row_text(row)))


def _cut(
    attempts: Sequence[Attempt], shapes: Sequence[Shape], schemas: Mapping[int, pa.Schema], work: Path, whole: bool
) -> None:
    """Write each attempt's rows to a separate file with the attempt's schema."""
    writers: dict[int, pq.ParquetWriter] = {}
    with contextlib.ExitStack() as open_files:
        for shape in shapes:
            marked = MARK in shape.schema.names
            is_json = any(isinstance(field.type, pa.BaseExtensionType) for field in shape.schema)
            if whole and not marked and not is_json:
                attempts[0].files += shape.files
                continue
            for path in shape.files:
                for batch in pq.ParquetFile(path).iter_batches(BATCH):
                    for mark, rows in _runs(batch) if marked else [(0, batch)]:
                        if attempts[mark].error is not None:
                            continue
                        try:
                            table = _as_staged(rows, shape.schema, schemas[mark])
                        except Unfit as error:
                            attempts[mark].error = Rejected(
                                f"column {error.column}: {error.why}, its type in other rows or in the raw table; "
                                f"declare it in the contract: {contract_line(error.column, 'DECIMAL(38,9)')}"
                            )
                            continue
                        if mark not in writers:
                            target = work / f"partition-{mark}.parquet"
                            # Given a path, Arrow looks up its filesystem, which takes as long as writing a small file.
                            file = open_files.enter_context(pa.OSFile(str(target), "wb"))
                            writers[mark] = open_files.enter_context(pq.ParquetWriter(file, schemas[mark]))
                            attempts[mark].files.append(target)
                        writers[mark].write_table(table)


def _runs(batch: pa.RecordBatch) -> list[tuple[int, pa.RecordBatch]]:
    """Split a batch into runs of rows with the same mark."""
    runs = pc.run_end_encode(batch.column(MARK))
    ends = runs.run_ends.to_pylist()
    return [
        (mark, batch.slice(start, end - start))
        for mark, start, end in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False)
    ]


def _as_staged(rows: pa.RecordBatch, shape: pa.Schema, schema: pa.Schema) -> pa.Table:
    """Convert rows of a shape to a partition's schema: its column order and types, nulls for missing columns."""
    columns: list[Any] = []
    for field in schema:
        place = rows.schema.get_field_index(field.name)
        if place < 0:
            columns.append(pa.nulls(len(rows), field.type))
            continue
        column = rows.column(place)
        kind = shape.field(field.name).type
        if isinstance(kind, pa.BaseExtensionType):
            column = pa.ExtensionArray.from_storage(kind, column)
        if column.type.equals(field.type):
            columns.append(column)
        else:
            columns.append(fit(pa.chunked_array([column]), field.type, field.name))
    return pa.Table.from_arrays(columns, schema=schema)


def _lost(attempt: Attempt, staged: Mapping[str, int]) -> Rejected | None:
    """The error if the staged counts differ from what the source gave, otherwise None."""
    for name, given in attempt.given.items():
        if given != staged.get(name, 0):
            what = f"values of column {name}" if name else "rows"
            return Rejected(
                f"the source gave {given:,} {what}, but {staged.get(name, 0):,} are in the staged file",
                "this is a bug in the pipeline, not in the source: report it",
            )
    return None


def _counted(attempt: Attempt) -> dict[str, int]:
    """The rows of an attempt's files and the non-null values of each column, from the files' footers."""
    assert attempt.seen is not None  # noqa: S101 - it was just inspected
    counts = Counter({ROWS: 0, **attempt.seen.values})
    for file in attempt.files:
        footer = pq.read_metadata(file)
        counts[ROWS] += footer.num_rows
        for group in map(footer.row_group, range(footer.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema not in attempt.seen.values and column.is_stats_set:
                    counts[column.path_in_schema] += column.num_values - column.statistics.null_count
    return dict(counts)
