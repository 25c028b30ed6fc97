"""Builds: which published attempts an environment's models were built from, and which are not built yet."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput
from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import commit_message, connected, literal
from ducklake_flows.lake.fence import next_token
from ducklake_flows.lake.schema import OPS, table_columns
from ducklake_flows.settings import LAKE, PROD
from ducklake_flows.staging.receipt import rows_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Checked


@dataclass(frozen=True, slots=True)
class RefusedInterval:
    """An interval of a model whose new rows were refused: the model keeps its earlier rows for it.

    Args:
        model: The model, ``bronze.flights``.
        start: Its start, UTC.
        end: Its end, excluded, UTC.
        name: The audit that refused rows, with its arguments; "" if the model's query failed on a row.
        rows: Number of rows that the audit refused; None if the query failed.
        sample: Up to three of these rows, by column.
        error: Why, in one line.
        datasets: The datasets that the model is built from, also through other models.
    """

    model: str
    start: datetime
    end: datetime
    name: str
    rows: int | None
    sample: Sequence[Mapping[str, Any]]
    error: str
    datasets: Sequence[str]

    @property
    def request(self) -> dict[str, Any]:
        """The interval as a build takes it: ``start`` and ``end`` in ms since 1970."""
        start, end = (int(moment.replace(tzinfo=UTC).timestamp() * 1000) for moment in (self.start, self.end))
        return {"model": self.model, "start": start, "end": end}

    @property
    def span(self) -> str:
        """The interval as text: a day, an hour, or its first and last day."""
        if self.end - self.start < timedelta(days=1):
            return self.start.strftime("%Y-%m-%dT%H:%M" if self.start.minute else "%Y-%m-%dT%H")
        last = (self.end - timedelta(microseconds=1)).date()
        return str(last) if last == self.start.date() else f"{self.start.date()}..{last}"

    @property
    def fix(self) -> str:
        """The next command."""
        first, last = self.start.date(), (self.end - timedelta(microseconds=1)).date()
        which = self.datasets[0] if len(self.datasets) == 1 else "DATASET"
        of = "" if len(self.datasets) == 1 else f" (DATASET: {' or '.join(self.datasets)})"
        return (
            f"correct the source, then run: lake backfill {which} --start {first} --end {last} --mode all{of}; "
            "or correct the model or audit; then run: lake transform"
        )

    def __str__(self) -> str:
        return f"{self.model} {self.span}: {self.error}"


@dataclass(frozen=True, slots=True)
class AuditedInterval:
    """The results of audits on an interval of a model, those that refused it left out.

    Args:
        model: The model, ``bronze.flights``.
        start: Start of the interval, or of the stretch of intervals that was built together, UTC.
        end: Its end, excluded, UTC.
        checks: The results.
    """

    model: str
    start: datetime
    end: datetime
    checks: Sequence[Checked]


@dataclass(frozen=True)
class TransformPlan:
    """The work of a transform.

    Args:
        environment: SQLMesh's environment.
        changed: The published attempts that the environment was not built from, by dataset and partition.
        project: Digest of the current models.
        replan: Whether the environment was last built with other models, or never built.
        refused: The intervals that earlier builds refused.
    """

    environment: str
    changed: Mapping[str, Mapping[str, str]]
    project: str
    replan: bool
    refused: Sequence[RefusedInterval] = ()

    def __bool__(self) -> bool:
        return bool(self.changed) or self.replan

    @property
    def changed_keys(self) -> dict[str, list[str]]:
        """The changed partitions' keys, by dataset."""
        return {dataset: sorted(partitions) for dataset, partitions in self.changed.items()}


def plan_transform(settings: Settings, environment: str) -> TransformPlan:
    """Compare the ledger with the builds. Partitions published after this call are left to the next transform.

    Args:
        settings: Where the lake and the models are.
        environment: SQLMesh's environment.

    Raises:
        BadInput: the project has no folder of models.
    """
    if settings.models is None or not settings.models.is_dir():
        raise BadInput(
            f"There is no folder of models{f' at {settings.models}' if settings.models else ''}.",
            "create it, or correct `models` in pyproject.toml (or LAKE_MODELS)",
        )
    with connected(settings, read_only=True) as con:
        unbuilt = ledger.unbuilt(con, environment)
        before = ledger.built_project(con, environment)
        refused = refused_intervals(con, environment)
    changed: dict[str, dict[str, str]] = {}
    for (dataset, partition), attempt in sorted(unbuilt.items()):
        changed.setdefault(dataset, {})[partition] = attempt
    digest = project_digest(settings.models)
    return TransformPlan(environment, changed, digest, digest != before, refused)


def refused_intervals(con: DuckDBPyConnection, environment: str) -> list[RefusedInterval]:
    """The intervals that an environment's last build of them refused, in order of model and time.

    A lake of an older release has no record of them until `lake init` or a refusal creates it.
    """
    columns = table_columns(con).get("ops.checks", {})
    if not columns:
        return []
    warns = "coalesce(on_fail = 'warn', false)" if "on_fail" in columns else "false"
    found = con.execute(
        f"""SELECT model, interval_start, interval_end, name, failed_rows, sample, error, datasets
            FROM (
                SELECT * FROM {LAKE}.ops.checks WHERE environment = {literal(environment)}
                QUALIFY token = max(token) OVER (PARTITION BY model, interval_start, interval_end)
            )
            WHERE NOT passed AND NOT {warns} ORDER BY model, interval_start, name"""
    ).fetchall()
    return [
        RefusedInterval(model, start, end, name, count, json.loads(sample), error, datasets)
        for model, start, end, name, count, sample, error, datasets in found
    ]


def refused_of(con: DuckDBPyConnection, dataset: str | None = None) -> list[RefusedInterval]:
    """The refused intervals of ``prod``, all or those of models that are built from a dataset."""
    return [found for found in refused_intervals(con, PROD) if dataset is None or dataset in found.datasets]


def record(
    settings: Settings,
    todo: TransformPlan,
    flow_run_id: str,
    refused: Sequence[RefusedInterval] = (),
    built: Sequence[tuple[str, datetime, datetime]] = (),
    audited: Sequence[AuditedInterval] = (),
) -> int:
    """Record what the environment was built from. Call it within the gate, after the build.

    Args:
        settings: Where the lake is.
        todo: What was built. Its partitions count as built, even if they were refused: only a new attempt or another
            model can change that.
        flow_run_id: The run that built it.
        refused: The intervals that were refused.
        built: Model, first and last interval (their starts, UTC) of each stretch that was built: it is no longer
            refused.
        audited: The results of all audits that did not refuse their interval.

    Returns:
        DuckLake's snapshot: all that was built, and its record.
    """
    with connected(settings) as con:
        con.execute("BEGIN")
        token = next_token(con)
        common = {
            "environment": todo.environment,
            "flow_run_id": flow_run_id,
            "recorded_at": datetime.now(UTC),
            "token": token,
        }
        rows = [
            {**common, "project": todo.project, "dataset": dataset, "partition": partition, "attempt_id": attempt}
            for dataset, partitions in todo.changed.items()
            for partition, attempt in partitions.items()
        ]
        ledger.append(con, "builds", rows or [{**common, "project": todo.project}])
        again = {(r.model, r.start, r.end) for r in refused}
        settled = {
            (old.model, old.start, old.end)
            for old in todo.refused
            if todo.replan or any(m == old.model and first < old.end and old.start <= last for m, first, last in built)
        }
        _record_checks(con, common, refused, sorted(settled - again), audited)
        commit_message(con, f"built {todo.environment}", flow_run_id=flow_run_id)
        con.execute("COMMIT")
        return int(con.execute(f"SELECT id FROM {LAKE}.last_committed_snapshot()").fetchall()[0][0])


def _record_checks(
    con: DuckDBPyConnection,
    common: Mapping[str, Any],
    refused: Sequence[RefusedInterval],
    settled: Sequence[tuple[str, datetime, datetime]],
    audited: Sequence[AuditedInterval],
) -> None:
    """Append the results of the models' audits. One that passed also settles an earlier refusal of its interval."""
    found: list[dict[str, Any]] = [
        {
            **_interval(r.model, r.start, r.end),
            "name": r.name,
            "on_fail": "reject",
            "passed": False,
            "observed": None if r.rows is None else rows_text(r.rows),
            "expected": rows_text(0),
            "failed_rows": r.rows,
            "sample": json.dumps(r.sample),
            "error": r.error,
            "datasets": list(r.datasets),
        }
        for r in refused
    ]
    found += [{**_interval(*interval), "passed": True} for interval in settled]
    found += [{**_interval(a.model, a.start, a.end), **asdict(check)} for a in audited for check in a.checks]
    columns = table_columns(con).get("ops.checks", {})
    if found and not columns:
        con.execute(f"CREATE TABLE {LAKE}.ops.checks ({OPS['checks']})")
    elif "on_fail" not in columns:  # of an earlier release, until `lake init`: it knows refusals alone
        known = [row for row in found if row.get("on_fail") != "warn"]
        found = [{name: value for name, value in row.items() if name in columns} for row in known]
    ledger.append(con, "checks", [{**common, **row} for row in found])


def _interval(model: str, start: datetime, end: datetime) -> dict[str, Any]:
    return {"model": model, "interval_start": start, "interval_end": end}


@dataclass(frozen=True, slots=True)
class Environment:
    """The state of an environment of models.

    Args:
        name: Its name.
        built_at: When it was last built; None if it has no tables.
        is_current: Whether it was built with the current models.
        changed: Number of published partitions that it was not built from yet.
        refused: Number of refused intervals.
    """

    name: str
    built_at: datetime | None
    is_current: bool
    changed: int
    refused: int


def environments(settings: Settings) -> list[Environment]:
    """The project's environments, ``prod`` first, and their state.

    Raises:
        NotInitialised: there is no lake yet.
        BadInput: the project has no folder of models.
    """
    found = []
    for name in (PROD, *settings.environments):
        with connected(settings, read_only=True) as con:
            (moment,) = con.execute(
                f"SELECT max(recorded_at) FROM {LAKE}.ops.builds WHERE environment = ?", [name]
            ).fetchall()[0]
            is_built = bool(ledger.built_project(con, name))
        todo = plan_transform(settings, name)
        changed = sum(map(len, todo.changed.values()))
        refused = {(r.model, r.start) for r in todo.refused}
        found.append(Environment(name, moment if is_built else None, not todo.replan, changed, len(refused)))
    return found


def built_environments(settings: Settings) -> list[str]:
    """The environments that have tables: all that were built, and ``prod``."""
    with connected(settings, read_only=True) as con:
        return [name for name in (PROD, *settings.environments) if name == PROD or ledger.built_project(con, name)]


def record_dropped(settings: Settings, environment: str) -> None:
    """Record that an environment has no tables: its next transform builds everything. Call it within the gate."""
    with connected(settings) as con:
        con.execute("BEGIN")
        row = {"token": next_token(con), "recorded_at": datetime.now(UTC), "project": ""}
        ledger.append(con, "builds", [{**row, "environment": environment}])
        commit_message(con, f"dropped {environment}")
        con.execute("COMMIT")


@dataclass(frozen=True)
class Raw:
    """The raw table of a dataset, as the models see it.

    Args:
        columns: Name and DuckDB type of its columns, in order; empty if there is no table yet.
        since: Start of the earliest partition ever published; None if there is none, or if the grain is ``full``.
    """

    columns: Mapping[str, str]
    since: datetime | None


def read_raw(settings: Settings, datasets: Iterable[Dataset]) -> dict[str, Raw]:
    """The current raw tables, by dataset.

    Raises:
        NotInitialised: there is no lake yet.
    """
    with connected(settings, read_only=True) as con:
        tables = table_columns(con)
        earliest = ledger.earliest(con)
    return {
        d.key: Raw(
            tables.get(d.table, {}),
            d.partition(earliest[d.key]).low if d.key in earliest and d.grain is not Grain.full else None,
        )
        for d in datasets
    }


def is_read(models: Path, dataset: Dataset) -> bool:
    """Whether a model may read a dataset or another table of it: a key of theirs is a word in a file of the models.

    Textual, so that a change of the models counts at once and SQLMesh is not loaded. It errs on the safe side: the key
    may stand in a comment, or be the name of a column.

    Args:
        models: The folder of SQLMesh's project.
        dataset: The dataset.
    """
    keys = "|".join(re.escape(one.key) for one in (dataset, *dataset.members))
    word = re.compile(rf"(?<![a-z0-9_])({keys})(?![a-z0-9_])".encode(), re.IGNORECASE)
    return any(word.search(path.read_bytes()) for path in _files(models))


def project_digest(project: Path) -> str:
    """A digest of every file that can change what is built. If it changes, a transform plans again.

    Files of every kind count: models, audits, signals, macros, seeds, configuration. Only the models' unit tests,
    logs, compiled Python and hidden files do not count.
    """
    digest = hashlib.sha256()
    for path in _files(project):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(project)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _files(project: Path) -> Iterator[Path]:
    """The files that can change what is built, in order."""
    for path in sorted(project.rglob("*")):
        parts = path.relative_to(project).parts
        if path.is_dir() or parts[0] in ("tests", "logs") or any(p.startswith((".", "__pycache__")) for p in parts):
            continue
        yield path
