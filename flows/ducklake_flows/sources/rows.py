"""Python rows as Arrow columns: every value is kept exactly, or refused with its column and row.

A column's type is inferred from all of its values. dlt and Arrow infer it from the first values, and lose others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pyarrow as pa

from ducklake_flows.datasets.names import clash, clash_text, columns_of
from ducklake_flows.sources.values import (
    JSON,
    NAIVE_US,
    TIME_US,
    UTC_US,
    Unfit,
    contract_type,
    fit,
    is_missing,
    json_text,
)

if TYPE_CHECKING:
    from ducklake_flows.datasets.contract import Contract

BIG = 1 << 53
"""Every integer up to this one is exact as a double."""


def rows_to_table(rows: Sequence[Mapping[str, Any]], contract: Contract) -> pa.Table:
    """Convert rows to a table with column names as in the lake.

    Args:
        rows: Mappings of text to values; a missing key is a null.
        contract: Column names, and types of columns whose values are of several kinds.

    Returns:
        A table of natural types: integers in 64 bits, decimals with 18 or 38 digits, objects and lists as JSON.
        A column without values has the null type.

    Raises:
        Unfit: a value cannot be stored exactly in its column, or two keys of a row would become one column.
    """
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    for name in names:
        if not isinstance(name, str):
            raise Unfit(repr(name), "a column's name must be text")
    try:
        columns = columns_of(names, contract.rename)
    except ValueError as error:
        raise Unfit("", str(error)) from None
    together = _without_clash(rows, columns)
    made: dict[str, pa.ChunkedArray] = {}
    for column, sources in together.items():
        values = (
            [next((row[s] for s in sources if row.get(s) is not None), None) for row in rows]
            if len(sources) > 1
            else [row.get(sources[0]) for row in rows]
        )
        made[column] = column_of(values, column, contract)
    return pa.table(made) if made else pa.table({"": pa.nulls(len(rows))}).select([])


def _without_clash(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> dict[str, list[str]]:
    """The source's names of each column. Names that become one column must never be in the same row."""
    together: dict[str, list[str]] = {}
    for name, column in columns.items():
        together.setdefault(column, []).append(name)
    if clash(columns):
        for number, row in enumerate(rows):
            if pair := clash({name: columns[name] for name in row}):
                raise Unfit(columns[pair[0]], clash_text(*pair, columns[pair[0]]), number)
    return together


def column_of(values: Sequence[Any], name: str, contract: Contract) -> pa.ChunkedArray:
    """Convert values to an Arrow column, which has the null type if all values are None.

    Raises:
        Unfit: the values have no common type and the contract declares none, or the type of one cannot be stored.
    """
    kinds = set(map(type, values))
    kinds.discard(type(None))
    if not kinds <= _MAKERS.keys():
        values = [_plain(value, name, row) for row, value in enumerate(values)]
        kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.chunked_array([pa.nulls(len(values))])
    declared = contract.columns.get(name)
    if declared == "double" and kinds == {int, float}:
        return _guarded(_numbers, values, name)
    if declared and (len(kinds) > 1 or kinds == {datetime}):
        return _mixed(values, {_group(value) for value in values if value is not None}, name, contract)
    if len(kinds) == 1:
        return _made(kinds.pop(), values, name, contract)
    for known, make in _TOGETHER:
        if kinds <= known:
            return _guarded(make, values, name)
    first = next(value for value in values if value is not None)
    row, other = next(
        (row, value) for row, value in enumerate(values) if value is not None and type(value) is not type(first)
    )
    raise Unfit(
        name,
        f"{_short(other)} is {_kind(other)}, but the earlier value {_short(first)} is {_kind(first)}: declare the "
        f'column in the contract, for example as "{name}": "text", to store both',
        row,
    )


def _group(value: Any) -> tuple[type, bool]:
    """What values converted together must share: the type, and whether they have a zone."""
    return type(value), isinstance(value, datetime) and value.tzinfo is not None


def _mixed(values: Sequence[Any], groups: set[tuple[type, bool]], name: str, contract: Contract) -> pa.ChunkedArray:
    """Convert values of several kinds to the contract's type, each kind separately."""
    target = contract_type(contract.columns[name])
    parts, places = [], []
    for group in groups:
        rows = [row for row, value in enumerate(values) if value is not None and _group(value) == group]
        try:
            part = fit(_made(group[0], [values[row] for row in rows], name, contract), target, name, contract.zone)
        except Unfit as error:
            raise Unfit(name, error.why, None if error.row is None else rows[error.row]) from None
        parts.append(part)
        places += rows
    parts.append(pa.chunked_array([pa.nulls(1, target)]))
    where = {row: place for place, row in enumerate(places)}
    taken = [where.get(row, len(places)) for row in range(len(values))]
    storage = target.storage_type if isinstance(target, pa.BaseExtensionType) else target
    flat = pa.chunked_array([getattr(c, "storage", c) for part in parts for c in part.chunks], storage).combine_chunks()
    found = flat.take(pa.array(taken, pa.int64()))
    if isinstance(target, pa.BaseExtensionType):
        found = pa.ExtensionArray.from_storage(target, found)
    return pa.chunked_array([found])


def _made(kind: type, values: Sequence[Any], name: str, contract: Contract) -> pa.ChunkedArray:
    if kind in (int, Decimal) and contract.columns.get(name) == "text":
        # Text has no limit on digits.
        texts = [None if v is None else str(v) if kind is int else format(v, "f") for v in values]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return _guarded(_MAKERS[kind], values, name)


def _guarded(make: Callable[[Sequence[Any]], pa.Array], values: Sequence[Any], name: str) -> pa.ChunkedArray:
    """Call a maker. If it fails, raise an error with the row of the first value that it cannot convert."""
    try:
        return pa.chunked_array([make(values)])
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        for row, value in enumerate(values):
            try:
                make([value])
            except (ValueError, TypeError, OverflowError, pa.ArrowException) as own:
                raise Unfit(name, f"{_short(value)} cannot be stored: {own}", row) from None
        raise Unfit(name, f"its values do not fit one type: {error}") from None


def _integers(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.int64())
    except OverflowError:
        return _decimals(values)


def _numbers(values: Sequence[Any]) -> pa.Array:
    """Convert integers and doubles to doubles. An integer without an exact double is an error."""
    return pa.array(_as_doubles(values), pa.float64())


def _as_doubles(values: Sequence[Any]) -> list[float | None]:
    return [_as_double(value) if type(value) is int else value for value in values]


def _as_double(value: int) -> float:
    if abs(value) > BIG:
        raise ValueError(
            f"{value} is not exact as a double, and other values are doubles; declare the column as decimal"
        )
    return float(value)


def _decimals(values: Sequence[Any]) -> pa.Array:
    """Convert decimals, integers and doubles to decimals. A double becomes the decimal that it is written as.

    The JSON reader gives a double for every number whose digits a double holds.
    """
    numbers = [None if v is None else Decimal(repr(v) if type(v) is float else v) for v in values]
    left = places = 0
    for number in numbers:
        if number is None:
            continue
        _, digits, exponent = number.as_tuple()
        if not isinstance(exponent, int):
            raise ValueError("a decimal must be finite")
        left, places = max(left, len(digits) + exponent), max(places, -exponent)
    precision = 18 if left + places <= 18 else 38
    if left + places > 38:
        raise ValueError(f"{left + places} digits are needed, but a decimal has 38; declare the column as text")
    return pa.array(numbers, pa.decimal128(precision, places))


def _moments(values: Sequence[Any]) -> pa.Array:
    zoned = {value.tzinfo is not None for value in values if value is not None}
    if len(zoned) > 1:
        raise ValueError("some timestamps have a zone and others do not")
    return pa.array(values, UTC_US if zoned == {True} else NAIVE_US)


def _times(values: Sequence[Any]) -> pa.Array:
    if any(value is not None and value.tzinfo is not None for value in values):
        raise ValueError("a time of day must not have a zone; convert it to text in the source")
    return pa.array(values, TIME_US)


def _json(values: Sequence[Any]) -> pa.Array:
    texts = [None if value is None else json_text(value) for value in values]
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


_MAKERS: dict[type, Callable[[Sequence[Any]], pa.Array]] = {
    int: _integers,
    float: lambda values: pa.array(values, pa.float64(), from_pandas=False),
    bool: lambda values: pa.array(values, pa.bool_()),
    str: lambda values: pa.array(values, pa.string()),
    bytes: lambda values: pa.array(values, pa.binary()),
    Decimal: _decimals,
    datetime: _moments,
    date: lambda values: pa.array(values, pa.date32()),
    time: _times,
    UUID: lambda values: pa.array([None if v is None else str(v) for v in values], pa.string()),
    dict: _json,
    list: _json,
}

_TOGETHER: list[tuple[set[type], Callable[[Sequence[Any]], pa.Array]]] = [
    ({int, float}, _numbers),
    ({int, float, Decimal}, _decimals),
    ({dict, list}, _json),
]


def _plain(value: Any, name: str, row: int) -> Any:
    """Convert a value of a library's type or of a subclass to Python's built-in type."""
    kind = type(value)
    if value is None or kind in _MAKERS:
        return value
    if is_missing(value):
        return None
    if isinstance(value, timedelta):
        raise Unfit(name, f"{_short(value)} is a duration, which cannot be stored: convert it to seconds", row)
    if isinstance(value, datetime):
        if getattr(value, "nanosecond", 0):
            raise Unfit(name, f"{_short(value)} has nanoseconds, which cannot be stored: convert it to text", row)
        return datetime.combine(value.date(), value.time(), value.tzinfo)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, date | time):
        return (date if isinstance(value, date) else time).fromisoformat(value.isoformat())
    bases: tuple[Callable[[Any], Any], ...] = (int, float, str, bytes, Decimal, list)
    for base in bases:
        if isinstance(value, base):  # type: ignore[arg-type]
            return base(value)
    if kind.__module__.partition(".")[0] == "numpy":
        found = value.tolist()
        if type(found) in _MAKERS:
            return found
    raise Unfit(name, f"{_short(value)} is a {kind.__module__}.{kind.__qualname__}, which has no column type", row)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_KINDS = {
    int: "an integer",
    float: "a double",
    str: "text",
    bool: "a boolean",
    dict: "an object",
    list: "a list",
    Decimal: "a decimal",
}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), f"a {type(value).__name__}")
