"""Arrow values: the types that can be stored, and conversions that lose nothing or report what they would lose.

Every value of a source is converted here once, before it is staged. Arrow's safe casts are exact with a few exceptions,
and this module checks those.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import simplejson

from ducklake_flows.datasets.contract import DECIMAL, Contract, Nested, Zone
from ducklake_flows.errors import SourceError

JSON = pa.json_(pa.string())
"""JSON text. DuckDB and DuckLake distinguish it from other text."""

UTC_US = pa.timestamp("us", tz="UTC")
NAIVE_US = pa.timestamp("us")
TIME_US = pa.time64("us")

_CONTRACT = {
    "text": pa.string(),
    "json": JSON,
    "bigint": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": UTC_US,
    "timestamp_ntz": NAIVE_US,
    "date": pa.date32(),
    "time": TIME_US,
    "decimal": pa.decimal128(38, 9),
    "binary": pa.binary(),
}


FILE = b"lake file"
"""Optional key of a table's schema metadata: the file that the rows come from."""


class Unfit(ValueError):
    """A value, or a whole column, that cannot be stored unchanged.

    Args:
        column: The column.
        why: What is wrong.
        row: The value's row in the converted data, counted from 0; None if the whole column is wrong.
        each: Finds all such values of the column, each with its row and what is wrong. None: only the first is known.
    """

    def __init__(
        self,
        column: str,
        why: str,
        row: int | None = None,
        each: Callable[[], Iterator[tuple[int, str]]] | None = None,
    ) -> None:
        super().__init__(f"column {column}: {why}")
        self.column, self.why, self.row, self.each = column, why, row, each


def contract_type(data_type: str) -> pa.DataType:
    """The Arrow type of a contract's type. Timestamps are in microseconds, ``decimal`` has 9 decimal places."""
    if found := DECIMAL.fullmatch(data_type):
        return pa.decimal128(int(found[1]), int(found[2]))
    return _CONTRACT[data_type]


def storable(data_type: pa.DataType) -> pa.DataType | None:
    """The type that a column of this Arrow type is stored as; None if it cannot be stored.

    Integers keep their width and floats become doubles. Timestamps are in microseconds, and in UTC if they have a zone.
    """
    types = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        return {"arrow.json": JSON, "arrow.uuid": pa.string()}.get(data_type.extension_name)
    if types.is_dictionary(data_type) or types.is_run_end_encoded(data_type):
        return storable(data_type.value_type)
    for is_kind, stored in _STORED:
        if is_kind(data_type):
            return stored
    if types.is_null(data_type) or types.is_boolean(data_type) or types.is_integer(data_type):
        return data_type
    if types.is_decimal(data_type):
        return pa.decimal128(min(data_type.precision, 38), data_type.scale) if 0 <= data_type.scale <= 38 else None
    if types.is_timestamp(data_type):
        return UTC_US if data_type.tz else NAIVE_US
    if types.is_map(data_type):
        key, item = storable(data_type.key_type), storable(data_type.item_type)
        return pa.map_(key, item) if key and item else None
    if types.is_struct(data_type):
        inner = [(field.name, storable(field.type)) for field in data_type]
        return pa.struct(inner) if inner and all(kind is not None for _, kind in inner) else None
    if types.is_list(data_type) or types.is_large_list(data_type) or types.is_fixed_size_list(data_type):
        value = storable(data_type.value_type)
        return pa.list_(value) if value else None
    return None


_STORED: list[tuple[Callable[[pa.DataType], bool], pa.DataType]] = [
    (pa.types.is_float16, pa.float64()),
    (pa.types.is_float32, pa.float64()),
    (pa.types.is_float64, pa.float64()),
    (pa.types.is_string, pa.string()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_binary, pa.binary()),
    (pa.types.is_large_binary, pa.binary()),
    (pa.types.is_binary_view, pa.binary()),
    (pa.types.is_fixed_size_binary, pa.binary()),
    (pa.types.is_date, pa.date32()),
    (pa.types.is_time, TIME_US),
]


def stored(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Convert a column to the type that it is stored as; see `storable`.

    Raises:
        Unfit: the type cannot be stored, or a value does not fit the stored type.
    """
    target = storable(column.type)
    if target is None:
        raise Unfit(name, f"the type {column.type} cannot be stored")
    return fit(column, target, name)


def fit(column: pa.ChunkedArray, target: pa.DataType, name: str, zone: Zone | None = None) -> pa.ChunkedArray:
    """Convert a column to another type without changing a value.

    Args:
        column: The values.
        target: The target type.
        name: The column's name in errors.
        zone: The zone of timestamps without one, if the target type has a zone.

    Raises:
        Unfit: a value would change (names the first such row), or there is no conversion between the types.
    """
    if column.type.equals(target):
        return column
    if pa.types.is_null(column.type) or (pa.types.is_null(target) and column.null_count == len(column)):
        return pa.chunked_array([pa.nulls(len(column), target)])
    if pa.types.is_dictionary(column.type) or pa.types.is_run_end_encoded(column.type):
        return fit(_decoded(column), target, name, zone)
    convert = _conversion(column.type, target, zone)
    if convert is None:
        raise Unfit(name, f"{column.type} cannot be converted to {target}")
    try:
        found = convert(column)
        if found.null_count != column.null_count:
            raise pa.ArrowInvalid("a value was lost")
    except (ValueError, TypeError, pa.ArrowException) as error:
        row = _first_bad(convert, column)
        value = column[row].as_py() if row is not None else None

        def each() -> Iterator[tuple[int, str]]:
            for number in _all_bad(convert, column):
                _, error = _converted(convert, column.slice(number, 1))
                yield number, _cannot(column[number].as_py(), target, error)

        raise Unfit(name, _cannot(value, target, error), row, each) from None
    return found


def _cannot(value: Any, target: pa.DataType, error: Exception | None) -> str:
    return f"{_short(value)} cannot be {described(target)}{_reason(error, value)}"


def described(data_type: pa.DataType) -> str:
    """A type's name in errors."""
    if isinstance(data_type, pa.BaseExtensionType):
        return "json"
    return next((name for name, known in _CONTRACT.items() if known.equals(data_type)), str(data_type))


def _reason(error: Exception | None, value: Any) -> str:
    if isinstance(error, _Because):
        return f": {error}"
    is_local = isinstance(value, str) and re.match(r"\d{4}-\d{2}-\d{2}[ T]?[\d:.]*$", value)
    return f": {_NO_ZONE}" if is_local and "expected a zone offset" in str(error) else ""


_NO_ZONE = "it has no zone, and the contract sets no timezone"


class _Because(ValueError):
    """Why a value does not fit, in a text for the user."""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_bad(convert: Callable[[pa.ChunkedArray], pa.ChunkedArray], column: pa.ChunkedArray) -> int | None:
    """The first row that cannot be converted, found by bisection."""
    low, high = 0, len(column)
    if _converted(convert, column)[0]:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        is_good, _ = _converted(convert, column.slice(low, middle - low))
        low, high = (middle, high) if is_good else (low, middle)
    return low


def _all_bad(convert: Callable[[pa.ChunkedArray], pa.ChunkedArray], column: pa.ChunkedArray) -> Iterator[int]:
    """All rows that cannot be converted, in order, found by bisection."""
    left = [(0, len(column))]
    while left:
        low, high = left.pop()
        if not _converted(convert, column.slice(low, high - low))[0]:
            if high - low == 1:
                yield low
            else:
                middle = (low + high) // 2
                left += [(middle, high), (low, middle)]


def _converted(
    convert: Callable[[pa.ChunkedArray], pa.ChunkedArray], column: pa.ChunkedArray
) -> tuple[bool, Exception | None]:
    """Whether a column can be converted, and the error."""
    try:
        return convert(column).null_count == column.null_count, None
    except (ValueError, TypeError, pa.ArrowException) as error:
        return False, error


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode a column. Arrow 26 cannot cast a dictionary of string views (polars' categories) to its values."""
    if pa.types.is_dictionary(column.type):
        kind = column.type.value_type
        plain = pa.string() if pa.types.is_string_view(kind) else kind
        return pa.chunked_array([c.dictionary.cast(plain).take(c.indices) for c in column.chunks], plain)
    return pc.run_end_decode(column)


def _conversion(
    source: pa.DataType, target: pa.DataType, zone: Zone | None
) -> Callable[[pa.ChunkedArray], pa.ChunkedArray] | None:
    """The conversion from one type to another; None if there is none."""
    types = pa.types
    is_text = _is_text(source)
    if isinstance(target, pa.BaseExtensionType):
        return _to_json if not isinstance(source, pa.BaseExtensionType) else None
    if isinstance(source, pa.BaseExtensionType):
        if source.extension_name == "arrow.uuid" and types.is_string(target):
            return _each(str, target)
        is_json = source.extension_name == "arrow.json" and types.is_string(target)
        return (lambda c: _storage(c).cast(target)) if is_json else None
    is_number = types.is_integer(source) or types.is_floating(source) or types.is_decimal(source)
    if types.is_string(target):
        if is_text or is_number or types.is_date32(source):
            return _checked_back(target) if types.is_floating(source) else _cast(target)
        return None
    if types.is_binary(target):
        return _each(_from_base64, target) if is_text else _cast(target) if _is_binary(source) else None
    if types.is_integer(target) or types.is_floating(target) or types.is_decimal(target):
        return _to_number(source, target, is_text) if is_text or is_number else None
    if types.is_boolean(target):
        return _cast(target) if is_text else None
    if types.is_date32(target):
        return _to_date(source, is_text)
    if types.is_timestamp(target):
        return _to_timestamp(source, target, is_text, zone)
    if types.is_time(target):
        return _each(_to_time, target) if is_text else _cast(target) if types.is_time(source) else None
    alike = (types.is_struct, types.is_map, lambda t: types.is_list(t) or types.is_large_list(t) or _is_fixed_list(t))
    return _cast(target) if any(is_kind(source) and is_kind(target) for is_kind in alike) else None


def _is_text(data_type: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(data_type) or types.is_large_string(data_type) or types.is_string_view(data_type))


def _is_fixed_list(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(data_type))


def _is_binary(data_type: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(data_type)
        or types.is_large_binary(data_type)
        or types.is_binary_view(data_type)
        or types.is_fixed_size_binary(data_type)
    )


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)


def _cast(target: pa.DataType) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    return lambda column: column.cast(target)


def _checked_back(target: pa.DataType) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    """A cast whose result must equal the input when it is cast back."""

    def convert(column: pa.ChunkedArray) -> pa.ChunkedArray:
        found = column.cast(target)
        if not _same(found.cast(column.type), column):
            raise pa.ArrowInvalid("not the same")
        return found

    return convert


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    equal = pc.equal(one, other)
    if pa.types.is_floating(one.type):
        equal = pc.or_(equal, pc.and_(pc.is_nan(one), pc.is_nan(other)))
    return pc.all(equal, min_count=0).as_py() is not False


def _each(convert: Callable[[Any], Any], target: pa.DataType) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    """A conversion of each value in Python, for types that Arrow cannot cast."""

    def converted(column: pa.ChunkedArray) -> pa.ChunkedArray:
        values = [None if value is None else convert(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(values, target)])

    return converted


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _Because("text in a binary column must be base64") from None


def _to_time(text: str) -> time:
    value = time.fromisoformat(text)
    if value.tzinfo is not None:
        raise _Because("a time of day must not have a zone")
    return value


def _to_number(source: pa.DataType, target: pa.DataType, is_text: bool) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    types = pa.types
    if is_text and types.is_integer(target):
        return _from_digits(target)
    if is_text and types.is_floating(target):
        return _text_to_double
    if types.is_decimal(source) and types.is_floating(target):
        return _each(_decimal_to_double, target)
    if types.is_floating(source) and types.is_decimal(target):
        return _each(lambda value: _exact_decimal(value, target), target)
    if types.is_decimal(target):
        if is_text:
            return _text_to_decimal(target)
        return lambda column: _rescaled(
            column.cast(pa.decimal128(20, 0)) if types.is_integer(source) else column, target
        )
    return _cast(target)


def _rescaled(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """Change the precision and scale of decimals.

    Arrow 26 multiplies by the power of ten before it checks whether the product fits. In 128 bits,
    99999999999999.9999 as decimal(38,38) becomes 0.6386... without an error. In 256 bits, no value of 38 digits
    overflows.
    """
    source = column.type
    if source.precision - source.scale > 38:
        # More digits before the point than any target has: remove the unused ones first, without multiplying.
        column = column.cast(pa.decimal256(max(38 + source.scale, 1), source.scale))
    return column.cast(pa.decimal256(76, target.scale)).cast(target)


def _text_to_decimal(target: pa.DataType) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    def convert(column: pa.ChunkedArray) -> pa.ChunkedArray:
        doubtful = pc.or_(pc.greater(pc.utf8_length(column), 37), pc.match_substring(column, "e", ignore_case=True))
        if pc.any(doubtful).as_py():
            return _each(_to_decimal, target)(column)
        return column.cast(pa.decimal256(76, target.scale)).cast(target)

    return convert


def _to_decimal(text: str) -> Decimal:
    if not _DECIMAL.fullmatch(text):  # Python also accepts 1_000, Infinity, and digits of other scripts
        raise ValueError("not a decimal")
    return Decimal(text)


_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


def _from_digits(target: pa.DataType) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    def convert(column: pa.ChunkedArray) -> pa.ChunkedArray:
        if _may_have(column, b"xX") and pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
            # Arrow reads 0x10 as 16.
            raise pa.ArrowInvalid("not an integer")
        return column.cast(target)

    return convert


def _text_to_double(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert text to doubles. Numbers of up to 15 digits are always exact; longer ones are checked one at a time."""
    found = column.cast(pa.float64())
    doubtful = pc.or_(
        pc.greater(pc.utf8_length(column), 15),
        pc.or_(pc.match_substring(column, "e", ignore_case=True), pc.is_inf(found)),
    )
    for text in column.filter(doubtful).to_pylist():
        if not is_exact_double(text):
            raise _Because("a double does not hold all of its digits; declare the column as decimal or text")
    return found


def _may_have(column: pa.ChunkedArray, letters: bytes) -> bool:
    """Whether any of these ASCII letters is in the buffers of a text column."""
    if pa.types.is_string_view(column.type):
        return True
    memory = [chunk.buffers()[2].to_pybytes() for chunk in column.chunks if chunk.buffers()[2] is not None]
    return any(bytes([letter]) in texts for texts in memory for letter in letters)


def is_exact_double(text: str) -> bool:
    """Whether the double nearest to a number, written with as many digits, is that number."""
    value = float(text)
    if math.isnan(value):
        return True
    if math.isinf(value):
        return text.strip().lstrip("+-").lower().startswith("inf")
    number = Decimal(text)
    if number == 0:
        return True
    digits = len(number.as_tuple().digits)
    return number in (Decimal(repr(value)), Decimal(f"{value:.{digits - 1}e}"))


def _decimal_to_double(value: Decimal) -> float:
    if not is_exact_double(str(value)):
        raise _Because("a double does not hold all of its digits")
    return float(value)


def _exact_decimal(value: float, target: pa.DataType) -> Decimal:
    """The decimal that a double is written as: 0.1 becomes 0.1."""
    if not math.isfinite(value):
        raise _Because("a decimal must be finite")
    try:
        number = Decimal(repr(value))
        rounded = number.quantize(Decimal(1).scaleb(-target.scale))
    except InvalidOperation:
        raise _Because(f"it has more than {target.precision} digits") from None
    if rounded != number:
        raise _Because(f"it has more than {target.scale} decimal places")
    return rounded


_MIDNIGHT = r"^(\d{4}-\d{2}-\d{2})[ T]00:00(:00(\.0+)?)?$"
_MORE_ZEROS = r"(\.\d{6})0+"
_HAS_ZONE = r"(Z|[+-]\d{2}(:?\d{2})?)$"


def _to_date(source: pa.DataType, is_text: bool) -> Callable[[pa.ChunkedArray], pa.ChunkedArray] | None:
    types = pa.types
    if is_text:
        return lambda column: pc.replace_substring_regex(column, _MIDNIGHT, r"\1").cast(pa.date32())
    if types.is_timestamp(source) and source.tz is None:
        return _checked_back(pa.date32())
    return _checked_back(pa.date32()) if types.is_date(source) else None


def _to_timestamp(
    source: pa.DataType, target: pa.DataType, is_text: bool, zone: Zone | None
) -> Callable[[pa.ChunkedArray], pa.ChunkedArray] | None:
    types = pa.types
    if is_text:
        return lambda column: _text_to_timestamp(pc.replace_substring_regex(column, _MORE_ZEROS, r"\1"), target, zone)
    if types.is_timestamp(source) and bool(source.tz) == bool(target.tz):
        return _cast(target)
    if types.is_timestamp(source) and target.tz and zone:
        return lambda column: _in_zone(column.cast(NAIVE_US), zone)
    if types.is_date(source) and not target.tz:
        return _cast(target)
    if types.is_timestamp(source) and target.tz:
        return _refuse(_NO_ZONE)
    return None


def _refuse(why: str) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    def convert(column: pa.ChunkedArray) -> pa.ChunkedArray:
        if column.null_count < len(column):
            raise _Because(why)
        return column.cast(UTC_US)

    return convert


def _text_to_timestamp(column: pa.ChunkedArray, target: pa.DataType, zone: Zone | None) -> pa.ChunkedArray:
    if not target.tz or not zone:
        return column.cast(target)
    named = pc.match_substring_regex(column, _HAS_ZONE)
    plain = pc.if_else(named, pa.scalar(None, column.type), column)
    zoned = pc.if_else(named, column, pa.scalar(None, column.type))
    return pc.coalesce(zoned.cast(target), _in_zone(plain.cast(NAIVE_US), zone))


def _in_zone(column: pa.ChunkedArray, zone: Zone) -> pa.ChunkedArray:
    """Convert local times to timestamps in UTC. A time that occurs never, or twice in no known order, is an error."""
    name, ambiguous = zone
    try:
        return pc.assume_timezone(column, name, ambiguous=ambiguous, nonexistent="raise").cast(UTC_US)
    except pa.ArrowInvalid:
        raise _Because(f"this local time occurs twice or never in {name}") from None


def _to_json(column: pa.ChunkedArray) -> pa.ChunkedArray:
    write = _checked_json if _is_text(column.type) else json_text
    values = column.to_pylist(maps_as_pydicts="strict")
    texts = [None if value is None else write(value) for value in values]
    return pa.chunked_array([pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))])


def _checked_json(text: str) -> str:
    try:
        json.loads(text, parse_constant=_no_constant)
    except ValueError:
        raise _Because("it is not JSON") from None
    return text


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def json_text(value: Any) -> str:
    """Exact JSON text of a nested value: decimals keep all digits, dates and timestamps are in ISO format.

    Raises:
        ValueError: a value cannot be written as JSON: NaN, bytes, a key that is not text.
    """
    text: str = simplejson.dumps(_jsonable(value), use_decimal=True, ensure_ascii=False, separators=(",", ":"))
    return text


def _jsonable(value: Any) -> Any:
    if value is None or is_missing(value):
        return None
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Because("JSON has no NaN and no infinity")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _Because(f"the key {key!r} is not text")
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, Decimal) and value.is_finite():
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if type(value).__module__.partition(".")[0] == "numpy":
        return _jsonable(value.tolist())
    raise _Because(f"a {type(value).__name__} cannot be written as JSON")


def is_missing(value: Any) -> bool:
    """Whether a value is NaT or NA of pandas. NaT would otherwise count as a datetime."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == "pandas" and kind.__name__ in ("NaTType", "NAType")


def conform(
    table: pa.Table, contract: Contract, also: Mapping[str, pa.DataType | None] = MappingProxyType({})
) -> pa.Table:
    """Apply a contract to a source's table: declared columns in its types and order, others by its ``schema_contract``.

    Args:
        table: The table, with column names as in the lake.
        contract: The contract. If it declares no columns, every column is kept.
        also: Undeclared columns to keep in any case, with their type; None: the type that the column is stored as.

    Raises:
        Unfit: a value does not fit its declared type, or a column is not declared and the contract does not let it in.
    """
    wanted = {name: contract_type(data_type) for name, data_type in contract.columns.items()}
    rows = table.num_rows
    made = {
        # A declared column that the table lacks is null in every row.
        name: fit(table.column(name), data_type, name, contract.zone)
        if name in table.column_names
        else pa.chunked_array([pa.nulls(rows, data_type)])
        for name, data_type in wanted.items()
    }
    for name in table.column_names:
        if name in wanted:
            continue
        data_type = also.get(name)
        if data_type is not None:
            made[name] = fit(table.column(name), data_type, name, contract.zone)
        elif name in also or not contract.columns or contract.mode("columns") == "evolve":
            made[name] = _nested(stored(table.column(name), name), name, contract.nested)
        elif contract.mode("columns") == "freeze":
            raise Unfit(name, "is not in the contract")
        elif contract.mode("columns") == "discard_row" and table.column(name).null_count < rows:
            raise _undeclared(table.column(name), name)
    for name, column in made.items():
        _check_text(column, name)
    return pa.table(made) if made else table.select([])


def _undeclared(column: pa.ChunkedArray, name: str) -> Unfit:
    """The error of a column that a contract does not declare, and that has values."""

    def each() -> Iterator[tuple[int, str]]:
        for row in pc.indices_nonzero(pc.is_valid(column)).to_pylist():
            yield row, f"is not in the contract, but holds {_short(column[row].as_py())}"

    row, why = next(each())
    return Unfit(name, why, row, each)


def _nested(column: pa.ChunkedArray, name: str, nested: Nested) -> pa.ChunkedArray:
    """Objects and lists as JSON, or as values of Arrow, as a contract asks for."""
    is_json = column.type == JSON
    if nested == "json" and pa.types.is_nested(column.type):
        return fit(column, JSON, name)
    if nested != "struct" or not is_json:
        return column
    from ducklake_flows.sources.json_files import parsed

    try:
        texts = [text for chunk in column.chunks for text in chunk.storage.to_pylist()]
        values = [None if text is None else _sorted(parsed(text.encode(), "it")) for text in texts]
        made = pa.chunked_array([pa.array(values)])
    except (pa.ArrowException, ValueError, TypeError, OverflowError, SourceError) as error:
        raise Unfit(name, f"its values have no common structure: {error}; use nested='json'") from None
    return stored(made, name)


def _sorted(value: Any) -> Any:
    """A value of JSON with the keys of its objects in order, so that equal structures are equal types."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(inner) for inner in value] if isinstance(value, list) else value


def _check_text(column: pa.ChunkedArray, name: str) -> None:
    """Refuse a NUL in text: DuckLake 1.5.5 cuts its queries at a NUL, and keeps no statistics of a file with one.

    A filter with ``=`` is then an error, or finds nothing if another file has statistics.
    """
    for text in _texts_in(column):
        if pc.any(pc.match_substring(text, "\0")).as_py():
            row = _first_bad(_without_nul, column) if text is column else None
            raise Unfit(name, "text with a NUL character (\\0) cannot be stored", row)


def _without_nul(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pc.any(pc.match_substring(column, "\0")).as_py():
        raise pa.ArrowInvalid("NUL")
    return column


def _texts_in(column: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """The text in a stored column, including text within nested values."""
    types = pa.types
    if types.is_string(column.type):
        yield column
    elif types.is_struct(column.type):
        for inner in column.flatten():
            yield from _texts_in(inner)
    elif types.is_map(column.type):
        for chunk in column.chunks:
            yield from _texts_in(pa.chunked_array([chunk.keys]))
            yield from _texts_in(pa.chunked_array([chunk.items]))
    elif types.is_list(column.type):
        for chunk in column.chunks:
            yield from _texts_in(pa.chunked_array([chunk.flatten()]))


def is_number(data_type: pa.DataType) -> bool:
    """Whether values of a type are written with a decimal mark."""
    return bool(pa.types.is_floating(data_type) or pa.types.is_decimal(data_type))
