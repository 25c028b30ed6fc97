"""Rows that do not fit are set aside, each with what is wrong with it; the others are converted together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from ducklake_flows.datasets.contract import Contract, Refused
from ducklake_flows.sources.values import Unfit, json_text

Rows = TypeVar("Rows", pa.Table, Sequence[Mapping[str, Any]])


def sifted(
    rows: Rows,
    convert: Callable[[Rows], pa.Table],
    contract: Contract,
    where: Callable[[int], tuple[str, int]] = lambda row: ("", row + 1),
    first: int = 0,
) -> Iterator[tuple[Rows, pa.Table]]:
    """Convert rows. If the contract discards rows, those that do not fit are set aside, each on its own.

    Args:
        rows: A table, or a list of rows.
        convert: Converts them, or raises `Unfit`.
        contract: The contract.
        where: The file and the line of a row, by its number; see `Refused`.
        first: The number of the first row.

    Yields:
        The rows that were kept, as they came and converted, in order. Without a discarded row, they come at once.

    Raises:
        Unfit: the contract does not discard rows, or a column as a whole does not fit.
    """
    yield from _sifted(rows, convert, contract, where, range(first, first + len(rows)))


def _sifted(
    rows: Any,
    convert: Callable[[Any], pa.Table],
    contract: Contract,
    where: Callable[[int], tuple[str, int]],
    numbers: Sequence[int],
) -> Iterator[tuple[Any, pa.Table]]:
    while True:
        try:
            converted = convert(rows)
        except Unfit as error:
            if contract.aside is None or error.row is None:
                raise
            bad = dict(error.each()) if error.each is not None else {}
            if len(numbers) == 1:
                bad = {0: error.why}
            if not bad:
                half = len(numbers) // 2
                for start, end in ((0, half), (half, len(numbers))):
                    part = rows.slice(start, end - start) if isinstance(rows, pa.Table) else rows[start:end]
                    yield from _sifted(part, convert, contract, where, numbers[start:end])
                return
            refused = rows.take(list(bad)).to_pylist() if isinstance(rows, pa.Table) else [rows[row] for row in bad]
            for (number, why), row in zip(bad.items(), refused, strict=True):
                file, line = where(numbers[number])
                contract.aside(Refused(why, row_text(row), error.column, file, line))
            keep = [number not in bad for number in range(len(numbers))]
            if not any(keep):
                return
            rows = rows.filter(pa.array(keep)) if isinstance(rows, pa.Table) else list(itertools.compress(rows, keep))
            numbers = list(itertools.compress(numbers, keep))
        else:
            yield rows, converted
            return


def row_text(row: Mapping[str, Any]) -> str:
    """A row as JSON. Values that JSON cannot hold are written as Python writes them."""
    try:
        return json_text(row)
    except ValueError:
        return json.dumps({str(name): value for name, value in row.items()}, default=repr, ensure_ascii=False)
