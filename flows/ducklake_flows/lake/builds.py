"""Builds: which published attempts an environment's models were built from, and which are not built yet."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import BadInput
from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import commit_message, connected
from ducklake_flows.lake.fence import advance_fence
from ducklake_flows.lake.schema import table_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings


@dataclass(frozen=True)
class TransformPlan:
    """The work of a transform.

    Args:
        environment: SQLMesh's environment.
        changed: The published attempts that the environment was not built from, by dataset and partition.
        project: Digest of the current models.
        replan: Whether the environment was last built with other models, or never built.
    """

    environment: str
    changed: Mapping[str, Mapping[str, str]]
    project: str
    replan: bool

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
    changed: dict[str, dict[str, str]] = {}
    for (dataset, partition), attempt in sorted(unbuilt.items()):
        changed.setdefault(dataset, {})[partition] = attempt
    digest = project_digest(settings.models)
    return TransformPlan(environment, changed, digest, replan=digest != before)


def record(settings: Settings, todo: TransformPlan, flow_run_id: str) -> None:
    """Record what the environment was built from. Call it within the gate, after the build has succeeded."""
    with connected(settings) as con:
        con.execute("BEGIN")
        token = advance_fence(con, "transform_fence")
        common = {
            "environment": todo.environment,
            "project": todo.project,
            "flow_run_id": flow_run_id,
            "recorded_at": datetime.now(UTC),
            "token": token,
        }
        rows = [
            {**common, "dataset": dataset, "partition": partition, "attempt_id": attempt}
            for dataset, partitions in todo.changed.items()
            for partition, attempt in partitions.items()
        ]
        ledger.append(con, "builds", rows or [common])
        commit_message(con, f"built {todo.environment}", flow_run_id=flow_run_id)
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
            parse_partition(earliest[d.key], d.grain).start
            if d.key in earliest and d.grain is not Grain.full
            else None,
        )
        for d in datasets
    }


def is_read(models: Path, dataset: str) -> bool:
    """Whether a model may read a dataset: its key is a word in a file of the models.

    Textual, so that a change of the models counts at once and SQLMesh is not loaded. It errs on the safe side: the key
    may stand in a comment, or be the name of a column.

    Args:
        models: The folder of SQLMesh's project.
        dataset: The dataset's key.
    """
    word = re.compile(rf"(?<![a-z0-9_]){re.escape(dataset)}(?![a-z0-9_])".encode(), re.IGNORECASE)
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
