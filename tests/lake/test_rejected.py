"""The rows of a rejected attempt can be looked at, and are in no table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.datasets.audits import at_least, expect, steady
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.rejected import read
from tests.cases import DAYS, case

if TYPE_CHECKING:
    from tests.conftest import Lake

ONE, TWO, THREE, FOUR = DAYS

pytestmark = pytest.mark.short("sqlite+folder", "postgres+s3")


def test_rows_that_an_audit_refused_are_kept_until_the_clean_up(lake: Lake) -> None:
    one = case(lake, divided={"audits": (expect("positive", "v > 0"), at_least(1))})
    one.given |= {ONE: [{"v": 1}], TWO: [{"v": 5}, {"v": -6}], THREE: [{"v": 2}, {"v": "x"}]}
    result = one.load(ONE, TWO, THREE)
    assert [failure.partition for failure in result.failures] == [TWO, THREE]
    found = read(lake.settings, one.dataset, TWO)
    assert (found.error, found.total) == ("audit 'positive' failed: 1 row", 2)
    assert [row["v"] for row in found.rows] == [5, -6]
    assert found.attempt_id == result.failures[0].attempt_id
    assert [row["v"] for row in read(lake.settings, one.dataset, TWO, "v < 0").rows] == [-6]
    assert read(lake.settings, one.dataset, TWO, limit=0).rows == []
    assert lake.column("SELECT v FROM raw.things") == [1]
    assert one.errors() == []
    for partition, message in (
        (ONE, f"No attempt at things {ONE} was rejected"),
        (THREE, f"No rows of things {THREE} are kept: it was rejected before they were staged"),
    ):
        with pytest.raises(BadInput, match=message):
            read(lake.settings, one.dataset, partition)
    with pytest.raises(BadInput, match="--where 'w > 0' does not fit the rows"):
        read(lake.settings, one.dataset, TWO, "w > 0")
    for age, is_kept in ((timedelta(0), True), (timedelta(days=2), False)):
        for step in steps(lake.settings, timedelta(30), datetime.now(UTC) + age):
            if step.todo:
                step.run()
        if is_kept:
            assert read(lake.settings, one.dataset, TWO).total == 2
        else:
            with pytest.raises(BadInput, match=r"No rows of things .* more than 1 day ago. Why: audit 'positive'"):
                read(lake.settings, one.dataset, TWO)
    assert lake.column("SELECT v FROM raw.things") == [1]


@pytest.mark.short("sqlite+folder")
def test_rows_that_were_refused_in_the_gate_are_kept_too(lake: Lake) -> None:
    one = case(lake, divided={"audits": (steady(on_fail="reject"),)})
    assert one.each(*([{"v": 1}, {"v": 2}] for _ in range(3))) == ["", "", ""]
    one.given |= {FOUR: [{"v": 9}] * 9, "2024-01-05": [{"v": 9}] * 9}
    assert len(one.load(FOUR, "2024-01-05").failures) == 2
    assert read(lake.settings, one.dataset, FOUR).total == 9
    assert one.errors() == []
