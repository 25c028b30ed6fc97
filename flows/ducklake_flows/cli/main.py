"""The `lake` command. It holds no logic of its own: it calls the flows or reads the lake, and prints."""

from __future__ import annotations

import errno
import gc
import os
import sys

# In the order of `lake --help`.
from ducklake_flows.cli import manage, runs, look, care  # isort: skip
from ducklake_flows.cli.common import app, tell
from ducklake_flows.errors import LakeError
from ducklake_flows.settings import load_settings

__all__ = ["app", "care", "look", "manage", "runs"]

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in shells."""


def main() -> None:
    """Run the command. A known error prints one message and the next step, and exits with 1."""
    # The terminal shows the run's own lines; Prefect's log is in its UI.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Searching tens of thousands of partitions for reference cycles takes a third of `lake status`.
    gc.set_threshold(100_000)
    try:
        app()
    except LakeError as error:
        _fail(error)
    except OSError as error:
        _fail(_file_error(error))
    except SystemExit as ended:
        # Typer turns Ctrl-C into this exit, without a message.
        if ended.code == INTERRUPTED:
            tell(LakeError("Stopped. What was published stays published.", "run the same command again to continue"))
        raise
    except Exception as error:
        # Not imported here: a command that has not used DuckDB cannot raise its errors.
        duckdb = sys.modules.get("duckdb")
        if duckdb is None or not isinstance(error, duckdb.Error):
            raise
        from ducklake_flows.lake.connect import service_error

        _fail(service_error(error, load_settings()))


def _file_error(error: OSError) -> LakeError:
    """The user's error for a file of this host."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return LakeError(
        f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
        "free space on the disk, then run the same command again" if full else "check the path and its permissions",
    )


def _fail(error: LakeError) -> None:
    tell(error)
    sys.exit(1)


if __name__ == "__main__":
    main()
