"""The results of audits are kept in the commit of the partition: what was observed, expected, and some bad rows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets import audits
from ducklake_flows.datasets.audits import (
    Audit,
    accepted_values,
    at_least,
    expect,
    fresh,
    measured,
    not_null,
    null_rate,
    references,
    steady,
    unique,
)
from ducklake_flows.datasets.dataset import Table
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput, CatalogError
from ducklake_flows.lake.checks import read, warnings
from ducklake_flows.lake.connect import connect, connected
from ducklake_flows.lake.restore import stage_previous
from tests.cases import DAYS, Case, case

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Lake

ONE, TWO, THREE, FOUR = DAYS

pytestmark = pytest.mark.short("sqlite+folder")


def things(lake: Lake, *rules: Audit, key: str = "things", **more: Any) -> Case:
    return case(lake, key, divided={"audits": rules, **more})


def results(lake: Lake, columns: str, key: str = "things") -> list[tuple[Any, ...]]:
    query = f"SELECT {columns} FROM ops.checks WHERE dataset = '{key}' ORDER BY token, partition, name"
    return [tuple(row.values()) for row in lake.sql(query)]


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_results_are_committed_with_the_partition_that_they_are_about(lake: Lake) -> None:
    one = things(
        lake,
        at_least(2),
        expect("positive", "v > 0", on_fail="warn"),
        expect("small", "v < 100", on_fail="quarantine"),
        primary_key=("v",),
    )
    said = one.each([{"v": 1}, {"v": -2}, {"v": 500}], [{"v": 3}])
    assert said == ["", "audit 'at_least(2)' failed: 1, expected at least 2"]
    columns = "partition, name, on_fail, passed, observed, expected, failed_rows"
    assert results(lake, columns) == [
        (ONE, "at_least(2)", "reject", True, "2", "at least 2", None),
        (ONE, "positive", "warn", False, "1 row", "0 rows", 1),
        (ONE, "small", "quarantine", False, "1 row", "0 rows", 1),
        (TWO, "at_least(2)", "reject", False, "1", "at least 2", None),
        (TWO, "positive", "warn", True, "0 rows", "0 rows", 0),
        (TWO, "small", "quarantine", True, "0 rows", "0 rows", 0),
    ]
    samples = {name: json.loads(text) for name, text in results(lake, "name, sample") if text != "[]"}
    assert samples == {"positive": [{"v": -2, "day": ONE}], "small": [{"v": 500, "day": ONE}]}
    of_ledger = lake.sql("SELECT attempt_id, token FROM ops.ledger WHERE dataset = 'things'")
    assert set(results(lake, "attempt_id, token")) == {(row["attempt_id"], row["token"]) for row in of_ledger}
    # Unchanged rows have no new results.
    assert one.load(ONE).unchanged
    assert len(results(lake, "name")) == 6
    assert one.errors() == []

    said = one.each([{"v": 7}, {"v": 7}])
    assert said == ["duplicate of the primary key (v): 1 row"]
    failed = [row for row in results(lake, "partition, name, failed_rows, passed") if not row[3]]
    assert failed[-1] == (ONE, "duplicate of the primary key (v)", 1, False)


def test_each_kind_of_audit_passes_and_fails(lake: Lake) -> None:
    """For each: rows that pass and rows that fail."""
    other = case(lake, "others", divided={})
    other.each([{"code": "a"}, {"code": "b"}])
    rules: dict[Audit, tuple[Sequence[Any], Sequence[Any]]] = {
        not_null("v"): ([1], [1, None]),
        at_least(2): ([1, 2], [1]),
        accepted_values("v", "a", "it's"): (["a", "it's", None], ["b"]),
        accepted_values("v", 1, 2.5): ([1, 2.5], [3]),
        unique("v"): ([1, 2, None, None], [1, 1]),
        null_rate("v", 0.5): ([1, None], [1, None, None]),
        measured("total", "sum(v)", "BETWEEN 1 AND 5"): ([2, 3], [3, 3]),
        references("v", "others", "code"): (["a", "b", None], ["a", "c"]),
        expect("no x", "v <> 'x'"): (["y", None], ["x"]),
    }
    for number, (rule, (good, bad)) in enumerate(rules.items()):
        one = things(lake, rule, key=f"of{number}")
        said = one.each([{"v": v} for v in good], [{"v": v} for v in bad])
        assert said[0] == "", rule
        assert said[1].startswith(f"audit {rule.name!r} failed"), (rule, said)
        assert results(lake, "passed", f"of{number}") == [(True,), (False,)]
    assert said


def test_a_reference_to_what_is_not_there_yet_fails_and_names_values(lake: Lake) -> None:
    one = things(lake, references("v", "readings", "id"))
    assert one.each([{"v": 3}, {"v": 1}, {"v": 2}, {"v": 2}, {"v": 9}]) == [
        "audit 'references(v, readings.id)' failed: 5 rows with another value, expected in readings.id"
    ]
    assert results(lake, "sample, failed_rows") == [("[1,2,2]", 5)]


@given(counts=st.lists(st.integers(0, 12), min_size=4, max_size=9), last=st.integers(3, 5))
@settings(max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
def test_a_steady_measure_is_compared_with_the_partitions_before(lake: Lake, counts: list[int], last: int) -> None:
    key = f"s{next(_KEYS)}"
    one = things(lake, steady(low=0.5, high=2, last=last, on_fail="reject"), key=key)
    days = [f"2024-02-{day:02}" for day in range(1, len(counts) + 1)]
    published: list[int] = []
    for day, count in zip(days, counts, strict=True):
        one.given[day] = [{"v": n} for n in range(count)]
        before = published[-last:]
        fits = len(before) < audits.ENOUGH or median(before) * 0.5 <= count <= median(before) * 2
        result = one.load(day)
        assert bool(result.receipts) == fits, (counts, day, before)
        published += [count] * fits
    assert one.errors() == []


_KEYS = iter(range(10_000))


def test_a_steady_measure_compares_with_the_same_segment_and_the_only_partition_with_earlier_attempts(
    lake: Lake,
) -> None:
    one = things(lake, steady(on_fail="reject"), segment_column="region", segments=("eu", "us"))
    for day in DAYS:
        one.given |= {f"eu/{day}": [{"v": n} for n in range(100)], f"us/{day}": [{"v": n} for n in range(5)]}
        assert len(one.load(f"eu/{day}", f"us/{day}").receipts) == 2
    one.given[f"us/{FOUR}"] = [{"v": n} for n in range(50)]
    assert [f.partition for f in one.load(f"us/{FOUR}").failures] == [f"us/{FOUR}"]
    # A rollback is not judged again.
    one.given[f"us/{FOUR}"] = [{"v": n} for n in range(6)]
    assert one.load(f"us/{FOUR}").receipts
    back = stage_previous(lake.settings, one.dataset, one.dataset.partition(f"us/{FOUR}"))
    assert one.publish([back]).receipts

    whole = case(lake, "whole", grain=Grain.full, divided={"audits": (steady(on_fail="reject"),)})
    for count in (10, 11, 12):
        whole.given["full"] = [{"v": n} for n in range(count)]
        assert whole.load("full").receipts
    whole.given["full"] = [{"v": n} for n in range(50)]
    assert whole.load("full").failures


def test_audits_of_other_tables_are_recorded_with_them(lake: Lake) -> None:
    items = Table(audits=(at_least(1, on_fail="warn"), expect("cheap", "price < 10", on_fail="warn")))
    one = things(lake, primary_key=("v",), children={"items": items})
    assert one.each([{"v": 1, "items": [{"price": 20}]}]) == [""]
    assert results(lake, "name, passed", "things__items") == [("at_least(1)", True), ("cheap", False)]


def test_results_are_read_by_audit_and_partition(lake: Lake) -> None:
    one = things(lake, at_least(2, on_fail="warn"), expect("positive", "v > 0", on_fail="warn"))
    one.each([{"v": 1}], [{"v": 2}, {"v": -2}], [{"v": 3}, {"v": 3}])
    found = read(lake.settings, one.dataset)
    numbers = {row["name"]: (row["passed"], row["failed"], row["last_failed"]) for row in found.names}
    assert numbers == {"at_least(2)": (2, 1, ONE), "positive": (2, 1, TWO)}
    assert [(row["partition"], row["name"]) for row in found.found if not row["passed"]] == [
        (TWO, "positive"),
        (ONE, "at_least(2)"),
    ]
    one.each([{"v": 1}, {"v": 1}])
    assert {row["name"]: row["failed"] for row in read(lake.settings, one.dataset).names}["at_least(2)"] == 0
    history = read(lake.settings, one.dataset, [ONE], "at_least(2)", history=True).found
    assert [row["passed"] for row in history] == [True, False]


def test_the_newest_value_is_compared_with_the_end_of_the_partition(lake: Lake) -> None:
    """For each type of column and zone: the oldest newest value that passes, and one that is a second or day older."""
    berlin = {"timezone": "Europe/Berlin"}
    winter, summer = "2024-01-01", "2024-03-31"  # the second has 23 hours in Berlin
    told = [
        ("timestamp", {}, winter, "2 hours", "2024-01-01T22:00:00Z", "2024-01-01T21:59:59Z"),
        ("timestamp_ntz", {}, winter, "2 hours", "2024-01-01T22:00:00", "2024-01-01T21:59:59"),
        ("date", {}, winter, 1, "2024-01-01", "2023-12-31"),
        ("timestamp", berlin, winter, "2 hours", "2024-01-01T21:00:00Z", "2024-01-01T20:59:59Z"),
        ("timestamp_ntz", berlin, winter, "2 hours", "2024-01-01T22:00:00", "2024-01-01T21:59:59"),
        ("timestamp_ntz", berlin, summer, timedelta(hours=23), "2024-03-31T00:00:00", "2024-03-30T23:59:59"),
        ("date", berlin, summer, "23 hours", "2024-03-31", "2024-03-30"),
    ]
    for number, (kind, zone, day, within, good, bad) in enumerate(told):
        key = f"f{number}"
        rule = fresh("at", within=within)  # type: ignore[arg-type]
        one = case(lake, key, contract={"at": kind}, divided={"audits": (rule,), **zone})
        one.given |= {day: [{"at": "2020" + bad[4:]}, {"at": bad}, {"at": None}], "2024-05-05": []}
        failed = one.load(day, "2024-05-05").failures
        assert [f.error.partition(":")[0] for f in failed] == [f"audit {rule.name!r} failed"] * 2, failed
        # Partitions of one chunk have ends of their own: what is new in the first is old in the second.
        one.given |= {day: [{"at": "2020" + good[4:]}, {"at": good}, {"at": None}], "2024-05-05": [{"at": good}]}
        assert [f.partition for f in one.load(day, "2024-05-05").failures] == ["2024-05-05"], kind
        last = results(lake, "partition, passed, observed", key)[-2:]
        assert [row[:2] for row in last] == [(day, True), ("2024-05-05", False)]
        assert last[0][2] == last[1][2] != ""
    with pytest.raises(BadInput, match=r"fresh\(at\): within is '2 fortnights'"):
        fresh("at", within="2 fortnights")


def test_what_has_not_ended_is_compared_with_the_time_at_which_it_is_read(lake: Lake) -> None:
    now = datetime.now(UTC)
    for key, grain, partition in (("whole", Grain.full, "full"), ("years", Grain.year, "2999")):
        rule = fresh("at", "1 day")
        one = case(lake, key, grain=grain, contract={"at": "timestamp"}, divided={"audits": (rule,)})
        one.given[partition] = [{"at": now - timedelta(hours=25)}]
        assert one.load(partition).failures
        one.given[partition] = [{"at": now - timedelta(hours=12)}]
        assert one.load(partition).receipts
        assert results(lake, "passed, expected", key)[-1] == (True, "within 1 day of the partition's end")


def test_a_warning_stands_as_long_as_its_rows_are_published(lake: Lake) -> None:
    low = expect("low", "v < 10", on_fail="warn")
    one = things(lake, low, expect("even", "v % 2 = 0", on_fail="reject"))

    def warned() -> list[tuple[str, list[str], str]]:
        with connected(lake.settings, read_only=True) as con:
            return [(each.name, list(each.partitions), each.observed) for each in warnings(con)]

    one.each([{"v": 20}], [{"v": 2}], [{"v": 30}, {"v": 40}])
    assert warned() == [("low", [ONE, THREE], "2 rows")]
    # Rejected: the rows from before are published still.
    assert one.each([{"v": 1}])[0]
    assert warned() == [("low", [ONE, THREE], "2 rows")]
    one.each([{"v": 2}])
    assert warned() == [("low", [THREE], "2 rows")]
    # Its rows come back, and with them the warning.
    one.publish([stage_previous(lake.settings, one.dataset, one.dataset.partition(ONE))])
    assert warned() == [("low", [ONE, THREE], "2 rows")]
    # The audit is gone from the dataset, and then from what is published.
    other = things(lake)
    other.each([{"v": 21}], [{"v": 3}], [{"v": 31}])
    assert warned() == []


def test_a_lake_of_an_earlier_release_names_the_command(lake: Lake) -> None:
    con = connect(lake.settings)
    con.execute("ALTER TABLE lake.ops.checks DROP COLUMN observed")
    con.close()
    assert things(lake, key="bare").each([{"v": 1}]) == [""]
    with pytest.raises(CatalogError, match=r"ops\.checks lacks a column") as raised:
        things(lake, at_least(1)).each([{"v": 1}])
    assert raised.value.fix == "lake init"
