"""Small files of different partitions become one, and everything that reads or writes single partitions still works."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.lake import damage, maintenance, publish
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.restore import stage_previous, stage_published
from ducklake_flows.project import get_dataset
from ducklake_flows.report.lineage import lineage
from tests.faults.conftest import staged

if TYPE_CHECKING:
    from tests.conftest import Lake

DAYS = [f"2024-01-{day:02}" for day in range(1, 9)]
ROWS = "count(*) AS n, sum(hash(id, value, day))::VARCHAR AS digest"


def rows(lake: Lake, version: int | None = None) -> list[dict[str, Any]]:
    """The number and a digest of the rows of each day, also as of a snapshot."""
    at = "" if version is None else f" AT (VERSION => {version})"
    return lake.sql(f"SELECT day::VARCHAR AS day, {ROWS} FROM raw.readings{at} GROUP BY ALL ORDER BY ALL")


def run(lake: Lake, *names: str) -> list[tuple[str, str, int]]:
    """Run the steps of these names; returns name, subject and the work done of each that had something to do."""
    found = maintenance.steps(lake.settings, timedelta(30))
    return [(s.name, s.subject, s.run()) for s in found if s.todo and s.name in names and s.subject == "raw.readings"]


def paths(lake: Lake) -> list[str]:
    return lake.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")


def by_hand(lake: Lake, *statements: str) -> None:
    con = connect(lake.settings)
    for statement in statements:
        con.execute(statement)
    con.close()


def load(lake: Lake, partitioned: bool = False) -> dict[int, list[dict[str, Any]]]:
    """Publish eight days one by one, and the last one again. Returns the rows as of each snapshot."""
    lake.publish([staged(lake, DAYS[0], 1, 0)])
    if partitioned:
        by_hand(lake, "DELETE FROM raw.readings", "ALTER TABLE raw.readings SET PARTITIONED BY (day)")
    published = [lake.publish([staged(lake, day, 10 + n, n)]) for n, day in enumerate([*DAYS, DAYS[-1]])]
    return {p.snapshot_id: rows(lake, p.snapshot_id) for p in published if p.snapshot_id is not None}


@pytest.mark.short("sqlite+folder")
@pytest.mark.parametrize("partitioned", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_every_day_of_every_snapshot_is_what_it_was(lake: Lake, partitioned: bool) -> None:
    """Also of a table that an earlier release, or another definition of the dataset, has partitioned."""
    history, before = load(lake, partitioned), rows(lake)
    assert len(history) == 9
    moved = [("partition", "raw.readings", 9)] if partitioned else []  # the replaced file, too
    assert run(lake, "partition", "merge") == [*moved, ("merge", "raw.readings", 8)]
    assert len(paths(lake)) == 1
    assert rows(lake) == before
    assert {version: rows(lake, version) for version in history} == history
    assert lake.errors() == []
    assert run(lake, "partition", "merge", "rewrite") == [], "nothing is left to do"

    lake.publish([staged(lake, DAYS[2], 3, 7), staged(lake, "2023-12-31", 2, 7), staged(lake, "2024-02-01", 2, 7)])
    assert lake.column("SELECT count(*) FROM raw.readings WHERE value = 7") == [7]
    others = [row for row in before if row["day"] != DAYS[2]]
    assert [row for row in rows(lake) if row["day"] in DAYS and row["day"] != DAYS[2]] == others
    partition = parse_partition(DAYS[2], get_dataset("readings").grain)
    lake.publish([stage_previous(lake.settings, get_dataset("readings"), partition)])
    assert [row for row in rows(lake) if row["day"] in DAYS] == before, "rolled back to rows of the merged file"
    assert {version: rows(lake, version) for version in history} == history
    assert run(lake, "merge") == [("merge", "raw.readings", 3)]
    assert [row for row in rows(lake) if row["day"] in DAYS] == before
    assert lake.errors() == []


def test_a_dataset_may_keep_the_files_of_its_partitions_apart(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = replace(get_dataset("readings"), partitioned=True)
    monkeypatch.setattr(maintenance, "all_tables", lambda: [kept])
    load(lake)
    assert run(lake, "partition", "merge") == [("partition", "raw.readings", 1), ("merge", "raw.readings", 8)]
    before = rows(lake)
    lake.publish([staged(lake, day, 5, 5) for day in DAYS[:3]])
    assert run(lake, "partition", "merge") == [], "files of different partitions"
    assert len(paths(lake)) == 4
    assert rows(lake)[3:] == before[3:]
    assert lake.errors() == []


def test_a_long_run_merges_what_it_publishes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MERGE_AFTER", 4)
    publisher = lake.publisher()
    counts = []
    for number, day in enumerate(DAYS):
        publisher.publish([staged(lake, day, 2, number)])
        counts.append(len(paths(lake)))
    publisher.close()
    assert counts == [1, 2, 3, 1, 2, 3, 4, 1]
    assert [row["n"] for row in rows(lake)] == [2] * 8
    assert lake.errors() == []


@pytest.mark.short("sqlite+folder")
def test_a_run_rewrites_a_merged_file_of_which_it_replaces_much(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each DELETE in the file reads and writes the list of all its deleted rows."""
    monkeypatch.setattr(publish, "WORN", 1)
    history = load(lake)
    run(lake, "merge")
    merged = rows(lake)
    publisher = lake.publisher()
    deletes = []
    for number, day in enumerate(DAYS, 20):
        publisher.publish([staged(lake, day, 2, number)])
        deletes.append(maintenance.figures(lake.settings)["delete files"])
    publisher.close()
    # The days have 10, 11, ... 17 rows. The DELETEs read 0, 10, 21, 33, 46 deleted ones: together more than the file's
    # 108 rows. Of the second file's 48 rows, they read 0, 15 and 31.
    assert deletes == [1, 1, 1, 1, 0, 1, 1, 1]
    assert [row["n"] for row in rows(lake)] == [2] * 8
    assert {version: rows(lake, version) for version in history} == history
    assert list(history.values())[-1] == merged
    assert lake.errors() == []


@pytest.mark.parametrize("lake", ["sqlite+folder"], indirect=True)
def test_a_lost_merged_file_is_named_with_every_partition_and_publishing_over_it_is_refused(lake: Lake) -> None:
    load(lake)
    run(lake, "merge")
    lake.publish([staged(lake, DAYS[0], 1, 9), staged(lake, "2024-02-01", 1, 9)])
    merged = next(path for path in paths(lake) if "day=" not in path)
    Path(merged).unlink()
    found = damage.find_all(lake.settings, [get_dataset("readings")])
    assert [one.partition for one in found] == DAYS, "each that cannot be read"
    assert {one.shared for one in found} == {(merged,)}
    refused = lake.publish([staged(lake, DAYS[1], 4, 4), staged(lake, "2024-02-02", 4, 4)])
    assert [r.partition for r in refused.receipts] == ["2024-02-02"]
    (failure,) = refused.failures
    assert (failure.partition, failure.fix) == (DAYS[1], "lake repair")
    assert "which holds other partitions, too" in failure.error
    assert merged in paths(lake), "it is not dropped"


@pytest.mark.parametrize("lake", ["sqlite+folder"], indirect=True)
def test_a_day_of_a_merged_file_is_restored_from_a_snapshot(lake: Lake) -> None:
    load(lake)
    run(lake, "merge")
    by_hand(lake, f"DELETE FROM raw.readings WHERE day = '{DAYS[3]}' AND id > 2")
    dataset = get_dataset("readings")
    assert [d.partition for d in damage.find_all(lake.settings, [dataset])] == [DAYS[3]]
    partition = parse_partition(DAYS[3], dataset.grain)
    publisher = publish.Publisher(lake.settings, [dataset], "test", recheck=True)
    assert publisher.publish([stage_published(lake.settings, dataset, partition)]).receipts
    publisher.close()
    assert rows(lake)[3]["n"] == 13
    assert lake.errors() == []


@pytest.mark.parametrize("lake", ["sqlite+folder"], indirect=True)
def test_lineage_names_the_files_that_may_hold_a_partition(lake: Lake) -> None:
    load(lake)
    run(lake, "merge")
    lake.publish([staged(lake, "2024-02-01", 1, 9)])

    def files(day: str) -> list[str]:
        found: list[str] = lineage(lake.settings, "raw.readings", day)["partitions"][0]["files"]
        return found

    merged = [path for path in paths(lake) if "day=" not in path]
    assert files(DAYS[4]) == merged
    assert files("2024-02-01") == [path for path in paths(lake) if "day=2024-02-01" in path]
