"""The errors a user can meet: each says what failed and the command that goes on from there."""

from __future__ import annotations

from typing import Any


class LakeError(Exception):
    """Something the user can act on.

    Args:
        message: What failed, and for which dataset or partition. Never holds a secret.
        fix: The next step, usually a command. Empty when there is none to name.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\nNext: {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.fix)


class BadInput(LakeError):
    """The request itself is wrong: an unknown dataset, a malformed date, a reversed range."""


class CatalogError(LakeError):
    """The catalog, the data path or the lake's folder cannot be used."""


class NotInitialised(CatalogError):
    """The lake has no catalog or no tables yet."""


class StorageError(LakeError):
    """The data path's or the landing zone's bucket is missing, refuses the credentials, or does not answer."""


class GateError(LakeError):
    """The commit gate is missing, over-allocated, or could not be entered in time."""


class NoSource(LakeError):
    """The source has nothing for this partition (yet)."""


class SourceError(LakeError):
    """The source has something for this partition, but it cannot be read as the contract says."""


class Rejected(LakeError):
    """The partition was read, but its rows break the dataset's contract or an audit."""


class CommitConflict(LakeError):
    """Another writer changed the same table first, and the retries within the gate ran out."""


class PublishedInBetween(LakeError):
    """Another attempt was published after a rollback had been staged; nothing was changed."""


class RunFailed(LakeError):
    """A run ended with partitions or models that failed; the others are done.

    Args:
        message: Which failed, and why.
        fix: The next step.
        summary: What the run did do, as plain values.
    """

    def __init__(self, message: str, fix: str = "", summary: dict[str, Any] | None = None) -> None:
        super().__init__(message, fix)
        self.summary = summary or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.fix, self.summary)
