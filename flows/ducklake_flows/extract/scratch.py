"""Temporary folders of extraction: locked while in use, swept once their process is dead."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRATCH = "lake-extract-"
"""Prefix of the temporary folders of extraction."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, locked while this process uses it; see `sweep`."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder, Path(folder, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def sweep() -> None:
    """Remove the folders of killed workers on this machine: the kernel has released their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        # The folder may be another user's, in use or already removed. A new one may not be locked yet.
        with contextlib.suppress(OSError), (folder / "lock").open("r+") as lock:
            if time.time() - Path(folder, "lock").stat().st_mtime > 60:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
