"""Why a transaction failed: DuckDB's errors told apart by type, then by anchored patterns on DuckDB's own words.

Names of datasets, columns and paths stand in these texts too, so no word is looked for just anywhere: a pattern
begins where the text begins, and passes over the statement that DuckDB quotes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ducklake_flows.errors import CatalogError, CommitConflict

if TYPE_CHECKING:
    import duckdb

    from ducklake_flows.settings import Settings


class UnknownOutcome(CatalogError):
    """The catalog or the store went away, perhaps after COMMIT was sent: only the ledger knows."""


class Forbidden(CatalogError):
    """The catalog's role may only read."""


# "TransactionContext Error: Failed to commit: Failed to commit DuckLake transaction.\nFailed to flush changes into
# DuckLake: Failed to execute query "INSERT INTO ...": <cause>": the error's type, what failed from the outside in,
# the statement that was sent to the catalog (duckdb-postgres, duckdb-sqlite), and what the catalog said.
_CHAIN = r'\A(?:[A-Z][A-Za-z ]* Error: )?(?:Failed to [^":]*[:.]\s+)*'
_OUTER = _CHAIN + r'(?:Failed to (?:execute|prepare) (?:query|COPY) ".*": )?'

_CONFLICT = (
    r"Transaction conflict - attempting to ",  # DuckLakeTransaction, a logical conflict
    r"Exceeded the maximum retry count of ",  # DuckLakeTransaction, lost every race for the next snapshot
    r"database is locked\s*\Z",  # SQLite, SQLITE_BUSY
    r'ERROR:\s+duplicate key value violates unique constraint "ducklake_',  # PostgreSQL, the next snapshot's id
    r"ERROR:\s+(?:could not serialize access|deadlock detected)",  # PostgreSQL, REPEATABLE READ
)
_LOST = (
    r"server closed the connection unexpectedly",  # libpq
    r"(?:no connection to the server|connection not open|connection to server at |SSL |could not \w+ data )",  # libpq
    r"Unable to connect to Postgres at ",  # duckdb-postgres
    r"FATAL:\s",  # PostgreSQL: it ends the connection (57P01, 57P03)
    r"ERROR:\s+could not (?:extend|write|open|fsync) ",  # PostgreSQL, its disk is full or broken
    r"(?:disk I/O error|database or disk is full|unable to open database file)\s*\Z",  # SQLite
)
# The same without a cause: the connection is gone, so libpq has nothing to say (duckdb-postgres).
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
    """The error that a failed transaction means.

    Args:
        error: DuckDB's error.
        settings: Whose secrets are kept out of the text.
        committing: Whether COMMIT had been sent.

    Returns:
        A conflict, a catalog or a store that went away, a role that may not write; None for an error that is the
        fault of what was published.
    """
    import duckdb

    said, text = str(error), text_of(error, settings)
    # A conflict is only ever found by the statement itself, and then the transaction is over.
    if _IS_CONFLICT.search(said):
        return CommitConflict(f"Another writer changed the lake first: {text}", "run the same command again")
    if _IS_FORBIDDEN.search(said):
        return Forbidden(
            "The catalog's role may not change it: permission denied.", "use the role that owns the catalog"
        )
    if _IS_FULL.search(said):
        return UnknownOutcome(f"There is no space left for the lake's files: {text}", "free the disk, then try again")
    unanswered = isinstance(error, duckdb.HTTPException) and error.status_code >= 500
    if unanswered or _IS_STORE.search(said):
        return UnknownOutcome(f"The store of the lake's files does not answer: {text}", "check that it is up")
    gone = isinstance(error, duckdb.ConnectionException) or _IS_LOST.search(said) or _IS_SILENT.search(said)
    if committing or gone:
        return UnknownOutcome(
            f"The connection to the catalog was lost: {text}",
            "check that it is up, then the same command again: the ledger knows what was committed",
        )
    return None


def text_of(error: BaseException, settings: Settings) -> str:
    """An error in one line, at most 500 characters, without secrets."""
    return settings.redact(" ".join(str(error).split()))[:500]
