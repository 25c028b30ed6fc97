"""Audits: conditions that a partition's rows must meet before they are published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Audit:
    """A condition on a partition's rows, checked before it is published.

    Args:
        name: Name in the message about a failure.
        condition: A SQL expression over the columns of one row that must not be false, or an aggregate
            over the partition that must be true.
        on_fail: ``reject`` rejects the partition; ``warn`` publishes it with a warning.
        aggregate: Whether the condition is an aggregate over the partition.
    """

    name: str
    condition: str
    on_fail: Literal["reject", "warn"] = "reject"
    aggregate: bool = False


def not_null(*columns: str) -> Audit:
    """No row has a null in any of these columns."""
    return Audit(f"not_null({', '.join(columns)})", " AND ".join(f'"{c}" IS NOT NULL' for c in columns))


def at_least(rows: int) -> Audit:
    """The partition has at least this many rows."""
    return Audit(f"at_least({rows})", f"count(*) >= {rows}", aggregate=True)


def expect(name: str, condition: str, on_fail: Literal["reject", "warn"] = "reject") -> Audit:
    """No row makes this SQL condition false (a null passes)."""
    return Audit(name, condition, on_fail)
