"""Audits: conditions that a partition's rows must meet before they are published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ducklake_flows.datasets.partitions import window
from ducklake_flows.errors import BadInput

if TYPE_CHECKING:
    from datetime import timedelta

OnFail = Literal["reject", "warn", "quarantine"]


@dataclass(frozen=True)
class Band:
    """What is usual: a range around the median of the partitions before.

    Args:
        low: The least, as a multiple of the median.
        high: The most, as a multiple of the median.
        last: How many partitions before count; of a dataset of grain ``full``, attempts. With fewer than
            `ENOUGH`, everything passes.
    """

    low: float
    high: float
    last: int


ENOUGH = 3
"""The least number of earlier partitions that say what is usual."""


@dataclass(frozen=True)
class Reference:
    """The column of another dataset that has all values of a column.

    Args:
        column: The column.
        dataset: The other dataset's key.
        other: Its column.
    """

    column: str
    dataset: str
    other: str


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest value of a column is at most so long before the partition's end; see `fresh`."""

    column: str
    within: timedelta


@dataclass(frozen=True)
class Audit:
    """A condition on a partition's rows, checked before it is published. Its result is a row of ``ops.checks``.

    Args:
        name: Name in the message about a failure.
        condition: A SQL expression over the columns of one row that must not be false, or an aggregate
            over the partition that must be true.
        on_fail: ``reject`` rejects the partition; ``warn`` publishes it with a warning; ``quarantine`` publishes it
            without the rows that break the condition, which are set aside, see `Dataset`.
        aggregate: Whether the condition is an aggregate over the partition.
        measure: An aggregate over the partition, in SQL, whose value is kept with the result. "": of a condition on
            rows, the number of rows that break it.
        expected: What the measure should be, for the reader.
        band: The measure must be what is usual.
        reference: The values of a column must be in another dataset when the partition is published.
        newest: The newest value of a column must not be old.
    """

    name: str
    condition: str = "true"
    on_fail: OnFail = "reject"
    aggregate: bool = False
    measure: str = ""
    expected: str = ""
    band: Band | None = None
    reference: Reference | None = None
    newest: Newest | None = None

    def __post_init__(self) -> None:
        if self.on_fail not in get_args(OnFail):
            raise BadInput(f"{self.name}: on_fail={self.on_fail!r} is not known.", f"choose from {get_args(OnFail)}")
        if self.is_of_the_whole and self.on_fail == "quarantine":
            raise BadInput(f"{self.name}: an aggregate does not say which rows to set aside.", 'on_fail="reject"')

    @property
    def is_of_the_whole(self) -> bool:
        """Whether the partition as a whole meets the condition or not."""
        return self.aggregate or self.band is not None or self.reference is not None


def not_null(*columns: str, on_fail: OnFail = "reject") -> Audit:
    """No row has a null in any of these columns."""
    return Audit(f"not_null({', '.join(columns)})", " AND ".join(f'"{c}" IS NOT NULL' for c in columns), on_fail)


def at_least(rows: int, on_fail: OnFail = "reject") -> Audit:
    """The partition has at least this many rows."""
    return Audit(f"at_least({rows})", f"count(*) >= {rows}", on_fail, True, "count(*)", f"at least {rows:,}")


def expect(name: str, condition: str, on_fail: OnFail = "reject") -> Audit:
    """No row makes this SQL condition false (a null passes)."""
    return Audit(name, condition, on_fail)


def accepted_values(column: str, *values: str | float, on_fail: OnFail = "reject") -> Audit:
    """Every value of a column is one of these (a null passes)."""
    allowed = ", ".join(f"'{v.replace(chr(39), chr(39) * 2)}'" if isinstance(v, str) else repr(v) for v in values)
    return Audit(f"accepted_values({column})", f'"{column}" IN ({allowed})', on_fail)


def unique(*columns: str, on_fail: OnFail = "reject") -> Audit:
    """No two rows of the partition have the same values in these columns. Rows with a null in one are left out."""
    names = ", ".join(f'"{column}"' for column in columns)
    whole = " AND ".join(f'"{column}" IS NOT NULL' for column in columns)
    twice = f"count(*) FILTER ({whole}) - count(DISTINCT row({names})) FILTER ({whole})"
    return Audit(f"unique({', '.join(columns)})", f"{twice} = 0", on_fail, True, twice, "0 rows too many")


def null_rate(column: str, most: float, on_fail: OnFail = "reject") -> Audit:
    """At most this part of a column's values is null: 0.05 of them."""
    rate = f'coalesce(count(*) FILTER ("{column}" IS NULL) / nullif(count(*), 0), 0)'
    return Audit(f"null_rate({column})", f"{rate} <= {most}", on_fail, True, rate, f"at most {most}")


def fresh(column: str, within: timedelta | str | int, on_fail: OnFail = "reject") -> Audit:
    """The newest value of a column of dates or timestamps is at most so long before the partition's end.

    So the result is the same whenever the partition is loaded. What has no end, or has not ended yet, is compared with
    the time at which it is read. A timestamp without a zone, and a date (its midnight), are in the dataset's zone.
    Without a value, it fails.

    Args:
        column: The column.
        within: ``"26 hours"``, a timedelta, or a number of days.
        on_fail: See `Audit`.
    """
    name = f"fresh({column})"
    found = window(name, "within", within)
    if found is None:
        raise BadInput(f"{name}: within is missing.", 'within="26 hours"')
    text = within.strip() if isinstance(within, str) else str(found)
    expected = f"within {text} of the partition's end"
    return Audit(name, "true", on_fail, True, f'max("{column}")', expected, newest=Newest(column, found))


def measured(name: str, measure: str, condition: str, on_fail: OnFail = "reject") -> Audit:
    """An aggregate of the partition, such as ``sum(amount)``, meets a condition, such as ``BETWEEN 0 AND 1000``.

    The condition follows the aggregate in SQL. A null passes.
    """
    return Audit(name, f"coalesce(({measure}) {condition}, true)", on_fail, True, measure, condition)


def steady(
    measure: str = "count(*)", low: float = 0.5, high: float = 2.0, last: int = 7, on_fail: OnFail = "warn"
) -> Audit:
    """An aggregate of the partition is from `low` to `high` times the median of the `last` partitions before it.

    Those that are published when this one is count. Fewer than three tell nothing: then everything passes.
    """
    expected = f"{low:g} to {high:g} times the median of the last {last}"
    return Audit(f"steady({measure})", "true", on_fail, True, measure, expected, Band(low, high, last))


def references(column: str, dataset: str, other: str = "", on_fail: OnFail = "reject") -> Audit:
    """Every value of a column is in a column of another dataset when the partition is published (a null passes)."""
    other = other or column
    return Audit(
        f"references({column}, {dataset}.{other})",
        "true",
        on_fail,
        True,
        "",
        f"in {dataset}.{other}",
        reference=Reference(column, dataset, other),
    )
