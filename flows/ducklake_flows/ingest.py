"""The ingest flow: plans, extracts chunks of partitions on Dask, and publishes them in gated groups as they arrive."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from ducklake_flows.errors import RunFailed
from ducklake_flows.lake.publish import Published, Publisher
from ducklake_flows.orchestration import assets, events, gate, openlineage
from ducklake_flows.orchestration.artifacts import create_artifacts
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.executor import executor
from ducklake_flows.orchestration.extraction import Extraction
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.orchestration.names import DUE, ingest_name, name_waiting
from ducklake_flows.orchestration.progress import progress
from ducklake_flows.orchestration.root_run import RootRun
from ducklake_flows.orchestration.summary import Summary, failures_text, next_step
from ducklake_flows.plan import LeftOut, Planned, chosen, done_by, plan_each
from ducklake_flows.project import broken_datasets, due_datasets, get_datasets
from ducklake_flows.settings import Settings, load_settings
from ducklake_flows.states import Mode, Order
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.staging.receipt import Outcome


@flow(name="ingest", flow_run_name=ingest_name, **openlineage.HOOKS)
@ends_failed
def ingest(
    datasets: list[str] | None = None,
    start: date | None = None,
    end: date | None = None,
    mode: Mode | list[Mode] = Mode.missing_failed,
    workers: Annotated[int, Field(ge=1)] = 2,
    partitions: list[str] | None = None,
    order: Order = Order.newest,
    limit: Annotated[int, Field(ge=1)] | None = None,
    reason: str = "",
    force: bool = False,
) -> dict[str, Any]:
    """Extract and publish partitions of datasets.

    Args:
        datasets: Keys of the datasets; default: all. ``@due 0 6 * * * UTC``: those with this
            schedule and zone.
        start: First day; default: each dataset's start.
        end: Last day, included; default: each dataset's end.
        mode: Which partitions: missing, failed, missing_failed, stale or all; or several of them.
        workers: Processes of the local Dask cluster; ignored with an existing cluster.
        partitions: Only these partitions, by key, instead of a range.
        order: Which partitions come first: the newest or the oldest.
        limit: Do at most this number of partitions, the first ones in this order.
        reason: Why the run was started; kept in the ledger.
        force: Publish partitions again even if their rows are unchanged; the mode is then ``all``.

    Returns:
        The summary: counts, rows, bytes, commits, seconds by stage.

    Raises:
        RunFailed: some partitions failed, or some datasets could not be planned; all others are published.
    """
    settings, logger, began = load_settings(), get_run_logger(), time.monotonic()
    named = datasets or []
    if named and named[0].startswith(DUE):
        asked, named = due_datasets(named[0].removeprefix(DUE)), []
    else:
        asked = get_datasets(named)
    mode = Mode.all if force else mode
    summary = Summary([d.key for d in asked], flow_run.name or "")
    check(settings)
    planned, summary.left_out = plan_each(settings, asked, start, end, mode, partitions, named=bool(named))
    if not named:
        summary.left_out += [LeftOut(key, error, is_fault=True) for key, error in broken_datasets().items()]
    recheck = Mode.all in ([mode] if isinstance(mode, Mode) else mode)
    done = done_by(settings, str(flow_run.id)) if recheck or limit else set()
    todo = chosen(planned, asked, order, limit, done)
    summary.add_seconds("plan", began)
    summary.add_plan(planned, todo, logger)
    if todo:
        publisher = Publisher(
            settings,
            asked,
            str(flow_run.id),
            {p.partition for p in todo},
            planned={(p.dataset, p.partition): p.entry.newest for p in todo if p.entry},
            recheck=recheck,
            reason=reason,
            force=force,
        )
        with contextlib.closing(publisher), RootRun() as root, assets.emitted(summary):
            _extract_and_publish(settings, todo, {d.key: d for d in asked}, publisher, workers, summary, root, order)
    summary.add_seconds("total", began)
    create_artifacts(summary, settings)
    summary.log_left_out(logger)
    if summary.failed or summary.faults:
        raise RunFailed(failures_text(summary), next_step(summary), summary.to_json())
    return summary.to_json()


def _extract_and_publish(
    settings: Settings,
    todo: Sequence[Planned],
    datasets: Mapping[str, Dataset],
    publisher: Publisher,
    workers: int,
    summary: Summary,
    root: RootRun,
    order: Order,
) -> None:
    """Extract the partitions, and publish each group of outcomes while the next ones are extracted."""
    began, tables = time.monotonic(), publisher.tables()
    with executor(settings, workers, todo) as here:
        summary.add_seconds("cluster start", began)
        began = time.monotonic()
        with progress(len(todo), ", ".join(datasets)) as shown:
            extraction = Extraction(here, workers, datasets, tables, root, order)
            with contextlib.closing(extraction.groups(todo)) as groups:
                for group in groups:
                    result = _publish(settings, publisher, summary.without_absent(group, datasets), summary)
                    shown.advance(len(group), sum(r.rows for r in result.receipts), len(result.failures))
        summary.add_seconds("extract and publish", began)


def _publish(settings: Settings, publisher: Publisher, group: Sequence[Outcome], summary: Summary) -> Published:
    """Publish one group while holding the gate, then emit the events."""
    if not group:
        return Published()
    began = time.monotonic()
    with gate.hold():
        failpoint("gate held")
        summary.add_seconds("wait for the gate", began)
        waited = (time.monotonic() - began) / len(group)
        group = [replace(o, profile={**o.profile, "gate_wait": waited}) for o in group]
        began = time.monotonic()
        result = publisher.publish(group)
        summary.add_seconds("in the gate", began)
        failpoint("before the slot is freed")
    summary.add(result, get_run_logger())
    failpoint("before the event")
    events.published(result, settings)
    events.failing(summary.new_causes(result.failures))
    name_waiting()
    return result
