"""SIGKILL at every named point of extract, publish and maintenance.

No row is lost, duplicated or partially visible, and the next command finishes.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Table
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.drop import retire
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.migrate import migrator, undoing
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.restore import stage_as_of
from ducklake_flows.lake.verify import verify
from ducklake_flows.orchestration.restoring import changed_since
from ducklake_flows.project import get_dataset
from ducklake_flows.testing.failpoints import POINTS, Point
from tests.cases import case
from tests.faults.conftest import Contents, Killer, found, land, load, staged, staged_as, told

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake

OLD: Contents = {"2024-01-01": (10, 1), "2024-01-02": (20, 1)}
NEW: Contents = {"2024-01-01": (11, 2), "2024-01-03": (5, 2)}
DAYS = sorted({**OLD, **NEW})

EXTRACT, PUBLISH = POINTS[0:3], [point for point in POINTS[5:12] if point != "schema committed"]
ENDS = [
    point if point in ("before COMMIT", "after COMMIT") else pytest.param(point, marks=pytest.mark.soak)
    for point in PUBLISH
]
WITH_EXTRACT = [*(pytest.param(point, marks=pytest.mark.soak) for point in EXTRACT), *ENDS]
"""What is published besides a plain partition is part of the same transaction: here it is killed at its ends alone."""

AGED = timedelta(days=3)


@pytest.mark.parametrize("point", [*EXTRACT, *PUBLISH])
def test_a_kill_in_extract_or_publish_leaves_no_row_lost_duplicated_or_partially_published(
    lake: Lake, kill: Killer, point: Point
) -> None:
    land(lake, OLD)
    lake.load("readings", *OLD)
    land(lake, NEW)
    kill.at(point, load, *DAYS)
    done = point == "after COMMIT"
    assert found(lake) == ({**OLD, **NEW} if done else OLD)
    assert lake.errors() == []

    again = lake.load("readings", *DAYS)
    assert (len(again.receipts), len(again.unchanged)) == ((0, 3) if done else (2, 1))
    assert found(lake) == {**OLD, **NEW}
    assert told(lake) == {day: rows for day, (rows, _) in sorted({**OLD, **NEW}.items())}
    assert lake.errors() == []


TABLES = """
from ducklake_flows import Dataset, Files, Table

ORDERS = Dataset(
    "orders",
    Files("orders/{partition}.jsonl", "jsonl"),
    partition_column="day",
    primary_key=("id",),
    children={"items": Table()},
)
"""


def load_orders(lake: Lake, *days: str) -> None:
    lake.load("orders", *days)


@pytest.mark.parametrize("point", WITH_EXTRACT)
@pytest.mark.short("sqlite+folder")
def test_a_kill_leaves_the_tables_of_a_dataset_together(
    lake: Lake, kill: Killer, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "orders.py").write_text(TABLES)
    monkeypatch.setenv("LAKE_DATASETS", str(tmp_path / "tables"))

    def landed(contents: Contents) -> dict[str, tuple[int, int, int]]:
        for day, (count, items) in contents.items():
            rows = [{"id": i, "items": [{"n": items} for _ in range(items)]} for i in range(count)]
            lake.land(f"orders/{day}.jsonl", rows)
        return {day: (count, count * items, items) for day, (count, items) in contents.items()}

    def there() -> dict[str, tuple[int, int, int]]:
        found = lake.sql(
            "SELECT day::VARCHAR AS day, count(DISTINCT id) AS parents, count(*) AS items, max(n) AS n "
            "FROM raw.orders JOIN raw.orders__items i USING (day) WHERE i.orders_id = id GROUP BY ALL ORDER BY ALL"
        )
        return {row["day"]: (row["parents"], row["items"], row["n"]) for row in found}

    old = landed(OLD)
    lake.load("orders", *OLD)
    new = {**old, **landed(NEW)}
    kill.at(point, load_orders, *DAYS)
    assert there() == (new if point == "after COMMIT" else old)
    assert lake.errors() == []
    lake.load("orders", *DAYS)
    assert there() == new
    assert lake.errors() == []


RULED = """
from ducklake_flows import Contract, Dataset, Files

RULED = Dataset(
    "ruled",
    Files("ruled/{partition}.csv", "csv"),
    partition_column="day",
    contract=Contract({"id": "bigint", "n": "bigint"}, schema_contract={"data_type": "discard_row"}),
)
"""


def load_ruled(lake: Lake, *days: str) -> None:
    lake.load("ruled", *days)


@pytest.mark.parametrize("point", WITH_EXTRACT)
@pytest.mark.short("sqlite+folder")
def test_a_kill_leaves_each_row_in_its_table_or_in_quarantine(
    lake: Lake, kill: Killer, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ruled").mkdir()
    (tmp_path / "ruled" / "ruled.py").write_text(RULED)
    monkeypatch.setenv("LAKE_DATASETS", str(tmp_path / "ruled"))

    def landed(contents: Contents) -> dict[str, tuple[int, int]]:
        """Of each day, the rows that are good and those that are not."""
        for day, (count, value) in contents.items():
            lines = [f"{i},{value if i % 3 else 'x'}\n" for i in range(count)]
            lake.land(f"ruled/{day}.csv", "id,n\n" + "".join(lines))
        return {
            day: (sum(i % 3 > 0 for i in range(n)), sum(i % 3 == 0 for i in range(n)))
            for day, (n, _) in contents.items()
        }

    def there() -> dict[str, tuple[int, int]]:
        found = lake.sql(
            "SELECT day::VARCHAR AS day, count(*) FILTER (good) AS good, count(*) FILTER (NOT good) AS bad FROM ("
            "  SELECT day, true AS good FROM raw.ruled UNION ALL SELECT day, false FROM raw.ruled__quarantine"
            ") GROUP BY ALL ORDER BY ALL"
        )
        return {row["day"]: (row["good"], row["bad"]) for row in found}

    old = landed(OLD)
    lake.load("ruled", *OLD)
    assert there() == old
    new = {**old, **landed(NEW)}
    kill.at(point, load_ruled, *DAYS)
    assert there() == (new if point == "after COMMIT" else old)
    assert lake.errors() == []
    lake.load("ruled", *DAYS)
    assert there() == new
    assert lake.errors() == []


def roll_back(lake: Lake, snapshot: int) -> None:
    """All days to a snapshot, as the flow does."""
    dataset = get_dataset("readings")
    _, changed = changed_since(lake.settings, [dataset], str(snapshot))
    receipts = [r for one, days in changed for day in days if (r := stage_as_of(lake.settings, one, day, snapshot))]
    with contextlib.closing(Publisher(lake.settings, [dataset], "test", together=True)) as publisher:
        if receipts:
            assert not publisher.publish(receipts).failures


@pytest.mark.parametrize("point", ENDS)
@pytest.mark.short("sqlite+folder")
def test_a_kill_in_a_rollback_of_the_lake_leaves_all_of_it_or_none(lake: Lake, kill: Killer, point: Point) -> None:
    land(lake, OLD)
    lake.load("readings", *OLD)
    (at,) = lake.column("SELECT id FROM lake.current_snapshot()")
    land(lake, NEW)
    lake.load("readings", *NEW)
    kill.at(point, roll_back, at)
    assert found(lake) == (OLD if point == "after COMMIT" else {**OLD, **NEW})
    assert lake.errors() == []
    roll_back(lake, at)
    assert found(lake) == OLD
    assert told(lake) == {**{day: rows for day, (rows, _) in OLD.items()}, "2024-01-03": 0}
    assert lake.errors() == []


def widen(lake: Lake) -> None:
    """Publish a day whose values are no longer integers and that has a new column."""
    rows = pa.table({"id": range(3), "value": [2.0] * 3, "unit": ["new"] * 3})
    receipt = staged_as(lake, "2024-01-03", rows)
    assert len(lake.publish([receipt]).receipts) == 1


def test_a_kill_between_a_schema_change_and_its_publish_loses_nothing(lake: Lake, kill: Killer) -> None:
    lake.publish([staged(lake, day, *content) for day, content in OLD.items()])
    kill.at("schema committed", widen)
    assert found(lake) == OLD
    assert lake.column("SELECT DISTINCT typeof(value) FROM raw.readings") == ["DOUBLE"]
    assert lake.errors() == []
    again = lake.publish([staged(lake, "2024-01-01", *OLD["2024-01-01"])])
    assert (len(again.unchanged), again.snapshot_id) == (1, None)
    widen(lake)
    assert found(lake) == {**OLD, "2024-01-03": (3, 2)}
    assert lake.column("SELECT count(*) FROM raw.readings WHERE value = 1 AND unit IS NULL") == [30]
    assert lake.errors() == []


def maintain(lake: Lake) -> None:
    for step in steps(lake.settings, timedelta(0), datetime.now(UTC) + AGED):
        if step.todo:
            step.run()


@pytest.mark.parametrize("point", ["mid compaction", "mid cleanup"])
@pytest.mark.parametrize("partitioned", [False, True])
def test_a_kill_in_maintenance_changes_no_row(lake: Lake, kill: Killer, point: Point, partitioned: bool) -> None:
    """Of a partitioned table, which an earlier release made, the first step is killed between its two commits."""
    if partitioned:
        con = connect(lake.settings)
        con.execute("CREATE TABLE raw.readings (id BIGINT, value BIGINT, day DATE)")
        con.execute("ALTER TABLE raw.readings SET PARTITIONED BY (day)")
        con.close()
    land(lake, OLD)
    lake.load("readings", *OLD)
    land(lake, NEW)
    lake.load("readings", *NEW)
    lake.extract("readings", DAYS[0])  # an orphan
    con = connect(lake.settings)
    con.execute("CREATE TABLE raw.small (n BIGINT)")
    for n in range(3):
        con.execute(f"INSERT INTO raw.small VALUES ({n})")
    con.close()
    kill.at(point, maintain)
    for _ in range(2):
        assert found(lake) == {**OLD, **NEW}
        assert lake.column("SELECT n FROM raw.small ORDER BY n") == [0, 1, 2]
        assert lake.errors() == []
        maintain(lake)
    left = lake.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")
    assert len(left) == 1
    assert len(lake.data.list("raw/readings")) == 1, "what was merged or replaced, and the orphan, are gone"


def migrated(lake: Lake, columns: dict[str, str], rename: dict[str, str], *, undo: bool = False) -> None:
    """The steps of the migrate flow, two partitions a commit."""
    readings = replace(get_dataset("readings"), contract=Contract(columns))
    plan = undoing(lake.settings, readings) if undo else migrator(lake.settings, readings, rename, [])
    plan.survey()
    if not plan.migration.rewrites:
        plan.alter()
        return
    plan.prepare()
    while (pending := plan.pending()) or plan.swap() is None:
        plan.add(plan.copy(pending[:2]))
        plan.check()


Change = tuple[dict[str, str], dict[str, str]]

NAMES: Change
TYPES: Change
NAMES, TYPES = ({}, {"value": "amount"}), ({"amount": "text"}, {"value": "amount"})


@pytest.mark.parametrize(
    ("change", "point", "done"),
    [
        pytest.param(NAMES, "after the fence", False, marks=pytest.mark.soak),
        (NAMES, "before COMMIT", False),
        pytest.param(NAMES, "table swapped", True, marks=pytest.mark.soak),
        (TYPES, "copy staged", False),
        pytest.param(TYPES, "after registration", False, marks=pytest.mark.soak),
        pytest.param(TYPES, "after COMMIT", False, marks=pytest.mark.soak),
        pytest.param(TYPES, "after the fence", False, marks=pytest.mark.soak),
        (TYPES, "before COMMIT", False),
        (TYPES, "table swapped", True),
    ],
)
@pytest.mark.short("sqlite+folder")
def test_a_kill_in_a_migration_leaves_the_table_as_it_was_or_as_it_shall_be(
    lake: Lake, kill: Killer, change: Change, point: Point, done: bool
) -> None:
    columns, rename = change
    contents = {**OLD, **NEW}
    land(lake, contents)
    lake.load("readings", *contents)

    def there() -> list[dict[str, Any]]:
        return lake.sql("SELECT * FROM raw.readings ORDER BY day, id")

    old = there()
    new = [
        {"id": row["id"], "amount": str(row["value"]) if columns else row["value"], "day": row["day"]} for row in old
    ]
    kill.at(point, migrated, columns, rename)
    assert there() == (new if done else old)
    findings = {finding.check: finding.severity for finding in verify(lake.settings)}
    assert findings == ({"migration": "note"} if columns and not done else {})
    if not done:
        migrated(lake, columns, rename)
    assert there() == new
    assert lake.errors() == []
    kill.at(point, partial(migrated, undo=True), {}, {})
    assert there() == (old if done else new)
    if not done:
        migrated(lake, {}, {}, undo=True)
    assert [dict(sorted(row.items())) for row in there()] == [dict(sorted(row.items())) for row in old]
    assert lake.errors() == []


def retired(lake: Lake) -> None:
    retire(lake.settings, "old", set(), "no longer needed", "dropping")


@pytest.mark.parametrize("point", ["before COMMIT", "after COMMIT"])
@pytest.mark.short("sqlite+folder")
def test_a_kill_in_a_drop_of_a_dataset_drops_all_of_it_or_none(lake: Lake, kill: Killer, point: Point) -> None:
    one = case(lake, "old", divided={"primary_key": ("id",), "children": {"items": Table()}})
    one.each([{"id": 1, "items": [{"n": 1}]}])
    kill.at(point, retired)
    done = point == "after COMMIT"
    tables = lake.column("SELECT table_name FROM duckdb_tables() WHERE starts_with(table_name, 'old') ORDER BY 1")
    assert tables == ([] if done else ["old", "old__items"])
    assert lake.column("SELECT count(*) FROM ops.ledger WHERE reason IS NOT NULL") == [2 if done else 0]
    retired(lake)
    assert lake.column("SELECT count(*) FROM ops.ledger WHERE reason IS NOT NULL") == [2]
    assert lake.errors() == []
