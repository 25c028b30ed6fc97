"""The lattice of types: which DuckDB type holds the values of two others, and which values a cast preserves.

A later partition may widen a column of its raw table, but never by a cast that changes a value. Types are names in
DuckDB (``BIGINT``, ``STRUCT(a INTEGER)[]``). This module reads no data: `exact` only writes SQL.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb.sqltypes import DuckDBPyType

_SIGNED = {"tinyint": 8, "smallint": 16, "integer": 32, "bigint": 64}
_UNSIGNED = {"utinyint": 8, "usmallint": 16, "uinteger": 32, "ubigint": 64}
_DIGITS = {
    "tinyint": 3,
    "smallint": 5,
    "integer": 10,
    "bigint": 19,
    "hugeint": 38,
    "utinyint": 3,
    "usmallint": 5,
    "uinteger": 10,
    "ubigint": 20,
    "uhugeint": 38,
}
"""Decimal digits of each integer type. 128 bits would need 39, so each of those values is checked."""

_FLOATS = ("float", "double")
_MOMENTS = ("timestamp_s", "timestamp_ms", "timestamp", "timestamp_ns")
"""Timestamps without zone, from coarse to fine."""

_WIDEST = 38
"""Digits of the widest DECIMAL."""

_EXACT_DOUBLE = 1 << 53
"""Every integer up to this one is exact as a DOUBLE, and no other integer is the same DOUBLE."""

_CONTRACT = {
    "BOOLEAN": "bool",
    "VARCHAR": "text",
    "FLOAT": "double",
    "DOUBLE": "double",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
    "TIMESTAMP": "timestamp_ntz",
    "TIMESTAMP_S": "timestamp_ntz",
    "TIMESTAMP_MS": "timestamp_ntz",
    "DATE": "date",
    "TIME": "time",
    "BLOB": "binary",
    "JSON": "json",
    "UBIGINT": "decimal(20,0)",
    "HUGEINT": "decimal(38,0)",
    "UHUGEINT": "decimal(38,0)",
}


def join(there: str, new: str) -> str | None:
    """The smallest type that holds the values of both types: all of them, or those for which `exact` is true.

    Args:
        there: The DuckDB type in the table.
        new: The DuckDB type of the new values.

    Returns:
        The DuckDB type; None if there is none. Text holds only text.
    """
    return _join_texts(there, new)


@cache
def _join_texts(there: str, new: str) -> str | None:
    if there == new:
        return there
    joined = _join(_parsed(there), _parsed(new))
    return None if joined is None else str(joined)


def exact(column_sql: str, source: str, target: str) -> str:
    """A SQL condition that is true for the values that ``CAST(column AS target)`` does not change.

    Args:
        column_sql: An expression of the source type.
        source: The DuckDB type of the expression.
        target: The DuckDB type it is cast to.

    Returns:
        The condition, never null; ``true`` if the cast preserves every value.
    """
    one, other = _parsed(source), _parsed(target)
    if _keeps_all(one, other):
        return "true"
    if one.id in _DIGITS and other.id == "double":
        # Beyond this range, several integers become the same DOUBLE, or become equal to a number that they were not.
        return f"coalesce({column_sql} BETWEEN -{_EXACT_DOUBLE} AND {_EXACT_DOUBLE}, true)"
    if one.id in _MOMENTS and other.id in _MOMENTS[_MOMENTS.index(one.id) :]:
        # Check the range first: even TRY_CAST raises an error for a timestamp out of range (DuckDB 1.5.5).
        first, end = ("1677-09-22", "2262-04-11") if other.id == "timestamp_ns" else ("0001-01-01", "10000-01-01")
        within = f"{column_sql} >= CAST('{first}' AS {source}) AND {column_sql} < CAST('{end}' AS {source})"
        return f"coalesce({within}, true)"
    return f"(TRY_CAST(TRY_CAST({column_sql} AS {target}) AS {source}) IS NOT DISTINCT FROM {column_sql})"


def contract_line(name: str, data_type: str) -> str:
    """The entry in the contract's columns that declares this type, such as ``"v": "double"``."""
    kind = _parsed(data_type)
    if kind.id == "decimal":
        precision, scale = _decimal(kind)
        declared = f"decimal({precision},{scale})"
    elif kind.id in ("struct", "list", "map", "array", "union"):
        declared = "json"
    else:
        declared = _CONTRACT.get(str(kind), "bigint" if kind.id in _DIGITS else "text")
    return f'"{name}": "{declared}"'


def reads_as(source: str, target: str) -> bool:
    """Whether a Parquet column of one type can be read as the other unchanged, with the same `fingerprint_sql`.

    FLOAT cannot be read as DOUBLE: DuckLake 1.5.5 stores a FLOAT's bounds as text (0.2), and a DOUBLE of the same value
    (0.20000000298) is outside of them.
    """
    if source == target:
        return True
    ids = {_parsed(source).id, _parsed(target).id}
    return ids <= {*_SIGNED, *_UNSIGNED} - {"ubigint"} and join(source, target) == target


def is_untyped(data_type: str) -> bool:
    """Whether a column of this type holds only nulls."""
    return _parsed(data_type).id == "null"


@cache
def _parsed(data_type: str) -> DuckDBPyType:
    import duckdb

    return duckdb.sqltype(data_type)


def _join(there: DuckDBPyType, new: DuckDBPyType, *, nested: bool = False) -> DuckDBPyType | None:
    if str(there) == str(new) or new.id == "null":
        return there
    if there.id == "null":
        return new
    ids = {there.id, new.id}
    # JSON is an alias of VARCHAR: the table keeps its type.
    if ids == {"varchar"}:
        return there
    if ids <= _DIGITS.keys():
        return _join_integers(there, new)
    if ids <= {*_DIGITS, "decimal"}:
        return _join_decimals(there, new)
    if ids <= {*_DIGITS, *_FLOATS}:
        return _parsed("DOUBLE")
    # Nested values are checked by a cast and its reverse, which raises an error for some timestamps.
    if ids <= set(_MOMENTS) and not nested:
        return max(there, new, key=lambda kind: _MOMENTS.index(kind.id))
    if len(ids) == 1 and there.id in ("list", "map", "struct"):
        return _join_nested(there, new)
    return None


def _join_integers(there: DuckDBPyType, new: DuckDBPyType) -> DuckDBPyType | None:
    """The smallest integer type; DECIMAL instead of 128 bits, which DuckLake writes as DOUBLE."""
    bits = [(_SIGNED | _UNSIGNED).get(kind.id, 128) for kind in (there, new)]
    signed = [kind.id in _SIGNED for kind in (there, new)]
    if max(bits) == 128:
        return _join_decimals(there, new)
    if signed[0] == signed[1]:
        return there if bits[0] >= bits[1] else new
    # A signed type needs one bit more than an unsigned one.
    wanted = max(b if s else b + 1 for b, s in zip(bits, signed, strict=True))
    fitting = [name for name, size in _SIGNED.items() if size >= wanted]
    return _parsed(fitting[0]) if fitting else _join_decimals(there, new)


def _join_decimals(there: DuckDBPyType, new: DuckDBPyType) -> DuckDBPyType | None:
    """A DECIMAL with enough digits before and after the point for both; None if it would need too many."""
    import duckdb

    (left, right), (other_left, other_right) = (_digits(kind) for kind in (there, new))
    left, right = max(left, other_left), max(right, other_right)
    return duckdb.decimal_type(left + right, right) if left + right <= _WIDEST else None


def _digits(kind: DuckDBPyType) -> tuple[int, int]:
    """Digits before and after the point."""
    if kind.id in _DIGITS:
        return _DIGITS[kind.id], 0
    precision, scale = _decimal(kind)
    return precision - scale, scale


def _decimal(kind: DuckDBPyType) -> tuple[int, int]:
    children: dict[str, Any] = dict(kind.children)
    return children["precision"], children["scale"]


def _within(kind: DuckDBPyType) -> dict[str, Any]:
    """The types within a nested type: ``child``, ``key`` and ``value``, or the fields."""
    return dict(kind.children)


def _join_nested(there: DuckDBPyType, new: DuckDBPyType) -> DuckDBPyType | None:
    """Join by element, by key and value, or by field. A struct may gain fields, which come last."""
    import duckdb

    fields, more = _within(there), _within(new)
    if there.id == "struct":
        names = {name.casefold(): name for name in fields}
        more = {names.get(name.casefold(), name): kind for name, kind in more.items()}
    joined: dict[str, Any] = {
        name: _join(fields.get(name, kind), more.get(name, kind), nested=True)
        for name, kind in {**more, **fields}.items()
    }
    if None in joined.values():
        return None
    if there.id == "list":
        return duckdb.list_type(joined["child"])
    if there.id == "map":
        return duckdb.map_type(joined["key"], joined["value"])
    return duckdb.struct_type({name: joined[name] for name in [*fields, *(n for n in more if n not in fields)]})


def _keeps_all(source: DuckDBPyType, target: DuckDBPyType) -> bool:
    """Whether the cast preserves every value of the source type."""
    if str(source) == str(target) or source.id == "null" or (source.id, target.id) == ("float", "double"):
        return True
    if str(source) == "JSON" and str(target) == "VARCHAR":
        return True
    if source.id in _DIGITS and target.id == "double":
        return (_SIGNED | _UNSIGNED).get(source.id, 128) <= 32
    if {source.id, target.id} <= {*_DIGITS, "decimal"} and not source.id.endswith("hugeint"):
        joined = _join(source, target)
        return joined is not None and str(joined) == str(target)
    if source.id == target.id and source.id in ("list", "map"):
        within = _within(target)
        return all(_keeps_all(kind, within[name]) for name, kind in _within(source).items())
    if source.id == target.id == "struct":
        fields = {name.casefold(): kind for name, kind in _within(target).items()}
        return all(
            name.casefold() in fields and _keeps_all(kind, fields[name.casefold()])
            for name, kind in _within(source).items()
        )
    return False
