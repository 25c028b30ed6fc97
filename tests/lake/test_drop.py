"""Drop: rows leave all tables of a dataset in one commit that says why, and nothing else changes."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.datasets.dataset import Table
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.drop import emptied, retire, undefined
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.restore import stage_as_of, stage_previous
from ducklake_flows.plan import make_plan
from ducklake_flows.project import get_dataset, get_datasets
from ducklake_flows.states import Mode
from tests.cases import DAYS, case

if TYPE_CHECKING:
    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.lake.publish import Published
    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder", "postgres+s3")


def drop(lake: Lake, dataset: Dataset, pattern: str | None = None) -> tuple[Published, int]:
    receipts, rows = emptied(lake.settings, dataset, pattern)
    publisher = Publisher(lake.settings, [dataset], "dropping", reason="asked for", together=True)
    try:
        return publisher.publish(receipts), rows
    finally:
        publisher.close()


def test_a_dropped_partition_is_gone_until_its_source_changes(lake: Lake) -> None:
    for day, count in zip(DAYS[:3], (2, 3, 4), strict=True):
        lake.land(f"readings/{day}.jsonl", [{"id": i, "value": i} for i in range(count)])
    lake.load("readings", *DAYS[:3])
    (before,) = lake.column("SELECT id FROM lake.current_snapshot()")
    dataset = get_dataset("readings")
    result, rows = drop(lake, dataset, "*-0[12]")
    assert (len(result.receipts), rows) == (2, 5)
    assert lake.column("SELECT DISTINCT day::VARCHAR FROM raw.readings") == [DAYS[2]]
    assert lake.column("SELECT DISTINCT reason FROM ops.ledger WHERE flow_run_id = 'dropping'") == ["asked for"]
    assert lake.errors() == []

    def state(day: str) -> tuple[str, bool]:
        on = date.fromisoformat(day)
        (found,) = make_plan(lake.settings, get_datasets(["readings"]), on, on, Mode.missing_failed)
        return found.state.value, found.runs

    assert state(DAYS[0]) == ("rolled_back", False)
    lake.land(f"readings/{DAYS[0]}.jsonl", [{"id": 7, "value": 7}])
    assert state(DAYS[0]) == ("stale", False)
    assert state(DAYS[1]) == ("rolled_back", False)
    # Twice is once, and what is not there is named.
    assert emptied(lake.settings, dataset)[1] == 4
    with pytest.raises(BadInput, match=r"no rows of 2024-01-01"):
        emptied(lake.settings, dataset, DAYS[0])
    # As long as the snapshot is kept, the rows come back, in either way.
    for day, count in zip(DAYS[:2], (2, 3), strict=True):
        partition = dataset.partition(day)
        receipt = stage_as_of(lake.settings, dataset, partition, before)
        assert receipt is not None
        lake.publish([receipt if day == DAYS[0] else stage_previous(lake.settings, dataset, partition)])
        assert lake.column(f"SELECT count(*) FROM raw.readings WHERE day = '{day}'") == [count]
    assert lake.errors() == []


def test_the_tables_of_a_dataset_are_dropped_together(lake: Lake) -> None:
    one = case(lake, divided={"primary_key": ("id",), "children": {"items": Table()}})
    one.each([{"id": 1, "items": [{"n": 1}, {"n": 2}]}], [{"id": 2, "items": []}])
    _, rows = drop(lake, one.dataset, DAYS[0])
    assert rows == 3
    assert lake.column("SELECT id FROM raw.things") == [2]
    assert lake.column("SELECT count(*) FROM raw.things__items") == [0]
    assert one.errors() == []


def test_the_tables_of_a_dataset_that_is_no_longer_defined_are_dropped(lake: Lake) -> None:
    one = case(lake, "retired", divided={"primary_key": ("id",), "children": {"items": Table()}})
    one.each([{"id": 1, "items": [{"n": 1}]}], [{"id": 2, "items": []}])
    kept = case(lake, "retired__kept")
    kept.each([{"id": 1}])
    assert undefined(lake.settings, "retired") == {"retired": 2, "retired__items": 1, "retired__kept": 1}
    snapshot = retire(lake.settings, "retired", {"retired__kept"}, "no longer sold", "dropping")
    assert retire(lake.settings, "retired", {"retired__kept"}, "no longer sold", "again") is None
    tables = lake.column("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'raw'")
    assert [name for name in tables if name.startswith("retired")] == ["retired__kept"]
    told = lake.sql("SELECT dataset, partition, state, rows_published, reason FROM ops.ledger WHERE rows_published = 0")
    assert [tuple(row.values()) for row in sorted(told, key=str) if row["reason"]] == [
        ("retired", DAYS[0], "rolled_back", 0, "no longer sold"),
        ("retired", DAYS[1], "rolled_back", 0, "no longer sold"),
        ("retired__items", DAYS[0], "rolled_back", 0, "no longer sold"),
    ]
    assert snapshot is not None
    assert lake.column(f"SELECT id FROM raw.retired AT (VERSION => {snapshot - 1}) ORDER BY id") == [1, 2]
    with pytest.raises(BadInput, match="Neither the project nor the lake has a dataset none"):
        undefined(lake.settings, "none")
    assert kept.errors() == []
    # A dataset of the same name begins anew.
    one.each([{"id": 5, "items": [{"n": 9}]}])
    assert lake.column("SELECT id FROM raw.retired") == [5]
    assert one.errors() == []
