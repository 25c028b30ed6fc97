"""What a worker returns to the publisher: a receipt for a staged partition, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ducklake_flows.datasets.dataset import QUARANTINE

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of an audit on a partition.

    Args:
        name: The audit.
        on_fail: What happens if it fails, see `ducklake_flows.datasets.audits.Audit`.
        passed: Whether it passed.
        observed: What was measured: the number of rows that break it, or an aggregate's value, as text.
        expected: What it should be, for the reader.
        failed_rows: The number of rows that break it; None if it is about the partition as a whole.
        sample: Some of these rows, as a JSON list.
    """

    name: str
    on_fail: str
    passed: bool
    observed: str
    expected: str
    failed_rows: int | None = None
    sample: str = "[]"


def rows_text(number: int) -> str:
    """A number of rows as a result shows it: ``1 row``, ``1,204 rows``."""
    return f"{number:,} row{'s' if number != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """One staged partition, ready to publish.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.
        attempt_id: Id of this attempt, its files and its ledger row.
        files: Paths below the data path.
        rows: Rows in the files.
        bytes: Size of the files.
        columns: Name and DuckDB type of each column, in the files' order.
        fingerprint: Digest of the rows, independent of their order.
        source_version: Version that the source reported before it was read; "" if it cannot tell.
        seconds: Time that the worker spent on this partition.
        peak_rss: Peak memory of the worker process so far, in bytes.
        warnings: Audits that failed and only warn.
        restores: For a rollback: the earlier attempt whose rows these are.
        profile: Seconds by stage, in order; the partition's share if several partitions shared a stage.
        source_values: Number of non-null values of each column that the source gave; its rows are under "".
        values: The same numbers in the staged files.
        supersedes: For a rollback or a repair from a snapshot: the attempt that it replaces. It is refused if another
            one has been published since.
        source: The file, URL or function that the rows were read from.
        members: The receipts of the dataset's other tables, which are published with it or not at all.
        checks: The results of the dataset's audits.
    """

    dataset: str
    partition: str
    attempt_id: str
    files: tuple[str, ...]
    rows: int
    bytes: int
    columns: dict[str, str]
    fingerprint: str
    source_version: str
    seconds: float
    peak_rss: int
    warnings: tuple[str, ...] = ()
    restores: str = ""
    profile: Mapping[str, float] = field(default_factory=dict)
    source_values: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, int] = field(default_factory=dict)
    supersedes: str = ""
    source: str = ""
    members: tuple[Receipt, ...] = ()
    checks: tuple[Checked, ...] = ()

    @property
    def all(self) -> tuple[Receipt, ...]:
        """This receipt and those of the other tables."""
        return self, *self.members

    @property
    def quarantined(self) -> int:
        """The partition's rows that are set aside."""
        return sum(member.rows for member in self.members if member.dataset == f"{self.dataset}__{QUARANTINE}")


@dataclass(frozen=True, slots=True)
class Failure:
    """A partition that could not be staged.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.
        attempt_id: Id of this attempt and its ledger row.
        state: ``failed`` (could not be read), ``rejected`` (breaks the contract or an audit), or ``no_source``.
        error: One line, without secrets.
        source_version: As in the receipt.
        seconds: Time that the worker spent on it.
        profile: As in the receipt.
        fix: What to do about the error; "" if the error does not say.
        traceback: Of an exception of the source's own code; "" for any other error. Only for the task's log.
        checks: As in the receipt.
    """

    dataset: str
    partition: str
    attempt_id: str
    state: Literal["failed", "rejected", "no_source"]
    error: str
    source_version: str = ""
    seconds: float = 0.0
    profile: Mapping[str, float] = field(default_factory=dict)
    fix: str = ""
    traceback: str = ""
    checks: tuple[Checked, ...] = ()


Outcome = Receipt | Failure
