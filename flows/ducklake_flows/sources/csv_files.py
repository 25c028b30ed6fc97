"""CSV files, read with DuckDB: every value as text first, then converted by type, so no value is guessed or cut.

Arrow's reader loses a byte where a quoted line break falls on the end of a block (apache/arrow#51368), and reads an
unclosed quote as data. It reads small files without quotes correctly and in a third of the time, because every DuckDB
query costs a millisecond.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
import shutil
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, TextIO

from ducklake_flows.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence, Set
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

BATCH = 122_880
"""Rows per batch."""

PIECE = 1 << 20
"""Characters copied at once."""

LONGEST = 64 << 20
"""Maximum length of a line, in bytes."""

SMALL = 4 << 20
"""Maximum size, in bytes, of a file without quotes that Arrow reads as a whole."""


@dataclass(frozen=True)
class Dialect:
    """The format of a CSV file. See `ducklake_flows.sources.files.Files`."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'
    decimal: str = "."
    comment: str = ""
    skip: int = 0
    nulls: tuple[str, ...] = ("",)


@cache
def _database() -> DuckDBPyConnection:
    import duckdb

    return duckdb.connect(config={"threads": 2, "autoinstall_known_extensions": False, "memory_limit": "512MB"})


def header(path: Path, dialect: Dialect) -> list[str]:
    """The names in a file's header, the first line after skipped lines and comments.

    Raises:
        SourceError: there is no header, or it names a column twice.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        try:
            for _ in range(dialect.skip):
                next(file)
            lines = (line for line in file if not (dialect.comment and line.startswith(dialect.comment)))
            names = next(_reader(lines, dialect))
        except StopIteration:
            raise SourceError("has no header", "export the file again, or correct skip in the dataset") from None
        except csv.Error as error:
            raise SourceError(
                f"the header cannot be parsed: {error}", "set the file's dialect in the dataset"
            ) from None
    if any("\udc80" <= char <= "\udcff" for name in names for char in name):
        raise SourceError("the header is not UTF-8", "set the encoding in the dataset, such as encoding='latin-1'")
    if not any(names):
        raise SourceError(
            "the header line is blank", "set skip in the dataset to the number of lines before the header"
        )
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise SourceError(f"the header names a column twice: {', '.join(map(repr, twice))}", "rename one in the file")
    if len(names) == 1 and (other := next((c for c in ";\t|" if c != dialect.delimiter and c in names[0]), None)):
        raise SourceError(
            f"the header has one column, {names[0]!r}: the values seem to be separated by {other!r}",
            f"set delimiter={other!r} in the dataset",
        )
    return names


def simplified(path: Path, dialect: Dialect, names: Sequence[str], copy: Path) -> tuple[Dialect, list[str]]:
    """Copy a file with a one-line header, and with blank lines instead of skipped lines and comments.

    DuckDB 1.5.5 assumes that all lines end like the first line break of the file, even if that one is skipped or within
    quotes. It also reads a comment sign within a line as the start of a comment. Lines keep their numbers in the copy,
    except in a file of one column, where a blank line is a row.

    Args:
        path: A local UTF-8 file.
        dialect: The file's dialect.
        names: The file's header.
        copy: Path of the copy.

    Returns:
        The copy's dialect and header.
    """
    before: list[str] = []
    plain = [f"c{number}" for number in range(len(names))]
    with (
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as file,
        copy.open("w", encoding="utf-8", errors="surrogateescape", newline="") as target,
    ):
        for line in file:
            before.append(line)
            if len(before) > dialect.skip and not (dialect.comment and line.startswith(dialect.comment)):
                break
        break_in_names = sum(len(re.findall("\r\n|\r|\n", name)) for name in names)
        before += [next(file) for _ in range(break_in_names)]
        end = before[-1][len(before[-1].rstrip("\r\n")) :]
        target.write(end * (len(before) - 1) + dialect.delimiter.join(plain) + end)
        if dialect.comment:
            _copy_without_comments(file, target, dialect, end if len(names) > 1 else "")
        shutil.copyfileobj(file, target, PIECE)
    return replace(dialect, skip=len(before) - 1, comment=""), plain


def _copy_without_comments(file: TextIO, target: TextIO, dialect: Dialect, blank: str) -> None:
    """Copy rows, and write ``blank`` instead of each comment. A line within a quoted value is not a comment."""
    is_start = True

    def lines() -> Iterator[str]:
        nonlocal is_start
        for line in file:
            if is_start and line.startswith(dialect.comment):
                target.write(blank)
                continue
            is_start = False
            target.write(line)
            yield line

    csv.field_size_limit(LONGEST)
    # DuckDB finds the same errors when it reads the copy, and reports their lines.
    with contextlib.suppress(csv.Error):
        for _ in _reader(lines(), dialect):
            is_start = True


_DELIMITER = "\ue000"
"""Replaces a delimiter of several characters. It is from Unicode's private use area."""


def _reader(lines: Iterator[str], dialect: Dialect) -> Iterator[list[str]]:
    if len(dialect.delimiter) > 1:
        # Python's csv module supports only delimiters of one character.
        one = replace(dialect, delimiter=_DELIMITER)
        for fields in _reader((line.replace(dialect.delimiter, _DELIMITER) for line in lines), one):
            yield [field.replace(_DELIMITER, dialect.delimiter) for field in fields]
        return
    doubled = dialect.escape == dialect.quote
    yield from csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote or None,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
        doublequote=doubled,
        escapechar=None if doubled or not dialect.escape else dialect.escape,
        strict=True,
    )


def read(
    path: Path,
    dialect: Dialect,
    columns: Mapping[str, str],
    size: int,
    integers: Set[str] = frozenset(),
    aside: Callable[[int, str, str], None] | None = None,
) -> Iterator[pa.Table]:
    """Stream a file's rows, every value as text, or null if the dialect says so.

    Args:
        path: A local UTF-8 file without a byte order mark.
        dialect: The file's dialect.
        columns: The column of each name in the header, in order.
        size: Size of the file in bytes.
        integers: Columns that may be returned as integers, if that is faster and all of their texts are integers.
        aside: Takes a line that breaks the dialect: its number, why, and its text. None: it is an error. A quote that
            is not closed is an error in any case: where its value ends is not known.

    Raises:
        SourceError: the file breaks the dialect (names the line), or the header is repeated among the rows.
    """
    import duckdb
    import pyarrow as pa

    if (table := _unquoted(path, dialect, columns, size, integers)) is not None:
        yield table
        return
    try:
        con = _database().cursor()
        scan = _scan(path, dialect, len(columns), size, keeps_rejects=aside is not None)
        reader = con.execute(f"FROM {scan}").to_arrow_reader(BATCH)
        names: list[str] | None = list(columns)
        for found in reader:
            batch = _without_header(found, names, dialect) if names else found
            names = None
            _check_no_header(batch, list(columns))
            yield pa.table(batch.columns, names=list(columns.values()))
        if aside is not None:
            _set_aside(con, path, aside)
    except duckdb.Error as error:
        raise _named(error) from None
    except pa.ArrowException as error:  # how Arrow reports an error of DuckDB in mid-stream
        raise _named(error) from None


def _set_aside(con: DuckDBPyConnection, path: Path, aside: Callable[[int, str, str], None]) -> None:
    """Set aside the lines of a file that the scan of this connection has rejected."""
    found = con.execute(
        f"SELECT line, any_value(error_type)::VARCHAR, any_value(error_message), any_value(csv_line) FROM {REJECTS} "
        "GROUP BY line ORDER BY line"
    ).fetchall()
    for line, kind, message, read in found:
        text = read
        error = _named(Exception(message))
        if kind not in ("MISSING COLUMNS", "TOO MANY COLUMNS", "INVALID ENCODING"):
            raise SourceError(f"line {line}: {error.message}", error.fix)
        if kind == "INVALID ENCODING":  # DuckDB gives a ? for each byte that is not UTF-8
            with path.open(encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                text = next(itertools.islice(file, line - 1, None))
        aside(line, error.message, text.strip("\r\n"))


def _without_header(batch: pa.RecordBatch, names: Sequence[str], dialect: Dialect) -> pa.RecordBatch:
    """Remove the header from a file's first rows. DuckDB must have read it as Python did."""
    first = [column[0].as_py() for column in batch.columns]
    if first != [None if name in dialect.nulls else name for name in names]:
        raise SourceError("the header cannot be told apart from the rows", _FIX)
    return batch.slice(1)


def _unquoted(
    path: Path, dialect: Dialect, columns: Mapping[str, str], size: int, integers: Set[str]
) -> pa.Table | None:
    """Read a small file without quotes in one block with Arrow. None for any other file, and for one with errors."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    if size > SMALL or dialect.skip or dialect.comment or len(dialect.delimiter) > 1 or len(columns) == 1:
        return None
    content = path.read_bytes()
    ends = content.count(b"\r")
    if (dialect.quote or '"').encode() in content or b"\0" in content or (ends and ends != content.count(b"\r\n")):
        return None
    if dialect.escape != dialect.quote and dialect.escape.encode() in content:
        return None
    if ends and ends != content.count(b"\n"):
        return None
    if b"0x" in content or b"0X" in content:
        integers = frozenset()  # Arrow reads 0x10 as 16
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(content),
            arrow_csv.ReadOptions(
                use_threads=False, block_size=max(size, 1), column_names=list(columns.values()), skip_rows=1
            ),
            arrow_csv.ParseOptions(delimiter=dialect.delimiter, quote_char=False),
            arrow_csv.ConvertOptions(
                column_types={c: pa.int64() if c in integers else pa.string() for c in columns.values()},
                null_values=list(dialect.nulls),
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowException:
        return None  # DuckDB reports the line and the error
    if not integers:
        _check_no_header(table, list(columns))
    return table


def _check_no_header(batch: pa.RecordBatch | pa.Table, names: Sequence[str]) -> None:
    """Refuse a header among the rows, as in concatenated files. In a file of one column, the name may be a value."""
    import pyarrow.compute as pc

    rows = pc.equal(batch.column(0), names[0])
    for column, name in zip(batch.columns[1:], names[1:], strict=True):
        if not pc.any(rows).as_py():
            return
        rows = pc.and_(rows, pc.equal(column, name))
    if len(names) > 1 and pc.any(rows).as_py():
        raise SourceError("the header is repeated among the rows", "export the file again")


REJECTS = "rejects"
"""The table of the lines that a scan has left out, in its connection."""


def _scan(path: Path, dialect: Dialect, columns: int, size: int, keeps_rejects: bool = False) -> str:
    """SQL of the table function that reads a file as text, and of lines that break the dialect keeps a table."""
    options = {
        "columns": "{" + ", ".join(f"'c{number}': 'VARCHAR'" for number in range(columns)) + "}",
        "auto_detect": "false",
        # If DuckDB 1.5.5 skips the header, it loses every row if a line break in the header differs from later ones.
        "header": "false",
        "delim": _literal(dialect.delimiter),
        "quote": _literal(dialect.quote),
        "escape": _literal(dialect.escape),
        "comment": _literal(dialect.comment),
        "skip": str(dialect.skip),
        "nullstr": "[" + ", ".join(map(_literal, dialect.nulls or (_NEVER,))) + "]",
        "allow_quoted_nulls": "false",
        "hive_partitioning": "false",
        "null_padding": "false",
        "strict_mode": "true",
        "compression": "'none'",
        "encoding": "'utf-8'",
        "max_line_size": str(LONGEST),
        # DuckDB allocates 32 MB by default for a file of any size.
        "buffer_size": str(min(max(size, 1 << 16), 2 * LONGEST) + 64),
    }
    if keeps_rejects:
        options |= {"store_rejects": "true", "rejects_table": _literal(REJECTS), "rejects_scan": "'rejecting_scans'"}
    if size < LONGEST:
        options["max_line_size"] = str(max(size, 1 << 14))
    given = ", ".join(f"{name} = {value}" for name, value in options.items())
    return f"read_csv({_literal(str(path))}, {given})"


_NEVER = "\ue000 this text is no file's \ue001"
"""The null text of a dialect without one: DuckDB requires a null text."""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _named(error: Exception) -> SourceError:
    """Convert an error of DuckDB to one for the user: the line, and what is wrong with it."""
    text = str(error)
    line = re.search(r"CSV Error on Line: (\d+)", text)
    where = f"line {line[1]}: " if line else ""
    for pattern, says in _SAYS:
        if found := re.search(pattern, text):
            return SourceError(where + says.format(*found.groups()), _FIX)
    return SourceError(where + " ".join(text.split("Possible", maxsplit=1)[0].split())[:300], _FIX)


_FIX = "export the file again, or correct its dialect in the dataset"
_SAYS = (
    (r"Value with unterminated quote found", "a quote is not closed, or a value has text outside of its quotes"),
    (r"Expected Number of Columns: (\d+) Found: (\d+)", "it has {1} columns instead of {0}"),
    (r"Invalid unicode", "it is not UTF-8; set the encoding in the dataset, such as encoding='latin-1'"),
    (r"[Mm]aximum line size", "the line is longer than 64 MiB"),
    (r"invalid state", "the file mixes line endings, or a quote is misplaced"),
)


@dataclass
class Facts:
    """What is known about all texts of a column, in all files read so far.

    Args:
        values: Number of texts that are not null.
        kinds: For each kind in `KINDS`, whether every text is of this kind.
        left: Maximum number of digits before the decimal point.
        places: Maximum number of digits after the decimal point.
    """

    values: int = 0
    kinds: dict[str, bool] | None = None
    left: int = 0
    places: int = 0

    def add(self, values: int, kinds: Mapping[str, bool], left: int, places: int) -> None:
        """Add the facts of another file."""
        if values:
            self.kinds = {kind: (self.kinds is None or self.kinds[kind]) and holds for kind, holds in kinds.items()}
            self.values += values
            self.left, self.places = max(self.left, left), max(self.places, places)

    def type_of(self) -> pa.DataType:
        """The Arrow type that holds the values of all texts exactly. Only their formatting may be lost."""
        import pyarrow as pa

        if self.kinds is None:
            return pa.null()
        for kind, data_type in (
            ("bigint", pa.int64()),
            ("bool", pa.bool_()),
            ("date", pa.date32()),
            ("moment", pa.timestamp("us", tz="UTC")),
            ("local moment", pa.timestamp("us")),
            ("double", pa.float64()),
        ):
            if self.kinds[kind]:
                return data_type
        if self.kinds["decimal"] and self.left + self.places <= 38:
            return pa.decimal128(18 if self.left + self.places <= 18 else 38, self.places)
        return pa.string()


_INTEGER = "0|-?[1-9][0-9]*"
_DECIMAL = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?"
_DOUBLE = _DECIMAL + "([eE][+-]?[0-9]+)?"
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_MOMENT = _DAY + r"[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
_ZONE = "(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
KINDS = {
    "bigint": f"regexp_full_match($c, '{_INTEGER}') AND TRY_CAST($c AS BIGINT) IS NOT NULL",
    "bool": "lower($c) IN ('true', 'false')",
    "date": f"regexp_full_match($c, '{_DAY}') AND TRY_CAST($c AS DATE) IS NOT NULL",
    "local moment": f"regexp_full_match($c, '{_MOMENT}') AND TRY_CAST($c AS TIMESTAMP) IS NOT NULL",
    "moment": f"regexp_full_match($c, '{_MOMENT}{_ZONE}')",
    # Up to 15 digits are always exact; more are exact only if the double is written as the same text.
    "double": f"""regexp_full_match($c, '{_DOUBLE}') AND (TRY_CAST($c AS DOUBLE)::VARCHAR = $c
        OR length(ltrim(regexp_replace($c, '[eE].*|[.-]', '', 'g'), '0')) <= 15
           AND (abs(TRY_CAST($c AS DOUBLE)) BETWEEN 1e-300 AND 1e300 OR regexp_full_match($c, '[-0.]+')))""",
    "decimal": f"regexp_full_match($c, '{_DECIMAL}')",
}
"""The SQL condition on a text of each kind. Ids such as 007 are of no kind, so they stay text."""


def look(
    path: Path,
    dialect: Dialect,
    columns: Mapping[int, Facts],
    names: Sequence[str],
    size: int,
    leaves_out: bool = False,
) -> None:
    """Read a file once and update the facts of some of its columns.

    Args:
        path: A local UTF-8 file without a byte order mark.
        dialect: The file's dialect.
        columns: The facts to update, by column number.
        names: The header's names.
        size: Size of the file in bytes.
        leaves_out: Leave out lines that break the dialect.

    Raises:
        SourceError: the file breaks the dialect.
    """
    import duckdb

    selected = []
    for number in columns:
        text = f"c{number}" if dialect.decimal == "." else f"replace(c{number}, {_literal(dialect.decimal)}, '.')"
        selected.append(f"count({text})")
        selected += [f"coalesce(bool_and({condition.replace('$c', text)}), true)" for condition in KINDS.values()]
        point = f"strpos({text}, '.')"
        whole = f"length(ltrim({text}, '-'))"
        selected.append(
            f"coalesce(max(CASE WHEN {point} = 0 THEN {whole} ELSE strpos(ltrim({text}, '-'), '.') - 1 END), 0)"
        )
        selected.append(f"coalesce(max(CASE WHEN {point} = 0 THEN 0 ELSE length({text}) - {point} END), 0)")
    scan = _scan(path, dialect, len(names), size, keeps_rejects=leaves_out)
    try:
        found = _database().cursor().execute(f"SELECT {', '.join(selected)} FROM (FROM {scan} OFFSET 1)").fetchall()[0]
    except duckdb.Error as error:
        raise _named(error) from None
    width = len(KINDS) + 3
    for place, facts in enumerate(columns.values()):
        values, *kinds, left, places = found[place * width : (place + 1) * width]
        facts.add(values, dict(zip(KINDS, kinds, strict=True)), left, places)


def line_of(path: Path, dialect: Dialect, record: int, columns: int, leaves_out: bool = False) -> int:
    """The line of a file on which a record ends. Lines count from 1; records count from 0, after the header.

    Args:
        path: A local file.
        dialect: Its dialect.
        record: The record's number.
        columns: The number of columns in the header.
        leaves_out: Do not count records that break the dialect.
    """
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for line in file:
                read += 1
                if read > dialect.skip and not (dialect.comment and line.startswith(dialect.comment)):
                    yield line

    left = record + 1
    for fields in _reader(lines(), dialect):
        # A blank line is not a record, except in a file of one column, where it is a null.
        if leaves_out and (len(fields) != columns or any("\udc80" <= c <= "\udcff" for f in fields for c in f)):
            continue
        left -= bool(fields) or columns == 1
        if left < 0:
            break
    return read
