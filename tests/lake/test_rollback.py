"""Rollback: a new commit with the rows of the previous attempt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.restore import stage_previous
from ducklake_flows.plan import make_plan
from ducklake_flows.project import get_dataset, get_datasets
from ducklake_flows.states import Mode

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
