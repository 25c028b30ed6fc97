"""JSON files, read with Python: lines or one array, numbers with all their digits, and errors with their line."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ducklake_flows.errors import SourceError
from ducklake_flows.sources.values import is_exact_double

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BATCH = 10_000
"""Rows per list."""

_FIX = "export the file again"


def read(
    path: Path, aside: Callable[[int, str, str], None] | None = None
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Stream a file's objects in lists, each with the number of its first object: its line, or its place in the array.

    Lines and places count from 1. A number is an int, a float if that holds all of its digits, or a Decimal.

    Args:
        path: A local UTF-8 file of JSON lines or one JSON array of objects. An array is read as a whole.
        aside: Takes a line that is no JSON object: its number, why, and its text. None: it is an error.

    Raises:
        SourceError: a line or element is not a JSON object; names the line.
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if start.startswith(b"["):
            yield from _array(file.read())
            return
        rows: list[dict[str, Any]] = []
        first = 1
        for number, line in enumerate(file, 1):
            row = None
            if line.strip(b" \t\r\n\xef\xbb\xbf" if number == 1 else b" \t\r\n"):
                try:
                    row = _quickly(line) or _object(parsed(line, f"line {number}"), f"line {number}")
                except SourceError as error:
                    if aside is None:
                        raise
                    what = error.message.removeprefix(f"line {number} ")
                    aside(number, what, line.decode(errors="backslashreplace").rstrip("\r\n"))
            if row is None:
                if rows:  # a list contains consecutive lines only
                    yield first, rows
                    rows = []
                continue
            if not rows:
                first = number
            rows.append(row)
            if len(rows) == BATCH:
                yield first, rows
                rows = []
        if rows:
            yield first, rows


def _quickly(line: bytes) -> dict[str, Any] | None:
    """Parse a flat object without long numbers and without duplicate keys; None for any other line."""
    if _LONG.search(line):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and line.count(b'":') == len(value) else None


_LONG = re.compile(rb"[0-9.]{17}|[0-9.][eE]|NaN|Infinity")
"""Matches every number that a double may not hold."""


def _array(text: bytes) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    rows = [_object(row, f"element {number}") for number, row in enumerate(parsed(text, "the array"), 1)]
    for start in range(0, len(rows), BATCH):
        yield start + 1, rows[start : start + BATCH]


def parsed(text: bytes, where: str) -> Any:
    """Parse one JSON text. A number is an int, a float if that holds all of its digits, or a Decimal.

    Args:
        text: UTF-8.
        where: What the text is, for errors.

    Raises:
        SourceError: it is not JSON, or an object has a key twice.
    """
    try:
        return _DECODER.decode(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is not UTF-8 (at byte {error.start + 1})", _FIX) from None
    except json.JSONDecodeError as error:
        raise SourceError(f"{where} is not JSON: {error.msg} at character {error.colno}", _FIX) from None
    except _Twice as error:
        raise SourceError(f"{where} has the key {error.args[0]!r} twice", _FIX) from None
    except RecursionError:
        raise SourceError(f"{where} is nested too deeply", _FIX) from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SourceError(f"{where} is not a JSON object", _FIX)
    return value


class _Twice(Exception):
    """A duplicate key in an object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def _number(text: str) -> float | Decimal:
    """Parse a number with a point or an exponent: a double if that holds all digits, otherwise a decimal."""
    value = float(text)
    if len(text) <= 16 and "e" not in text and "E" not in text:
        return value
    return value if is_exact_double(text) else Decimal(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_number)
