"""Which errors of a source may pass: only these are retried.

- ``SourceUnavailable``, which a source raises to say so;
- lost, refused and reset connections, timeouts, and answers that were cut off;
- HTTP 408, 425, 429 and 5xx, of any client that keeps the status at its error;
- SQLSTATE classes 08 (connection), 40 (rollback), 53 (resources) and 57P (shutdown) of a database;
- errors of a disk or network file system that may pass, such as EIO and ESTALE;
- an object store that does not answer.

Everything else says something about the data, the dataset or its code, and a retry gives the same: a wrong header, a
value that does not fit, HTTP 404, a bug.
"""

from __future__ import annotations

import errno
import http.client
import socket
from typing import TYPE_CHECKING

from ducklake_flows.errors import (
    CredentialsError,
    LakeError,
    SourceError,
    SourceTimeout,
    SourceUnavailable,
    StorageError,
)
from ducklake_flows.sources.values import Unfit

if TYPE_CHECKING:
    from collections.abc import Iterator

_ERRNOS = {
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO),
}

_STATUSES = {408, 425, 429}

_NAMES = {
    *("ConnectionError", "Timeout", "ChunkedEncodingError"),  # requests
    *("ProtocolError", "ReadTimeoutError", "ConnectTimeoutError", "NewConnectionError", "IncompleteRead"),  # urllib3
    *("TransportError",),  # httpx
    *("ClientConnectionError", "ClientPayloadError"),  # aiohttp
    *("EndpointConnectionError", "ConnectionClosedError"),  # botocore
    *("DisconnectionError",),  # SQLAlchemy
}
"""Names of the base classes that HTTP clients and database libraries give to errors of a connection. The libraries
belong to the project, not to this package, so they are not imported."""

_SQLSTATES = ("08", "40", "53", "57P")


def is_transient(error: BaseException) -> bool:
    """Whether another try of the same read may succeed: the error, or an error that it was raised from, may pass."""
    return any(_may_pass(link) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes. Ends at an error about the data."""
    seen: list[BaseException] = []
    link: object = error
    while isinstance(link, BaseException) and link not in seen:
        if isinstance(link, Unfit | SourceTimeout | CredentialsError) or (
            isinstance(link, LakeError) and not isinstance(link, SourceError | StorageError)
        ):
            return
        seen.append(link)
        yield link
        # `orig` of SQLAlchemy and `reason` of urllib hold the cause, too.
        link = link.__cause__ or getattr(link, "orig", None) or getattr(link, "reason", None) or link.__context__


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, SourceUnavailable | TimeoutError | http.client.IncompleteRead | http.client.BadStatusLine):
        return True
    if isinstance(error, StorageError):
        # The object store's client gives no number, only a text.
        cause = error.__context__
        return isinstance(cause, OSError) and (cause.errno is None or cause.errno in _ERRNOS)
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if (status := _status(error)) is not None:
        return status >= 500 or status in _STATUSES
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    state = getattr(error, "sqlstate", getattr(error, "pgcode", ""))
    if state != "":
        # PostgreSQL's clients have no state for a lost or refused connection.
        return state.startswith(_SQLSTATES) if isinstance(state, str) else type(error).__name__ == "OperationalError"
    if getattr(error, "connection_invalidated", False):
        return True
    return any(base.__name__ in _NAMES for base in type(error).__mro__)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error; None if it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder, names in ((response, ("status_code", "status")), (error, ("status_code", "status", "code"))):
        for name in names:
            status = getattr(holder, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return status
    return response if isinstance(response, int) else None
