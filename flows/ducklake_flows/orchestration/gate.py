"""The gate: a Prefect global concurrency limit of one slot that every writer of the catalog holds.

It serialises writers for throughput: several that race abort each other, and SQLite has one writer only. Correctness
does not depend on it; see `ducklake_flows.lake.fence`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import ssl
import threading
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass
from uuid import UUID

import certifi
import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, get_current_settings
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random,
)

from ducklake_flows.errors import GateBusy, GateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

NAME = "ducklake-commit"
TRANSFORM = "lake-transform"
"""A second limit of one slot, held for a whole transform: SQLMesh does not lock its state between two runs."""

LEASE_SECONDS = 60
"""After so long without a renewal, plus the period of the server's reaper, the slot of a dead holder is free."""

WAIT_SECONDS = 900
"""How long a writer waits for the slot."""

RESTART_SECONDS = 60
"""How long acquiring the slot is retried while the Prefect server does not answer."""


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
    client = _client(str(PREFECT_API_URL.value()))
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
    """Wait for the slot and take it; also wait for a server that is being restarted. Returns the lease."""
    waiting = Retrying(
        retry=retry_if_exception(_is_taken), wait=_retry_after, stop=stop_after_delay(timeout), reraise=True
    )
    reaching = Retrying(
        retry=retry_if_exception(_is_down),
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
        log.warning("the gate %s could not be released, its lease expires in %d s: %s", name, LEASE_SECONDS, error)


def _is_taken(error: BaseException) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.LOCKED


def _is_down(error: BaseException) -> bool:
    """Whether the server, or a proxy before it, does not answer now."""
    failed = isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error
    return failed or isinstance(error, httpx.TransportError)


def _retry_after(state: RetryCallState) -> float:
    """The seconds that the server says to wait."""
    error: Any = state.outcome.exception() if state.outcome else None
    return float(error.response.headers["Retry-After"])


def _renew(client: SyncPrefectClient, lease: UUID, left: threading.Event) -> None:
    """Renew a lease until its holder has left. Keep renewing after a failed attempt."""
    while not left.wait(LEASE_SECONDS / 3):
        try:
            client.renew_concurrency_lease(lease, LEASE_SECONDS)
        except httpx.HTTPError as error:
            log.warning("the gate's lease was not renewed: %s", error)


class _RetryBusy(httpx.HTTPTransport):
    """Retries a busy server within milliseconds; Prefect's client would sleep for two seconds first.

    On SQLite the server answers 503 to one acquisition in ten while a run writes its events: it reads in a deferred
    transaction and then writes, which SQLite refuses when another transaction has committed in between.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; up to 20 times while the answer is 503."""
        again = Retrying(
            retry=retry_if_result(lambda response: response.status_code == httpx.codes.SERVICE_UNAVAILABLE),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_attempt(20),
            before_sleep=lambda state: state.outcome.result().close() if state.outcome else None,
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        answered: httpx.Response = again(super().handle_request, request)
        return answered


_open_clients = contextlib.ExitStack()
atexit.register(_open_clients.close)


@functools.lru_cache(maxsize=4)
def _client(url: str) -> SyncPrefectClient:
    """A client of the server at this address, open until the process ends.

    A transport that is passed in replaces the one that httpx would configure, so it gets Prefect's TLS settings and
    the proxy of the environment here.
    """
    api = get_current_settings().api
    target = httpx.URL(url)
    verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without certificates, for HTTP: they take 30 ms to load
    if target.scheme == "https":
        verify = ssl.create_default_context(cafile=api.ssl_cert_file or certifi.where())
    if api.tls_insecure_skip_verify:
        verify.check_hostname, verify.verify_mode = False, ssl.CERT_NONE
    proxy = None if proxy_bypass(target.host) else getproxies().get(target.scheme)
    transport = _RetryBusy(verify=verify, proxy=proxy, retries=3)
    return _open_clients.enter_context(
        get_client(sync_client=True, httpx_settings={"transport": transport, "verify": verify})
    )


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
