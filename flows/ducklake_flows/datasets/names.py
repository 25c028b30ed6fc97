"""Column names: how a source's names become columns, and which of them would become one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache


@lru_cache(maxsize=10_000)
def column_name(source: str) -> str:
    """The column that a source's name becomes; a name that is one already stays as it is.

    Letters, marks and digits of every script and underscores are kept, in lower case. A change of case starts a word
    (``orderId`` becomes ``order_id``), and a run of other characters within a name is one underscore (``Order ID``).
    A name that would start with a digit gets an underscore before it.

    Returns:
        The column, "" where nothing of the name can be kept.
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
        names: As the source spells them, each once.
        rename: The contract's own choice for some of them.

    Raises:
        ValueError: a name has nothing that a column's name could be made of. Two names that become the same column are
            the caller's to find, with `clash`, for they may never stand in the same row.
    """
    found = {}
    for number, name in enumerate(names, 1):
        found[name] = rename.get(name) or column_name(name)
        if not found[name]:
            raise ValueError(
                f'column {number} is called {name!r}, of which no column can be named: add rename={{{name!r}: "..."}} '
                "to the contract"
            )
    return found


def clash(columns: Mapping[str, str]) -> tuple[str, str] | None:
    """The first two of a source's names that become the same column, None when there are none."""
    seen: dict[str, str] = {}
    for name, column in columns.items():
        if (other := seen.setdefault(column, name)) != name:
            return other, name
    return None


def clash_text(one: str, other: str, column: str) -> str:
    """What is said of two names that become the same column."""
    return (
        f"{one!r} and {other!r} would both be the column {column}: rename one of them in the contract, "
        f'rename={{{other!r}: "..."}}'
    )
