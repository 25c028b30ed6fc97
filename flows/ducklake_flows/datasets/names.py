"""Column names: how a source's names become columns, and which names become the same column."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@lru_cache(maxsize=10_000)
def column_name(source: str) -> str:
    """The column that a source's name becomes. A name that is already valid does not change.

    Letters, marks and digits of every script and underscores are kept, in lower case. A change of case starts a word
    (``orderId`` becomes ``order_id``). A run of other characters within a name becomes one underscore (``Order ID``).
    A name that would start with a digit gets a leading underscore.

    Returns:
        The column; "" if no character of the name can be kept.
    """
    words: list[str] = []
    before = ""
    for char in unicodedata.normalize("NFC", source):
        kept = char == "_" or unicodedata.category(char)[0] in "LMN"
        if kept and char.isupper() and char != char.lower() and (before.islower() or before.isdigit()):
            words.append(" ")
        words.append(char.lower() if kept else " ")
        before = char
    name = "_".join("".join(words).split())
    return f"_{name}" if name[:1].isdigit() else name


def columns_of(names: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """The column of each of a source's names.

    Args:
        names: The source's names, each once.
        rename: The contract's columns for some of them.

    Raises:
        ValueError: no column can be derived from a name. Two names that become the same column are not an error here,
            since they may never be in the same row: the caller checks with `clash`.
    """
    found = {}
    for number, name in enumerate(names, 1):
        found[name] = rename.get(name) or column_name(name)
        if not found[name]:
            raise ValueError(
                f"no column name can be derived from {name!r}, the name of column {number}: add "
                f'rename={{{name!r}: "..."}} to the contract'
            )
    return found


def clash(columns: Mapping[str, str]) -> tuple[str, str] | None:
    """The first two of a source's names that become the same column; None if there are none."""
    seen: dict[str, str] = {}
    for name, column in columns.items():
        if (other := seen.setdefault(column, name)) != name:
            return other, name
    return None


def clash_text(one: str, other: str, column: str) -> str:
    """The message about two names that become the same column."""
    return (
        f"{one!r} and {other!r} would both become column {column}: rename one of them in the contract, "
        f'for example with rename={{{other!r}: "..."}}'
    )
