"""The versions of an API's partitions: from a header, from a small answer for each, or from a listing of all."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ducklake_flows.datasets.partitions import Grain, in_utc
from ducklake_flows.datasets.scheme import Scheme
from ducklake_flows.errors import BadInput, NoSource, SourceError
from ducklake_flows.sources.rest_api import Versions
from ducklake_flows.sources.rest_pages import answer, pages, selected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from requests import Response

    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.sources.rest_api import RestApi

TOGETHER = 8
"""Requests that are sent at the same time."""

UNLISTED = "unlisted"
"""The version of a partition that an endpoint of changes does not list."""


class _Range(NamedTuple):
    """The bounds of several partitions."""

    key: str
    start: datetime
    end: datetime
    timezone: str
    segment: str = ""
    period: str = ""


def versions(api: RestApi, partitions: Sequence[Partition]) -> dict[str, str]:
    """The version of each partition that the API has, by key; see `RestApi.versions`."""
    if not partitions:
        return {}
    if isinstance(api.version, Versions) and api.version.partition:
        return _listed(api.of_versions(), api.version, partitions)
    if isinstance(api.version, Versions):
        ask = partial(_of_answer, api.of_versions(), api.version)
    else:
        ask = partial(_of_header, api, api.version)
    # The first one is alone: it gets the OAuth2 token, and an API that refuses all requests is asked once.
    found = {partitions[0].key: ask(partitions[0])}
    with ThreadPoolExecutor(TOGETHER) as pool:
        rest = pool.map(ask, partitions[1:])
        found |= dict(zip([partition.key for partition in partitions[1:]], rest, strict=True))
    return {key: version for key, version in found.items() if version is not None}


def _of_answer(asked: RestApi, given: Versions, partition: Partition) -> str | None:
    response = _answer(asked, partition)
    where = f"{partition.key}: {asked.origin(partition)}"
    return None if response is None else _version(_parsed(response, where), given, where)


def _of_header(api: RestApi, name: str, partition: Partition) -> str | None:
    response = _answer(api, partition, is_head=True)
    if response is None:
        return None
    if name not in response.headers:
        raise SourceError(
            f"{partition.key}: {api.origin(partition)}: the answer has no header {name!r}", "correct version="
        )
    return str(response.headers[name])


def _parsed(response: Response, where: str) -> Any:
    try:
        return response.json()
    except SourceError as error:
        raise SourceError(f"{where}: {error.message}", error.fix) from None


def _answer(api: RestApi, partition: Partition, *, is_head: bool = False) -> Response | None:
    """An answer; None if the API does not have the partition (yet)."""
    try:
        return answer(api, partition, is_head=is_head)
    except NoSource:
        return None
    except SourceError as error:
        raise type(error)(f"{partition.key}: {error.message}", error.fix) from None


def _listed(asked: RestApi, given: Versions, partitions: Sequence[Partition]) -> dict[str, str]:
    first = partitions[0]
    scheme = Scheme.of(first)
    window = _Range("", min(p.start for p in partitions), max(p.end for p in partitions), first.timezone)
    wanted: dict[str, list[str]] = {partition.key: [] for partition in partitions}
    for number, row in enumerate(_rows(asked, window), 1):
        where = f"row {number} of {asked.origin(window)}"
        try:
            value = selected(row, given.partition, "partition")[0]
        except SourceError as error:
            raise SourceError(f"{where}: {error.message}", error.fix) from None
        key = _key(value, scheme, where)
        if key in wanted:
            wanted[key].append(_version(row, given, where))
    found = {key: _together(texts) for key, texts in wanted.items() if texts}
    return found if given.lists_all else {**dict.fromkeys(wanted, UNLISTED), **found}


def _rows(asked: RestApi, window: _Range) -> Iterator[Mapping[str, Any]]:
    for page in pages(asked, window):
        yield from page


def _key(value: Any, scheme: Scheme, where: str) -> str:
    """The key of the partition that a row of a listing names.

    Raises:
        SourceError: it names none.
    """
    text = str(value)
    try:
        return scheme.parse(text).key
    except BadInput:
        pass
    try:
        moment = datetime.fromisoformat("" if scheme.segmented else text)
    except ValueError:
        kind = f"partition like {scheme.example}" if scheme.segmented else f"partition of grain {scheme.grain}"
        raise SourceError(f"{where}: {text[:50]!r} is not a {kind}, a date or a time", "correct partition=") from None
    if moment.tzinfo:
        return scheme.at(moment.astimezone(UTC)).key
    is_hour = scheme.grain is Grain.hour
    return scheme.holding(in_utc(moment, scheme.timezone) if is_hour else moment).key


def _version(row: Any, given: Versions, where: str) -> str:
    paths = (given.version,) if isinstance(given.version, str) else given.version
    try:
        values = [value for path in paths for value in selected(row, path, "version")]
    except SourceError as error:
        raise SourceError(f"{where}: {error.message}", error.fix) from None
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return json.dumps(values[0] if len(values) == 1 else values, sort_keys=True, default=str)


def _together(texts: Sequence[str]) -> str:
    """The version of a partition with several rows: their number, and a hash that changes with any of them."""
    if len(texts) == 1:
        return texts[0]
    return f"{len(texts)}:{hashlib.sha256(json.dumps(sorted(texts)).encode()).hexdigest()[:16]}"
