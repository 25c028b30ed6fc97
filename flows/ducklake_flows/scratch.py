"""Temporary folders: locked while in use, swept once their process is dead."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRATCH = "lake-scratch-"
"""Prefix of the temporary folders."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, locked while this process uses it; see `sweep`."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder, Path(folder, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


@cache
def scratch_of_process() -> Path:
    """A temporary folder that is kept until this process ends."""
    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    return kept.enter_context(scratch())


def sweep() -> None:
    """Remove the folders of killed processes on this machine: the kernel has released their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        # The folder may be another user's, in use or already removed. A new one may not be locked yet.
        with contextlib.suppress(OSError), (folder / "lock").open("r+") as lock:
            if time.time() - Path(folder, "lock").stat().st_mtime > 60:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
