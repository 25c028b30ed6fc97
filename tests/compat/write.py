"""Writes a lake with this release, to be kept: `python -m tests.compat.write tests/compat/VERSION`, once a release.

The lake has what a later release must read: published, replaced, rolled back, rejected and failed partitions, a column
that was widened and one that was added, inlined rows and a build of the models.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

from tests.conftest import Lake, make_project


def write(target: Path) -> None:
    """Write the lake below a folder: `catalog.sqlite`, `data/` and `landing/`."""
    from ducklake_flows.datasets.partitions import parse_partition
    from ducklake_flows.lake.builds import plan_transform, record
    from ducklake_flows.lake.restore import stage_previous
    from ducklake_flows.lake.schema import bootstrap
    from ducklake_flows.project import all_datasets, get_dataset
    from ducklake_flows.settings import load_settings
    from ducklake_flows.storage import check

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        os.environ |= {"LAKE_HOME": str(home), "LAKE_PROJECT": str(make_project(home / "project"))}
        settings = load_settings()
        check(settings, create=True)
        bootstrap(settings, list(all_datasets().values()))
        lake, readings = Lake(settings), get_dataset("readings")
        for day in range(1, 5):
            lake.land(f"readings/2024-01-0{day}.jsonl", [{"id": n, "value": day} for n in range(3)])
        lake.load("readings", *(f"2024-01-0{day}" for day in range(1, 5)))
        lake.land("readings/2024-01-01.jsonl", [{"id": 9, "value": 9}])
        lake.load("readings", "2024-01-01")
        lake.land("readings/2024-01-02.jsonl", [{"id": 8, "value": 8.5, "note": "new"}])
        lake.load("readings", "2024-01-02")
        lake.publish([stage_previous(settings, readings, parse_partition("2024-01-01", readings.grain))])
        lake.land("readings/2024-01-05.jsonl", "no JSON\n")
        lake.load("readings", "2024-01-05")
        record(settings, plan_transform(settings, "prod"), "compat")
        assert lake.errors() == []
        with sqlite3.connect(home / "catalog.sqlite") as catalog:
            catalog.execute("PRAGMA journal_mode = DELETE")
            catalog.execute("UPDATE ducklake_metadata SET value = 'DATA_PATH' WHERE key = 'data_path'")
        catalog.execute("VACUUM")
        catalog.close()
        target.mkdir(parents=True)
        shutil.copy(home / "catalog.sqlite", target)
        for name in ("data", "landing"):
            shutil.copytree(home / name, target / name)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
