"""The files of raw tables, and the partitions whose rows a file may hold.

The path of a staged file names its partition. A file that `lake maintain` merged holds rows of several partitions:
those between the bounds of the partition column, which the catalog has for every file.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import literal
from ducklake_flows.lake.fence import META
from ducklake_flows.settings import LAKE
from ducklake_flows.staging.layout import CHUNK, chunk_of, partition_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.settings import Settings


def registered(con: DuckDBPyConnection, table: str) -> list[tuple[str, int]]:
    """The registered data and delete files of a table (schema and name): full path, and size in bytes."""
    schema, _, name = table.partition(".")
    found = con.execute(
        "SELECT data_file, data_file_size_bytes, delete_file, delete_file_size_bytes "
        f"FROM ducklake_list_files('{LAKE}', {literal(name)}, schema => {literal(schema)})"
    ).fetchall()
    pairs = [pair for row in found for pair in (row[:2], row[2:])]
    return [(path, int(size)) for path, size in pairs if path]


def full_paths(settings: Settings, paths: Iterable[str]) -> list[str]:
    """The full paths of files below the data path, in DuckDB's spelling."""
    return [settings.data_path + path for path in paths]


def looks_like(settings: Settings, columns: Iterable[str]) -> bool:
    """Whether a folder above the lake looks like the partition of a column, ``name=zzz``: DuckLake would take it so."""
    above = {part.partition("=")[0].casefold() for part in settings.data_path.split("/") if "=" in part}
    return not above.isdisjoint(name.casefold() for name in columns)


def short_names(con: DuckDBPyConnection, settings: Settings, paths: Iterable[str]) -> list[str]:
    """Names for DuckLake of staged files: a pattern for those of a chunk if its folder has no others, or full paths.

    DuckLake runs a query for each name: 128 files take 0.2 s in the gate by their paths, and 0.06 s by a pattern.

    Args:
        con: A connection that can read the files.
        settings: Where the lake is.
        paths: Below the data path.

    Raises:
        duckdb.Error: a chunk's folder cannot be listed.
    """
    chunks: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        chunks[chunk_of(path)].append(path)
    names: list[str] = []
    for folder, relative in chunks.items():
        files = full_paths(settings, relative)
        # A folder for the partition, or two: for its segment and its day.
        pattern = settings.data_path + folder + "*/" * (relative[0].count("/") - folder.count("/")) + "*.parquet"
        is_all = folder and {file for (file,) in con.execute("FROM glob(?)", [pattern]).fetchall()} == set(files)
        names += [pattern] if is_all else files
    return names


Place = tuple[str, datetime]
"""See `ducklake_flows.datasets.partitions.Partition.place`."""


def place_in(dataset: Dataset, path: str) -> Place | None:
    """The place of the partition that a file's path names; None if it names none.

    Only the folders below the table's own or the chunk's count: one above the lake may look like a partition, too.
    """
    _, _, rest = path.rpartition(f"/{dataset.table.replace('.', '/')}/")
    if rest.startswith(CHUNK):
        rest = rest.partition("/")[2]
    named = [part.partition("=") for part in rest.split("/")[: len(dataset.partition_columns)]]
    found = {column: unquote(value) for column, _, value in named}
    if not found or list(found) != list(dataset.partition_columns):
        return None
    segment = found[dataset.segment_column] if dataset.segment_column else ""
    if dataset.partition_column is None:
        return segment, datetime.min
    try:
        return segment, datetime.fromisoformat(found[dataset.partition_column])
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class File:
    """A registered file of a raw table.

    Args:
        path: Full path.
        size: In bytes.
        first: The least segment and `low` of the partitions whose rows it may hold; None: unknown.
        last: The greatest ones; None: unknown.
    """

    path: str
    size: int
    first: tuple[str | None, datetime | None]
    last: tuple[str | None, datetime | None]

    def may_hold(self, place: Place) -> bool:
        """Whether it may hold rows of the partition in this place."""
        return within(self.first[0], place[0], self.last[0]) and within(self.first[1], place[1], self.last[1])

    @property
    def is_of_one(self) -> bool:
        """Whether it holds rows of one partition only."""
        return None not in self.first and self.first == self.last


def within(low: Any, value: Any, high: Any) -> bool:
    """Whether a value is between two bounds, which may be unknown."""
    return (low is None or low <= value) and (high is None or value <= high)


def bounded(con: DuckDBPyConnection, dataset: Dataset, files: Iterable[tuple[str, int]]) -> list[File]:
    """Registered files of a dataset, with the partitions whose rows they may hold.

    Args:
        con: A connection with the lake attached.
        dataset: The dataset.
        files: Files of its raw table, see `registered`.
    """
    nowhere = ("", datetime.min)
    if not dataset.partition_columns:
        return [File(path, size, nowhere, nowhere) for path, size in files]
    found, merged = list[File](), list[tuple[str, int]]()
    for path, size in files:
        place = place_in(dataset, path)
        if place is not None:
            found.append(File(path, size, place, place))
        else:
            merged.append((path, size))
    segments = _bounds(con, dataset, dataset.segment_column, "VARCHAR") if merged else {}
    times = _bounds(con, dataset, dataset.partition_column, "TIMESTAMP") if merged else {}
    for path, size in merged:
        name = path.rpartition("/")[2]
        unknown = (None, None)
        both = [
            known.get(name, unknown) if column else (none, none)
            for column, known, none in (
                (dataset.segment_column, segments, ""),
                (dataset.partition_column, times, datetime.min),
            )
        ]
        found.append(File(path, size, *zip(*both, strict=True)))
    return found


def by_partition(dataset: Dataset, files: Sequence[File], keys: Collection[str] = ()) -> dict[str, list[File]]:
    """Files by the partitions whose rows they may hold.

    Args:
        dataset: The dataset.
        files: Its files.
        keys: The partitions that a merged file may hold, besides those with a file of their own.
    """
    of: dict[str, list[File]] = {}
    merged = []
    for file in files:
        segment, low = file.first
        if file.is_of_one and low is not None:
            of.setdefault(dataset.scheme.holding(low, segment or "").key, []).append(file)
        else:
            merged.append(file)
    if merged:
        for key in {*keys, *of}:
            try:
                place = dataset.partition(key).place
            except BadInput:
                continue
            if found := [file for file in merged if file.may_hold(place)]:
                of.setdefault(key, []).extend(found)
    return of


def of_partition(con: DuckDBPyConnection, dataset: Dataset, partition: Partition) -> list[File]:
    """The registered files that may hold rows of a partition."""
    return [file for file in bounded(con, dataset, registered(con, dataset.table)) if file.may_hold(partition.place)]


def holds_sql(dataset: Dataset, partition: Partition) -> str:
    """The condition that a row ``f`` of DuckLake's table of data files may hold rows of a partition."""
    values = dataset.partition_values(partition)
    if not values:
        return "true"
    outside = " OR ".join(
        f"(c.column_name = {literal(column)} AND CAST({literal(value)} AS {kind}) NOT BETWEEN "
        f"TRY_CAST(b.min_value AS {kind}) AND TRY_CAST(b.max_value AS {kind}))"
        for (column, value), kind in zip(values.items(), _compared(dataset), strict=True)
    )
    folder = literal(f"{partition_folder(dataset, partition)}/")
    return f"""(contains(f.path, {folder}) OR (
        NOT contains(f.path, {literal(f"{next(iter(values))}=")}) AND NOT EXISTS (
            FROM {META}.ducklake_file_column_stats b JOIN {META}.ducklake_column c
                 ON c.table_id = b.table_id AND c.column_id = b.column_id AND c.end_snapshot IS NULL
            WHERE b.data_file_id = f.data_file_id AND ({outside}))))"""


def _compared(dataset: Dataset) -> list[str]:
    """The types as which values of the partition columns are compared with bounds, which are texts."""
    return ["VARCHAR" if kind == "VARCHAR" else "TIMESTAMP" for kind in dataset.partition_columns.values()]


def _bounds(con: DuckDBPyConnection, dataset: Dataset, column: str | None, kind: str) -> dict[str, tuple[Any, Any]]:
    """The bounds of a partition column in data files, by the name of the file and of its delete file."""
    if column is None:
        return {}
    found = con.execute(
        f"""SELECT f.path, d.path, TRY_CAST(b.min_value AS {kind}), TRY_CAST(b.max_value AS {kind})
            FROM {META}.ducklake_data_file f
            JOIN {META}.ducklake_table t ON t.table_id = f.table_id AND t.end_snapshot IS NULL
            JOIN {META}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
            JOIN {META}.ducklake_column c ON c.table_id = f.table_id AND c.end_snapshot IS NULL
            JOIN {META}.ducklake_file_column_stats b
                 ON b.data_file_id = f.data_file_id AND b.column_id = c.column_id
            LEFT JOIN {META}.ducklake_delete_file d ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL
            WHERE f.end_snapshot IS NULL AND s.schema_name = 'raw' AND t.table_name = {literal(dataset.key)}
              AND c.column_name = {literal(column)}"""
    ).fetchall()
    return {path.rpartition("/")[2]: (low, high) for *paths, low, high in found for path in paths if path is not None}
