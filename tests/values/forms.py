"""The forms in which a source gives rows. Each form encodes columns and states which values the result contains."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.values.oracle import Malformed, Nano, Single, csv_rows

if TYPE_CHECKING:
    from pathlib import Path

    from tests.values.kinds import Kind

NUMBER = "row number"
"""The column with the row number within a partition: 0, 1, 2 and so on."""


class Unwritable(Exception):
    """A form cannot represent these values."""


@dataclass(frozen=True)
class Column:
    """A column of a partition.

    Args:
        name: The source's name of the column.
        kind: The type of its values.
        values: The values, None for null.
    """

    name: str
    kind: Kind
    values: list[Any]


Given = dict[str, list[Any]]
"""A partition's values by the source's column names, ordered by row number."""


@dataclass(frozen=True)
class Form:
    """A form of the result of a source function.

    Args:
        name: Its name.
        make: Converts columns into this form; also returns the values in it if the form itself changes them.
        carries: Whether it can hold values of a kind.
    """

    name: str
    make: Callable[[Sequence[Column]], tuple[Any, Given | None]]
    carries: Callable[[Kind], bool]


def has_arrow(kind: Kind) -> bool:
    return kind.arrow is not None


def _given(columns: Sequence[Column]) -> Given:
    return {column.name: column.values for column in columns}


def rows_of(columns: Sequence[Column], *, lacking: bool = False) -> list[dict[str, Any]]:
    """Columns as dict rows; with ``lacking`` the keys of nulls are missing."""
    size = len(columns[0].values)
    rows = [{c.name: _python(c.values[row]) for c in columns} for row in range(size)]
    return [{k: v for k, v in row.items() if v is not None} for row in rows] if lacking else rows


def _python(value: Any) -> Any:
    if isinstance(value, Nano):
        return pd.Timestamp(int(value))
    return np.float32(value) if isinstance(value, Single) else value


def table_of(columns: Sequence[Column]) -> pa.Table:
    return pa.Table.from_arrays([c.kind.array(c.values) for c in columns], names=[c.name for c in columns])


def _dicts(columns: Sequence[Column]) -> tuple[Any, None]:
    return iter(rows_of(columns)), None


def _list(columns: Sequence[Column]) -> tuple[Any, None]:
    return [rows_of(columns, lacking=True)], None


def _dlt(columns: Sequence[Column]) -> tuple[Any, None]:
    import dlt

    return dlt.resource(rows_of(columns), name="rows"), None


def _table(columns: Sequence[Column]) -> tuple[Any, None]:
    return table_of(columns), None


def _batches(columns: Sequence[Column]) -> tuple[Any, None]:
    table = table_of(columns)
    return iter([batch for start in range(0, len(table), 2) for batch in table.slice(start, 2).to_batches()]), None


def _reader(columns: Sequence[Column]) -> tuple[Any, None]:
    table = table_of(columns)
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches()), None


def _dlt_arrow(columns: Sequence[Column]) -> tuple[Any, None]:
    import dlt

    return dlt.resource([table_of(columns)], name="rows"), None


def _frame_values(frame: Any) -> Given:
    """The values in a pandas frame, with pandas' missing values as None."""
    found: Given = {}
    for name in frame.columns:
        values: list[Any] = []
        series = frame[name]
        if isinstance(series.dtype, pd.DatetimeTZDtype):
            # pandas 2.3.3 crashes the process on some moments with a zone before 1677.
            naive = series.dt.tz_convert("UTC").dt.tz_localize(None)
            found[name] = [None if v is pd.NaT else v.to_pydatetime().replace(tzinfo=UTC) for v in naive]
            continue
        for value in series:
            if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value):
                values.append(None)
            else:
                values.append(_plain(value))
        found[name] = values
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(inner) for inner in value.tolist()]
    if isinstance(value, pd.Timestamp):
        if value.tzinfo is not None:
            return value.to_pydatetime(warn=False) if not value.nanosecond else Nano(value.value)
        return Nano(value.as_unit("ns").value) if value.unit == "ns" else value.to_pydatetime()
    if isinstance(value, np.float32):
        return Single(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def _pandas(columns: Sequence[Column]) -> tuple[Any, Given]:
    try:
        frame = table_of(columns).to_pandas()
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        raise Unwritable(str(error)) from None
    return frame, _frame_values(frame)


def _pandas_arrow(columns: Sequence[Column]) -> tuple[Any, Given | None]:
    try:
        return table_of(columns).to_pandas(types_mapper=pd.ArrowDtype), None
    except (pa.ArrowException, ValueError, NotImplementedError, TypeError) as error:
        raise Unwritable(str(error)) from None


def _pandas_objects(columns: Sequence[Column]) -> tuple[Any, Given]:
    made = {c.name: pd.Series([_python(v) for v in c.values], dtype=object) for c in columns}
    frame = pd.DataFrame(made)
    return frame, {
        c.name: [None if isinstance(v, float) and v != v else v for v in c.values]
        for c in columns
    }  # fmt: skip


def _polars(columns: Sequence[Column]) -> tuple[Any, None]:
    return pl.from_arrow(table_of(columns)), None


def _in_polars(kind: Kind) -> bool:
    """Whether polars keeps values of a kind unchanged."""
    others = ("map", "date64", "decimal256", "duration", "JSON text", "uuid", "float16", "runs of text")
    return has_arrow(kind) and not kind.name.startswith(others)


_CON = duckdb.connect(config={"threads": 1})


def _relation(columns: Sequence[Column]) -> tuple[Any, Given | None]:
    table = table_of(columns)
    try:
        relation = _CON.from_arrow(table)
        relation.to_arrow_table()
    except (duckdb.Error, pa.ArrowException) as error:
        raise Unwritable(str(error)) from None
    # DuckDB renames a column whose name differs from another only in case.
    return relation, {name: c.values for name, c in zip(relation.columns, columns, strict=True)}


def _in_duckdb(kind: Kind) -> bool:
    """Whether DuckDB keeps values of a kind unchanged; it has no nanoseconds in times and no milliseconds in dates."""
    return has_arrow(kind) and kind.name not in ("decimal256, 76 digits", "duration", "runs of text")


FUNCTIONS = (
    Form("dict rows", _dicts, lambda kind: kind.name != "JSON text"),
    Form("lists of rows", _list, lambda kind: kind.name != "JSON text"),
    Form("dlt resource", _dlt, lambda kind: kind.name != "JSON text"),
    Form("Arrow table", _table, has_arrow),
    Form("Arrow batches", _batches, has_arrow),
    Form("Arrow reader", _reader, has_arrow),
    Form("dlt resource of tables", _dlt_arrow, has_arrow),
    Form("pandas frame", _pandas, lambda kind: has_arrow(kind) and kind.name != "JSON text"),
    Form("pandas frame of Arrow types", _pandas_arrow, has_arrow),
    Form("pandas frame of objects", _pandas_objects, lambda kind: kind.name != "JSON text"),
    Form("polars frame", _polars, _in_polars),
    Form("DuckDB relation", _relation, _in_duckdb),
)


def pyarrow_parquet(columns: Sequence[Column]) -> bytes:
    file = io.BytesIO()
    try:
        pq.write_table(table_of(columns), file, row_group_size=3)
    except (pa.ArrowException, ValueError) as error:
        raise Unwritable(str(error)) from None
    return file.getvalue()


def duckdb_parquet(columns: Sequence[Column], folder: Path) -> bytes:
    table = table_of(columns)
    target = folder / "written.parquet"
    if any(c.kind.name in ("time64[ns]", "fixed-size list") for c in columns):
        raise Unwritable("DuckDB writes time64[ns] as text, and fixed-size lists with nulls that Arrow cannot read")
    try:
        _CON.from_arrow(table).write_parquet(str(target))
    except (duckdb.Error, pa.ArrowException) as error:
        raise Unwritable(str(error)) from None
    return target.read_bytes()


def pandas_parquet(columns: Sequence[Column]) -> tuple[bytes, Given]:
    frame, given = _pandas(columns)
    file = io.BytesIO()
    try:
        frame.to_parquet(file)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise Unwritable(str(error)) from None
    return file.getvalue(), {name: [_without_nan(value) for value in values] for name, values in given.items()}


def _without_nan(value: Any) -> Any:
    """A value as pandas writes it to Parquet: NaN in a list becomes null."""
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def is_json(kind: Kind) -> bool:
    """Whether JSON can represent the values of a kind."""
    return not any(word in kind.name for word in ("binary", "duration", "complex", "JSON text", "NaN"))


def json_value(value: Any) -> tuple[str, Any]:
    """A value as JSON text, and the value that the text represents."""
    if value is None or (isinstance(value, bool | str | int) and not isinstance(value, Nano)):
        return json.dumps(value), value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return '"x"', "x"
        return repr(float(value)), float(value)
    if isinstance(value, Decimal):
        return format(value, "f"), value
    if isinstance(value, Mapping):
        parts = {key: json_value(inner) for key, inner in value.items()}
        text = ", ".join(f"{json.dumps(key)}: {part}" for key, (part, _) in parts.items())
        return f"{{{text}}}", {key: says for key, (_, says) in parts.items()}
    if isinstance(value, list | tuple):
        made = [json_value(inner) for inner in value]
        return f"[{', '.join(part for part, _ in made)}]", [says for _, says in made]
    if isinstance(value, Nano):
        text = pd.Timestamp(int(value)).isoformat()
    else:
        text = value.isoformat() if isinstance(value, date | datetime | time) else str(value)
    return json.dumps(text), text


def json_text(columns: Sequence[Column], *, array: bool, end: str = "\n") -> tuple[str, Given]:
    """Columns as JSON lines or as one array, and the values that the text represents."""
    made = {c.name: [json_value(value) for value in c.values] for c in columns}
    lines = [
        "{" + ", ".join(f"{json.dumps(name)}: {made[name][row][0]}" for name in made) + "}"
        for row in range(len(columns[0].values))
    ]
    given = {name: [says for _, says in values] for name, values in made.items()}
    return (f"[{','.join(lines)}]" if array else "".join(line + end for line in lines)), given


@dataclass(frozen=True)
class Written:
    """How a CSV file is written: the dialect declared in the dataset, and the program that writes the file."""

    writer: str = "csv"
    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'
    encoding: str = "utf-8"
    decimal: str = "."
    comment: str = ""
    skip: int = 0
    nulls: tuple[str, ...] = ("",)
    all_quoted: bool = False
    end: str = "\n"
    suffix: str = ""
    bom: bool = False
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``Files`` that differ from their defaults."""
        names = ("delimiter", "quote", "escape", "encoding", "decimal", "comment", "skip", "nulls")
        return {n: getattr(self, n) for n in names if getattr(self, n) != getattr(Written(), n)}


def csv_cell(value: Any, dialect: Written) -> str | None:
    """The text of a value in a CSV file; None for null."""
    if value is None:
        return None
    if isinstance(value, Nano):
        text = str(pd.Timestamp(int(value)))
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float):
        text = repr(float(value)).replace(".", dialect.decimal)
    elif isinstance(value, Decimal):
        text = format(value, "f").replace(".", dialect.decimal)
    elif isinstance(value, bytes):
        text = value.hex()
    elif isinstance(value, date | time):
        text = str(value)
    elif isinstance(value, Mapping | list | tuple):
        text = json_value(value)[0]
    else:
        text = str(value)
    text = text.encode(dialect.encoding, "replace").decode(dialect.encoding)
    if not dialect.quote:
        text = "".join(c for c in text if c not in dialect.delimiter + "\r\n")
    return text


def is_csv(kind: Kind) -> bool:
    return "JSON text" not in kind.name


def csv_text(columns: Sequence[Column], dialect: Written, folder: Path) -> tuple[bytes, Given]:
    """Columns as a CSV file, and its values by the documented rules.

    Raises:
        Unwritable: the writer cannot write the columns, or its output violates the dialect.
    """
    names = [csv_cell(c.name, dialect) or "" for c in columns]
    cells = [[csv_cell(c.values[row], dialect) for c in columns] for row in range(len(columns[0].values))]
    write = {"csv": _python_csv, "duckdb": _duckdb_csv, "pandas": _pandas_csv}[dialect.writer]
    comment = f"{dialect.comment} left, out{dialect.end}" if dialect.comment else ""
    text = write(names, cells, dialect, folder)
    text = f"skipped{dialect.end}" * dialect.skip + comment + text + comment
    try:
        header, rows = csv_rows(
            text, dialect.delimiter, dialect.quote, dialect.escape, dialect.comment, dialect.skip, dialect.nulls,
            dialect.decimal,
        )  # fmt: skip
    except Malformed as error:
        raise Unwritable(str(error)) from None
    if not text.endswith(("\n", "\r")):
        raise Unwritable("the last line has no line end")
    encoded = (b"\xef\xbb\xbf" if dialect.bom else b"") + text.encode(dialect.encoding)
    if dialect.suffix == ".gz":
        encoded = gzip.compress(encoded)
    elif dialect.suffix == ".zst":
        encoded = pa.compress(encoded, "zstd", asbytes=True)
    return encoded, {name: [row[place] for row in rows] for place, name in enumerate(header)}


def _python_csv(names: list[str], cells: list[list[str | None]], dialect: Written, folder: Path) -> str:
    file = io.StringIO(newline="")
    doubled = dialect.quote == dialect.escape
    quoting: Literal[0, 1] = csv.QUOTE_ALL if dialect.all_quoted or not doubled else csv.QUOTE_MINIMAL
    one = dialect.delimiter if len(dialect.delimiter) == 1 else "\ue001"
    if one != dialect.delimiter:
        quoting = csv.QUOTE_ALL
    writer = csv.writer(
        file,
        delimiter=one,
        quotechar=dialect.quote or None,
        escapechar=None if doubled or not dialect.escape else dialect.escape,
        doublequote=doubled,
        quoting=quoting if dialect.quote else csv.QUOTE_NONE,
        lineterminator=dialect.end,
    )
    try:
        writer.writerow(names)
        writer.writerows([dialect.nulls[0] if cell is None else cell for cell in row] for row in cells)
    except csv.Error as error:
        raise Unwritable(str(error)) from None
    return file.getvalue().replace(one, dialect.delimiter)


def _duckdb_csv(names: list[str], cells: list[list[str | None]], dialect: Written, folder: Path) -> str:
    if dialect.end != "\n" or not dialect.quote:
        raise Unwritable("COPY writes only LF line ends, and quotes")
    arrays = [pa.array([row[place] for row in cells], pa.string()) for place in range(len(names))]
    target = folder / "written.csv"
    try:
        _CON.from_arrow(pa.Table.from_arrays(arrays, names=[f"c{n}" for n in range(len(names))])).project(
            ", ".join(f'c{n} AS "{name.replace(chr(34), chr(34) * 2)}"' for n, name in enumerate(names))
        ).write_csv(
            str(target),
            na_rep=dialect.nulls[0],
            header=True,
            quoting=csv.QUOTE_ALL if dialect.all_quoted else None,
            sep=dialect.delimiter,
            quotechar=dialect.quote,
            escapechar=dialect.escape,
        )
    except duckdb.Error as error:
        raise Unwritable(str(error)) from None
    return target.read_bytes().decode()


def _pandas_csv(names: list[str], cells: list[list[str | None]], dialect: Written, folder: Path) -> str:
    frame = pd.DataFrame(cells, columns=names, dtype=object)
    doubled = dialect.quote == dialect.escape
    if not dialect.quote:
        raise Unwritable("pandas always writes quotes")
    try:
        text = frame.to_csv(
            index=False,
            sep=dialect.delimiter,
            quotechar=dialect.quote,
            doublequote=doubled,
            escapechar=None if doubled else dialect.escape or None,
            na_rep=dialect.nulls[0],
            quoting=csv.QUOTE_ALL if dialect.all_quoted or not doubled else csv.QUOTE_MINIMAL,
            lineterminator=dialect.end,
        )
    except (csv.Error, ValueError) as error:
        raise Unwritable(str(error)) from None
    return str(text)
