"""The shared ``files`` source: CSV, JSON lines or Parquet files, one or several a partition, by a path pattern."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flows.datasets.model import Contract, DataType, Partition
from flows.errors import BadInput, NoSource, SourceError
from flows.settings import load_settings
from flows.storage import File, Storage, open_storage

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["csv", "jsonl", "parquet"]
BLOCK = 8 << 20
"""Bytes read at once: what bounds the memory of a large file."""


@dataclass(frozen=True)
class Files:
    """Files in the landing zone (a folder or S3), found by a glob with the partition in it.

    Args:
        pattern: Path below ``LAKE_LANDING``: ``{partition}`` stands for the partition's key, ``*`` for any
            run of characters but a slash. ``flights/{partition}.csv``, ``weather/{partition}/*.jsonl``.
        format: How the files are written.
        nulls: The texts that mean null, in CSV.
        ends_with_newline: Whether a CSV file whose last line has no end is taken for truncated. A value cut short
            can look like a whole one, so turn this off only for a source that never writes the last line's end.
    """

    pattern: str
    format: Format
    nulls: tuple[str, ...] = ("",)
    ends_with_newline: bool = True

    def versions(self, partitions: Sequence[Partition]) -> Mapping[str, str]:
        """The version of every partition that has files: a digest of their names, sizes and times."""
        found = self._all({p.key for p in partitions})
        return {key: _version(infos) for key, infos in found.items()}

    def read(self, partition: Partition, contract: Contract) -> Iterator[pa.RecordBatch]:
        """Stream one partition's rows in batches. A value that does not fit its type is an error, never a null.

        Raises:
            NoSource: no file matches.
            SourceError: a file is empty, truncated, has other columns or values of another type.
        """
        files = self._one(partition.key)
        if not files:
            raise NoSource(f"no file matches {self.pattern.replace('{partition}', partition.key)}")
        landing = self._landing()
        for info in files:
            name = landing.relative(info.path)
            if info.size == 0:
                raise SourceError(f"{name} is empty (0 bytes)", "have the source write it again")
            try:
                yield from self._read(landing, info.path, contract)
            except SourceError as error:
                raise SourceError(f"{name}: {error.message}", error.fix) from None
            except (ValueError, OSError) as error:
                cause = " ".join(str(error).split())[:300]
                raise SourceError(
                    f"{name} cannot be read as {self.format}: {cause}",
                    "have the source write it again, or mend the dataset's contract",
                ) from None

    def _landing(self) -> Storage:
        settings = load_settings()
        return open_storage(settings.landing, settings)

    def __post_init__(self) -> None:
        if self.pattern.startswith("/") or ".." in self.pattern.split("/"):
            raise BadInput(f"{self.pattern!r} leaves the landing zone.", "give a path below LAKE_LANDING")

    def _all(self, keys: set[str]) -> dict[str, list[File]]:
        """The files of each of these partitions, from one listing of the deepest folder without a variable."""
        if "{partition}" not in self.pattern:
            return {key: files for key in keys if (files := self._one(key))}
        first, *rest = [_regex(part) for part in self.pattern.split("{partition}")]
        match = re.compile(f"{first}(?P<key>[^/]+?){'(?P=key)'.join(rest)}")
        landing = self._landing()
        found: dict[str, list[File]] = defaultdict(list)
        for info in landing.list(_fixed_folder(self.pattern)):
            hit = match.fullmatch(landing.relative(info.path))
            if hit and hit["key"] in keys:
                found[hit["key"]].append(info)
        return found

    def _one(self, key: str) -> list[File]:
        """The files of one partition, in the order of their names."""
        pattern = self.pattern.replace("{partition}", key)
        landing = self._landing()
        if "*" not in pattern:
            file = landing.find(pattern)
            return [file] if file else []
        match = re.compile(_regex(pattern))
        found = (i for i in landing.list(_fixed_folder(pattern)) if match.fullmatch(landing.relative(i.path)))
        return sorted(found, key=lambda i: i.path)

    def _read(self, landing: Storage, path: str, contract: Contract) -> Iterator[pa.RecordBatch]:
        if self.format == "csv":
            if self.ends_with_newline and path.endswith(".csv"):
                _check_end(landing, path)
            with landing.fs.open_input_stream(path) as stream:
                yield from _checked(self._open_csv(stream, contract), contract)
        elif self.format == "jsonl":
            with landing.fs.open_input_stream(path) as stream:
                yield from _checked(_open_json(stream, contract), contract)
        else:
            import pyarrow.parquet as pq

            with landing.fs.open_input_file(path) as file:
                parquet = pq.ParquetFile(file)
                for batch in parquet.iter_batches():
                    _check_names(batch.schema.names, contract)
                    yield _cast(batch, contract)

    def _open_csv(self, stream: Any, contract: Contract) -> Any:
        from pyarrow import csv

        return csv.open_csv(
            stream,
            read_options=csv.ReadOptions(block_size=BLOCK, use_threads=False),
            convert_options=csv.ConvertOptions(
                column_types=arrow_types(contract.columns),
                null_values=list(self.nulls),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )


def _open_json(stream: Any, contract: Contract) -> Any:
    import pyarrow as pa
    from pyarrow import json

    columns = arrow_types(contract.columns)
    return json.open_json(
        stream,
        read_options=json.ReadOptions(block_size=BLOCK, use_threads=False),
        parse_options=json.ParseOptions(explicit_schema=pa.schema(list(columns.items())) if columns else None),
    )


def _check_end(landing: Storage, path: str) -> None:
    with landing.fs.open_input_file(path) as file:
        file.seek(file.size() - 1)
        if file.read(1) != b"\n":
            raise SourceError("its last line has no end: it is truncated", "have the source write it again")


def _checked(reader: Any, contract: Contract) -> Iterator[pa.RecordBatch]:
    _check_names(reader.schema.names, contract)
    for batch in reader:
        yield _select(batch, contract)


def _check_names(names: Sequence[str], contract: Contract) -> None:
    if len(set(names)) < len(names):
        raise SourceError(f"the header names a column twice: {', '.join(names)}", "mend the file")
    missing = [c for c in contract.columns if c not in names]
    extra = [c for c in names if c not in contract.columns]
    if missing or (extra and contract.columns and contract.new_columns == "freeze"):
        raise SourceError(
            "wrong header:"
            + (f" lacks {', '.join(missing)};" if missing else "")
            + (f" has {', '.join(extra)}, which the contract does not know" if extra else ""),
            "mend the file, or the contract in flows/datasets",
        )


def _select(batch: pa.RecordBatch, contract: Contract) -> pa.RecordBatch:
    if contract.columns and contract.new_columns == "discard_value":
        return batch.select(list(contract.columns))
    return batch


def _cast(batch: pa.RecordBatch, contract: Contract) -> pa.RecordBatch:
    """Bring a Parquet batch to the contract's types; a value that does not fit is an error."""
    import pyarrow as pa

    types = arrow_types(contract.columns)
    fields = [pa.field(f.name, types.get(f.name, f.type)) for f in batch.schema]
    return _select(batch.cast(pa.schema(fields)), contract)


def _regex(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", "[^/]*")


def _fixed_folder(pattern: str) -> str:
    return re.split(r"[{*]", pattern)[0].rpartition("/")[0]


def _version(infos: Sequence[File]) -> str:
    digest = hashlib.sha256()
    for info in sorted(infos, key=lambda i: i.path):
        digest.update(f"{info.path}\0{info.size}\0{info.mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def arrow_types(columns: Mapping[str, DataType]) -> dict[str, pa.DataType]:
    """The Arrow type of each declared column: timestamps in microseconds and UTC, bigint as int64."""
    import pyarrow as pa

    known: dict[str, pa.DataType] = {
        "text": pa.string(),
        "json": pa.string(),
        "bigint": pa.int64(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "date": pa.date32(),
        "time": pa.time64("us"),
        "decimal": pa.decimal128(38, 9),
        "binary": pa.binary(),
    }
    return {name: known[data_type] for name, data_type in columns.items()}
