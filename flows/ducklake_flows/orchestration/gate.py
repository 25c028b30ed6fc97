"""The gate: a Prefect global concurrency limit of one slot that every writer of the catalog holds.

It serialises writers for throughput: several that race abort each other, and SQLite has one writer only. Correctness
does not depend on it; see `ducklake_flows.lake.fence`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from ducklake_flows.errors import GateBusy, GateError
from ducklake_flows.orchestration import leases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

NAME = "ducklake-commit"
TRANSFORM = "lake-transform"
"""A second limit of one slot, held for a whole transform: SQLMesh does not lock its state between two runs."""

WAIT_SECONDS = 900
"""How long a writer waits for the slot."""


@contextlib.contextmanager
def hold(name: str = NAME, timeout: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the gate for the length of a block; keep it short.

    The slot is strict: without the limit, the block does not run. A lease that cannot be renewed does not stop the
    block, since a commit must not be torn; the fence covers that case. A slot that cannot be released is logged: the
    block's work is committed, and the lease expires. Prefect's own ``concurrency`` does the same with three clients
    and two events, and takes four times as long.

    Args:
        name: The gate, or the transforms' limit.
        timeout: Seconds to wait.

    Raises:
        GateBusy: the gate was not free in time.
        GateError: the limit does not exist, or the server does not answer.
    """
    client = leases.open_client()
    lease = _acquire(client, name, timeout)
    left = threading.Event()
    renewal = threading.Thread(target=_renew, args=(client, lease, left), name=f"renew {name}", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        left.set()
        renewal.join()
        leases.release(client, name, lease)


def _acquire(client: SyncPrefectClient, name: str, timeout: float) -> UUID:
    """Wait for the slot and take it. Returns the lease."""
    try:
        lease = leases.acquire(client, name, timeout)
    except httpx.HTTPError as error:
        if not leases.is_taken(error):
            raise GateError(f"The gate {name!r} cannot be entered: {error}", "lake init") from None
        raise GateBusy(
            f"The gate {name!r} was not free within {timeout:.0f} s.",
            f"see whether it is held: prefect gcl inspect {name}",
        ) from None
    if lease is None:
        raise GateError(f"The gate {name!r} does not exist on this Prefect server.", "lake init")
    return lease


def _renew(client: SyncPrefectClient, lease: UUID, left: threading.Event) -> None:
    """Renew a lease until its holder has left. Keep renewing after a failed attempt."""
    while not left.wait(leases.LEASE_SECONDS / 3):
        try:
            if not leases.renew(client, lease):
                log.warning("the gate's lease has expired")
        except httpx.HTTPError as error:
            log.warning("the gate's lease was not renewed: %s", error)


def ensure() -> list[str]:
    """Create the limits, or set them back to one slot. Safe to repeat.

    Returns:
        The names of those that were created or changed.
    """
    changed = [name for name in (NAME, TRANSFORM) if _slots(name) != 1]
    with get_client(sync_client=True) as client:
        for name in changed:
            client.upsert_global_concurrency_limit_by_name(name, 1)
    return changed


def check() -> None:
    """Check the limits before any work starts.

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
    with get_client(sync_client=True) as client:
        try:
            found = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return None
    return found.limit if found.active else 0
