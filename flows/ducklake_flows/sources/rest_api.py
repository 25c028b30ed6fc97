"""The shared ``rest_api`` source: one window of an HTTP API per partition, page by page, by dlt's REST client."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlencode, urlsplit

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput
from ducklake_flows.settings import Secret
from ducklake_flows.sources import placeholders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dlt.sources.helpers.rest_client.paginators import BasePaginator
    from requests.auth import AuthBase

    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.datasets.scheme import Scheme
    from ducklake_flows.sources.placeholders import Window

PAGINATORS = ("auto", "single_page", "header_link", "header_cursor", "json_link", "cursor", "offset", "page_number")
"""dlt's paginators."""

AUTHS = ("bearer", "api_key", "http_basic", "oauth2_client_credentials")
"""dlt's ways to authenticate."""

_SECRET = {"token", "api_key", "password", "client_secret", "access_token"}

Method = Literal["GET", "POST"]


@dataclass(frozen=True)
class Versions:
    """Where an API says which version it has of its partitions: one request for each, or a listing of all.

    The requests have the credentials, the headers, `tries`, `timeout`, `max_pages` and `missing` of the `RestApi`.

    Args:
        url: The URL. It, the parameters and the headers may contain placeholders. In a listing ``{start}``, ``{end}``
            and ``{last}`` are the bounds of all partitions that are asked for.
        version: JSONPath of the version: in the answer, or in a row of the listing. Several, such as
            ``("updated_at", "count")``, are a version together. Any JSON value is a version.
        partition: Makes it a listing: JSONPath, in a row, of the partition's key, or of a date or a time within it (of
            the dataset's zone, unless it has one). Several rows of a partition are its version together.
        rows: Where an answer of the listing has its rows, like `RestApi.rows`.
        params: Parameters of the query.
        paginator: How to ask for the listing's next page, like `RestApi.paginator`.
        lists_all: Whether a partition that is not listed does not exist (yet). False for an endpoint of changes: what
            it does not list is unchanged, and is loaded again when it is first listed. No row may vanish from it.
    """

    url: str
    version: str | tuple[str, ...]
    partition: str = ""
    rows: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    paginator: str | Mapping[str, Any] = "auto"
    lists_all: bool = True

    def __post_init__(self) -> None:
        if not self.version:
            raise BadInput("Versions lacks the place of the version.", 'version="updated_at"')
        if not self.partition and (self.rows or not self.lists_all):
            raise BadInput("rows and lists_all belong to a listing.", 'say what names the partition: partition="day"')


@dataclass(frozen=True)
class RestApi:
    """An HTTP API that answers with JSON, page by page.

    Texts of the URL, the parameters, the headers and the body may contain ``{partition}`` (the partition's key),
    ``{start}``, ``{end}`` (exclusive; both in UTC, as ``2024-01-31T00:00:00Z``) and ``{last}`` (the last day). A format
    may follow: ``{start:%Y/%m/%d}``, or ``{start:unix}`` and ``{start:unix_ms}`` for seconds and milliseconds.

    Args:
        url: The URL of the first page.
        rows: Where an answer has its rows: a JSONPath such as ``data.items``; "": the answer is a list of objects. An
            answer that has nothing there is an error, so that a changed API never looks like an empty partition.
        params: Parameters of the query.
        paginator: How to ask for the next page: the name of one of dlt's paginators, or its configuration, for example
            ``{"type": "offset", "limit": 100, "total_path": "total"}``. ``auto`` finds links and cursors in the first
            answer. Each partition gets a fresh one.
        max_pages: More pages fail the partition; they never shorten it.
        auth: One of dlt's ways to authenticate, with secrets by name: ``{"type": "bearer", "token":
            Secret("ORDERS_TOKEN")}``; also ``api_key``, ``http_basic`` and ``oauth2_client_credentials``.
        headers: Headers of each request.
        method: GET or POST.
        json: The body of a POST.
        missing: Statuses of the first page that mean that there is no such partition (yet).
        tries: How often a request is sent if the API does not answer, or answers 429 or 5xx. It waits for the time that
            a ``Retry-After`` names, up to an hour, or for 1, 2, 4, ... seconds.
        timeout: Seconds to wait for an answer.
        version: What tells that a partition has changed, without reading it: the name of a header of the first page,
            ``"etag"`` or ``"last-modified"``, or `Versions`. If the version changes, the partition is stale, and
            `recheck` of the dataset loads it again. Without it, a change at the API is not seen.
    """

    url: str
    rows: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    paginator: str | Mapping[str, Any] = "auto"
    max_pages: int = 10_000
    auth: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    method: Method = "GET"
    json: Mapping[str, Any] | None = None
    missing: tuple[int, ...] = (404,)
    tries: int = 5
    timeout: float = 60.0
    version: str | Versions = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BadInput(f"{self.url!r} is not a URL.", "begin it with https://")
        if parts.username or parts.password:
            raise BadInput(
                f"The URL of {parts.hostname} contains a user or password.",
                'use auth={"type": "http_basic", "username": ..., "password": Secret("NAME")}',
            )
        self._check_version()
        if self.method not in get_args(Method) or (self.json is not None and self.method == "GET"):
            raise BadInput(f"method is {self.method!r}; only a POST has a body.", 'use method="POST"')
        self._check_paginator()
        self._check_auth()
        for name, value in (("max_pages", self.max_pages), ("tries", self.tries), ("timeout", self.timeout)):
            if value <= 0:
                raise BadInput(f"{name} must be above 0, not {value}.")

    def _check_version(self) -> None:
        given = self.version
        if isinstance(given, Versions):
            self.of_versions()  # raises for a wrong URL or paginator
        elif not isinstance(given, str) or not re.fullmatch(r"[A-Za-z0-9-]*", given):
            raise BadInput(f"version is {given!r}.", 'version="etag", or version=Versions(URL, version="updated_at")')
        elif given and self.method != "GET":
            raise BadInput(
                f"version={given!r} is a header of a GET.", 'use version=Versions(URL, version="updated_at")'
            )

    def _check_paginator(self) -> None:
        given = self.paginator
        kind = given if isinstance(given, str) else given.get("type")
        if kind not in PAGINATORS:
            raise BadInput(f"{kind!r} is not a paginator.", f"choose from {', '.join(PAGINATORS)}")
        if isinstance(given, Mapping) and (cut := {"maximum_page", "maximum_offset"} & given.keys()):
            raise BadInput(
                f"{min(cut)} would drop the pages after it.", "use max_pages, which is an error when reached"
            )

    def _check_auth(self) -> None:
        if self.auth is None:
            return
        if self.auth.get("type") not in AUTHS:
            raise BadInput(f"{self.auth.get('type')!r} is no way to authenticate.", f"choose from {', '.join(AUTHS)}")
        if plain := [name for name in self.auth if name in _SECRET and not isinstance(self.auth[name], Secret)]:
            raise BadInput(f"auth contains {plain[0]} as text.", f'name it instead: "{plain[0]}": Secret("NAME")')

    def check(self, key: str, scheme: Scheme) -> None:
        """Check that the request distinguishes the partitions of a dataset.

        Raises:
            BadInput: it does not.
        """
        parts = (self.url, self.params, self.headers)
        placeholders.check([*parts, self.json], key, scheme, strict=parts)
        if isinstance(self.version, Versions):
            asked = self.of_versions()
            parts = (asked.url, asked.params, asked.headers)
            if not self.version.partition:
                placeholders.check(parts, key, scheme, strict=parts)
            elif scheme.grain is Grain.full and not scheme.segmented:
                raise BadInput(f"{key}: a dataset of grain full needs no listing.", "leave partition out of Versions")
            else:
                placeholders.check_names(parts, key, known=placeholders.TIMES)

    def of_versions(self) -> RestApi:
        """The API that the `Versions` describe, with this one's credentials."""
        given = self.version
        assert isinstance(given, Versions)  # noqa: S101 - for mypy
        asked = replace(
            self, url=given.url, rows=given.rows, params=given.params, paginator=given.paginator, version=""
        )
        # A listing that does not exist is an error.
        return replace(asked, method="GET", json=None, missing=() if given.partition else self.missing)

    def versions(self, partitions: Sequence[Partition]) -> Mapping[str, str]:
        """The partitions' versions; "" without `version`.

        Raises:
            SourceError: an answer has no version, or the API refuses a request.
            SourceUnavailable: the API does not answer.
        """
        if not self.version:
            return {partition.key: "" for partition in partitions}
        from ducklake_flows.sources.rest_versions import versions

        return versions(self, partitions)

    def origin(self, partition: Window) -> str:
        """The method and the URL, with those parameters that name the partition."""
        named = {
            name: value
            for name, value in placeholders.filled(self.params, partition).items()
            if value != self.params[name]
        }
        url = placeholders.filled(self.url, partition)
        return f"{self.method} {url}{'?' if named else ''}{urlencode(named)}"

    def read(self, partition: Partition, contract: Contract) -> Iterator[list[dict[str, Any]]]:  # noqa: ARG002
        """Read one partition's rows, a list for each page. Numbers keep all digits.

        Raises:
            NoSource: the first page has one of the statuses of `missing`.
            SourceError: an answer is not as described, or the API refuses the request.
            SourceUnavailable: the API does not answer.
        """
        from ducklake_flows.sources.rest_pages import pages

        yield from pages(self, partition)

    def secrets(self) -> list[str]:
        """The texts of the secrets, to remove them from messages.

        Raises:
            BadInput: one is not set.
        """
        return [value.reveal() for value in (self.auth or {}).values() if isinstance(value, Secret)]

    def fresh_paginator(self) -> BasePaginator | None:
        """A paginator for one partition; None if it is found in the first answer.

        Raises:
            ValueError, TypeError: dlt does not take its configuration.
        """
        from dlt.sources.rest_api.config_setup import create_paginator

        return create_paginator(self.paginator if isinstance(self.paginator, str) else dict(self.paginator))  # type: ignore[arg-type]

    @cached_property
    def authenticator(self) -> AuthBase | None:
        """Adds the credentials to a request; kept, so that an OAuth2 token serves many partitions.

        Raises:
            BadInput: a secret is not set.
        """
        if self.auth is None:
            return None
        from dlt.sources.rest_api.config_setup import create_auth

        given = {name: value.reveal() if isinstance(value, Secret) else value for name, value in self.auth.items()}
        return create_auth(given)  # type: ignore[arg-type]

    @property
    def has_token(self) -> bool:
        """Whether requests have a token of OAuth2, which may end."""
        return "oauth2" in str((self.auth or {}).get("type"))

    def forget_token(self) -> bool:
        """Forget an OAuth2 token that the API no longer takes. Returns whether there was one."""
        return self.has_token and self.__dict__.pop("authenticator", None) is not None
