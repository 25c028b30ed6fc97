"""Rate limit of a source."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Pace:
    """Limits how often a chunk asks its source for an item.

    Args:
        told: Returns the minimum seconds between two items, which may change at any time; 0: no limit. Called in the
            thread that waits.
        go_on: Raises if the chunk must stop; called while waiting.
    """

    def __init__(self, told: Callable[[], float], go_on: Callable[[], None]) -> None:
        self._told, self._go_on = told, go_on
        self.seconds = told()
        """The minimum seconds between two items, when last looked at."""
        # The previous chunk in the same slot may have just asked.
        self._last, self._may = time.monotonic(), not self.seconds

    def wait(self) -> None:
        """Wait until the source may be asked. An unused token carries over to the next partition."""
        while not self._may:
            self.seconds = self._told()
            left = self._last + self.seconds - time.monotonic()
            self._may = left <= 0
            self._go_on()
            time.sleep(min(max(left, 0), 0.5))
        self._last = time.monotonic()

    def asked(self) -> None:
        """Use the token: the source has answered."""
        self._may = not self.seconds
