"""The contract: what a dataset's rows must look like."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args
from zoneinfo import available_timezones

from ducklake_flows.datasets.names import column_name
from ducklake_flows.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DECIMAL = re.compile(r"decimal\((\d{1,2}), ?(\d{1,2})\)")

DataType = str
"""A column's type in a contract: one of `TYPES`, or ``decimal(p,s)`` with a precision and a scale."""

TYPES = (
    *("text", "bigint", "double", "bool", "timestamp", "timestamp_ntz"),
    *("date", "time", "decimal", "binary", "json"),
)
"""dlt's names of column types, and ``timestamp_ntz`` for a timestamp without zone. A ``timestamp`` is stored in UTC."""

Zone = tuple[str, Literal["raise", "earliest", "latest"]]
"""The zone of times without one, and which of two moments such a time is that comes twice."""

Nested = Literal["keep", "json", "struct"]

Entity = Literal["tables", "columns", "data_type"]

Mode = Literal["evolve", "freeze", "discard_row", "discard_value"]

MODES: Mapping[Entity, tuple[Mode, ...]] = MappingProxyType(
    {
        "tables": ("freeze", "discard_row"),
        "columns": ("evolve", "freeze", "discard_row", "discard_value"),
        "data_type": ("evolve", "freeze", "discard_row"),
    }
)
"""The modes of each entity of a `Contract.schema_contract`; the first is the default."""


@dataclass(frozen=True)
class Contract:
    """What a dataset's rows must look like.

    Args:
        columns: Name and data type of every column, in order. Empty: they are inferred.
        schema_contract: What happens to data that the contract does not know, in dlt's terms: a mode for each of
            ``tables``, ``columns`` and ``data_type``, or one mode for all that have it. A discarded row is set aside in
            the dataset's quarantine table, see `Dataset`.

            - ``columns``, those that are not declared: ``evolve`` adds them to the table; ``freeze`` rejects the
              partition; ``discard_row`` sets aside the rows with a value in them; ``discard_value`` drops the values.
            - ``data_type``: a value that its declared type cannot hold rejects the partition, and the type of an
              undeclared column becomes wider (``evolve``), or not (``freeze``). ``discard_row`` sets aside the row.
            - ``tables``: other resources of a dlt source than the dataset's tables are an error (``freeze``), or are
              left out (``discard_row``).
        rename: Column by source name, for names that must not become what `ducklake_flows.datasets.names.column_name`
            returns.
        timezone: The zone of timestamps without one, such as ``Europe/Berlin``, for columns declared as ``timestamp``.
            None: that of the dataset; in UTC, the default, such values are refused.
        nested: How undeclared objects and lists are stored: ``keep`` as the source has them, as JSON from rows and JSON
            files, as STRUCT and LIST from Parquet and Arrow; ``json`` or ``struct`` the same from all.
        ambiguous: Which of two moments a time without zone is that comes twice when clocks go back. ``raise``: such a
            value is refused. The pipeline fills it in for the partition of one of the two hours.
        known: The DuckDB type of each column in the raw table, for sources with less precise types. The pipeline fills
            it in.
        aside: Takes the rows that are set aside. The pipeline fills it in if the contract discards rows.
    """

    columns: Mapping[str, DataType] = field(default_factory=dict)
    schema_contract: Mode | Mapping[Entity, Mode] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    timezone: str | None = None
    nested: Nested = "keep"
    ambiguous: Literal["raise", "earliest", "latest"] = field(default="raise", compare=False, repr=False)
    known: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    aside: Callable[[Refused], None] | None = field(default=None, compare=False, repr=False)

    def mode(self, entity: Entity) -> Mode:
        """The mode of an entity of the schema contract."""
        if isinstance(self.schema_contract, str):
            return self.schema_contract if self.schema_contract in MODES[entity] else MODES[entity][0]
        return self.schema_contract.get(entity, MODES[entity][0])

    @property
    def discards_rows(self) -> bool:
        """Whether rows that do not fit are set aside."""
        return "discard_row" in (self.mode("columns"), self.mode("data_type"))

    @property
    def zone(self) -> Zone | None:
        """The zone of timestamps without one; None if they are refused."""
        return (self.timezone, self.ambiguous) if self.timezone is not None else None

    def __post_init__(self) -> None:
        for name, data_type in self.columns.items():
            if not isinstance(name, str) or not name or column_name(name) != name:
                raise BadInput(f"{name!r} is not a column name.", like(name))
            if data_type not in TYPES and not _is_decimal(data_type):
                raise BadInput(
                    f"{name}: {data_type!r} is not a column type.", f"choose from {', '.join(TYPES)}, decimal(p,s)"
                )
        self._check_modes()
        if self.nested not in get_args(Nested):
            raise BadInput(f"nested={self.nested!r} is not known.", f"choose from {', '.join(get_args(Nested))}")
        for source, name in self.rename.items():
            if not name or column_name(name) != name:
                raise BadInput(f"rename: {source!r} cannot become {name!r}.", like(name))
        if self.timezone is not None and self.timezone not in available_timezones():
            raise BadInput(f"{self.timezone!r} is not a time zone.", "use a name such as Europe/Berlin or UTC")

    def _check_modes(self) -> None:
        given = self.schema_contract
        if isinstance(given, str):
            if given not in get_args(Mode):
                raise BadInput(f"schema_contract={given!r} is not known.", f"choose from {', '.join(get_args(Mode))}")
            return
        for entity, mode in given.items():
            if entity not in MODES:
                raise BadInput(f"schema_contract: {entity!r} is not known.", f"choose from {', '.join(MODES)}")
            if mode not in MODES[entity]:
                raise BadInput(
                    f"schema_contract: {entity} cannot be {mode!r}.", f"choose from {', '.join(MODES[entity])}"
                )


@dataclass(frozen=True, slots=True)
class Refused:
    """A row of a source that is set aside.

    Args:
        reason: Why, in one line.
        content: The row, as JSON or as the file's own text.
        column: The column whose value does not fit; "" if the row as a whole does not.
        file: The file that it comes from; "" if its source has none.
        line: Its line in the file, or its place among the rows of the file or the source, from 1.
    """

    reason: str
    content: str
    column: str = ""
    file: str = ""
    line: int = 0


def _is_decimal(data_type: object) -> bool:
    found = DECIMAL.fullmatch(data_type) if isinstance(data_type, str) else None
    return found is not None and 1 <= int(found[1]) <= 38 and int(found[2]) <= int(found[1])


def like(name: object) -> str:
    """The next step after an invalid column name: the valid spelling."""
    like = column_name(name) if isinstance(name, str) else ""
    return f"write it like this: {like}" if like else "use letters, digits and underscores"
