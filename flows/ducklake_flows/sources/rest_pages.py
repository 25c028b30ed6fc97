"""The pages of an API's partition, by dlt's REST client: exact numbers, and no answer that is silently nothing."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from dlt.common import jsonpath
from dlt.sources.helpers.requests import Client
from dlt.sources.helpers.rest_client.client import RESTClient
from dlt.sources.helpers.rest_client.exceptions import PaginatorNotFound
from requests import HTTPError, RequestException, Response

from ducklake_flows.errors import NoSource, SourceError, SourceUnavailable, redacted
from ducklake_flows.sources import placeholders
from ducklake_flows.sources.json_files import parsed
from ducklake_flows.sources.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ducklake_flows.sources.placeholders import Window
    from ducklake_flows.sources.rest_api import RestApi

LONGEST_WAIT = 3600
"""Seconds that a `Retry-After` may ask for."""

WITHOUT_HEAD = (405, 501)
"""Statuses of an API that knows no HEAD."""

BODY = 200
"""Characters of a refused request's answer that an error shows."""


def pages(api: RestApi, partition: Window) -> Iterator[list[dict[str, Any]]]:
    """The rows of each page; see `RestApi.read`, also for the errors."""
    secrets = api.secrets()
    number = 1
    try:
        for page in _paginate(api, partition):
            if number > api.max_pages:
                raise SourceError(
                    f"there are more than {api.max_pages:,} pages",
                    "raise max_pages, or correct the paginator if it never ends",
                )
            yield page
            number += 1
    except SourceError as error:
        raise SourceError(f"page {number}: {_hidden(error.message, secrets)}", error.fix) from None
    except HTTPError as error:
        raise _refusal(api, partition, error, number, secrets) from None
    except RequestException as error:
        raise _failure(f"page {number}", error, secrets) from None
    except (PaginatorNotFound, ValueError, TypeError) as error:
        # dlt's paginators raise a ValueError if an answer lacks what they need.
        raise SourceError(f"page {number}: {_hidden(str(error), secrets)}", "correct the paginator") from None


def answer(api: RestApi, partition: Window, *, is_head: bool = False) -> Response:
    """The answer to a GET of one partition, without further pages.

    Args:
        api: The API.
        partition: The partition.
        is_head: Only the header is needed.

    Raises:
        NoSource: the answer has one of the statuses of `missing`.
        SourceError: the API refuses the request.
        SourceUnavailable: the API does not answer.
    """
    secrets = api.secrets()
    try:
        found = _asked(api, partition, "HEAD" if is_head else "GET")
        # Its body is not read.
        return _asked(api, partition, "GET", stream=True) if found.status_code in WITHOUT_HEAD else found
    except HTTPError as error:
        raise _refusal(api, partition, error, 0, secrets) from None
    except RequestException as error:
        raise _failure(api.origin(partition), error, secrets) from None


def _asked(api: RestApi, partition: Window, method: str, *, stream: bool = False) -> Response:
    def send() -> Response:
        with _sessions(api.tries, api.timeout).session.request(
            method,
            placeholders.filled(api.url, partition),
            params=placeholders.filled(dict(api.params), partition),
            headers=placeholders.filled(dict(api.headers), partition),
            auth=api.authenticator,
            allow_redirects=True,
            stream=stream,
            hooks={"response": [_answered]},
        ) as found:
            return found

    try:
        return send()
    except HTTPError as error:
        if error.response is None or error.response.status_code != 401 or not api.has_token:
            raise
    api.forget_token()
    return send()


def _answered(response: Response, *_: Any, **__: Any) -> None:
    if response.status_code >= 400 and not (response.request.method == "HEAD" and response.status_code in WITHOUT_HEAD):
        # Raised within `send`, so that dlt's client retries it.
        raise HTTPError(str(response.status_code), response=response)
    response.json = partial(_exact, response, {})  # type: ignore[method-assign]


def _paginate(api: RestApi, partition: Window) -> Iterator[list[dict[str, Any]]]:
    client = _Client(
        "",
        headers=placeholders.filled(dict(api.headers), partition),
        auth=api.authenticator,
        session=_sessions(api.tries, api.timeout).session,
    )
    found = client.paginate(
        placeholders.filled(api.url, partition),
        method=api.method,
        params=placeholders.filled(dict(api.params), partition),
        json=None if api.json is None else placeholders.filled(dict(api.json), partition),
        paginator=api.fresh_paginator(),
        data_selector=api.rows or "$",
        hooks={"response": [_answered]},
        allow_redirects=True,
    )
    client.is_list = not api.rows
    asked = set[tuple[Any, Any]]()
    for page in found:
        request = page.response.request.url, page.response.request.body
        if request in asked:
            raise SourceError("the paginator asks for the same page twice", "correct the paginator")
        asked.add(request)
        yield list(page)


@lru_cache
def _sessions(tries: int, timeout: float) -> Client:
    """Connections, kept for all partitions; one session for each thread."""
    return Client(
        raise_for_status=False,
        request_timeout=timeout,
        request_max_attempts=tries,
        request_max_retry_delay=LONGEST_WAIT,
    )


class _Client(RESTClient):
    """dlt's client, which takes an answer without the selected rows for one with no rows."""

    is_list = False
    """Whether the whole answer must be a list."""

    def extract_response(self, response: Response, data_selector: Any) -> list[Any]:
        """The rows of an answer.

        Raises:
            SourceError: there are none at the selected place, or they are not objects.
        """
        if response.status_code == 204:
            return []
        answer = response.json()
        if self.is_list and not isinstance(answer, list):
            raise SourceError(f"the answer is {_kind(answer)}, not a list", "say where its rows are: rows='data'")
        found = jsonpath.find_values(data_selector, answer)
        # Of an empty list, `[*]` selects nothing.
        if not found and not jsonpath.find_values(str(data_selector).removesuffix("[*]") or "$", answer):
            raise SourceError(f"the answer has no {data_selector}: it is {_kind(answer)}", "correct rows=")
        rows: list[Any] = []
        for part in found:
            # Some servers write an empty list as null.
            rows += part if isinstance(part, list) else [] if part is None else [part]
        for place, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise SourceError(f"row {place} is {_kind(row)}, not an object", "correct rows=")
        return rows


def _exact(response: Response, known: dict[str, Any]) -> Any:
    """The JSON of an answer, parsed once. A number is an int, a float if that holds all of its digits, or a Decimal."""
    if "answer" not in known:
        known["answer"] = parsed(response.content, "the answer")
    return known["answer"]


def selected(answer: Any, path: str, name: str) -> list[Any]:
    """The values at a JSONPath.

    Args:
        answer: An answer, or a row of one.
        path: The JSONPath.
        name: The argument that gave it.

    Raises:
        SourceError: there is none.
    """
    found = jsonpath.find_values(path, answer)
    if not found:
        raise SourceError(f"there is no {path}: it is {_kind(answer)}", f"correct {name}=")
    return list(found)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        keys = ", ".join(list(value)[:10])
        return f"an object with {keys}" if value else "an empty object"
    return {list: "a list", str: "text", type(None): "null", bool: "a boolean"}.get(type(value), "a number")


def _failure(what: str, error: RequestException, secrets: list[str]) -> SourceError:
    """The error for an answer that did not come."""
    text = f"{what}: {type(error).__name__}: {_hidden(str(error), secrets)}"
    return SourceUnavailable(text) if is_transient(error) else SourceError(text, "check the URL")


def _refusal(api: RestApi, partition: Window, error: HTTPError, number: int, secrets: list[str]) -> Exception:
    """The error for a status of 400 or more.

    Args:
        api: The API.
        partition: What was asked for.
        error: With the answer.
        number: The page's number; 0: the answer has only one page.
        secrets: Texts that the error must not contain.
    """
    response = error.response
    status = response.status_code if response is not None else 0
    origin = api.origin(partition)
    if number <= 1 and status in api.missing:
        return NoSource(f"{origin} answers {status}")
    body = " ".join((response.text if response is not None else "").split())[:BODY]
    text = _hidden(f"{f'page {number} of ' if number else ''}{origin}: {status} {body}".rstrip(), secrets)
    if status == 401 and api.forget_token():
        return SourceUnavailable(text)
    if status in (401, 403):
        return SourceError(text, "check the credentials in auth")
    if is_transient(error):
        return SourceUnavailable(text)
    return SourceError(text, "check the URL and the parameters")


def _hidden(text: str, secrets: list[str]) -> str:
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return redacted(" ".join(text.split())[:500])
