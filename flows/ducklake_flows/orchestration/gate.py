"""The gate: a Prefect global concurrency limit of one, through which every writer of the catalog goes.

It is for throughput and manners: one writer at a time is faster than several that race, and SQLite knows no other
way. What keeps the lake right without it is the fence, which this module does not know.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random,
)

from ducklake_flows.errors import GateBusy, GateError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

NAME = "ducklake-commit"
TRANSFORM = "lake-transform"
"""A second limit of one, held for the whole of a transform: SQLMesh has no lock of its own between two runs."""

LEASE_SECONDS = 60
"""How long a holder that died keeps the slot at most, plus the server's reaper period."""

WAIT_SECONDS = 900
"""How long a writer waits to get in before it gives up."""

RESTART_SECONDS = 60
"""How long a Prefect server may be out of reach."""


@contextlib.contextmanager
def hold(name: str = NAME, timeout: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the gate for the length of a block; keep it short.

    The slot is taken strictly: without the limit nothing is written. A lease that cannot be renewed does not stop
    the block, since a commit must not be torn; the fence covers that. It is what Prefect's own ``concurrency`` does,
    with one client instead of three and no events: a quarter of its time.

    Args:
        name: The gate, or the transforms' limit.
        timeout: Seconds to wait.

    A slot that cannot be given back is logged: what the block has done stands, and the lease runs out by itself.

    Raises:
        GateBusy: the gate was not free in time.
        GateError: the limit does not exist, or the server does not answer.
    """
    with _client() as client:
        lease = _acquire(client, name, timeout)
        left = threading.Event()
        renewal = threading.Thread(target=_renew, args=(client, lease, left), name=f"renew {name}", daemon=True)
        renewal.start()
        try:
            yield
        finally:
            left.set()
            renewal.join()
            _release(client, name, lease)


def _acquire(client: SyncPrefectClient, name: str, timeout: float) -> UUID:
    """Wait for the slot, and take it. Returns the lease. A server that is being restarted is waited for, too."""
    waiting = Retrying(retry=retry_if_exception(_is_taken), wait=_as_told, stop=stop_after_delay(timeout), reraise=True)
    reaching = Retrying(
        retry=retry_if_exception_type(httpx.TransportError),
        wait=wait_fixed(1),
        stop=stop_after_delay(RESTART_SECONDS),
        reraise=True,
    )
    acquire = client.increment_concurrency_slots_with_lease
    try:
        answer = waiting(reaching, acquire, [name], 1, "concurrency", LEASE_SECONDS).json()
    except httpx.HTTPError as error:
        if not _is_taken(error):
            raise GateError(f"The gate {name!r} cannot be entered: {error}", "lake init") from None
        raise GateBusy(
            f"The gate {name!r} was not free within {timeout:.0f} s.",
            f"see whether it is held: prefect gcl inspect {name}",
        ) from None
    if not answer["limits"]:
        raise GateError(f"The gate {name!r} does not exist on this Prefect server.", "lake init")
    return UUID(answer["lease_id"])


def _release(client: SyncPrefectClient, name: str, lease: UUID) -> None:
    try:
        client.release_concurrency_slots_with_lease(lease)
    except httpx.HTTPError as error:
        log.warning("the gate %s was not given back, it is free again in %d s: %s", name, LEASE_SECONDS, error)


def _is_taken(error: BaseException) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.LOCKED


def _as_told(state: RetryCallState) -> float:
    """The server says after how many seconds to ask again."""
    error: Any = state.outcome.exception() if state.outcome else None
    return float(error.response.headers["Retry-After"])


def _renew(client: SyncPrefectClient, lease: UUID, left: threading.Event) -> None:
    """Renew a lease until its holder has left. One that is lost is tried again, for the next may succeed."""
    while not left.wait(LEASE_SECONDS / 3):
        try:
            client.renew_concurrency_lease(lease, LEASE_SECONDS)
        except httpx.HTTPError as error:
            log.warning("the gate's lease was not renewed: %s", error)


class _AtOnce(httpx.BaseTransport):
    """Asks a busy server again within a moment; Prefect's client would sleep for two seconds first.

    On SQLite the server says 503 to one acquisition in ten while a run writes its events: it reads within a deferred
    transaction, then writes, and SQLite lets nobody do that on a snapshot that has been overtaken.
    """

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        again = Retrying(
            retry=retry_if_result(lambda response: response.status_code == httpx.codes.SERVICE_UNAVAILABLE),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_attempt(20),
            before_sleep=lambda state: state.outcome.result().close() if state.outcome else None,
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        answered: httpx.Response = again(self._inner.handle_request, request)
        return answered


@contextlib.contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    """A client that asks at once. Within a flow it is the run's own, which gets its transport back."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        http = client._client
        inner = http._transport
        # As Prefect does it itself to set its own retries: a transport that is passed in would know no proxy.
        http._transport = _AtOnce(inner)
        try:
            yield client
        finally:
            http._transport = inner


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
