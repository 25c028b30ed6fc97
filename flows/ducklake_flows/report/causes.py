"""Failures grouped by cause: errors that differ only in file names, days, positions or values are one cause."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.partitions import FULL, Grain, first_day, grain_of
from ducklake_flows.report.words import count, ranges, spans, split
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ducklake_flows.lake.checks import Warned
    from ducklake_flows.plan import Planned

SHOWN_KEYS = 5
"""Maximum intervals of a model that a text names."""

SHOWN = 10
"""Maximum causes that a text lists."""

VARIES = "…"
"""Stands for a part of the errors that differs from partition to partition."""

_VARYING = re.compile(
    r"""
    \w+://[^\s,;'")]+                                                      # a URL
    | [^\s:,;'"()]*\.(?:csv|tsv|txt|jsonl?|ndjson|parquet|xlsx?|gz|zip|zst|bz2)\b(?:\.\w+)*   # a file's name
    | (?<![\w.])/[^\s:,;'"()]+                                             # an absolute path
    | \d{4}-(?:W\d\d|Q[1-4])\b                                             # a week or quarter
    | \d{4}-\d\d(?:-\d\d(?:[T\ ]\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:?\d\d)?)?)?   # a month, day or time
    | \b(?=[0-9a-f-]*\d)[0-9a-f]{8}[0-9a-f-]*\b                            # an id
    # A number, but not the digits of a name, a type or an HTTP status.
    | (?<![\w(.,])(?<!HTTP\ )(?<!status\ )(?<!code\ )(?<!Errno\ )(?!\d{3}\ [A-Z])[+-]?\d[\d.,_]*(?<![.,])(?![\w])
    """,
    re.VERBOSE,
)
_VARYING_OR_VALUE = re.compile(rf"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|{_VARYING.pattern}", re.VERBOSE)
"""Also values as errors quote them, for errors that name a line or row: elsewhere a quoted text may be a name."""

_PLACE = re.compile(r"\b(?:line|row|record) \d", re.IGNORECASE)

_AGAIN = "run the same command again"


@dataclass(frozen=True, slots=True)
class Failed:
    """One failed partition.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.
        state: ``failed`` or ``rejected``.
        error: The error, in one line.
        fix: What the error says to do; "" if it says nothing.
    """

    dataset: str
    partition: str
    state: str
    error: str
    fix: str = ""

    @property
    def kind(self) -> tuple[str, str, str]:
        """Equal for failures of one cause: dataset, state, and the error without its varying parts."""
        return self.dataset, self.state, "\0".join(_parts(self.error)[::2])


@dataclass(frozen=True, slots=True)
class Cause:
    """Partitions of a dataset that failed for the same reason.

    Args:
        dataset: The dataset's key.
        state: ``failed`` or ``rejected``.
        partitions: Keys of the partitions, sorted.
        text: The error, with `VARIES` where the partitions' errors differ.
        example: The first partition's error in full.
        fix: What the error says to do; "" if it says nothing.
        of: Failed partitions of the dataset, all causes together.
    """

    dataset: str
    state: str
    partitions: tuple[str, ...]
    text: str
    example: str
    fix: str
    of: int

    @property
    def line(self) -> str:
        """The cause in one line: ``flights: 38 of 40: wrong header: lacks tailnum (2013-03-01..04-07)``."""
        number = len(self.partitions)
        if number == 1:
            return f"{self.dataset} {self.partitions[0]}: {self.example}"
        many = f"all {number}" if number == self.of else f"{number} of {self.of}"
        return f"{self.dataset}: {many}: {self.text} ({ranges(spans(self.partitions))})"

    @property
    def varies(self) -> bool:
        """Whether the text leaves something out that only an example shows."""
        return len(self.partitions) > 1 and VARIES in self.text

    @property
    def command(self) -> str:
        """The command that runs the partitions again; failed ones are in the default mode."""
        return backfill(self.dataset, self.partitions)

    @property
    def next_step(self) -> str:
        """How to go on: what to correct, and the command that then retries the partitions."""
        if self.fix == _AGAIN:
            return self.command
        return f"{self.fix or 'fix the cause'}, then: {self.command}"

    def to_json(self) -> dict[str, Any]:
        """The cause as plain values; ranges are lists of first and last key."""
        return {
            "dataset": self.dataset,
            "state": self.state,
            "failed": len(self.partitions),
            "of": self.of,
            "cause": self.text,
            "example": {"partition": self.partitions[0], "error": self.example},
            "ranges": [list(span) for span in spans(self.partitions)],
            "next": self.next_step,
        }


def backfill(dataset: str, partitions: Sequence[str]) -> str:
    """The command that loads partitions, given by key, which are missing or failed."""
    if len(partitions) == 1 and split(partitions[0])[0]:
        return f'lake backfill {dataset} --partition "{partitions[0]}"'
    keys = sorted(map(split, partitions))
    segments = {segment for segment, _ in keys}
    periods = sorted(period for _, period in keys)
    if grain_of(periods[0]) is Grain.full:
        one = len(periods) == 1 and periods[0] != FULL
        return f"lake backfill {dataset}" + (f' --partition "{periods[0]}"' if one else "")
    of = "".join(f' --partition "{segment}*"' for segment in segments if len(segments) == 1 and segment)
    return f"lake backfill {dataset}{of} --start {_day(periods[0])} --end {_day(periods[-1])}"


def causes(failures: Iterable[Failed]) -> list[Cause]:
    """Group failures by dataset and cause: the most frequent cause of each dataset first."""
    ordered = sorted(set(failures), key=lambda f: (f.dataset, f.partition))
    totals: dict[str, int] = {}
    groups: dict[tuple[str, str, str], list[tuple[Failed, list[str]]]] = {}
    for failure in ordered:
        totals[failure.dataset] = totals.get(failure.dataset, 0) + 1
        groups.setdefault(failure.kind, []).append((failure, _parts(failure.error)))
    found = [_cause(group, totals[group[0][0].dataset]) for group in groups.values()]
    return sorted(found, key=lambda c: (c.dataset, -len(c.partitions), c.partitions[0]))


def failures(planned: Iterable[Planned]) -> list[Cause]:
    """The failed partitions of a plan, grouped by cause."""
    failed = (p for p in planned if p.state in (State.failed, State.rejected))
    return causes(Failed(p.dataset, p.partition, p.state.value, p.why) for p in failed)


def lines(found: Sequence[Cause], indent: str = "  ") -> list[str]:
    """Causes as lines for people: one for each of the first `SHOWN`, with an example where the errors differ."""
    told = []
    for cause in found[:SHOWN]:
        told.append(f"{indent}{cause.line}")
        if cause.varies:
            told.append(f"{indent}    such as {cause.partitions[0]}: {cause.example}")
    if len(found) > SHOWN:
        told.append(f"{indent}and {count(len(found) - SHOWN, 'more cause')}; see: lake status")
    return told


def warning_lines(found: Iterable[Warned]) -> list[tuple[str, str]]:
    """Audits that warn of published rows: a line for each, and the command that shows more."""
    told = []
    for each in found:
        keys = each.partitions
        is_model = "." in each.subject
        where = ", ".join(keys[:SHOWN_KEYS]) if is_model else ranges(spans(keys))
        where += f" and {len(keys) - SHOWN_KEYS} more" if is_model and len(keys) > SHOWN_KEYS else ""
        what = count(len(keys), "interval" if is_model else "partition")
        line = f"{each.subject}: audit {each.name} warns of {what} ({where}): {each.observed}, expected {each.expected}"
        told.append((line, f"lake checks {each.subject}"))
    return told


def steps(found: Sequence[Cause]) -> list[str]:
    """What to do about the causes, each step once; at most `SHOWN`."""
    told = list(dict.fromkeys(cause.next_step for cause in found))
    more = [f"and {count(len(told) - SHOWN, 'more step')}; see: lake status"] if len(told) > SHOWN else []
    return told[:SHOWN] + more


def next_steps(found: Sequence[Cause]) -> str:
    """What to do about the causes as one text: one step, or a line for each."""
    told = steps(found)
    return told[0] if len(told) == 1 else "\n  ".join(["one step for each cause:", *told])


def _cause(group: Sequence[tuple[Failed, Sequence[str]]], of: int) -> Cause:
    first = group[0][0]
    fixes = {failure.fix for failure, _ in group}
    return Cause(
        first.dataset,
        first.state,
        tuple(failure.partition for failure, _ in group),
        _common([parts for _, parts in group]),
        first.error,
        first.fix if len(fixes) == 1 else "",
        of,
    )


def _parts(error: str) -> list[str]:
    """The error cut into fixed parts (at even positions) and parts that vary (at odd ones)."""
    pattern = _VARYING_OR_VALUE if _PLACE.search(error) else _VARYING
    parts, end = [], 0
    for match in pattern.finditer(error):
        parts += [error[end : match.start()], match[0]]
        end = match.end()
    return [*parts, error[end:]]


def _common(errors: Sequence[Sequence[str]]) -> str:
    """The text that the errors share. A place that differs at its start, such as a file and a line, is left out."""
    text = "".join(parts[0] if len(set(parts)) == 1 else VARIES for parts in zip(*errors, strict=True))
    return re.sub(rf"^(?:{VARIES}:? +)?(?:(?:line|row|record) {VARIES}:? +)?", "", text)


def _day(period: str) -> str:
    """The first day of a period, or the day of an hour."""
    return period[: len("2013-01-01")] if grain_of(period) is Grain.hour else first_day(period)
