"""One fenced transaction of a command that is not a publish: repeated if another writer was first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ducklake_flows.errors import CommitConflict, LakeError
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.faults import explain, text_of
from ducklake_flows.lake.fence import check_release
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from duckdb import DuckDBPyConnection

    from ducklake_flows.settings import Settings

RETRIES = 5
"""Maximum number of transactions tried if another writer is first, within one hold of the gate."""


def committed(settings: Settings, work: Callable[[DuckDBPyConnection], int | None]) -> int | None:
    """Run a transaction until it is committed. Call it within the gate.

    Args:
        settings: Where the lake is.
        work: Writes within the open transaction; returns its snapshot, or None if there is nothing (more) to do. It is
            called again after a conflict, and by the user's next command if an answer was lost.

    Raises:
        CommitConflict: other writers were first in every retry.
        CatalogError: the catalog cannot be read or written, or did not answer.
        LakeError: DuckDB refused the work.
    """
    conflicts = Retrying(
        retry=retry_if_exception_type(CommitConflict),
        stop=stop_after_attempt(RETRIES),
        wait=wait_random_exponential(0.05, max=1.0),
        reraise=True,
    )
    done: int | None = conflicts(_once, settings, work)
    return done


def _once(settings: Settings, work: Callable[[DuckDBPyConnection], int | None]) -> int | None:
    import duckdb

    con = connect(settings)
    done = None
    try:
        check_release(con)
        con.execute("BEGIN")
        done = work(con)
        con.execute("ROLLBACK" if done is None else "COMMIT")
        if done is not None:
            failpoint("after COMMIT")
    except duckdb.Error as error:
        raise explain(error, settings, committing=done is not None) or LakeError(
            f"The lake could not be written: {text_of(error, settings)}", "lake verify"
        ) from None
    finally:
        con.close()
    return done
