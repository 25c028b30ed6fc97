"""The oracle: which lake values represent a source's values. Plain Python, independent of the code under test."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import cmp_to_key
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

EPOCH = datetime(1970, 1, 1)
EXACT_DOUBLE = 2**53


class Nano(int):
    """A moment without a zone, in nanoseconds since 1970."""


class Single(float):
    """A float of 32 bits."""


@dataclass(frozen=True)
class Cell:
    """A value of a CSV file: its text; never null."""

    text: str
    decimal: str = "."


def column(name: str) -> str:
    """The column name for a source's name, by the documented rule."""
    name = unicodedata.normalize("NFC", name)
    spaced = "".join(c if c == "_" or unicodedata.category(c)[0] in "LMN" else " " for c in name)
    split = ""
    for index, char in enumerate(spaced):
        is_start = (
            index
            and char.isupper()
            and char != char.lower()
            and (spaced[index - 1].islower() or spaced[index - 1].isdigit())
        )
        split += (" " if is_start else "") + char
    found = "_".join(word.lower() if word.isascii() else "".join(c.lower() for c in word) for word in split.split())
    return "_" + found if found and found[0].isdigit() else found


def stands_for(got: Any, given: Any, kind: str, zone: str | None = None, declared: bool = False) -> bool:
    """Whether a value from the lake represents a value from the source exactly.

    Args:
        got: The value from the lake.
        given: The value from the source.
        kind: The DuckDB type of its column.
        zone: The contract's time zone.
        declared: Whether the contract has a type for the column. Then text may represent the value that it spells.
    """
    if given is None or got is None:
        return given is None and got is None
    if kind == "JSON":
        return _is_json(got, given)
    if isinstance(given, Cell):
        return _is_text(got, given.text, zone, declared, given.decimal)
    if isinstance(given, str):
        return got == given if isinstance(got, str) else declared and _is_text(got, given, zone, True)
    if isinstance(given, bool) or isinstance(got, bool):
        return got is given
    if isinstance(given, Nano):
        moment = EPOCH + timedelta(microseconds=given // 1000)
        return given % 1000 == 0 and _is_moment(got, moment, zone)
    if isinstance(given, int | float | Decimal):
        return _is_number(got, given)
    if isinstance(given, datetime):
        return _is_moment(got, given, zone)
    if isinstance(given, date):
        if isinstance(got, datetime):
            return got == datetime(given.year, given.month, given.day)
        return bool(got == (given.isoformat() if isinstance(got, str) else given))
    if isinstance(given, UUID):
        return bool(got == str(given))
    if isinstance(given, Mapping | list | tuple):
        return _is_json(got, given) if isinstance(got, str) else _is_nested(got, given)
    return type(got) is type(given) and bool(got == given)


def _is_moment(got: Any, given: datetime, zone: str | None) -> bool:
    if isinstance(got, datetime):
        if given.tzinfo is None and got.tzinfo is not None:
            return zone is not None and given.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) == got.astimezone(UTC)
        return (got.tzinfo is None) == (given.tzinfo is None) and got == given
    if isinstance(got, date):
        return given.tzinfo is None and given == datetime(got.year, got.month, got.day)
    return False


def _is_number(got: Any, given: int | float | Decimal) -> bool:
    if isinstance(given, float):
        if isinstance(got, float):
            if math.isnan(given) or math.isnan(got):
                return math.isnan(given) and math.isnan(got)
            return got == given and math.copysign(1, got) == math.copysign(1, given)
        if not math.isfinite(given):
            return isinstance(got, str) and repr(float(got)) == repr(float(given))
        if isinstance(got, str):
            return float(got) == given or (isinstance(given, Single) and _single(float(got)) == given)
        exact = {Decimal(repr(float(given))), Decimal(given)}
        if isinstance(given, Single):
            exact.add(Decimal(_shortest(given)))
        return isinstance(got, int | Decimal) and Decimal(got) in exact
    if isinstance(got, float):
        if isinstance(given, int):
            return got == given and abs(given) <= EXACT_DOUBLE
        return math.isfinite(got) and (Decimal(repr(got)) == given or Decimal(got) == given)
    if isinstance(got, str):
        try:
            return Decimal(got) == given
        except InvalidOperation:
            return False
    return isinstance(got, int | Decimal) and got == given


def _single(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _shortest(value: float) -> str:
    return next(text for digits in range(1, 18) if _single(float(text := f"{value:.{digits}g}")) == value)


def _is_text(got: Any, text: str, zone: str | None, declared: bool, decimal: str = ".") -> bool:
    """Whether a value is what a text spells. In an undeclared column, ids must keep their text: 007 is not 7."""
    if isinstance(got, str):
        return got == text
    if isinstance(got, bool):
        return text.lower() == str(got).lower() or (declared and text == str(int(got)))
    if isinstance(got, int | float | Decimal):
        number = text.replace(decimal, ".")
        if decimal != "." and "." in text:
            return False
        if isinstance(got, float) and not math.isfinite(got):
            return declared and repr(float(number)) == repr(got)
        if not declared and not re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", number):
            return False
        try:
            return Decimal(repr(got) if isinstance(got, float) else got) == Decimal(number)
        except InvalidOperation:
            return False
    try:
        if isinstance(got, datetime):
            return _is_moment(got, datetime.fromisoformat(re.sub(r"(\.\d{6})0+", r"\1", text)), zone)
        if isinstance(got, date):
            return datetime.fromisoformat(text) == datetime(got.year, got.month, got.day)
        if isinstance(got, time):
            return time.fromisoformat(text) == got
        if isinstance(got, bytes):
            return declared and base64.b64decode(text, validate=True) == got
    except ValueError:
        return False
    return False


def _is_json(got: Any, given: Any) -> bool:
    if not isinstance(got, str):
        return False
    if isinstance(given, str | Cell):
        text = given.text if isinstance(given, Cell) else given
        return got == text
    try:
        return _is_jsonable(json.loads(got, parse_float=Decimal), given)
    except ValueError:
        return False


def _is_jsonable(got: Any, given: Any) -> bool:
    if given is None or isinstance(given, bool | str):
        return type(got) is type(given) and got == given
    if isinstance(given, Mapping):
        return (
            isinstance(got, dict)
            and set(got) == set(map(str, given))
            and all(_is_jsonable(got[str(key)], value) for key, value in given.items())
        )
    if isinstance(given, list | tuple):
        return isinstance(got, list) and len(got) == len(given) and all(map(_is_jsonable, got, given))
    if isinstance(given, Nano):
        return got == (EPOCH + timedelta(microseconds=given // 1000)).isoformat() and given % 1000 == 0
    if isinstance(given, Single):
        return isinstance(got, int | Decimal) and _single(float(got)) == given
    if isinstance(given, int | float | Decimal):
        if isinstance(got, bool) or not isinstance(got, int | Decimal):
            return False
        return Decimal(got) == Decimal(repr(float(given)) if isinstance(given, float) else given)
    if isinstance(given, datetime) and given.tzinfo is not None:
        return isinstance(got, str) and datetime.fromisoformat(got) == given
    if isinstance(given, datetime | date | time):
        return bool(got == given.isoformat())
    return bool(got == str(given)) if isinstance(given, UUID) else False


def _is_nested(got: Any, given: Any) -> bool:
    """Compare by element; a struct field that is missing in the source is null."""
    if isinstance(given, Mapping):
        return (
            isinstance(got, Mapping)
            and given.keys() <= got.keys()
            and all(stands_for(value, given.get(name), "", None) for name, value in got.items())
        )
    return (
        isinstance(got, list | tuple)
        and len(got) == len(given)
        and all(stands_for(value, other, "", None) for value, other in zip(got, given, strict=True))
    )


def equal(one: Any, other: Any) -> bool:
    """Equality as in DuckDB: NaN equals NaN."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return bool(one == other)


def compare(one: Any, other: Any) -> int:
    """Order as in DuckDB: NaN above all numbers, text by code points, false before true. Never called with null."""
    if isinstance(one, float) and isinstance(other, float) and (math.isnan(one) or math.isnan(other)):
        return math.isnan(one) - math.isnan(other)
    return int(one > other) - int(one < other)


def ordered(rows: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The keys of (key, value) rows, sorted by value, then key; null last."""
    rows = list(rows)
    there = [row for row in rows if row[1] is not None]
    there.sort(key=lambda row: row[0])
    by_value = cmp_to_key(compare)
    there.sort(key=lambda row: by_value(row[1]))
    return [key for key, _ in there] + sorted(key for key, value in rows if value is None)


def counted(values: Sequence[Any]) -> list[int]:
    """The number of occurrences of each distinct value, sorted."""
    left, found = list(values), []
    while left:
        first = left[0]
        same = [value for value in left if equal(value, first)]
        found.append(len(same))
        left = [value for value in left if not equal(value, first)]
    return sorted(found)


class Malformed(Exception):
    """A CSV text that violates its dialect."""


def csv_rows(
    text: str,
    delimiter: str = ",",
    quote: str = '"',
    escape: str = '"',
    comment: str = "",
    skip: int = 0,
    nulls: Sequence[str] = ("",),
    decimal: str = ".",
) -> tuple[list[str], list[list[Cell | None]]]:
    """A CSV text's header and rows, by the documented rules.

    Raises:
        Malformed: the text violates the rules.
    """
    for _ in range(skip):
        text = re.split("\r\n|\n|\r", text, maxsplit=1)[1]
    records: list[list[tuple[str, bool]]] = []
    at = 0
    while at < len(text):
        if comment and text.startswith(comment, at):
            at = _end(text, at)
            continue
        fields: list[tuple[str, bool]] = []
        while True:
            value, quoted, at = _field(text, at, delimiter, quote, escape)
            fields.append((value, quoted))
            if text.startswith(delimiter, at):
                at += len(delimiter)
                continue
            at = _end(text, at)
            break
        records.append(fields)
    if not records:
        raise Malformed("no header")
    header = [value for value, _ in records[0]]
    rows = []
    for fields in records[1:]:
        if fields == [("", False)] and len(header) > 1:
            continue
        if len(fields) != len(header):
            raise Malformed(f"{len(fields)} columns")
        rows.append([Cell(v, decimal) if quoted or v not in nulls else None for v, quoted in fields])
    return header, rows


def _end(text: str, at: int) -> int:
    """The position after the next line end."""
    found = re.compile("\r\n|\n|\r").search(text, at)
    return found.end() if found else len(text)


def _field(text: str, at: int, delimiter: str, quote: str, escape: str) -> tuple[str, bool, int]:
    if quote and text.startswith(quote, at):
        value, at = "", at + 1
        while True:
            if at >= len(text):
                raise Malformed("quote not closed")
            char, after = text[at], text[at + 1 : at + 2]
            if char == escape and after and after in (quote, escape):
                value, at = value + after, at + 2
            elif char == quote:
                at += 1
                break
            else:
                value, at = value + char, at + 1
        if at < len(text) and not text.startswith((delimiter, "\n", "\r"), at):
            raise Malformed("text beside a quoted value")
        return value, True, at
    end = at
    while end < len(text) and not text.startswith((delimiter, "\n", "\r"), end):
        end += 1
    return text[at:end], False, end
