"""The gate: a Prefect global concurrency limit of one, through which every writer of the catalog goes.

It is for throughput and manners: one writer at a time is faster than several that race, and SQLite knows no other
way. What keeps the lake right without it is the fence, which this module does not know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from flows.errors import GateError

NAME = "ducklake-commit"
TRANSFORM = "lake-transform"
"""A second limit of one, held for the whole of a transform: SQLMesh has no lock of its own between two runs."""

LEASE_SECONDS = 60
"""How long a holder that died keeps the slot at most, plus the server's reaper period."""

WAIT_SECONDS = 900
"""How long a writer waits to get in before it gives up."""


@contextlib.contextmanager
def hold(name: str = NAME, timeout: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the gate for the length of a block; keep it short.

    The slot is taken strictly: without the limit nothing is written. A lease that cannot be renewed does not stop
    the block, since a commit must not be torn; the fence covers that.

    Args:
        name: The gate, or the transforms' limit.
        timeout: Seconds to wait.

    Raises:
        GateError: the limit does not exist, or the gate was not free in time.
    """
    from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    with contextlib.ExitStack() as held:
        try:
            # A busy SQLite server may answer 503 past the client's own retries; the slot is then just not ours yet.
            for attempt in Retrying(
                retry=retry_if_exception_type(ConcurrencySlotAcquisitionError),
                stop=stop_after_attempt(3),
                wait=wait_random_exponential(0.2, max=2.0),
                reraise=True,
            ):
                with attempt:
                    held.enter_context(
                        concurrency(
                            name,
                            occupy=1,
                            timeout_seconds=timeout,
                            lease_duration=LEASE_SECONDS,
                            strict=True,
                            raise_on_lease_renewal_failure=False,
                        )
                    )
        except TimeoutError:
            raise GateError(
                f"The gate {name!r} was not free within {timeout:.0f} s.",
                f"see who holds it: prefect gcl inspect {name}",
            ) from None
        except ConcurrencySlotAcquisitionError as error:
            raise GateError(f"The gate {name!r} cannot be entered: {error}", "lake init") from None
        yield


def ensure() -> list[str]:
    """Make the limits, or set them back to one slot. Safe to repeat.

    Returns:
        Those that had to change.
    """
    from prefect.client.orchestration import get_client

    changed = [name for name in (NAME, TRANSFORM) if _slots(name) != 1]
    with get_client(sync_client=True) as client:
        for name in changed:
            client.upsert_global_concurrency_limit_by_name(name, 1)
    return changed


def check() -> None:
    """Make sure of the limits before any work starts.

    Raises:
        GateError: one is missing, switched off, or has more than one slot.
    """
    for name in (NAME, TRANSFORM):
        slots = _slots(name)
        if slots is None:
            raise GateError(f"The gate {name!r} does not exist on this Prefect server.", "lake init")
        if slots != 1:
            raise GateError(f"The gate {name!r} has {slots} slots instead of one.", "lake init")


def _slots(name: str) -> int | None:
    """A limit's slots; None when it does not exist, 0 when it is switched off."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            found = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return None
    return found.limit if found.active else 0
