"""A primary key that is unique over the table, judged in the transaction that publishes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput
from ducklake_flows.lake import maintenance
from ducklake_flows.lake.restore import stage_previous
from ducklake_flows.lake.verify import verify
from tests.cases import DAYS, Case, case

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.conftest import Lake

ONE, TWO, THREE, FOUR = DAYS
_KEYS = iter(range(10_000))


def things(lake: Lake, key: str = "things", **more: Any) -> Case:
    return case(lake, key, divided={"primary_key": ("number", "w"), "key_scope": "table", **more})


def rows(keys: set[int] | list[int]) -> list[dict[str, Any]]:
    """A row for each key: two columns, one of them text."""
    return [{"number": key // 2, "w": ("b", "it's")[key % 2], "v": 1} for key in sorted(keys)]


def publish(published: Mapping[str, set[int]], group: Mapping[str, set[int]]) -> tuple[dict[str, set[int]], set[str]]:
    """What is published after a group, and which of its partitions are refused."""
    left = [day for day in group if group[day] != published.get(day)]
    refused: set[str] = set()
    while True:
        others = {key for day, keys in published.items() if day not in left for key in keys}
        bad = {day for day in left if group[day] & others}
        if not bad:
            taken: set[int] = set()
            for day in left:
                if group[day] & taken:
                    bad.add(day)
                else:
                    taken |= group[day]
        if not bad:
            return {**published, **{day: group[day] for day in left}}, refused
        refused |= bad
        left = [day for day in left if day not in bad]


GROUPS = st.lists(
    st.dictionaries(st.sampled_from(DAYS), st.sets(st.integers(0, 9), max_size=4), min_size=1), min_size=3, max_size=6
)


@pytest.mark.short("sqlite+folder")
@given(groups=GROUPS)
@settings(max_examples=4, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
def test_groups_of_partitions_keep_the_key_unique(lake: Lake, groups: list[dict[str, set[int]]]) -> None:
    one = things(lake, f"k{next(_KEYS)}")
    published: dict[str, set[int]] = {}
    for group in groups:
        one.given |= {day: rows(keys) for day, keys in group.items()}
        staged = {outcome.partition: outcome for outcome in one.extract(*group)}
        result = one.publish([staged[day] for day in group])
        before = published
        published, refused = publish(before, group)
        assert {failure.partition for failure in result.failures} == refused, (before, group)
        for failure in result.failures:
            told = re.search(r"number=(\d), w=(b|it's) is in (\S+) and in (\S+): \d rows?$", failure.error)
            assert told, failure.error
            key = int(told[1]) * 2 + (told[2] == "it's")
            assert told[3] == failure.partition
            assert key in group[told[3]]
            assert key in before.get(told[4], set()) | group.get(told[4], set())
        there: dict[str, set[int]] = {}
        keys = f"SELECT day::VARCHAR AS day, number * 2 + (w = 'it''s')::INT AS key FROM {one.dataset.table}"
        for row in lake.sql(keys) if one.columns else []:
            there.setdefault(row["day"], set()).add(row["key"])
        assert there == {day: keys for day, keys in published.items() if keys}
    assert one.errors() == []


def test_the_rule_holds_for_other_segments_merged_files_and_rollbacks(lake: Lake) -> None:
    one = things(lake, segment_column="region", segments=("eu", "us"))
    eu, us, other = f"eu/{ONE}", f"us/{ONE}", f"us/{TWO}"

    def load(key: str, *keys: int) -> list[str]:
        one.given[key] = rows(list(keys))
        return [failure.error.partition(": ")[2] for failure in one.load(key).failures]

    assert load(eu, 1, 2) == []
    assert load(us, 3) == []
    assert load(us, 3, 2, 1) == [f"number=0, w=it's is in {us} and in {eu}: 2 rows"]
    # A partition's own rows do not count.
    assert load(eu, 1, 2, 4) == []
    for step in maintenance.steps(lake.settings, timedelta(30)):
        if step.todo and step.name == "merge":
            step.run()
    assert load(other, 4) == [f"number=2, w=b is in {other} and in {eu}: 1 row"]
    # A key that is free again is taken; then the rows that had it cannot come back.
    assert load(eu, 1, 2) == []
    assert load(other, 4) == []
    back = stage_previous(lake.settings, one.dataset, one.dataset.partition(eu))
    assert [failure.state for failure in one.publish([back]).failures] == ["rejected"]
    assert load(other, 5) == []
    assert one.publish([stage_previous(lake.settings, one.dataset, one.dataset.partition(eu))]).receipts
    found = lake.sql("SELECT passed, failed_rows, sample FROM ops.checks WHERE dataset = 'things' ORDER BY token")
    assert [row["passed"] for row in found] == [True, True, False, True, False, True, True, False, True, True]
    assert (found[2]["failed_rows"], found[2]["sample"]) == (2, '[{"number":0,"w":"it\'s"}]')
    assert one.errors() == []


def test_a_key_that_moves_between_partitions_of_a_group_is_published(lake: Lake) -> None:
    """In either order, and if its column was widened meanwhile."""
    one = case(lake, divided={"primary_key": ("id",), "key_scope": "table"})
    one.each([{"id": 1}], [{"id": 2}])
    one.given |= {ONE: [{"id": 2}], TWO: [{"id": 1}]}
    assert len(one.load(ONE, TWO).receipts) == 2
    one.given[THREE] = [{"id": 2**40}, {"id": 3.5}]
    assert one.load(THREE).receipts
    one.given[FOUR] = [{"id": 1}]
    assert "id=1.0 is in 2024-01-04 and in 2024-01-02" in one.load(FOUR).failures[0].error
    assert one.errors() == []


def test_verify_finds_keys_from_before_the_rule(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defined(folder: str, scope: str) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ruled.py").write_text(
            "from ducklake_flows import Dataset, Files\n"
            'RULED = Dataset("ruled", Files("ruled/{partition}.csv", "csv"), partition_column="day",\n'
            f'    primary_key=("id", "w"), key_scope="{scope}")\n'
        )
        monkeypatch.setenv("LAKE_DATASETS", str(tmp_path / folder))

    def found(*since: datetime) -> list[tuple[str, str]]:
        return [(one.subject, one.message) for one in verify(lake.settings, *since) if one.check == "key"]

    defined("before", "partition")
    moments = []
    for day, ids in ((ONE, (1, 2, 3)), (TWO, (3, 2)), (THREE, (4,))):
        moments.append(datetime.now(UTC))
        lake.land(f"ruled/{day}.csv", "".join(["id,w\n", *(f"{number},it's\n" for number in ids)]))
        assert lake.load("ruled", day).receipts
    assert found() == []
    defined("after", "table")
    said = f"the primary key (id, w) is not unique: 2 keys are in more than one row; id=2, w=it's in {ONE} and in {TWO}"
    assert found() == [("raw.ruled", said)]
    assert found(moments[1]) == [("raw.ruled", said)]
    assert found(moments[2]) == []
    lake.land(f"ruled/{TWO}.csv", "id,w\n5,it's\n")
    assert lake.load("ruled", TWO).receipts
    assert found() == []


@pytest.mark.short("sqlite+folder")
def test_a_table_has_a_key_and_partitions(lake: Lake) -> None:
    day: dict[str, Any] = {"source": lambda _: [], "partition_column": "day"}
    with pytest.raises(BadInput, match="there is no primary_key"):
        Dataset("x", **day, key_scope="table")
    with pytest.raises(BadInput, match="there is one partition"):
        Dataset("x", lambda _: [], Grain.full, primary_key=("id",), key_scope="table")
    with pytest.raises(BadInput, match="key_scope='lake' is not known"):
        Dataset("x", **day, primary_key=("id",), key_scope="lake")  # type: ignore[arg-type]
