"""Named points on a partition's way, at which a test may have this process killed. Off, one costs a comparison.

`tests/faults` goes through all of them. The switch is a file with a point's name in it, LAKE_KILL_AT: the first
process to reach the point takes the file away and is gone, as by a power cut: nothing is closed, nothing cleaned up.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Literal, get_args

from flows.settings import KILL_AT

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
]

POINTS: tuple[Point, ...] = get_args(Point)


def reached(point: Point) -> None:
    """Go on; or end here, when a test has said so."""
    if KILL_AT:
        _end_at(point, Path(KILL_AT))


def _end_at(point: Point, switch: Path) -> None:
    try:
        if switch.read_text() != point:
            return
        switch.unlink()
    except FileNotFoundError:
        return  # another process was the first
    os.kill(os.getpid(), signal.SIGKILL)
