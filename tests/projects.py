"""Small SQLMesh projects: a few models on the tests' datasets, built in this process."""

from __future__ import annotations

import contextlib
import shutil
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ducklake_flows.lake.builds import RefusedInterval, plan_transform, record
from ducklake_flows.models import build
from ducklake_flows.models.adapter import LakeAdapter
from ducklake_flows.models.runner import refusals, results
from ducklake_flows.settings import load_settings
from tests.conftest import MODELS, Lake

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def load(lake: Lake, *days: str, value: float = 1) -> None:
    for day in days:
        lake.land(f"readings/{day}.jsonl", [{"id": 1, "value": value}])
    assert len(lake.load("readings", *days).receipts) == len(days)


def model(name: str, query: str, column: str, *lines: str) -> str:
    kind = f"kind INCREMENTAL_BY_TIME_RANGE (time_column {column}, batch_size 1000)"
    return f"MODEL ({', '.join([f'name {name}', kind, *lines])});\n{query}"


READINGS = "SELECT id, value, day FROM raw.readings WHERE day BETWEEN @start_date AND @end_date"
PUBLISHED = "signals (published(dataset := 'readings'))"


class Project:
    """A SQLMesh project with the models of one test, built in this process without a gate."""

    def __init__(self, folder: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.lake = folder, lake
        self.refused: list[RefusedInterval] = []
        shutil.copytree(MODELS, folder, ignore=shutil.ignore_patterns("models", "audits", "tests", "__pycache__"))
        (folder / "models").mkdir()
        monkeypatch.setenv("LAKE_MODELS", str(folder))
        monkeypatch.setattr(LakeAdapter, "gate", contextlib.nullcontext)

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(exist_ok=True)
        (self.folder / path).write_text(text)

    def build(self) -> list[dict[str, Any]]:
        """Build as a transform does. Returns the intervals built."""
        events: list[dict[str, Any]] = []
        if todo := plan_transform(load_settings(), "prod"):
            known = [old.request for old in todo.refused]
            build.build(todo.environment, todo.changed_keys, todo.replan, events.append, known)
            built = [e for e in events if e["event"] == "model"]
            moments = [(e["model"], *map(datetime.fromisoformat, (e["start"], e["end"]))) for e in built]
            self.refused = [r for e in events if e["event"] == "refused" for r in refusals(e)]
            audited = [results(e) for e in events if e["event"] == "audited"]
            record(self.lake.settings, todo, "test", self.refused, moments, audited)
        return [e for e in events if e["event"] == "model"]

    def built(self, name: str) -> list[tuple[str, str]]:
        return [(e["start"], e["end"]) for e in self.build() if e["model"] == name]
