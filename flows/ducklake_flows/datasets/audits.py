"""Audits: conditions that a partition's rows must meet before they are published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ducklake_flows.errors import BadInput

OnFail = Literal["reject", "warn", "quarantine"]


@dataclass(frozen=True)
class Audit:
    """A condition on a partition's rows, checked before it is published.

    Args:
        name: Name in the message about a failure.
        condition: A SQL expression over the columns of one row that must not be false, or an aggregate
            over the partition that must be true.
        on_fail: ``reject`` rejects the partition; ``warn`` publishes it with a warning; ``quarantine`` publishes it
            without the rows that break the condition, which are set aside, see `Dataset`.
        aggregate: Whether the condition is an aggregate over the partition.
    """

    name: str
    condition: str
    on_fail: OnFail = "reject"
    aggregate: bool = False

    def __post_init__(self) -> None:
        if self.on_fail not in get_args(OnFail):
            raise BadInput(f"{self.name}: on_fail={self.on_fail!r} is not known.", f"choose from {get_args(OnFail)}")
        if self.aggregate and self.on_fail == "quarantine":
            raise BadInput(f"{self.name}: an aggregate does not say which rows to set aside.", 'on_fail="reject"')


def not_null(*columns: str, on_fail: OnFail = "reject") -> Audit:
    """No row has a null in any of these columns."""
    return Audit(f"not_null({', '.join(columns)})", " AND ".join(f'"{c}" IS NOT NULL' for c in columns), on_fail)


def at_least(rows: int) -> Audit:
    """The partition has at least this many rows."""
    return Audit(f"at_least({rows})", f"count(*) >= {rows}", aggregate=True)


def expect(name: str, condition: str, on_fail: OnFail = "reject") -> Audit:
    """No row makes this SQL condition false (a null passes)."""
    return Audit(name, condition, on_fail)
