"""Outcomes: what the publisher gets of an attempt, a receipt or a failure with its cause."""

from __future__ import annotations

import resource
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ducklake_flows.errors import LakeError, NoSource, Rejected, SourceError, redacted
from ducklake_flows.staging.receipt import Failure, Outcome, Receipt

if TYPE_CHECKING:
    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.extract.attempt import Attempt


TRACEBACK = 4000
"""Maximum characters of a traceback."""


def outcome_of(dataset: Dataset, attempt: Attempt) -> Outcome:
    """The outcome of an attempt, for the publisher."""
    if attempt.error is not None or attempt.seen is None:
        return _failure(dataset, attempt, attempt.error or SourceError("the extraction gave no result"))
    origin = redacted(dataset.origin(attempt.partition))
    members = tuple(_receipt(member, other, origin) for member, other in attempt.members)
    return replace(_receipt(dataset, attempt, origin), members=members)


def _receipt(dataset: Dataset, attempt: Attempt, origin: str) -> Receipt:
    seen = attempt.seen
    assert seen is not None  # noqa: S101 - an attempt without an error was inspected
    return Receipt(
        dataset.key,
        attempt.partition.key,
        attempt.id,
        tuple(attempt.paths),
        seen.rows,
        sum(f.stat().st_size for f in attempt.files),
        seen.columns,
        seen.fingerprint,
        attempt.source_version,
        attempt.seconds,
        _peak_rss(),
        seen.warnings,
        profile=attempt.profile,
        source_values=dict(attempt.given),
        values=attempt.staged,
        source=origin,
        checks=seen.checks,
    )


def _failure(dataset: Dataset, attempt: Attempt, error: Exception) -> Failure:
    state: Literal["failed", "rejected", "no_source"] = "failed"
    if isinstance(error, NoSource):
        state = "no_source"
    elif isinstance(error, Rejected):
        state = "rejected"
    return Failure(
        dataset.key,
        attempt.partition.key,
        attempt.id,
        state,
        f"after {attempt.tries} tries: {_text(error)}" if attempt.tries > 1 else _text(error),
        attempt.source_version,
        attempt.seconds,
        attempt.profile,
        error.fix if isinstance(error, LakeError) else "",
        _traceback(error),
        attempt.seen.checks if attempt.seen is not None else (),
    )


def _traceback(error: Exception) -> str:
    """The end of the traceback of an exception of the source's own code."""
    own = error if not isinstance(error, LakeError) else error.__cause__
    if own is None or isinstance(own, LakeError):
        return ""
    return "".join(traceback.format_exception(own, chain=False))[-TRACEBACK:]


def _peak_rss() -> int:
    """Peak memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, a process inherits `ru_maxrss` from its parent, which may have used more memory.
        return int(status.read_text().partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cause_of(error: BaseException) -> Exception:
    """The cause of a failed dlt step, as an error for the user."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if known := next((link for link in chain if isinstance(link, LakeError)), None):
        return known
    found = SourceError(_text(chain[-1]))
    found.__cause__ = chain[-1]
    return found


def _text(error: BaseException) -> str:
    """The error as one line of at most 500 characters, with its type unless it is a `LakeError`."""
    text = " ".join((error.message if isinstance(error, LakeError) else str(error)).split())[:500]
    return text if isinstance(error, LakeError) else f"{type(error).__name__}: {text}"
