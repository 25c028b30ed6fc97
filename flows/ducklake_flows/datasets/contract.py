"""The contract: what a dataset's rows must look like."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args
from zoneinfo import available_timezones

from ducklake_flows.datasets.names import column_name
from ducklake_flows.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping

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

NewColumns = Literal["evolve", "freeze", "discard_value"]


@dataclass(frozen=True)
class Contract:
    """What a dataset's rows must look like.

    Args:
        columns: Name and data type of every column, in order. Empty: they are inferred.
        new_columns: How to handle undeclared columns: ``evolve`` adds them to the table, ``freeze`` rejects the
            partition, ``discard_value`` drops them.
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
    """

    columns: Mapping[str, DataType] = field(default_factory=dict)
    new_columns: NewColumns = "evolve"
    rename: Mapping[str, str] = field(default_factory=dict)
    timezone: str | None = None
    nested: Nested = "keep"
    ambiguous: Literal["raise", "earliest", "latest"] = field(default="raise", compare=False, repr=False)
    known: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

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
        if self.new_columns not in get_args(NewColumns):
            raise BadInput(
                f"new_columns={self.new_columns!r} is not known.", f"choose from {', '.join(get_args(NewColumns))}"
            )
        if self.nested not in get_args(Nested):
            raise BadInput(f"nested={self.nested!r} is not known.", f"choose from {', '.join(get_args(Nested))}")
        for source, name in self.rename.items():
            if not name or column_name(name) != name:
                raise BadInput(f"rename: {source!r} cannot become {name!r}.", like(name))
        if self.timezone is not None and self.timezone not in available_timezones():
            raise BadInput(f"{self.timezone!r} is not a time zone.", "use a name such as Europe/Berlin or UTC")


def _is_decimal(data_type: object) -> bool:
    found = DECIMAL.fullmatch(data_type) if isinstance(data_type, str) else None
    return found is not None and 1 <= int(found[1]) <= 38 and int(found[2]) <= int(found[1])


def like(name: object) -> str:
    """The next step after an invalid column name: the valid spelling."""
    like = column_name(name) if isinstance(name, str) else ""
    return f"write it like this: {like}" if like else "use letters, digits and underscores"
