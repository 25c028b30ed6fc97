"""The lake's figures as Prometheus metrics: text, or a small HTTP server, by default on the loopback address."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput
from ducklake_flows.lake import checks, history, ledger, quarantine
from ducklake_flows.lake.connect import connected
from ducklake_flows.plan import plan_each
from ducklake_flows.project import all_datasets, broken_datasets
from ducklake_flows.report.overdue import overdue_in
from ducklake_flows.states import PUBLISHED, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.plan import Planned
    from ducklake_flows.report.overdue import Overdue
    from ducklake_flows.settings import Settings

logger = logging.getLogger(__name__)

CACHE_SECONDS = 15.0
"""How long the server answers with the same figures: reading them lists the sources."""

ADDRESS = "127.0.0.1"


def metrics(settings: Settings) -> bytes:
    """The current figures in Prometheus' text format.

    If the lake cannot be read, ``lake_up`` is 0 and the only metric.
    """
    return generate_latest(_registry(settings, 0.0))


@contextlib.contextmanager
def serving(settings: Settings, port: int, host: str = ADDRESS) -> Iterator[str]:
    """Serve `metrics` in a thread, for the duration of a block.

    Args:
        settings: Where the lake is.
        port: The port; 0 means any free one.
        host: The address to listen at.

    Yields:
        The URL.

    Raises:
        BadInput: the port or the address cannot be used.
    """
    try:
        server, thread = start_http_server(port, host, _registry(settings, CACHE_SECONDS))
    except OSError as error:
        at = "" if host == ADDRESS else f" of {host}"
        raise BadInput(
            f"Port {port}{at} cannot be used: {error.strerror}.", "choose another --port or --host"
        ) from None
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(settings: Settings, seconds: float) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Figures(settings, seconds))
    return registry


class _Figures(Collector):
    """Reads the lake when it is scraped, at most once in some seconds."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        self._settings, self._seconds = settings, seconds
        self._lock = Lock()
        self._read_at = 0.0
        self._found: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the lake."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The figures, read again if they are older than the given seconds."""
        with self._lock:
            if not self._found or time.monotonic() - self._read_at >= self._seconds:
                try:
                    self._found = [_gauge("lake_up", "Whether the lake could be read.", 1), *_read(self._settings)]
                except Exception as error:  # noqa: BLE001 - a scrape must say that the lake is down, not fail
                    logger.warning("the lake cannot be read: %s", self._settings.redact(str(error)))
                    self._found = [_gauge("lake_up", "Whether the lake could be read.", 0)]
                self._read_at = time.monotonic()
            return self._found


def _read(settings: Settings) -> list[Metric]:
    datasets = all_datasets()
    planned, left_out = plan_each(settings, list(datasets.values()), recorded=True)
    with connected(settings, read_only=True) as con:
        attempts = history.attempt_counts(con)
        stages = history.stages(con)
        size = history.size(con)
        behind = Counter(dataset for dataset, _ in ledger.unbuilt(con, "prod"))
        late = {o.dataset: o for o in overdue_in(con, datasets.values())}
        aside = quarantine.counts(con, datasets.values())
        failing = checks.failing(con)
    broken = len(broken_datasets()) + sum(left.is_fault for left in left_out)
    found = [
        _gauge("lake_broken_datasets", "Datasets whose file or source cannot be read.", broken),
        *_by_dataset(planned, datasets),
        *_freshness(late, datasets),
        _labelled(
            GaugeMetricFamily(
                "lake_models_behind_partitions",
                "Published partitions that the models of prod are not built from.",
                labels=["dataset"],
            ),
            {(key,): behind[key] for key in datasets},
        ),
        _labelled(
            GaugeMetricFamily(
                "lake_quarantined_rows", "Rows that are set aside; of datasets that set rows aside.", labels=["dataset"]
            ),
            {(key,): aside.get(key, (0, 0))[0] for key, dataset in datasets.items() if dataset.sets_aside},
        ),
        _labelled(
            GaugeMetricFamily(
                "lake_failing_audits",
                "Partitions and audits whose last result failed, by what the audit does then.",
                labels=["dataset", "on_fail"],
            ),
            {key: number for key, number in failing.items() if key[0] in datasets},
        ),
        _labelled(
            CounterMetricFamily("lake_attempts", "Attempts in the ledger.", labels=["dataset", "state"]),
            {(dataset, state): number for dataset, state, number in attempts},
        ),
        _labelled(
            CounterMetricFamily(
                "lake_stage_seconds",
                "Seconds of partitions by stage; gate_wait is the time until the gate was entered.",
                labels=["dataset", "stage"],
            ),
            {(s["dataset"], s["stage"]): s["seconds"] for s in stages},
        ),
        _gauge("lake_catalog_snapshots", "Snapshots in the catalog.", size["snapshots"]),
        _gauge("lake_catalog_tables", "Tables in the catalog.", size["tables"]),
        _gauge("lake_data_files", "Current data files.", size["files"]),
        _gauge("lake_data_bytes", "Size of the current data files.", size["bytes"]),
    ]
    if settings.catalog_file is not None:
        catalog = settings.catalog_file.stat().st_size
        found.append(_gauge("lake_catalog_bytes", "Size of the SQLite catalog's file.", catalog))
    return found


def _by_dataset(planned: Sequence[Planned], datasets: Mapping[str, Dataset]) -> list[Metric]:
    """Partitions by state, rows, bytes and freshness of every dataset."""
    now = datetime.now(UTC)
    states = Counter((p.dataset, p.state.value) for p in planned)
    rows, sizes = Counter[str](), Counter[str]()
    recorded: dict[tuple[str, ...], float] = {}
    fresh: dict[tuple[str, ...], float] = {}
    for p in planned:
        if p.entry is None or not p.entry.attempt_id:
            continue
        rows[p.dataset] += p.entry.rows
        sizes[p.dataset] += p.entry.bytes
        at = p.entry.recorded_at
        if p.entry.state in PUBLISHED:
            recorded[p.dataset,] = max(recorded.get((p.dataset,), 0.0), at.timestamp())
        dataset = datasets[p.dataset]
        end = at if dataset.grain is Grain.full else dataset.partition(p.partition).end.replace(tzinfo=UTC)
        age = (now - end).total_seconds()
        fresh[p.dataset,] = min(fresh.get((p.dataset,), age), age)
    return [
        _labelled(
            GaugeMetricFamily("lake_partitions", "Partitions by state.", labels=["dataset", "state"]),
            {(key, state.value): states[key, state.value] for key in datasets for state in State},
        ),
        _labelled(
            GaugeMetricFamily("lake_rows", "Rows in the raw table.", labels=["dataset"]),
            {(key,): rows[key] for key in datasets},
        ),
        _labelled(
            GaugeMetricFamily("lake_bytes", "Size of the published attempts' files.", labels=["dataset"]),
            {(key,): sizes[key] for key in datasets},
        ),
        _labelled(
            GaugeMetricFamily(
                "lake_last_publish_timestamp_seconds", "When a partition was last published.", labels=["dataset"]
            ),
            recorded,
        ),
        _labelled(
            GaugeMetricFamily(
                "lake_freshness_seconds",
                "Seconds since the end of the newest published partition; for grain full, since its publish.",
                labels=["dataset"],
            ),
            fresh,
        ),
    ]


def _freshness(late: Mapping[str, Overdue], datasets: Mapping[str, Dataset]) -> list[Metric]:
    """The limit of each dataset that has one, and how long the dataset has been overdue."""
    now = datetime.now(UTC)
    limits = {key: d.freshness for key, d in datasets.items() if isinstance(d.freshness, timedelta)}
    ages: dict[tuple[str, ...], float] = {
        (key,): (now - late[key].since).total_seconds() if key in late else 0.0 for key in limits
    }
    return [
        _labelled(
            GaugeMetricFamily(
                "lake_freshness_limit_seconds",
                "How long after its end a partition must be published; datasets without a limit are left out.",
                labels=["dataset"],
            ),
            {(key,): limit.total_seconds() for key, limit in limits.items()},
        ),
        _labelled(
            GaugeMetricFamily(
                "lake_overdue_seconds",
                "How long the newest partitions have been overdue; 0 if the dataset is fresh.",
                labels=["dataset"],
            ),
            ages,
        ),
    ]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], float]
) -> GaugeMetricFamily | CounterMetricFamily:
    for labels, value in values.items():
        family.add_metric(list(labels), value)
    return family
