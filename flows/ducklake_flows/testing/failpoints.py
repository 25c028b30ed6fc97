"""Failpoints: named places at which a test can kill this process.

Unless a test has called `arm` in this process, a failpoint does nothing; no setting and no environment variable can
change that. Once armed, the first process that reaches the point whose name is in the switch file removes the file
and kills itself with SIGKILL, as a power cut would: nothing is closed and nothing is cleaned up.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from pathlib import Path

Point = Literal[
    # A Dask worker.
    "before extract",
    "mid extract",
    "file written",
    # The flow's process.
    "receipted",
    "gate held",
    "after BEGIN",
    "after the fence",
    "schema committed",
    "after DELETE",
    "after registration",
    "before COMMIT",
    "after COMMIT",
    "before the slot is freed",
    "before the event",
    # SQLMesh's process.
    "mid interval",
    "interval committed",
    # The flow's process again.
    "before the build is recorded",
    "mid compaction",
    "mid cleanup",
    # A migration of a table: a partition's new file is staged; the table has its new columns.
    "copy staged",
    "table swapped",
    # A repair, also one that a publish needs before its own commit.
    "repair committed",
    # A move of the lake.
    "mid copy",
    "catalog staged",
    "state copied",
    "compared",
    "moved",
]

POINTS: tuple[Point, ...] = get_args(Point)

_switch: Path | None = None


def arm(switch: Path | None) -> None:
    """Make this process end at the point that the switch file names; None disarms it."""
    global _switch  # noqa: PLW0603 - a process has one switch
    _switch = switch


def failpoint(point: Point) -> None:
    """Do nothing; or, where a test armed this point, kill this process."""
    if _switch is not None:
        _end_at(point, _switch)


def _end_at(point: Point, switch: Path) -> None:
    try:
        if switch.read_text() != point:
            return
        switch.unlink()
    except FileNotFoundError:
        return  # another process was the first
    os.kill(os.getpid(), signal.SIGKILL)
