"""The errors that users see: each says what failed and names the next step."""

from __future__ import annotations

import re
from typing import Any

_HIDDEN = (
    # postgresql://user:password@host
    (re.compile(r"(\w://[^\s/:@]*):[^\s/]+@"), r"\1:***@"),
    # Authorization: Bearer token
    (
        re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|digest|token)\s+)?)[^\s'\",]+", re.I),
        r"\1***",
    ),
    (re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.I), r"\1***"),
    # password=x, AWS_SECRET_ACCESS_KEY=x, api_key='x', X-Amz-Signature=x; "token": "x"
    (
        re.compile(
            r"""([\w-]*(?:passw(?:or)?d|passphrase|secret|token|signature|credential|(?:api|access|account|private)[_-]?key)[\w-]*
                (?:\s*=\s*|['"]\s*:\s*(?=['"])))(?:"[^"]*"|'[^']*'|[^\s,;&)'"]+)""",
            re.I | re.X,
        ),
        r"\1***",
    ),
    # In YAML: AWS_SECRET_ACCESS_KEY: x
    (re.compile(r"(\bAWS_[A-Z_]+:\s*)\S+"), r"\1***"),
    # In SQL: PASSWORD 'x'
    (re.compile(r"(\b(?:password|secret|key_id|session_token)\s+)'[^']*'", re.I), r"\1'***'"),
)
"""Patterns of secrets in the error texts of other software, each with its replacement."""

_CONCEALED: list[str] = []
"""Secrets that this process got while it ran, newest last."""

CONCEALED = 60
"""How many of them are remembered: of twenty renewals of keys. Older ones have expired."""


def conceal(*secrets: str) -> None:
    """Let `redacted` replace these texts from now on: secrets that are in no setting, such as issued tokens."""
    new = [secret for secret in secrets if secret and secret not in _CONCEALED]
    _CONCEALED[:] = [*_CONCEALED, *new][-CONCEALED:]


def redacted(text: str) -> str:
    """Replace everything that looks like a secret: passwords in URLs and settings, keys, tokens, signatures.

    And the texts that were given to `conceal`.
    """
    for secret in tuple(_CONCEALED):
        text = text.replace(secret, "***")
    for pattern, kept in _HIDDEN:
        text = pattern.sub(kept, text)
    return text


class LakeError(Exception):
    """An error that the user can act on.

    Args:
        message: What failed, and for which dataset or partition. Never contains a secret.
        fix: The next step, usually a command. Empty if there is none.
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
    """The request is invalid: an unknown dataset, a malformed date, a reversed range."""


class CatalogError(LakeError):
    """The catalog, the data path or the lake's folder cannot be used."""


class OldRelease(CatalogError):
    """The lake was written by an earlier release, and `lake init` has not brought it up to date."""


class NotInitialised(CatalogError):
    """The lake has no catalog or no tables yet."""


class StorageError(LakeError):
    """The data path's or the landing zone's bucket is missing, refuses the credentials, or does not answer."""


class CredentialsError(StorageError):
    """There are no S3 credentials, or they have expired or are refused. Not retried: a retry gives the same."""


class GateError(LakeError):
    """The commit gate is missing, over-allocated, or could not be entered in time."""


class GateBusy(GateError):
    """The gate was not free within the caller's timeout."""


class NoSource(LakeError):
    """The source has no data for this partition (yet)."""


class SourceError(LakeError):
    """The source has data for this partition, but it cannot be read according to the contract."""


class SourceUnavailable(SourceError):
    """The source does not answer now, or changed while it was read: the partition is read again (`Dataset.retries`)."""


class SourceTimeout(SourceError):
    """The source gave nothing within the dataset's timeout. Not retried: a retry would occupy the worker as long."""


class Rejected(LakeError):
    """The partition was read, but its rows violate the dataset's contract or an audit."""


class CommitConflict(LakeError):
    """Another writer changed the same table first, and all retries within the gate failed."""


class PublishedInBetween(LakeError):
    """Another attempt was published after the rollback was staged; nothing was changed."""


class RunFailed(LakeError):
    """A run ended with failed partitions or models; all others are done.

    Args:
        message: Which partitions or models failed, and why.
        fix: The next step.
        summary: What the run did, as plain values.
    """

    def __init__(self, message: str, fix: str = "", summary: dict[str, Any] | None = None) -> None:
        super().__init__(message, fix)
        self.summary = summary or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.fix, self.summary)
