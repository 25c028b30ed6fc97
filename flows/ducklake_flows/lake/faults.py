"""Why a transaction failed: DuckDB's errors are classified by type, then by anchored patterns on their text.

The texts also contain names of datasets, columns and paths, which must not match. Each pattern therefore starts at the
beginning of the text and skips the statement that DuckDB quotes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ducklake_flows.errors import CatalogError, CommitConflict

if TYPE_CHECKING:
    import duckdb

    from ducklake_flows.settings import Settings


class UnknownOutcome(CatalogError):
    """The catalog or the store failed, perhaps after COMMIT was sent: only the ledger shows the outcome."""


class Forbidden(CatalogError):
    """The catalog's role is read-only."""


# "TransactionContext Error: Failed to commit: Failed to commit DuckLake transaction.\nFailed to flush changes into
# DuckLake: Failed to execute query "INSERT INTO ...": <cause>": the error's type, the failed steps from the outside in,
# the statement that was sent to the catalog (duckdb-postgres, duckdb-sqlite), and the catalog's error.
_CHAIN = (
    r'\A(?:[A-Z][A-Za-z ]* Error: )?(?:Failed to [^":]*[:.]\s+'
    # Part of every error of a commit, since commits are not repeated.
    r"|Exceeded the maximum retry count of [^\n]*\n\. Consider [^\n]*\n)*"
)
_OUTER = _CHAIN + r'(?:Failed to (?:execute|prepare) (?:query|COPY) ".*": )?'

_CONFLICT = (
    r"Transaction conflict - attempting to ",  # DuckLakeTransaction, a logical conflict
    r"database is locked\s*\Z",  # SQLite, SQLITE_BUSY
    r'ERROR:\s+duplicate key value violates unique constraint "ducklake_',  # PostgreSQL, the next snapshot's id
    r"ERROR:\s+(?:could not serialize access|deadlock detected)",  # PostgreSQL, REPEATABLE READ
)
_LOST = (
    r"server closed the connection unexpectedly",  # libpq
    r"(?:no connection to the server|connection not open|connection to server at |SSL |could not \w+ data )",  # libpq
    r"Unable to connect to Postgres at ",  # duckdb-postgres
    r"FATAL:\s",  # PostgreSQL, closes the connection (57P01, 57P03)
    r"ERROR:\s+could not (?:extend|write|open|fsync) ",  # PostgreSQL, its disk is full or broken
    r"(?:disk I/O error|database or disk is full|unable to open database file)\s*\Z",  # SQLite
)
# The same without a cause: libpq has no text for a connection that is already closed (duckdb-postgres).
_SILENT = (
    r'\A(?:.* Error: )?(?:Failed to [^":]*[:.]\s+)*Failed to execute query "(?:ROLLBACK|COMMIT|BEGIN[^"]*)": \s*\Z'
)
_FORBIDDEN = (
    r"ERROR:\s+permission denied for ",  # PostgreSQL, 42501
    r"attempt to write a readonly database\s*\Z",  # SQLite
)
# "Could not connect to server error for HTTP HEAD to 'http://...'" (httpfs): the store did not answer at all.
_STORE = r"\AIO Error: (?:Failed to [^\":]*: )?[^\"':]* error for HTTP [A-Z]+ to '"
_NO_SPACE = r"\AIO Error: .*: No space left on device\s*\Z"


def _one_of(causes: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(_OUTER + f"(?:{'|'.join(causes)})", re.DOTALL)


_IS_CONFLICT, _IS_LOST, _IS_FORBIDDEN = map(_one_of, (_CONFLICT, _LOST, _FORBIDDEN))
_IS_SILENT, _IS_STORE, _IS_FULL = (re.compile(pattern, re.DOTALL) for pattern in (_SILENT, _STORE, _NO_SPACE))


def explain(error: duckdb.Error, settings: Settings, *, committing: bool) -> CatalogError | CommitConflict | None:
    """Classify the error of a failed transaction.

    Args:
        error: DuckDB's error.
        settings: Secrets to remove from the text.
        committing: Whether COMMIT was sent.

    Returns:
        A conflict, a failed catalog or store, or a role that may not write. None if the cause is what was published.
    """
    import duckdb

    said, text = str(error), text_of(error, settings)
    # Only the statement itself reports a conflict, and the transaction has ended then.
    if _IS_CONFLICT.search(said):
        return CommitConflict(f"Another writer changed the lake first: {text}", "run the same command again")
    if _IS_FORBIDDEN.search(said):
        return Forbidden("The catalog's role may not write: permission denied.", "use the role that owns the catalog")
    if _IS_FULL.search(said):
        return UnknownOutcome(
            f"There is no space left for the lake's files: {text}", "free disk space, then run the same command again"
        )
    unanswered = isinstance(error, duckdb.HTTPException) and error.status_code >= 500
    if unanswered or _IS_STORE.search(said):
        return UnknownOutcome(
            f"The storage of the data path does not answer: {text}",
            "check that it is up, then run the same command again",
        )
    gone = isinstance(error, duckdb.ConnectionException) or _IS_LOST.search(said) or _IS_SILENT.search(said)
    if committing or gone:
        return UnknownOutcome(
            f"The connection to the catalog was lost: {text}",
            "check that it is up, then run the same command again: the ledger shows what was committed",
        )
    return None


def text_of(error: BaseException, settings: Settings) -> str:
    """The text of an error in one line, without secrets, at most 500 characters."""
    return settings.redact(" ".join(str(error).split()))[:500]
