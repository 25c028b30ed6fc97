"""What differs between two states of a table, against a comparison of Python dicts."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.diff import Difference, changed_rows, changes, diff_dataset, diff_tables
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.restore import stage_previous
from tests.cases import DAYS, Case, case

if TYPE_CHECKING:
    from tests.conftest import Lake

ONE, TWO, THREE = DAYS[:3]

pytestmark = pytest.mark.short("sqlite+folder")


def keyed(lake: Lake, key: str = "things", **more: Any) -> Case:
    return case(lake, key, divided={"primary_key": ("id",), **more})


def snapshot(lake: Lake) -> str:
    return str(lake.column("SELECT id FROM lake.current_snapshot()")[0])


def compared(lake: Lake, one: Case, old: str | None = None, new: str = "now", **more: Any) -> Difference:
    return diff_dataset(lake.settings, one.dataset, old, new, **more)


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_rows_that_were_added_removed_and_changed_are_told_with_their_values(lake: Lake) -> None:
    one = keyed(lake)
    one.each(
        [{"id": 1, "v": "a", "n": 1.5}, {"id": 2, "v": "b", "n": None}, {"id": 3, "v": "c", "n": 3.0}], [{"id": 1}]
    )
    before = snapshot(lake)
    one.each([{"id": 1, "v": "a", "n": 1.5}, {"id": 2, "v": "B", "n": 2.0}, {"id": 4, "v": "d", "n": 4.0}])
    found = compared(lake, one, before)
    assert (found.added, found.removed, found.changed) == (1, 1, 1)
    assert found.by_column == {"v": 1, "n": 1}
    assert found.by_partition == {ONE: (1, 1, 1)}
    assert [(row["what"], row["key"]["id"]) for row in found.sample] == [("changed", 2), ("removed", 3), ("added", 4)]
    assert (found.sample[0]["old"], found.sample[0]["new"]) == ({"v": "b", "n": None}, {"v": "B", "n": 2.0})
    # The last publish is the default; backwards, what was added is removed.
    assert compared(lake, one) == found
    back = compared(lake, one, "now", before)
    assert (back.added, back.removed, back.changed) == (1, 1, 1)
    assert back.sample[1]["what"] == "added"
    assert not compared(lake, one, before, partition=TWO)
    assert not compared(lake, one, "now", "now")
    # By attempt and by moment.
    first, last = lake.column(
        f"SELECT attempt_id FROM ops.ledger WHERE dataset = 'things' AND partition = '{ONE}' ORDER BY token"
    )
    assert compared(lake, one, first, last).by_partition == {ONE: (1, 1, 1), TWO: (1, 0, 0)}
    assert compared(lake, one, first, last, partition=ONE).by_partition == {ONE: (1, 1, 1)}
    moments = lake.sql("SELECT snapshot_id, snapshot_time AS at FROM lake.snapshots()")
    at = {str(row["snapshot_id"]): row["at"].astimezone(UTC) for row in moments}[before]
    assert compared(lake, one, at.isoformat()).by_partition == found.by_partition
    # A rollback leaves what was there.
    one.publish([stage_previous(lake.settings, one.dataset, one.dataset.partition(ONE))])
    assert not compared(lake, one, first, partition=ONE)


def test_without_a_key_rows_are_compared_as_they_are(lake: Lake) -> None:
    one = case(lake)
    one.each([{"v": 1}, {"v": 1}, {"v": 2}])
    before = snapshot(lake)
    one.each([{"v": 1}, {"v": 3}, {"v": 3}])
    found = compared(lake, one, before)
    assert (found.added, found.removed, found.changed, found.key) == (2, 2, 0, ())
    assert {(row["what"], (row["new"] or row["old"])["v"], row.get("times", 1)) for row in found.sample} == {
        ("removed", 1, 1),
        ("removed", 2, 1),
        ("added", 3, 2),
    }


def test_columns_that_came_or_became_another_type_are_told(lake: Lake) -> None:
    one = keyed(lake)
    one.each([{"id": 1, "v": 1}])
    before = snapshot(lake)
    one.each([{"id": 1, "v": 1}], [{"id": 2, "v": 1.5, "more": "x"}])
    found = compared(lake, one, before)
    assert found.columns == {"v": ("BIGINT", "DOUBLE"), "more": (None, "VARCHAR")}
    assert (found.added, found.removed, found.changed) == (1, 0, 0)
    # Before the first publish there is no table.
    first = compared(lake, one, "1" if before != "1" else "0", before)
    assert (first.added, first.removed) == (1, 0)


def test_segments_and_one_partition_are_named(lake: Lake) -> None:
    one = keyed(lake, segment_column="region", segments=("eu", "us"))
    one.given |= {f"{s}/{ONE}": [{"id": 1, "v": s}] for s in ("eu", "us")}
    assert len(one.load(f"eu/{ONE}", f"us/{ONE}").receipts) == 2
    one.given[f"us/{ONE}"] = [{"id": 1, "v": "x"}]
    one.load(f"us/{ONE}")
    assert compared(lake, one).by_partition == {f"us/{ONE}": (0, 0, 1)}
    assert compared(lake, one, partition=f"eu/{ONE}").by_partition == {f"eu/{ONE}": (1, 0, 0)}


ROWS = st.dictionaries(
    st.integers(0, 8), st.tuples(st.sampled_from([None, "a", "b"]), st.sampled_from([None, 0.0, 1.5])), max_size=8
)


@given(states=st.lists(st.tuples(ROWS, ROWS), min_size=2, max_size=4), data=st.data())
@settings(max_examples=4, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
def test_the_difference_of_any_two_states_is_that_of_dicts(lake: Lake, states: Any, data: st.DataObject) -> None:
    one = keyed(lake, f"d{next(_KEYS)}")
    of: list[tuple[str, dict[tuple[str, int], Any]]] = []
    for days in states:
        one.each(*([{"id": n, "v": v, "w": w} for n, (v, w) in rows.items()] for rows in days))
        of.append(
            (snapshot(lake), {(day, n): row for day, rows in zip(DAYS, days, strict=False) for n, row in rows.items()})
        )
    (a, old), (b, new) = (data.draw(st.sampled_from(of)) for _ in range(2))
    found = compared(lake, one, a, b, limit=1000)
    both = old.keys() & new.keys()
    changed = {k for k in both if old[k] != new[k]}
    assert (found.added, found.removed, found.changed) == (len(new.keys() - both), len(old.keys() - both), len(changed))
    by_column = Counter(name for k in changed for name, x, y in zip("vw", old[k], new[k], strict=True) if x != y)
    assert found.by_column == by_column
    told = {(row["what"], str(row["key"]["day"]), row["key"]["id"]) for row in found.sample}
    assert told == {
        (what, *k)
        for what, keys in (("added", new.keys() - both), ("removed", old.keys() - both), ("changed", changed))
        for k in keys
    }


_KEYS = iter(range(10_000))


@pytest.mark.parametrize("has_key", [True, False])
@given(states=st.lists(st.tuples(ROWS, ROWS), min_size=1, max_size=4), seen=st.lists(st.booleans(), min_size=4))
@settings(max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
def test_a_consumer_that_applies_the_changes_has_the_table(
    lake: Lake, states: Any, seen: list[bool], has_key: bool
) -> None:
    """It takes them now and then, and once again after it forgot that it had taken them."""
    key = f"c{next(_KEYS)}"
    one = keyed(lake, key) if has_key else case(lake, key)
    copy: dict[tuple[Any, ...], dict[str, Any]] = {}
    bag: Counter[tuple[Any, ...]] = Counter()
    at: int | None = None

    def take() -> int:
        with changed_rows(lake.settings, one.dataset, at, batch=3) as (now, found):
            for change in found:
                if not has_key:
                    for row, sign in ((change["before"], -1), (change["row"], 1)):
                        bag.update({tuple(sorted(row.items(), key=str)): sign} if row else {})
                elif change["change"] == "delete":
                    copy.pop(tuple(change["key"].values()), None)
                else:
                    copy[tuple(change["key"].values())] = change["row"]
        return now

    for days, is_seen in zip(states, seen, strict=False):
        one.each(*([{"id": n, "v": v, "w": w} for n, (v, w) in rows.items()] for rows in days))
        if is_seen:
            take()
            if has_key:
                at = take()
            else:
                bag.clear()
                at = None
    before = at
    at = take()
    if has_key:
        at = before
        at = take()
    there = lake.sql(f"SELECT * FROM raw.{key}") if one.columns else []
    columns = list(one.columns)
    if has_key:
        mine = [{name: row.get(name) for name in columns} for row in copy.values()]
        assert sorted(map(str, mine)) == sorted(map(str, there))
    else:
        assert +bag == Counter(tuple(sorted(row.items(), key=str)) for row in there)
    with changed_rows(lake.settings, one.dataset, at) as (_, found):
        assert list(found) == []


def test_models_of_two_environments_are_compared(lake: Lake) -> None:
    con = connect(lake.settings)
    for schema, values in (("gold", "(1, 'a'), (2, 'b')"), ("gold__dev", "(1, 'a'), (2, 'c'), (3, 'd')")):
        con.execute(f"CREATE SCHEMA lake.{schema}")
        con.execute(f"CREATE TABLE lake.{schema}.sales AS SELECT * FROM (VALUES {values}) AS t(id, v)")
    con.close()
    sides = ("prod", "gold.sales"), ("dev", "gold__dev.sales")
    found = diff_tables(lake.settings, *sides, key=["id"])
    assert (found.added, found.removed, found.changed, found.by_column) == (1, 0, 1, {"v": 1})
    found = diff_tables(lake.settings, *sides)
    assert (found.added, found.removed, found.changed) == (2, 1, 0)
    with pytest.raises(BadInput, match="no column 'nope'"):
        diff_tables(lake.settings, *sides, key=["nope"])
    with pytest.raises(BadInput, match=r"There is no table gold__x\.sales"):
        diff_tables(lake.settings, sides[0], ("x", "gold__x.sales"))


def test_a_state_that_is_not_there_is_named(lake: Lake) -> None:
    one = keyed(lake)
    with pytest.raises(BadInput, match="things was never published"):
        compared(lake, one)
    one.each([{"id": 1}])
    first = lake.column("SELECT attempt_id FROM ops.ledger")[0]
    one.each([{"id": 2}])
    for asked, message in (
        ("99999", "There is no snapshot 99999: it has expired, or never was"),
        ("what", "'what' is not a snapshot, a published attempt of things, or a moment"),
        ("1999-01-01", "No snapshot is as old as 1999-01-01"),
    ):
        with pytest.raises(BadInput, match=message):
            compared(lake, one, asked)
    from datetime import timedelta

    for step in steps(lake.settings, timedelta(0), datetime.now(UTC) + timedelta(days=3)):
        if step.name == "expire":
            step.run()
    with pytest.raises(BadInput, match=f"The snapshot of attempt {first} has expired"):
        compared(lake, one, first)
    with (
        pytest.raises(BadInput, match="Snapshot 1 has expired, so the changes since then are not known"),
        changed_rows(lake.settings, one.dataset, 1),
    ):
        pass


def test_a_projects_consumer_names_the_dataset(lake: Lake) -> None:
    lake.land(f"readings/{ONE}.jsonl", [{"id": 1, "value": 2}])
    lake.load("readings", ONE)
    with changes("readings") as (seen, found):
        assert [(change["change"], change["row"]["value"]) for change in found] == [("insert", 2)]
    with changes("readings", seen) as (again, found):
        assert (again, list(found)) == (seen, [])
