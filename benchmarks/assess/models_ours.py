"""What `lake transform` does, without Prefect: a process of its own, so that its imports are part of the time."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from benchmarks.assess.common import gate
from ducklake_flows.lake.builds import plan_transform, record
from ducklake_flows.models import build
from ducklake_flows.models.adapter import LakeAdapter
from ducklake_flows.settings import load_settings


def main(lock: str) -> None:
    """Build what the ledger says has changed."""
    LakeAdapter.gate = functools.partial(gate, Path(lock))
    settings = load_settings()
    todo = plan_transform(settings, "prod")
    build.build(todo.environment, todo.changed_keys, todo.replan, lambda event: None)
    record(settings, todo, "assess")


if __name__ == "__main__":
    main(sys.argv[1])
