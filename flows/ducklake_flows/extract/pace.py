"""Rate limit of a source."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Pace:
    """Limits how often a chunk asks its source for an item.

    Args:
        seconds: Minimum time between two items.
        go_on: Raises if the chunk must stop; called while waiting.
    """

    def __init__(self, seconds: float, go_on: Callable[[], None]) -> None:
        self.seconds, self._go_on = seconds, go_on
        # The previous chunk in the same slot may have just asked.
        self._due, self._may = time.monotonic() + seconds, not seconds

    def wait(self) -> None:
        """Wait until the source may be asked. An unused token carries over to the next partition."""
        while not self._may:
            left = self._due - time.monotonic()
            self._may = left <= 0
            self._go_on()
            time.sleep(min(max(left, 0), 0.5))
        self._due = time.monotonic() + self.seconds

    def asked(self) -> None:
        """Use the token: the source has answered."""
        self._may = not self.seconds
