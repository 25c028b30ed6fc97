"""The states of a partition, the modes by which a run selects states, and the order in which it runs partitions."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a partition.

    ``published``, ``failed``, ``rejected`` and ``rolled_back`` are states of its latest ledger row. ``stale`` is a
    published partition whose source has changed. ``missing`` has no ledger row yet. ``no_source`` has neither a ledger
    row nor data at its source.
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
        """The state as text for people."""
        return self.value.replace("_", " ")


class Mode(StrEnum):
    """Which partitions a backfill runs. The command line spells modes with dashes and accepts several."""

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
        """Its spelling on the command line."""
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


class Order(StrEnum):
    """The order in which a run extracts partitions, by their start; with a limit it also decides which ones."""

    newest = "newest"
    oldest = "oldest"


PUBLISHED = (State.published, State.rolled_back)
"""States of a ledger row whose attempt's rows are in the raw table."""

RETYPED = "retyped"
"""State of a ledger row that only records a new fingerprint of a published attempt, after a column was widened."""
