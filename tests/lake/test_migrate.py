"""Migrations: every row keeps its values under new names and types, or the table stays as it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.migrate import Migrator, migrator, undoing
from ducklake_flows.lake.restore import stage_as_of, stage_previous
from tests.cases import DAYS, Case, case

if TYPE_CHECKING:
    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder", "postgres+s3")


def run(plan: Migrator) -> int | None:
    """The flow's steps, without the gate and the models."""
    plan.survey()
    if not plan.migration.rewrites:
        return plan.alter()
    plan.prepare()
    snapshot = None
    while snapshot is None:
        pending = plan.pending()
        for first in range(0, len(pending), 2):
            plan.add(plan.copy(pending[first : first + 2]))
        plan.check()
        snapshot = plan.swap()
    return snapshot


def migrate(one: Case, rename: dict[str, str] | None = None, drop: list[str] | None = None) -> int | None:
    return run(migrator(one.lake.settings, one.dataset, rename or {}, drop or []))


def declare(one: Case, **columns: str) -> None:
    one.dataset = replace(one.dataset, contract=Contract(columns))


def rows(one: Case, where: str = "") -> list[dict[str, Any]]:
    found = one.lake.sql(f"SELECT * EXCLUDE (day) FROM {one.dataset.table} {where} ORDER BY id")
    return [{name: str(value) if value is not None else None for name, value in row.items()} for row in found]


def snapshot(one: Case) -> int:
    return int(one.lake.column("SELECT max(snapshot_id) FROM lake.snapshots()")[0])


def filled(lake: Lake, *days: list[dict[str, Any]]) -> Case:
    one = case(lake)
    assert not any(one.each(*days))
    return one


TWO: list[list[dict[str, Any]]] = [
    [{"id": 1, "price": "1.5", "old": "x"}, {"id": 2, "price": "12.25", "old": None}],
    [{"id": 3, "price": "-0.1", "old": "y"}, {"id": 4, "price": None, "old": "z"}],
]


def test_a_text_becomes_a_number_and_columns_are_renamed_and_dropped(lake: Lake) -> None:
    one = filled(lake, *TWO)
    before = snapshot(one)
    declare(one, id="bigint", price="decimal(10,2)", name="text", old="text")
    declare(one, id="bigint", price="decimal(10,2)", label="text")
    assert migrate(one, {"old": "label"}) is not None
    assert rows(one) == [
        {"id": "1", "price": "1.50", "label": "x"},
        {"id": "2", "price": "12.25", "label": None},
        {"id": "3", "price": "-0.10", "label": "y"},
        {"id": "4", "price": None, "label": "z"},
    ]
    assert one.errors() == []
    # The states before stay readable as they were.
    assert lake.column(f"SELECT price FROM {one.dataset.table} AT (VERSION => {before}) ORDER BY id") == [
        "1.5",
        "12.25",
        "-0.1",
        None,
    ]
    # Life goes on: the same rows are unchanged, new ones are published in the new columns.
    renamed = [[{**{k: v for k, v in row.items() if k != "old"}, "label": row["old"]} for row in day] for day in TWO]
    one.given[DAYS[0]] = renamed[0]
    assert [r.partition for r in one.load(DAYS[0]).unchanged] == [DAYS[0]]
    one.given[DAYS[2]] = [{"id": 5, "price": "7", "label": "w"}]
    assert one.load(DAYS[2]).receipts
    assert rows(one, "WHERE price > 6") == [
        {"id": "2", "price": "12.25", "label": None},
        {"id": "5", "price": "7.00", "label": "w"},
    ]
    assert one.errors() == []


def test_names_change_in_the_catalog_alone(lake: Lake) -> None:
    one = filled(lake, *TWO)
    files = sorted(info.path for info in lake.data.list("raw"))
    assert migrate(one, {"price": "amount"}, ["old"]) is not None
    assert rows(one) == [
        {"id": "1", "amount": "1.5"},
        {"id": "2", "amount": "12.25"},
        {"id": "3", "amount": "-0.1"},
        {"id": "4", "amount": None},
    ]
    assert sorted(info.path for info in lake.data.list("raw")) == files
    assert one.errors() == []
    # A column of a dropped one's name is another column.
    one.given[DAYS[2]] = [{"id": 5, "amount": "9", "old": 7}]
    assert one.load(DAYS[2]).receipts
    assert [row["old"] for row in rows(one)] == [None, None, None, None, "7"]
    assert one.errors() == []


def test_a_value_that_does_not_fit_is_named_and_nothing_changes(lake: Lake) -> None:
    one = filled(lake, *TWO, [{"id": 5, "price": "n/a", "old": "x"}])
    before = rows(one), snapshot(one)
    declare(one, price="decimal(10,2)")
    with pytest.raises(BadInput, match=r"2024-01-03: column price: 'n/a' cannot be decimal"):
        migrate(one)
    declare(one, price="decimal(10,1)")
    with pytest.raises(BadInput, match=r"2024-01-01: column price: '12.25'"):
        migrate(one)
    assert (rows(one), snapshot(one)) == before


@pytest.mark.parametrize(
    ("columns", "rename", "drop", "said"),
    [
        ({}, {"none": "other"}, [], "has no column none"),
        ({}, {"price": "OLD"}, [], "two columns OLD"),
        ({}, {"day": "date"}, [], "added by the pipeline"),
        ({}, {}, ["day"], "added by the pipeline"),
        ({"price": "text"}, {"price": "amount"}, [], "still declares price"),
        ({"price": "text"}, {}, ["price"], "still declares price"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    lake: Lake, columns: dict[str, str], rename: dict[str, str], drop: list[str], said: str
) -> None:
    one = filled(lake, *TWO)
    declare(one, **columns)
    with pytest.raises(BadInput, match=said):
        migrate(one, rename, drop)


def test_what_is_published_meanwhile_is_migrated_too(lake: Lake) -> None:
    one = filled(lake, *TWO, [{"id": 5, "price": "5", "old": None}])
    old = one.dataset
    declare(one, price="decimal(10,2)")
    new, plan = one.dataset, migrator(lake.settings, one.dataset, {}, [])
    plan.survey()
    plan.prepare()
    plan.add(plan.copy(plan.pending()))
    plan.check()
    one.dataset = old
    one.given |= {
        DAYS[0]: [{"id": 1, "price": "8.5", "old": None}],
        DAYS[2]: [],
        DAYS[3]: [{"id": 9, "price": "9", "old": "n"}],
    }
    staged = one.extract(DAYS[1])
    assert len(one.load(DAYS[0], DAYS[2], DAYS[3]).receipts) == 3
    assert {entry.partition for entry in plan.pending()} == {DAYS[0], DAYS[2], DAYS[3]}
    assert plan.swap() is not None
    assert [(row["id"], row["price"]) for row in rows(one)] == [
        ("1", "8.50"),
        ("3", "-0.10"),
        ("4", None),
        ("9", "9.00"),
    ]
    assert one.errors() == []
    # What was extracted before the swap in the old columns is not published after it.
    (refused,) = one.publish([replace(staged[0], fingerprint="other")]).failures  # type: ignore[arg-type]
    assert "extracted before raw.things was migrated" in refused.error
    one.dataset = new
    assert [row["price"] for row in rows(one)] == ["8.50", "-0.10", None, "9.00"]


def test_a_stopped_migration_goes_on_or_is_abandoned(lake: Lake) -> None:
    one = filled(lake, *TWO)
    declare(one, price="decimal(10,2)")
    plan = migrator(lake.settings, one.dataset, {}, [])
    plan.prepare()
    first, second = plan.pending()
    plan.add(plan.copy([first]))
    again = migrator(lake.settings, one.dataset, {}, [])
    again.prepare()
    assert again.pending() == [second]
    # Maintenance leaves the unfinished table alone.
    assert not [step for step in steps(lake.settings, timedelta(days=30)) if step.todo and "migration" in step.subject]
    # Another migration of the same table begins anew.
    declare(one, price="double")
    other = migrator(lake.settings, one.dataset, {}, [])
    other.prepare()
    assert len(other.pending()) == 2
    assert other.abandon()
    assert not other.abandon()
    with pytest.raises(BadInput, match="was abandoned"):
        other.pending()
    assert [row["price"] for row in rows(one)] == ["1.5", "12.25", "-0.1", None]
    assert one.errors() == []


def test_undone_it_has_the_earlier_columns_and_values(lake: Lake) -> None:
    one = filled(lake, *TWO)
    before = rows(one)
    old = one.dataset
    declare(one, price="decimal(10,2)")
    migrate(one, {"old": "label"})
    one.given[DAYS[1]] = [{"id": 3, "price": "4", "label": "new"}]
    one.load(DAYS[1])
    run(undoing(lake.settings, one.dataset))
    one.dataset = old
    assert rows(one, "WHERE id < 3") == before[:2]
    assert [(row["price"], row["old"]) for row in rows(one, "WHERE id = 3")] == [("4.00", "new")]
    assert one.errors() == []
    with pytest.raises(BadInput, match=r"never migrated"):
        undoing(lake.settings, replace(one.dataset, key="other"))


def test_what_cannot_be_converted_back_is_named_before_anything_is_undone(lake: Lake) -> None:
    one = filled(lake, [{"id": 1, "n": 5}], [{"id": 2, "n": 6}])
    declare(one, n="text")
    migrate(one)
    one.given[DAYS[1]] = [{"id": 2, "n": "abc"}]
    one.load(DAYS[1])
    before = rows(one), snapshot(one)
    with pytest.raises(BadInput, match=r"2024-01-02: column n: 'abc'"):
        undoing(lake.settings, one.dataset).survey()
    assert (rows(one), snapshot(one)) == before


def test_a_dropped_column_comes_back_with_its_values(lake: Lake) -> None:
    one = filled(lake, *TWO)
    before = rows(one)
    migrate(one, drop=["old"])
    run(undoing(lake.settings, one.dataset))
    assert rows(one) == before
    assert one.errors() == []


def test_rolled_back_rows_get_the_new_columns(lake: Lake) -> None:
    one = filled(lake, *TWO)
    first = snapshot(one)
    one.given[DAYS[0]] = [{"id": 1, "price": "99", "old": "wrong"}]
    one.load(DAYS[0])
    declare(one, price="decimal(10,2)")
    migrate(one, {"old": "label"})
    receipt = stage_as_of(lake.settings, one.dataset, one.dataset.partition(DAYS[0]), first)
    assert receipt is not None
    assert stage_as_of(lake.settings, one.dataset, one.dataset.partition(DAYS[1]), first) is None
    assert one.publish([receipt]).receipts
    wanted = [{"id": "1", "price": "1.50", "label": "x"}, {"id": "2", "price": "12.25", "label": None}]
    assert rows(one, "WHERE id < 3") == wanted
    with pytest.raises(BadInput, match="no attempt before"):
        stage_previous(lake.settings, one.dataset, one.dataset.partition(DAYS[0]))
    one.given[DAYS[0]] = [{"id": 1, "price": "3", "label": "late"}]
    one.load(DAYS[0])
    assert one.publish([stage_previous(lake.settings, one.dataset, one.dataset.partition(DAYS[0]))]).receipts
    assert rows(one, "WHERE id < 3") == wanted
    assert one.errors() == []


def test_a_table_of_one_partition(lake: Lake) -> None:
    one = case(lake, grain=Grain.full)
    one.given["full"] = [{"id": 1, "price": "1.5"}]
    one.load("full")
    declare(one, price="double")
    migrate(one)
    assert lake.sql(f"SELECT * FROM {one.dataset.table}") == [{"id": 1, "price": 1.5}]
    assert one.errors() == []


TEXTS = st.one_of(
    st.none(), st.integers(-(10**6), 10**6).map(str), st.sampled_from(["1.5", "a", "007", "", "1e3", "-0"])
)


@pytest.mark.short("sqlite+folder")
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    days=st.lists(st.lists(TEXTS, max_size=4), min_size=1, max_size=3),
    kind=st.sampled_from(["bigint", "double", "bool"]),
)
def test_each_value_is_what_the_source_would_give_or_nothing_changes(
    lake: Lake, days: list[list[str | None]], kind: str
) -> None:
    """The oracle is another dataset that loads the same texts under the new contract from its start."""
    one, other = case(lake, key=f"c{snapshot_of(lake)}"), case(lake, key=f"d{snapshot_of(lake)}")
    given = [[{"id": n, "v": text, "keep": "k"} for n, text in enumerate(texts)] for texts in days]
    one.each(*given)
    declare(other, id="bigint", v=kind, keep="text")
    said = other.each(*given)
    if one.dataset.table not in [f"raw.{t}" for t in lake.column("SELECT table_name FROM duckdb_tables()")]:
        return
    declare(one, v=kind)
    if any(said):
        with pytest.raises(BadInput, match="column v: "):
            migrate(one)
    elif any(text is not None for texts in days for text in texts):
        migrate(one)
        mine, theirs = (lake.sql(f"SELECT id, v, day FROM {c.dataset.table} ORDER BY day, id") for c in (one, other))
        assert mine == theirs
    assert one.errors() == []


def snapshot_of(lake: Lake) -> int:
    return int(lake.column("SELECT max(snapshot_id) FROM lake.snapshots()")[0])
