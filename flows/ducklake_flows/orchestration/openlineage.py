"""OpenLineage events: START, COMPLETE, FAIL and ABORT of ingest and transform runs, if LAKE_OPENLINEAGE_URL is set.

They are hooks of the flows: a run that crashes or is cancelled is reported, too, by the worker that started it.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect.logging.loggers import flow_run_logger

from ducklake_flows.datasets.dataset import Member
from ducklake_flows.errors import BadInput, RunFailed
from ducklake_flows.lake import history
from ducklake_flows.lake.connect import connected
from ducklake_flows.project import get_dataset, get_datasets
from ducklake_flows.settings import Settings, load_settings

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import OutputDatasetFacet
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow

    from ducklake_flows.datasets.dataset import Dataset

TIMEOUT_SECONDS = 5.0
"""Maximum seconds that a run waits for the receiver, twice for each event."""

PRODUCER = "urn:project:ducklake-flows"
"""Identifies this software in the events."""


def started(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Hook for ``on_running``: emit START."""
    _emit("START", flow, flow_run, state)


def completed(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Hook for ``on_completion``: emit COMPLETE with what was read and written."""
    _emit("COMPLETE", flow, flow_run, state)


def failed(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Hook for ``on_failure`` and ``on_crashed``: emit FAIL with the error and what was written before it."""
    _emit("FAIL", flow, flow_run, state)


def aborted(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Hook for ``on_cancellation``: emit ABORT."""
    _emit("ABORT", flow, flow_run, state)


HOOKS: dict[str, Any] = {
    "on_running": [started],
    "on_completion": [completed],
    "on_failure": [failed],
    "on_crashed": [failed],
    "on_cancellation": [aborted],
}
"""The hooks as arguments of ``flow``."""


def _emit(kind: str, flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Emit one event. A failure to do so is logged, never raised: the run must not depend on the receiver."""
    settings = load_settings()
    if settings.openlineage_url is None:
        return
    try:
        _send(settings, kind, flow, flow_run, state)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
        cause = settings.redact(f"{type(error).__name__}: {error}")
        flow_run_logger(flow_run, flow).warning("the OpenLineage event %s was not sent: %s", kind, cause)


def _send(settings: Settings, kind: str, flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    try:
        from openlineage.client import OpenLineageClient
        from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
        from openlineage.client.facet_v2 import error_message_run, nominal_time_run
        from openlineage.client.transport.http import HttpConfig, HttpTransport
    except ImportError:
        raise BadInput("openlineage-python is not installed.", "pip install 'ducklake-flows[openlineage]'") from None
    facets: dict[str, Any] = {}
    if flow_run.expected_start_time is not None:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(flow_run.expected_start_time.isoformat())
    if kind == "FAIL":
        text = settings.redact(state.message or "")
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(text, "python")
    read = _ingested if flow.name == "ingest" else _transformed
    inputs, outputs = read(settings, flow_run, state) if kind != "START" else _expected(settings, flow, flow_run)
    event = RunEvent(
        eventType=RunState[kind],
        eventTime=datetime.now(UTC).isoformat(),
        producer=PRODUCER,
        run=Run(str(flow_run.id), facets),
        job=Job(settings.project.name if settings.project else "lake", flow.name),
        inputs=inputs,
        outputs=outputs,
    )
    retry = {"total": 1, "connect": 1, "read": 1}
    config = HttpConfig(url=settings.openlineage_url or "", timeout=TIMEOUT_SECONDS, retry=retry)
    OpenLineageClient(transport=HttpTransport(config)).emit(event)


def _expected(
    settings: Settings, flow: Flow[Any, Any], flow_run: FlowRun
) -> tuple[list[InputDataset], list[OutputDataset]]:
    """What an ingest run is going to read and write. A transform only knows when it has planned."""
    if flow.name != "ingest":
        return [], []
    keys = [key for key in flow_run.parameters.get("datasets") or [] if not key.startswith("@")]
    chosen = get_datasets(keys)
    tables = [one for dataset in chosen for one in (dataset, *dataset.members) if not one.is_quarantine]
    return [_source(settings, dataset) for dataset in chosen], [_table(settings, one.table) for one in tables]


def _ingested(settings: Settings, flow_run: FlowRun, _: State) -> tuple[list[InputDataset], list[OutputDataset]]:
    """What an ingest run has read and written, from the ledger."""
    with connected(settings, read_only=True) as con:
        totals = history.run_totals(con, str(flow_run.id))
    published = [total for total in totals if total["published"]]
    tables = [get_dataset(total["dataset"]) for total in totals]
    return (
        [_source(settings, one) for one in tables if not isinstance(one, Member)],
        [_table(settings, f"raw.{t['dataset']}", t["rows"], t["bytes"], t["files"]) for t in published],
    )


def _transformed(settings: Settings, _: FlowRun, state: State) -> tuple[list[InputDataset], list[OutputDataset]]:
    """What a transform has read and built, from its summary."""
    found = state.result(raise_on_failure=False)
    summary: dict[str, Any] = (
        found.summary if isinstance(found, RunFailed) else found if isinstance(found, dict) else {}
    )
    intervals = Counter(built["model"] for built in summary.get("models", ()))
    inputs = [_input(settings, f"raw.{key}") for key in sorted(summary.get("partitions", ()))]
    return inputs, [_table(settings, model) for model in sorted(intervals)]


def _namespace(settings: Settings) -> str:
    """The lake: its catalog, which never contains a password."""
    return f"ducklake:{settings.catalog}"


def _input(settings: Settings, name: str) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset

    return InputDataset(_namespace(settings), name)


def _source(settings: Settings, dataset: Dataset) -> InputDataset:
    """A dataset's source: the landing zone and the pattern of its files, or the name of its function."""
    from openlineage.client.event_v2 import InputDataset

    landing = settings.landing if "://" in settings.landing else f"file://{settings.landing}"
    pattern = getattr(dataset.source, "pattern", None)
    if pattern:
        return InputDataset(landing.rstrip("/"), pattern)
    return InputDataset("ducklake-flows", f"source of {dataset.key}")


def _table(settings: Settings, name: str, *statistics: int) -> OutputDataset:
    """A table of the lake.

    Args:
        settings: Where the lake is.
        name: Schema and name.
        statistics: Rows, bytes and files written, if known.
    """
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as written

    facets: dict[str, OutputDatasetFacet] = {}
    if statistics:
        facets["outputStatistics"] = written.OutputStatisticsOutputDatasetFacet(*statistics)
    return OutputDataset(_namespace(settings), name, outputFacets=facets)
