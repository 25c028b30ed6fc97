"""A chunk as a Prefect task: extracts it, logs its failures by cause, and ends in a state that shows them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from prefect import get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed, Failed

from ducklake_flows.extract.chunk import Stopped, extract_chunk
from ducklake_flows.report.causes import Failed as Failing
from ducklake_flows.report.causes import causes, lines
from ducklake_flows.settings import load_settings
from ducklake_flows.staging.receipt import Failure, Outcome
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ducklake_flows.settings import Settings


class Parameters(TypedDict):
    """The parameters of a chunk's task, as the UI shows them; see `run`."""

    dataset: str
    versions: dict[str, str]
    table: dict[str, str]
    pace: float
    limit: float
    others: dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a task returns: its chunk's outcomes, and when it was received, began and ended, in seconds since 1970.

    It was not received if it ran in the process of its run. The times are comparable across hosts only if their clocks
    are in sync.
    """

    outcomes: list[Outcome]
    given: float | None
    began: float
    ended: float

    def profile(self, submitted: float) -> dict[str, float]:
        """Seconds of the chunk's transport, divided evenly among its partitions."""
        given = submitted if self.given is None else self.given
        way = {
            "dask": given - submitted,
            "prefect": self.began - given,
            "receipt": time.time() - self.ended,
        }
        return {stage: max(seconds, 0.0) / max(len(self.outcomes), 1) for stage, seconds in way.items()}


def pace_name(run: str, dataset: str) -> str:
    """The name under which a run tells its workers the pace of a dataset's chunks.

    Args:
        run: The id of the flow run.
        dataset: The dataset's key.
    """
    return f"ducklake-pace-{run}-{dataset}"


def _chunk_name() -> str:
    parameters = task_run.parameters
    keys = sorted(parameters["versions"])
    span = keys[0] if len(keys) == 1 else f"{keys[0]}..{keys[-1]} ({len(keys)})"
    return f"{parameters['dataset']} {span}"


TASK: dict[str, Any] = {
    "name": "extract",
    "task_run_name": _chunk_name,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
"""The task's options, wherever it runs."""


def run(
    dataset: str,
    versions: Mapping[str, str],
    table: Mapping[str, str],
    pace: float,
    limit: float,
    others: Mapping[str, Mapping[str, str]],
    given: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
    told: Callable[[], float | None] = lambda: None,
) -> Any:
    """Extract a chunk. Call it within its task.

    Args:
        dataset: This and the next five arguments are the task's; see `ducklake_flows.extract.chunk.extract_chunk`.
        versions: The source's version by partition.
        table: Columns and DuckDB types of the table.
        pace: Minimum seconds between two items of a source, when the task was submitted.
        limit: Time budget in seconds.
        others: Columns and DuckDB types of the dataset's other tables, by key.
        given: When another process received the task, in seconds since 1970.
        stopped: Whether the run that submitted the task has ended.
        told: The pace that the run has told since; None if it is not known here.

    Returns:
        What was `Extracted`, or a state that holds it: Failed if all partitions failed; Completed with a name like
        ``28 of 31`` if some did.
    """
    logger, began = get_run_logger(), time.time()
    outcomes: list[Outcome] = []
    try:
        settings = load_settings()
        outcomes = extract_chunk(dataset, versions, settings, table, stopped, lambda: _pace(pace, told), limit, others)
        # Redact before anything is logged, shown or recorded: a source's error text may contain its password.
        outcomes = [_redacted(o, settings) if isinstance(o, Failure) else o for o in outcomes]
    except Stopped:
        logger.warning("stopped: the run that submitted this chunk has ended")
    else:
        if left := len(versions) - len(outcomes):
            logger.info("time budget used up: %d of %d partitions are returned", left, len(versions))
    return _ended(Extracted(outcomes, given, began, time.time()))


def _pace(pace: float, told: Callable[[], float | None]) -> float:
    if not pace:
        return 0.0
    found = told()
    return pace if found is None else found


def _redacted(failure: Failure, settings: Settings) -> Failure:
    return replace(failure, error=settings.redact(failure.error), traceback=settings.redact(failure.traceback))


def _ended(extracted: Extracted) -> Any:
    failed = [o for o in extracted.outcomes if isinstance(o, Failure) and o.state != State.no_source]
    if not failed:
        return extracted
    found = causes(Failing(f.dataset, f.partition, f.state, f.error, f.fix) for f in failed)
    logger = get_run_logger()
    for line in lines(found, indent=""):
        logger.error(line)
    for cause in found:
        first = next(f for f in failed if f.partition == cause.partitions[0])
        if first.traceback:
            logger.error("%s %s:\n%s", first.dataset, first.partition, first.traceback)
    good, message = len(extracted.outcomes) - len(failed), "\n".join(lines(found, indent=""))
    # The coordinator needs the outcomes of a failed chunk, too.
    if not good:
        return Failed(message=message, data=extracted)
    return Completed(name=f"{good} of {len(extracted.outcomes)}", message=message, data=extracted)
