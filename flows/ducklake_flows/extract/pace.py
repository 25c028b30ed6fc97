"""How often a source is asked."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Keeps a chunk from asking its source more often than it may.

    Args:
        seconds: Between two items.
        go_on: Raises when the chunk is to stop; asked while waiting.
    """

    def __init__(self, seconds: float, go_on: Callable[[], None]) -> None:
        self._seconds, self._go_on = seconds, go_on
        # The chunk before this one, in the same place, may have asked just now.
        self._due, self._may = time.monotonic() + seconds, not seconds

    def wait(self) -> None:
        """Wait before the source is asked. An unused token carries over to the next partition."""
        while not self._may:
            left = self._due - time.monotonic()
            self._may = left <= 0
            self._go_on()
            time.sleep(min(max(left, 0), 0.5))
        self._due = time.monotonic() + self._seconds

    def asked(self) -> None:
        """The source has answered."""
        self._may = not self._seconds
