"""The vocabulary of states: where a partition stands, and which states a run takes up."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a partition stands.

    ``published``, ``failed``, ``rejected`` and ``rolled_back`` are states of the ledger's latest row; ``stale`` is a
    published partition whose source has changed; ``missing`` has no row yet; ``no_source`` has neither a row nor
    anything at its source.
    """

    published = "published"
    stale = "stale"
    failed = "failed"
    rejected = "rejected"
    rolled_back = "rolled_back"
    missing = "missing"
    no_source = "no_source"

    @property
    def label(self) -> str:
        """The state in words, for people."""
        return self.value.replace("_", " ")


class Mode(StrEnum):
    """Which partitions a backfill runs; the command line spells it with dashes and takes several."""

    missing = "missing"
    failed = "failed"
    missing_failed = "missing_failed"
    stale = "stale"
    all = "all"

    @classmethod
    def _missing_(cls, value: object) -> Mode | None:
        found = value.replace("-", "_") if isinstance(value, str) else None
        return next((mode for mode in cls if mode.value == found), None)

    @property
    def option(self) -> str:
        """How the command line spells it."""
        return self.value.replace("_", "-")

    @property
    def states(self) -> frozenset[State]:
        """The states of the partitions that it runs."""
        return _STATES[self]


_STATES = {
    Mode.missing: frozenset({State.missing}),
    Mode.failed: frozenset({State.failed, State.rejected}),
    Mode.missing_failed: frozenset({State.missing, State.failed, State.rejected}),
    Mode.stale: frozenset({State.stale}),
    Mode.all: frozenset(State) - {State.no_source},
}

PUBLISHED = (State.published, State.rolled_back)
"""States of a ledger row whose attempt's rows are in the raw table."""

RETYPED = "retyped"
"""State of a ledger row that only records a published attempt's new fingerprint: a column of its table was widened."""
