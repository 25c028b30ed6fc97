"""Progress of a run: a Prefect progress artifact for the UI, a bar or plain lines for the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ducklake_flows.orchestration.artifacts import optional

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "partitions"
"""Key of the artifact."""

EVERY_SECONDS = 2.0
"""Minimum seconds between two updates of the artifact and the plain output."""


class Progress:
    """Counts finished partitions and published rows."""

    def __init__(self, total: int, bar: Bar, artifact: UUID | None) -> None:
        self._total, self._bar, self._artifact = total, bar, artifact
        self._task = bar.add_task("partitions", total=total, rows=0, failed=0)
        self._started = self._shown = time.monotonic()
        self._done = self._rows = self._failed = 0

    def advance(self, partitions: int, rows: int, failed: int) -> None:
        """Add one group to the counts."""
        self._done += partitions
        self._rows += rows
        self._failed += failed
        self._bar.update(self._task, completed=self._done, rows=self._rows, failed=self._failed)
        now = time.monotonic()
        if now - self._shown >= EVERY_SECONDS or self._done == self._total:
            self._shown = now
            if self._artifact is not None:
                with optional(KEY):
                    update_progress_artifact(self._artifact, progress=100 * self._done / max(self._total, 1))
            if not self._bar.console.is_terminal:
                left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
                self._bar.console.print(
                    f"  {self._done}/{self._total} partitions, {self._rows:,} rows"
                    + (f", {self._failed} failed" if self._failed else "")
                    + (f", about {left:.0f} s left" if self._done < self._total else "")
                )


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Progress]:
    """Show progress for the duration of a block.

    Args:
        total: Partitions to do.
        what: The datasets' names, for the artifact's description.
    """
    artifact: object = None
    with optional(KEY):
        artifact = create_progress_artifact(0.0, key=KEY, description=f"partitions of {what}")
    console = Console(file=sys.stderr)
    bar = Bar(
        TextColumn("  [progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TextColumn("{task.fields[failed]} failed", style="red"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        yield Progress(total, bar, artifact if isinstance(artifact, UUID) else None)
