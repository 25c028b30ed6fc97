"""The shared ``files`` source: CSV, JSON or Parquet files selected by a path pattern, one or more per partition."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ducklake_flows.datasets.partitions import FULL, Grain, Partition
from ducklake_flows.datasets.scheme import SEGMENT, Scheme, checked_segment
from ducklake_flows.errors import BadInput, NoSource, SourceError, SourceUnavailable
from ducklake_flows.scratch import scratch
from ducklake_flows.settings import load_settings
from ducklake_flows.storage import PIECE, File, Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.sources.csv_files import Dialect, Facts

Format = Literal["csv", "json", "jsonl", "parquet"]


@dataclass(frozen=True)
class Files:
    """Files in the landing zone (a folder or S3), selected by a pattern that contains the partition.

    Args:
        pattern: Path below ``LAKE_LANDING``. ``{partition}`` is the partition's key; ``%Y``, ``%m``, ``%d`` and ``%H``
            are parts of its start; ``*`` matches any characters except a slash. Examples: ``flights/{partition}.csv``,
            ``weather/year=%Y/month=%m/%d/*.jsonl``. Of a key such as ``eu/2024-01-31``, ``{segment}`` is the first part
            and ``{period}`` the second: ``sales/{period}/{segment}.csv``. Hidden files (``.name``, ``_SUCCESS``) are
            never data.
        format: The file format. ``json`` and ``jsonl`` both accept lines and one array.
        nulls: CSV: the texts that mean null if they are not quoted.
        ends_with_newline: CSV: whether a file whose last line has no line ending counts as truncated. A truncated value
            can look complete, so turn this off only for a source that never ends the last line.
        delimiter: CSV: the text between two values.
        quote: CSV: the character around values that contain a delimiter or a line break; "" for none.
        escape: CSV: the character before a quote within a quoted value: the quote itself or a backslash.
        encoding: The encoding of the text, by its Python name.
        decimal: CSV: the decimal mark of numbers.
        comment: CSV: lines that start with this character are skipped; "" for none.
        skip: CSV: the number of lines before the header.
        empty: Whether a file of 0 bytes is a partition without rows. A CSV file with only a header always is.
        ready: Path below ``LAKE_LANDING`` of a file that is written when a partition is complete, such as
            ``events/{partition}/_SUCCESS``; never data. A partition is not there before it. With it and without any
            other file, the partition has no rows.

    A file whose name ends with ``.gz`` or ``.zst`` is decompressed.
    """

    pattern: str
    format: Format
    nulls: tuple[str, ...] = ("",)
    ends_with_newline: bool = True
    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'
    encoding: str = "utf-8"
    decimal: str = "."
    comment: str = ""
    skip: int = 0
    empty: bool = False
    ready: str = ""

    def __post_init__(self) -> None:
        for pattern in (self.pattern, self.ready):
            _check_pattern(pattern)
        if "*" in self.ready:
            raise BadInput(f"{self.ready!r}: one file says that a partition is complete.", "leave out *")
        if self.format not in get_args(Format):
            raise BadInput(f"{self.format!r} is not a file format.", f"choose from {', '.join(get_args(Format))}")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise BadInput(
                f"{self.encoding!r} is not an encoding.", "use an encoding that Python supports, such as latin-1"
            ) from None
        for name, most in (("delimiter", 4), ("quote", 1), ("escape", 1), ("comment", 1), ("decimal", 1)):
            value = getattr(self, name)
            if len(value) > most or (not value and name in ("delimiter", "decimal")):
                raise BadInput(
                    f"{name}={value!r} is not a valid {name}.",
                    f"its maximum length is {most}; delimiter and decimal must not be empty",
                )
        if isinstance(self.nulls, str) or self.skip < 0:
            raise BadInput(
                "nulls must be a tuple of texts, and skip must not be negative.",
                'for example: nulls=("NA", ""), skip=0',
            )

    def check(self, key: str, scheme: Scheme) -> None:
        """Check that the pattern distinguishes the partitions of a dataset.

        Raises:
            BadInput: it does not.
        """
        for pattern in filter(None, (self.pattern, self.ready)):
            grain, whole = scheme.grain, "{partition}" in pattern
            if not scheme.segmented and "{segment}" in pattern:
                raise BadInput(f"{key}: {pattern!r} has a segment, the dataset has none.", 'segment_column="region"')
            if scheme.segmented and not whole and "{segment}" not in pattern:
                raise BadInput(f"{key}: {pattern!r} does not say which segment a file belongs to.", "use {segment}")
            if grain is Grain.full:
                if "%" in pattern or "{period}" in pattern or (whole and not scheme.segmented):
                    raise BadInput(
                        f"{key}: {pattern!r} contains a partition, but a dataset of grain full has only one.",
                        "use a pattern without {partition}, {period} and %",
                    )
                continue
            parts = set(re.findall("%([YmdH])", pattern))
            if whole or "{period}" in pattern:
                continue
            if not set(_PARTS[grain]) <= parts:
                needed = "".join(f"%{part}" for part in _PARTS[grain])
                raise BadInput(
                    f"{key}: {pattern!r} does not say which {grain} a file belongs to.",
                    f"use {'{period}' if scheme.segmented else '{partition}'}, or {needed}",
                )
            if grain is Grain.hour and scheme.timezone != "UTC":
                raise BadInput(
                    f"{key}: {pattern!r} does not tell the hours apart that come twice in {scheme.timezone}.",
                    "use {partition}: such a file is named 2026-10-25T02+0200",
                )

    def segments(self, scheme: Scheme) -> Iterable[str]:
        """The segments in the paths of the files that match the pattern."""
        landing, match = self._landing(), matcher(self.pattern, scheme)
        names = (landing.relative(info.path) for info in landing.list(_fixed_folder(self.pattern)))
        keys = {match(name) for name in names if not _is_hidden(name, self.pattern)}
        return {scheme.parse(key).segment for key in keys if key is not None}

    def versions(self, partitions: Sequence[Partition]) -> Mapping[str, str]:
        """The version of every partition that is there: a digest of its files' names, sizes and modification times."""
        return {key: _version(infos) for key, infos in self._found(partitions, self._landing()).items()}

    def origin(self, partition: Partition) -> str:
        """The partition's file below the landing zone; the pattern of several files, if it has a ``*``."""
        return _spelt(self.pattern, partition)

    def unmatched(self, partitions: Sequence[Partition]) -> list[str]:
        """Files in the pattern's folder that belong to no partition, by their paths below the landing zone.

        Hidden files are left out. So are files of partitions after the last one: those partitions are not due yet.
        """
        if not partitions or not set("{%*") & set(self.pattern):
            return []  # of one file, the others in its folder are none of its business
        landing = self._landing()
        scheme, first = Scheme.of(partitions[0]), min(p.local for p in partitions)
        segments = {p.segment for p in partitions}
        match = matcher(self.pattern, scheme)
        marks = matcher(self.ready, scheme)

        def is_known(key: str | None) -> bool:
            try:
                found = scheme.parse(key or "")
            except BadInput:
                return False
            return found.local >= first and found.segment in segments

        names = [landing.relative(info.path) for info in landing.list(_fixed_folder(self.pattern))]
        data = [name for name in names if not _is_hidden(name, self.pattern) and marks(name) is None]
        return sorted(name for name in data if not is_known(match(name)))

    def read(self, partition: Partition, contract: Contract) -> Iterator[pa.Table]:
        """Stream one partition's rows. A value that does not fit its type is an error, never a null.

        Args:
            partition: The partition.
            contract: Types of declared columns, column names, the zone of local times, and the types of the raw table's
                columns. If such a column is text, a CSV file's column is read as text.

        Raises:
            NoSource: no file matches.
            SourceError: a file is empty or truncated, or has other columns or values of another type.
            SourceUnavailable: a file changed while it was read.
        """
        landing = self._landing()
        found = self._found([partition], landing).get(partition.key, [])
        if not found:
            mark = self.ready and landing.find(_spelt(self.ready, partition)) is None
            raise NoSource(
                f"no file {'is' if mark else 'matches'} {_spelt(self.ready if mark else self.pattern, partition)}"
            )
        before = {landing.relative(info.path): info for info in found}
        files = [info for name, info in before.items() if name != _spelt(self.ready, partition)]
        with contextlib.ExitStack() as opened:
            read = {"csv": self._csv, "parquet": self._parquet}.get(self.format, self._json)
            try:
                yield from read(landing, files, contract, opened)
            except SourceError:
                _check_unchanged(landing, before)  # half of a file that is being written cannot be read
                raise
            _check_unchanged(landing, before)

    def _csv(
        self,
        landing: Storage,
        files: Sequence[File],
        contract: Contract,
        opened: contextlib.ExitStack,
    ) -> Iterator[pa.Table]:
        """Read CSV files as text, then convert by the contract's types, or by the types of all texts of a column."""
        from ducklake_flows.sources import csv_files

        local: list[tuple[str, Path, int, dict[str, str], Dialect]] = []
        for info in files:
            name = landing.relative(info.path)
            with _in_file(name, self.format):
                path = self._plain(landing, info, opened)
                size = path.stat().st_size
                if self._is_empty(size):
                    continue
                if self.ends_with_newline:
                    _check_end(path, size)
                dialect = self._dialect()
                names = csv_files.header(path, dialect)
                columns = _columns(names, contract)
                if dialect.skip or dialect.comment or any(set(name) & {"\r", "\n"} for name in names):
                    copy = opened.enter_context(scratch()) / "plain"
                    dialect, names = csv_files.simplified(path, dialect, names, copy)
                    path, columns = copy, dict(zip(names, columns.values(), strict=True))
                local.append((name, path, size, columns, dialect))
        facts = self._look(local, contract)
        types = {column: found.type_of() for column, found in facts.items()}
        integers = {name for name, data_type in contract.columns.items() if data_type == "bigint"}
        for name, path, size, columns, dialect in local:
            with _in_file(name, self.format) as place:
                place.find = partial(_line, path, dialect, len(columns), contract.aside is not None)
                for table in csv_files.read(path, dialect, columns, size, integers, place.aside(contract)):
                    yield from place.sifted(
                        table, lambda rows: _typed(self._with_points(rows, contract, types), contract, types), contract
                    )
                    place.row += table.num_rows

    def _look(
        self,
        local: Sequence[tuple[str, Path, int, dict[str, str], Dialect]],
        contract: Contract,
    ) -> dict[str, Facts]:
        """The facts of undeclared columns, across all files."""
        from ducklake_flows.sources import csv_files

        facts: dict[str, Facts] = {}
        for name, path, size, columns, dialect in local:
            wanted = {
                number: facts.setdefault(column, csv_files.Facts())
                for number, column in enumerate(columns.values())
                if column not in contract.columns and contract.known.get(column) != "VARCHAR" and _is_taken(contract)
            }
            if wanted:
                with _in_file(name, self.format):
                    csv_files.look(path, dialect, wanted, list(columns), size, contract.aside is not None)
        return facts

    def _with_points(self, table: pa.Table, contract: Contract, types: Mapping[str, pa.DataType]) -> pa.Table:
        """Replace the decimal mark by a point in the numbers of a table of texts."""
        if self.decimal == ".":
            return table
        import pyarrow.compute as pc

        from ducklake_flows.sources.values import contract_type, is_number

        for number, name in enumerate(table.column_names):
            wanted = contract_type(contract.columns[name]) if name in contract.columns else types.get(name)
            if wanted is not None and is_number(wanted):
                column = table.column(number)
                if pc.any(pc.match_substring(column, ".")).as_py():
                    raise SourceError(f"column {name}: a number has a point, but the decimal mark is {self.decimal!r}")
                table = table.set_column(number, name, pc.replace_substring(column, self.decimal, "."))
        return table

    def _json(
        self,
        landing: Storage,
        files: Sequence[File],
        contract: Contract,
        opened: contextlib.ExitStack,
    ) -> Iterator[pa.Table]:
        """Read JSON files, each of lines or of one array."""
        from ducklake_flows.sources import json_files
        from ducklake_flows.sources.rows import rows_to_table
        from ducklake_flows.sources.values import conform

        for info in files:
            with _in_file(landing.relative(info.path), self.format) as place:
                path = self._plain(landing, info, opened)
                if self._is_empty(path.stat().st_size):
                    continue
                for number, rows in json_files.read(path, place.aside(contract)):
                    place.find = partial(_row, number)
                    yield from place.sifted(
                        rows,
                        lambda some: conform(rows_to_table(some, contract), contract, dict.fromkeys(contract.known)),
                        contract,
                    )

    def _parquet(
        self,
        landing: Storage,
        files: Sequence[File],
        contract: Contract,
        opened: contextlib.ExitStack,
    ) -> Iterator[pa.Table]:
        """Read Parquet files."""
        from ducklake_flows.sources.parquet_files import ParquetFile
        from ducklake_flows.sources.values import conform

        for info in files:
            with _in_file(landing.relative(info.path), self.format) as place:
                if self._is_empty(info.size):
                    continue
                file = ParquetFile(opened.enter_context(landing.fs.open_input_file(info.path)))
                for table in file.read(_columns(file.names, contract)):
                    yield from place.sifted(
                        table, lambda rows: conform(rows, contract, dict.fromkeys(contract.known)), contract
                    )
                    place.row += table.num_rows

    def _is_empty(self, size: int) -> bool:
        if size == 0 and not self.empty:
            raise SourceError(
                "is empty (0 bytes)", "export the file again, or set empty=True in the dataset if 0 bytes mean no rows"
            )
        return size == 0

    def _dialect(self) -> Dialect:
        from ducklake_flows.sources.csv_files import Dialect

        return Dialect(
            self.delimiter, self.quote, self.escape, self.decimal, self.comment, self.skip, tuple(self.nulls)
        )

    def _plain(self, landing: Storage, info: File, opened: contextlib.ExitStack) -> Path:
        """A local UTF-8 file: the file itself if it is one, otherwise a temporary copy.

        A copy has no byte order mark: DuckDB 1.5.5 reads a quote or a comment sign after the mark as text.
        """
        import pyarrow as pa

        source = Path(info.path)
        if not landing.is_local:
            source = opened.enter_context(scratch()) / "stored"
            landing.get(landing.relative(info.path), source)
        kind = {"gz": "gzip", "zst": "zstd"}.get(info.path.rpartition(".")[2])
        is_utf8 = codecs.lookup(self.encoding).name == "utf-8"
        start = _check_kind(source, kind, is_utf8)
        if is_utf8 and kind is None and not start.startswith(codecs.BOM_UTF8) and not set("*?[]") & set(str(source)):
            return source
        copy = opened.enter_context(scratch()) / "plain"
        with pa.input_stream(str(source), compression=kind) as stream, copy.open("wb") as target:
            decode = codecs.getincrementaldecoder(self.encoding)() if not is_utf8 else None
            while piece := stream.read(PIECE):
                text = decode.decode(piece).encode() if decode else piece
                target.write(text if target.tell() else text.removeprefix(codecs.BOM_UTF8))
            if decode:
                target.write(decode.decode(b"", final=True).encode())
        return copy

    def _landing(self) -> Storage:
        settings = load_settings()
        return open_storage(settings.landing, settings)

    def _found(self, partitions: Sequence[Partition], landing: Storage) -> dict[str, list[File]]:
        """The files of each of these partitions, sorted by name; with the file that says that it is complete."""
        found = self._matching(self.pattern, partitions, landing)
        if not self.ready:
            return found
        marks = self._matching(self.ready, partitions, landing)
        return {key: [*(f for f in found.get(key, []) if f.path != mark.path), mark] for key, (mark,) in marks.items()}

    @staticmethod
    def _matching(pattern: str, partitions: Sequence[Partition], landing: Storage) -> dict[str, list[File]]:
        """The files of each of these partitions that match a pattern, sorted by name, by one listing."""
        if not partitions:
            return {}
        if "*" not in pattern and len(partitions) == 1:
            file = landing.find(_spelt(pattern, partitions[0]))
            return {partitions[0].key: [file]} if file else {}
        match = matcher(pattern, Scheme.of(partitions[0]))
        wanted = {p.key for p in partitions}
        found: dict[str, list[File]] = defaultdict(list)
        folder = _fixed_folder(pattern if len(partitions) > 1 else _spelt(pattern, partitions[0]))
        for info in sorted(landing.list(folder), key=lambda i: i.path):
            name = landing.relative(info.path)
            if (key := match(name)) in wanted and not _is_hidden(name, pattern):
                found[key].append(info)
        return dict(found)


def _spelt(pattern: str, partition: Partition) -> str:
    """A pattern with a partition's key and date filled in."""
    spelt = pattern.replace("{partition}", partition.key)
    spelt = spelt.replace("{segment}", partition.segment).replace("{period}", partition.period)
    if partition.grain is not Grain.full:
        for part in "YmdH":
            spelt = spelt.replace(f"%{part}", _part(partition, part))
    return spelt


def _check_pattern(pattern: str) -> None:
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise BadInput(f"{pattern!r} leaves the landing zone.", "give a path below LAKE_LANDING")
    if "**" in pattern or (found := re.search(r"[?\[\]]", pattern)):
        sign = "**" if "**" in pattern else found[0]  # type: ignore[index]
        raise BadInput(f"{pattern!r}: {sign!r} is not supported in a pattern.", _PATTERN)
    if found := re.search(r"%(?![YmdH])", pattern):
        raise BadInput(f"{pattern!r}: % must be followed by Y, m, d or H.", _PATTERN)
    if found := re.search(r"\{(?!(?:partition|segment|period)\})[^}]*\}?", pattern):
        raise BadInput(f"{pattern!r}: {found[0]!r} is not a known placeholder.", _PATTERN)


_PATTERN = "use {partition}, {segment}, {period}, %Y, %m, %d, %H, and * for a run of characters within a name"
_WIDTHS = {"Y": 4, "m": 2, "d": 2, "H": 2}
_PARTS = {
    Grain.hour: "YmdH",
    Grain.day: "Ymd",
    Grain.week: "Ymd",
    Grain.month: "Ym",
    Grain.quarter: "Ym",
    Grain.year: "Y",
}
"""The parts of a partition's start that determine it."""


@lru_cache(maxsize=256)
def matcher(pattern: str, scheme: Scheme) -> Callable[[str], str | None]:
    """A function that returns the key of the partition that a path belongs to, or None if it belongs to none.

    With a pattern that is ``{period}`` or ``{partition}`` and plain text only, the key may name a day that is none.
    """
    compiled = [_compiled(pattern, scheme, form) for form in scheme.forms]
    groups = set(compiled[0].groupindex)
    is_plain = groups <= {"period"} and scheme.timezone == "UTC"

    def match(path: str) -> str | None:
        for regex in compiled:
            hit = regex.fullmatch(path)
            if hit is None:
                continue
            if is_plain:
                return hit["period"] if groups else FULL
            try:
                found = _partition_of(hit.groupdict(), scheme)
            except (BadInput, ValueError):
                continue
            # Of a week or quarter, the parts are those of its first day.
            if all(value == _part(found, name) for name, value in hit.groupdict().items() if name in _WIDTHS):
                return found.key
        return None

    return match


def _compiled(pattern: str, scheme: Scheme, form: str) -> re.Pattern[str]:
    """A pattern as a regular expression with the groups ``segment``, ``period`` and the parts of a time."""
    forms = {"segment": SEGMENT, "period": form, **{part: rf"\d{{{width}}}" for part, width in _WIDTHS.items()}}
    written: set[str] = set()

    def group(name: str) -> str:
        if name in written:
            return f"(?P={name})"
        written.add(name)
        return f"(?P<{name}>{forms[name]})"

    key = ["segment"] * scheme.segmented + ["period"] * (not scheme.segmented or scheme.grain is not Grain.full)
    regex = ""
    for token in re.findall(r"\{[a-z]+\}|%[YmdH]|\*|[^{%*]+", pattern):
        if token == "{partition}":  # noqa: S105 - not a password
            regex += "/".join(map(group, key))
        elif token.startswith(("{", "%")):
            regex += group(token.strip("{%}"))
        else:
            regex += "[^/]*?" if token == "*" else re.escape(token)  # noqa: S105
    return re.compile(regex)


def _partition_of(parts: Mapping[str, str], scheme: Scheme) -> Partition:
    """The partition with this segment, and this period or these parts of its start.

    Raises:
        BadInput: there is no such partition.
        ValueError: there is no such time.
    """
    segment, period = parts.get("segment", ""), parts.get("period")
    if period is not None or scheme.grain is Grain.full:
        return scheme.parse("/".join(filter(None, (segment, period))))
    year, month, day, hour = (int(parts.get(name, least)) for name, least in (("Y", 1), ("m", 1), ("d", 1), ("H", 0)))
    return scheme.holding(datetime(year, month, day, hour), segment and checked_segment(segment))


def _part(partition: Partition, name: str) -> str:
    """A part of a partition's start, as in a pattern."""
    return partition.local.strftime(f"%{name}").rjust(_WIDTHS[name], "0")


def _is_hidden(name: str, pattern: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith((".", "_")) and not pattern.rpartition("/")[2].startswith((".", "_"))


def _fixed_folder(pattern: str) -> str:
    return re.split(r"[{%*]", pattern)[0].rpartition("/")[0]


def _is_taken(contract: Contract) -> bool:
    """Whether undeclared columns are kept."""
    return not contract.columns or contract.mode("columns") == "evolve"


def _line(path: Path, dialect: Dialect, columns: int, leaves_out: bool, row: int) -> str:
    from ducklake_flows.sources.csv_files import line_of

    return f"line {line_of(path, dialect, row, columns, leaves_out)}"


def _row(first: int, row: int) -> str:
    return f"row {first + row}"


class _Place:
    """A file, and the place of a row in it."""

    def __init__(self, name: str) -> None:
        self.name, self.row = name, 0
        self.find: Callable[[int], str] = partial(_row, 1)

    def tell(self, table: pa.Table) -> pa.Table:
        """Record the file in the metadata of a table of its rows; see `ducklake_flows.sources.values.FILE`."""
        from ducklake_flows.sources.values import FILE

        return table.replace_schema_metadata({FILE: self.name})

    def sifted(self, rows: Any, convert: Callable[[Any], pa.Table], contract: Contract) -> Iterator[pa.Table]:
        """Convert rows of the file, see `ducklake_flows.sources.sift.sifted`."""
        from ducklake_flows.sources.sift import sifted

        def where(row: int) -> tuple[str, int]:
            return self.name, int(self.find(self.row + row).rpartition(" ")[2])

        for _, table in sifted(rows, convert, contract, where):
            yield self.tell(table)

    def aside(self, contract: Contract) -> Callable[[int, str, str], None] | None:
        """Takes a line of the file that cannot be read: its number, why, and its text. None: it is an error."""
        from ducklake_flows.datasets.contract import Refused

        if (take := contract.aside) is None:
            return None
        return lambda line, why, text: take(Refused(why, text, "", self.name, line))


@contextlib.contextmanager
def _in_file(name: str, kind: str) -> Iterator[_Place]:
    """Add the file, and the place in it, to every error within the block."""
    import pyarrow as pa

    from ducklake_flows.sources.values import Unfit

    place = _Place(name)
    try:
        yield place
    except SourceError as error:
        raise SourceError(f"{name}: {error.message}", error.fix) from None
    except Unfit as error:
        where = f" {place.find(place.row + error.row)}" if error.row is not None else ""
        column = f" column {error.column}:" if error.column else ""
        raise SourceError(f"{name}{where}:{column} {error.why}", "correct the file or the dataset's contract") from None
    except UnicodeError as error:
        raise SourceError(
            f"{name} does not have the dataset's encoding: {error}",
            "set encoding= in the dataset to the file's encoding",
        ) from None
    except (ValueError, OSError, EOFError, pa.ArrowException) as error:
        cause = " ".join(str(error).split())[:300]
        raise SourceError(
            f"{name} cannot be read as {kind}: {cause}", "export the file again, or correct the format in the dataset"
        ) from None


def _check_kind(path: Path, compression: str | None, is_utf8: bool) -> bytes:
    """Refuse a file whose first bytes are of another kind than its name and the dataset say. Returns the bytes."""
    with path.open("rb") as file:
        start = file.read(4)
    for magic, name in _MAGIC.items():
        if start.startswith(magic) and name != compression and not (name == "UTF-16" and not is_utf8):
            raise SourceError(f"is {name}, not text", _MAGIC_FIX.get(name, "export the file as text"))
    return start


_MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_MAGIC_FIX = {
    "gzip": "rename the file so that it ends with .gz",
    "zstd": "rename the file so that it ends with .zst",
    "Parquet": 'set format="parquet" in the dataset',
    "UTF-16": "set encoding='utf-16' in the dataset",
}


def _check_unchanged(landing: Storage, before: Mapping[str, File]) -> None:
    """Compare files, by name, with their state before they were read."""
    for name, info in before.items():
        if landing.find(name) != info:
            raise SourceUnavailable(f"{name} changed while it was read", "load it once it is complete")


def _check_end(path: Path, size: int) -> None:
    with path.open("rb") as file:
        file.seek(size - 1)
        if file.read(1) not in (b"\n", b"\r"):
            raise SourceError(
                "the last line has no line ending: the file is truncated",
                "export the file again, or set ends_with_newline=False if the source never ends the last line",
            )


def _columns(names: Sequence[str], contract: Contract) -> dict[str, str]:
    """The column of each name in a file's header: all columns that the contract declares, and only those it allows."""
    from ducklake_flows.datasets.names import clash, clash_text, columns_of

    if len(set(names)) < len(names):
        raise SourceError(f"the header names a column twice: {', '.join(map(repr, names))}", "rename one in the file")
    columns = columns_of(names, contract.rename)
    if pair := clash(columns):
        raise SourceError(clash_text(*pair, columns[pair[0]]), "correct the contract or the file")
    missing = [c for c in contract.columns if c not in columns.values()]
    extra = [n for n, c in columns.items() if c not in contract.columns and c not in contract.known]
    if missing or (extra and contract.columns and contract.mode("columns") == "freeze"):
        raise SourceError(
            "wrong header:"
            + (f" lacks {', '.join(missing)};" if missing else "")
            + (f" has {', '.join(extra)}, which the contract does not declare" if extra else ""),
            "correct the file or the dataset's contract",
        )
    return columns


def _typed(table: pa.Table, contract: Contract, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Convert a table of texts to the contract's types, and other columns to the types found for them."""
    import pyarrow as pa

    from ducklake_flows.sources.values import conform, fit

    columns = {
        name: fit(table.column(name), types[name], name) if name in types else table.column(name)
        for name in table.column_names
    }
    return conform(pa.table(columns), contract, dict.fromkeys(contract.known))


def _version(infos: Sequence[File]) -> str:
    digest = hashlib.sha256()
    for info in sorted(infos, key=lambda i: i.path):
        digest.update(f"{info.path}\0{info.size}\0{info.mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
