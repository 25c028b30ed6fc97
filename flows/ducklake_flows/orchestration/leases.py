"""Slots of Prefect's global concurrency limits, each held by a lease that its holder renews."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import ssl
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass
from uuid import UUID

import certifi
import httpx
from prefect.client.orchestration import get_client
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

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

LEASE_SECONDS = 60
"""After so long without a renewal, plus the period of the server's reaper, the slot of a dead holder is free."""

RESTART_SECONDS = 60
"""How long acquiring a slot is retried while the Prefect server does not answer."""


def acquire(client: SyncPrefectClient, name: str, timeout: float) -> UUID | None:
    """Wait for a slot and take it; also wait for a server that is being restarted.

    Args:
        client: From `open_client`.
        name: The limit.
        timeout: Seconds to wait for the slot.

    Returns:
        The lease; None if there is no such limit.

    Raises:
        httpx.HTTPError: no slot was free in time (see `is_taken`), or the server does not answer.
    """
    waiting = Retrying(
        retry=retry_if_exception(is_taken), wait=_retry_after, stop=stop_after_delay(timeout), reraise=True
    )
    reaching = Retrying(
        retry=retry_if_exception(_is_down),
        wait=wait_fixed(1),
        stop=stop_after_delay(RESTART_SECONDS),
        reraise=True,
    )
    take = client.increment_concurrency_slots_with_lease
    answer = waiting(reaching, take, [name], 1, "concurrency", LEASE_SECONDS).json()
    return UUID(answer["lease_id"]) if answer["limits"] else None


def renew(client: SyncPrefectClient, lease: UUID) -> bool:
    """Renew a lease. Returns whether there still was one.

    Raises:
        httpx.HTTPError: the server does not answer.
    """
    try:
        client.renew_concurrency_lease(lease, LEASE_SECONDS)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.GONE:
            raise
        return False
    return True


def release(client: SyncPrefectClient, name: str, lease: UUID) -> None:
    """Free a slot. A failure is logged: the lease expires."""
    try:
        client.release_concurrency_slots_with_lease(lease)
    except httpx.HTTPError as error:
        log.warning("%s could not be released, its lease expires in %d s: %s", name, LEASE_SECONDS, error)


def is_taken(error: BaseException) -> bool:
    """Whether the server says that no slot is free."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.LOCKED


def _is_down(error: BaseException) -> bool:
    """Whether the server, or a proxy before it, does not answer now."""
    failed = isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error
    return failed or isinstance(error, httpx.TransportError)


def _retry_after(state: RetryCallState) -> float:
    """The seconds that the server says to wait."""
    error: Any = state.outcome.exception() if state.outcome else None
    return float(error.response.headers["Retry-After"])


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


def open_client() -> SyncPrefectClient:
    """A client of the current Prefect server, open until the process ends."""
    return _client(str(PREFECT_API_URL.value()))


@functools.lru_cache(maxsize=4)
def _client(url: str) -> SyncPrefectClient:
    """A client of the server at this address.

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
