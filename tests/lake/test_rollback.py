"""Rollback: a new commit with the rows of the previous attempt."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets.dataset import Table
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.errors import BadInput, LakeError, PublishedInBetween
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.restore import stage_as_of, stage_previous
from ducklake_flows.orchestration.restoring import changed_since
from ducklake_flows.plan import make_plan
from ducklake_flows.project import get_dataset, get_datasets
from ducklake_flows.states import Mode
from tests.cases import DAYS, case

if TYPE_CHECKING:
    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder", "postgres+s3")

DAY = "2024-01-01"


def load(lake: Lake, rows: int, day: str = DAY) -> None:
    lake.land(f"readings/{day}.jsonl", [{"id": i, "value": 1} for i in range(rows)])
    lake.load("readings", day)


def roll_back(lake: Lake) -> None:
    dataset = get_dataset("readings")
    lake.publish([stage_previous(lake.settings, dataset, parse_partition(DAY, dataset.grain))])


def count(lake: Lake) -> int:
    return int(lake.column(f"SELECT count(*) FROM raw.readings WHERE day = '{DAY}'")[0])


def state(lake: Lake) -> tuple[str, bool]:
    from datetime import date

    planned = make_plan(
        lake.settings, get_datasets(["readings"]), date(2024, 1, 1), date(2024, 1, 1), Mode.missing_failed
    )
    return planned[0].state.value, planned[0].runs


def test_a_rollback_brings_back_the_previous_rows_of_that_partition_only(lake: Lake) -> None:
    load(lake, 10)
    load(lake, 7, "2024-01-02")
    load(lake, 20)
    roll_back(lake)
    assert count(lake) == 10
    assert lake.column("SELECT count(*) FROM raw.readings") == [17]
    last = lake.sql("SELECT state, restores, rows_published FROM ops.ledger ORDER BY token DESC LIMIT 1")[0]
    first = lake.column("SELECT attempt_id FROM ops.ledger ORDER BY token LIMIT 1")[0]
    assert last == {"state": "rolled_back", "restores": first, "rows_published": 10}
    # It stays rolled back until its source changes. The next run skips it.
    assert state(lake) == ("rolled_back", False)
    assert lake.errors() == []
    load(lake, 30)
    assert (count(lake), state(lake)[0]) == (30, "published")
    assert lake.errors() == []


def test_a_changed_source_makes_a_rolled_back_partition_stale(lake: Lake) -> None:
    load(lake, 10)
    load(lake, 20)
    roll_back(lake)
    lake.land(f"readings/{DAY}.jsonl", [{"id": i, "value": 2} for i in range(12)])
    assert state(lake) == ("stale", False)


def test_rolling_back_twice_goes_back_two_attempts(lake: Lake) -> None:
    for rows in (10, 20, 30):
        load(lake, rows)
    roll_back(lake)
    assert count(lake) == 20
    roll_back(lake)
    assert count(lake) == 10
    with pytest.raises(BadInput, match="no attempt before"):
        roll_back(lake)
    assert lake.errors() == []


def test_a_rollback_never_returns_to_a_rolled_back_attempt(lake: Lake) -> None:
    for rows in (10, 20):
        load(lake, rows)
    roll_back(lake)
    load(lake, 30)
    roll_back(lake)
    assert count(lake) == 10, "the 20 were taken back, and 10 rows stood there before the 30"
    assert lake.errors() == []


def test_rollback_reaches_rows_older_than_the_retention(lake: Lake) -> None:
    """The snapshot that published them has expired, but the last snapshot that contains them has not."""
    load(lake, 10)
    load(lake, 7, "2024-01-02")
    for step in steps(lake.settings, timedelta(0), datetime.now(UTC)):
        step.run()
    load(lake, 20)
    roll_back(lake)
    assert count(lake) == 10
    assert lake.errors() == []


def test_an_impossible_rollback_is_an_error_and_changes_nothing(lake: Lake) -> None:
    with pytest.raises(BadInput, match="never published"):
        roll_back(lake)
    load(lake, 10)
    with pytest.raises(BadInput, match="no attempt before"):
        roll_back(lake)
    load(lake, 20)
    for step in steps(lake.settings, timedelta(0), datetime.now(UTC)):
        step.run()
    with pytest.raises(BadInput, match="has expired") as caught:
        roll_back(lake)
    assert "lake backfill readings" in caught.value.fix
    assert count(lake) == 20
    assert lake.errors() == []


def test_a_rollback_across_a_new_column_and_an_empty_attempt(lake: Lake) -> None:
    load(lake, 10)
    lake.land(f"readings/{DAY}.jsonl", [{"id": 1, "value": 1, "unit": "mm"}])
    lake.load("readings", DAY)
    roll_back(lake)
    assert lake.column("SELECT count(*) FROM raw.readings WHERE unit IS NULL") == [10]
    assert lake.errors() == []


CONTENTS = st.dictionaries(st.sampled_from(DAYS), st.integers(0, 3), min_size=1, max_size=3)


@pytest.mark.short("sqlite+folder")
@given(history=st.lists(CONTENTS, min_size=1, max_size=4), data=st.data())
@settings(max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
def test_all_partitions_go_back_to_any_snapshot_in_one_commit(lake: Lake, history: Any, data: st.DataObject) -> None:
    """A dataset that sets rows aside, and one with a child table; each state is what a dict says."""
    number = next(_KEYS)
    ruled = case(lake, f"ruled{number}", contract={"id": "bigint"}, schema_contract={"data_type": "discard_row"})
    orders = case(lake, f"orders{number}", divided={"primary_key": ("id",), "children": {"items": Table()}})
    cases = (ruled, orders)
    state: dict[str, int] = {}
    states: list[tuple[int, dict[str, int]]] = [(snapshot(lake), {})]

    def there() -> dict[str, list[int]]:
        """Of each day: its rows, those set aside, its orders and their items."""
        tables = (f"ruled{number}", f"ruled{number}__quarantine", f"orders{number}", f"orders{number}__items")
        known = {row["t"] for row in lake.sql("SELECT table_name AS t FROM duckdb_tables() WHERE schema_name = 'raw'")}
        found: dict[str, list[int]] = {}
        for place, table in enumerate(tables):
            for row in (
                lake.sql(f"SELECT day::VARCHAR AS day, count(*) AS n FROM raw.{table} GROUP BY 1")
                if table in known
                else ()
            ):
                found.setdefault(row["day"], [0] * 4)[place] = row["n"]
        return found

    def right(of: dict[str, int]) -> dict[str, list[int]]:
        return {day: [n, n, n, 2 * n] for day, n in of.items() if n}

    def publisher(together: bool) -> Publisher:
        return Publisher(lake.settings, [one.dataset for one in cases], "test", together=together)

    for contents in history:
        for day, n in contents.items():
            ruled.given[day] = [{"id": v} for i in range(n) for v in (i, f"x{i}")]
            orders.given[day] = [{"id": i, "items": [{"a": 1}, {"a": 2}]} for i in range(n)]
        for one in cases:
            one.load(*contents)
        state = {**state, **contents}
        states.append((snapshot(lake), state))
        assert there() == right(state)
    for _ in range(2):  # and from there to another
        at, wanted = data.draw(st.sampled_from(states))
        datasets = [one.dataset for one in cases]
        _, changed = changed_since(lake.settings, datasets, str(at))
        receipts = [r for one, keys in changed for key in keys if (r := stage_as_of(lake.settings, one, key, at))]
        before = snapshot(lake)
        if receipts:
            with contextlib.closing(publisher(together=True)) as publish:
                assert not publish.publish(receipts).failures
        assert there() == right(wanted), (at, states)
        assert snapshot(lake) - before <= 1
        for one in cases:
            assert one.errors() == []


_KEYS = iter(range(10_000))


def snapshot(lake: Lake) -> int:
    return int(lake.column("SELECT id FROM lake.current_snapshot()")[0])


@pytest.mark.short("sqlite+folder")
def test_of_several_partitions_none_goes_back_if_one_cannot(lake: Lake) -> None:
    load(lake, 1)
    load(lake, 1, "2024-01-02")
    at = snapshot(lake)
    load(lake, 5)
    load(lake, 5, "2024-01-02")
    dataset = get_dataset("readings")
    staged = [stage_as_of(lake.settings, dataset, dataset.partition(day), at) for day in (DAY, "2024-01-02")]
    receipts = [receipt for receipt in staged if receipt]
    Path(lake.settings.data_path, receipts[1].files[0]).unlink()
    publisher = Publisher(lake.settings, [dataset], "test", together=True)
    with contextlib.closing(publisher), pytest.raises(LakeError):
        publisher.publish(receipts)
    assert lake.column("SELECT count(*) FROM raw.readings") == [10]
    assert lake.errors() == []
    # Published again in between: nothing is overwritten.
    receipts = [
        r for day in (DAY, "2024-01-02") if (r := stage_as_of(lake.settings, dataset, dataset.partition(day), at))
    ]
    load(lake, 9)
    publisher = Publisher(lake.settings, [dataset], "test", together=True)
    with contextlib.closing(publisher), pytest.raises(PublishedInBetween):
        publisher.publish(receipts)
    assert lake.column("SELECT count(*) FROM raw.readings") == [14]
