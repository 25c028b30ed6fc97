"""Requests with placeholders for a partition: ``{partition}``, ``{start}``, ``{end}``, ``{last}``, ``{segment}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol
from zoneinfo import ZoneInfo

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ducklake_flows.datasets.scheme import Scheme

NAMES = ("partition", "start", "end", "last", "segment", "period")

TIMES = ("start", "end", "last")
_PLACE = re.compile(rf"\{{({'|'.join(NAMES)})(?::([^{{}}]*))?\}}")
_ANY = re.compile(r"\{[^{}\s]*\}")
_UNIX = {"unix": 1, "unix_ms": 1000}


class Window(Protocol):
    """What a request asks for: a partition, or a range of them."""

    @property
    def key(self) -> str:
        """The partition's key."""

    @property
    def start(self) -> datetime:
        """Its start, in UTC, without zone."""

    @property
    def end(self) -> datetime:
        """Its end (exclusive), in UTC, without zone."""

    @property
    def timezone(self) -> str:
        """The dataset's zone."""

    @property
    def segment(self) -> str:
        """Its segment; "" if there is none."""

    @property
    def period(self) -> str:
        """The key without the segment."""


def filled(value: Any, partition: Window) -> Any:
    """A value with the placeholders of all its texts replaced, in mappings and lists, too.

    ``{partition}`` is the partition's key; ``{start}`` its start and ``{end}`` its end (exclusive), in UTC, as
    ``2024-01-31T00:00:00Z``; ``{last}`` its last day. A format may follow: ``{start:%Y/%m/%d}``, in the dataset's zone,
    ``{start:unix}`` or ``{start:unix_ms}``, seconds or milliseconds since 1970. A text that is just one of the last two
    becomes a number. Of a key such as ``eu/2024-01-31``, ``{segment}`` is the first part and ``{period}`` the second.

    Raises:
        BadInput: a format is not valid.
    """
    if isinstance(value, str):
        if (whole := _PLACE.fullmatch(value)) and whole[2] in _UNIX:
            return int(_text(whole, partition))
        return _PLACE.sub(lambda found: _text(found, partition), value)
    if isinstance(value, Mapping):
        return {key: filled(inner, partition) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [filled(inner, partition) for inner in value]
    return value


def moment(partition: Window, name: str) -> datetime:
    """A bound of a partition, in its zone: ``start``, ``end`` (exclusive) or ``last``, its last microsecond."""
    bound = partition.start if name == "start" else partition.end
    bound = bound.replace(tzinfo=UTC) - timedelta(microseconds=name == "last")
    return bound if partition.timezone == "UTC" else bound.astimezone(ZoneInfo(partition.timezone))


def _text(found: re.Match[str], partition: Window) -> str:
    name, form = found[1], found[2] or ""
    if name not in TIMES:
        if form:
            raise BadInput(f"{found[0]!r}: a partition's key has no format.", "use {start:%Y-%m-%d}")
        return {"partition": partition.key, "segment": partition.segment, "period": partition.period}[name]
    bound = moment(partition, name)
    if name == "last" and not form:
        return bound.date().isoformat()
    if form in _UNIX:
        return str(int(bound.timestamp()) * _UNIX[form])
    if "%s" in form:
        raise BadInput(f"{found[0]!r}: %s depends on the machine.", "use {start:unix}")
    return bound.strftime(form) if form else bound.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_names(what: Any, key: str, known: Sequence[str] = NAMES) -> None:
    """Check the placeholders of a request.

    Args:
        what: The parts of the request in which braces mean nothing else.
        key: The dataset's key.
        known: The placeholders that it may have.

    Raises:
        BadInput: one is not known.
    """
    for text in _texts(what):
        for found in _ANY.findall(text):
            place = _PLACE.fullmatch(found)
            if place is None or place[1] not in known:
                choice = ", ".join(f"{{{name}}}" for name in known)
                raise BadInput(f"{key}: {found!r} in {text!r} is not a placeholder.", f"choose from {choice}")


def check(what: Any, key: str, scheme: Scheme, *, strict: Any = ()) -> None:
    """Check that a request distinguishes the partitions of a dataset.

    Args:
        what: All parts of the request that may have placeholders.
        key: The dataset's key.
        scheme: How it is divided into partitions.
        strict: The parts in which braces mean nothing else, so that an unknown placeholder is an error.

    Raises:
        BadInput: two partitions have the same request, a placeholder is not known, or a dataset of grain ``full`` has
            any.
    """
    check_names(strict, key)
    used = {found[1] for text in _texts(what) for found in _PLACE.finditer(text)}
    if not scheme.segmented and "segment" in used:
        raise BadInput(f"{key}: {{segment}} is used, but the dataset has no segments.", 'segment_column="region"')
    if scheme.grain is Grain.full and (left := used - {"segment", "partition"} if scheme.segmented else used):
        raise BadInput(
            f"{key}: {{{min(left)}}} stands for a time, but a dataset of grain full has no times.",
            "leave the placeholder out",
        )
    first = scheme.at(datetime(2024, 1, 30), "a" if scheme.segmented else "")
    if scheme.grain is not Grain.full and filled(what, first) == filled(what, scheme.at(first.end, first.segment)):
        raise BadInput(
            f"{key}: the request does not say which {scheme.grain} it asks for.",
            'put it into the URL or the parameters, for example params={"from": "{start}", "to": "{end}"}',
        )
    if scheme.segmented and filled(what, first) == filled(what, scheme.at(first.start, "b")):
        raise BadInput(
            f"{key}: the request does not say which segment it asks for.",
            'put it into the URL or the parameters, for example params={"region": "{segment}"}',
        )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, except the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
