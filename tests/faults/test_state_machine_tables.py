"""Datasets of several tables: operations in any order leave each row in its table, or in quarantine, once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ducklake_flows.datasets.audits import expect
from ducklake_flows.datasets.dataset import Table
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.drop import emptied
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.quarantine import read
from ducklake_flows.lake.restore import stage_previous
from tests.cases import DAYS, Case, case
from tests.faults.conftest import Places, in_any_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Lake

State = tuple[tuple[Any, ...], ...]
"""Of one day: the ids of its rows, those that are set aside, and the elements by parent if the dataset has a child."""

days = st.sampled_from(DAYS[:3])
sources = st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 3), max_size=2)), max_size=4)


class Tables:
    """One dataset, and what each day of it is and was.

    Args:
        one: The dataset.
        queries: What is in each of its tables, by day, in the order of a `State`.
    """

    def __init__(self, one: Case, *queries: str) -> None:
        self.case, self.queries = one, queries
        self.empty: State = ((),) * len(queries)
        self.history: dict[str, list[tuple[int, State]]] = {}
        """The states of each published day that a rollback goes through; number 0: nothing."""
        self.number = 0

    def now(self, day: str) -> State:
        return self.history[day][-1][1]

    def loaded(self, day: str, state: State) -> None:
        if day not in self.history or self.now(day) != state:
            self.number += 1
            self.shown(day, self.number, state)

    def shown(self, day: str, number: int, state: State) -> None:
        kept = self.history.setdefault(day, [])
        known = [one for one, _ in kept]
        if number in known:
            del kept[known.index(number) + 1 :]
        else:
            kept.append((number, state))

    def roll_back(self, day: str) -> None:
        kept = self.history.get(day, [])
        before = [one for one in kept if one[0] != kept[-1][0] and one[1] != kept[-1][1]]
        dataset = self.case.dataset
        if not before:
            with pytest.raises(BadInput):
                stage_previous(self.case.lake.settings, dataset, dataset.partition(day))
            return
        assert self.case.publish([stage_previous(self.case.lake.settings, dataset, dataset.partition(day))]).receipts
        self.shown(day, *before[-1])

    def drop(self, day: str) -> None:
        state = self.now(day) if day in self.history else self.empty
        if state == self.empty:
            with pytest.raises(BadInput, match="no rows"):
                emptied(self.case.lake.settings, self.case.dataset, day)
            return
        receipts, rows = emptied(self.case.lake.settings, self.case.dataset, day)
        assert rows == sum(map(len, state))
        assert self.case.publish(list(receipts)).receipts
        self.shown(day, 0, self.empty)

    def waiting(self) -> dict[str, int]:
        """How many rows of each day are set aside."""
        return {day: len(state[1]) for day in self.history if (state := self.now(day))[1]}

    def there(self, query: str) -> dict[str, tuple[Any, ...]]:
        """What a query finds, by day; nothing if there is no table yet."""
        table = query.partition("FROM raw.")[2].partition(" ")[0]
        if not self.case.lake.column(f"SELECT 1 FROM duckdb_tables() WHERE table_name = '{table}'"):
            return {}
        found: dict[str, list[Any]] = {}
        for row in self.case.lake.sql(query):
            found.setdefault(str(row["day"]), []).append(row["v"])
        return {day: tuple(sorted(values)) for day, values in found.items()}

    def check(self) -> None:
        found = [self.there(query) for query in self.queries]
        assert {day: tuple(one.get(day, ()) for one in found) for some in found for day in some} == {
            day: state for day in self.history if (state := self.now(day)) != self.empty
        }
        assert self.case.damaged() == []


def queries(key: str) -> tuple[str, str]:
    """The ids of the rows of a dataset, and of those that are set aside."""
    aside = f"SELECT day, (content::JSON->>'id')::INT AS v FROM raw.{key}__quarantine "
    return f"SELECT day, id AS v FROM raw.{key} ", aside


def machine(places: Places) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            lake = places.fresh()
            nested: Any = {"primary_key": ("id",), "children": {"items": Table()}}
            self.ruled = Tables(case(lake, "ruled"), *queries("ruled"))
            items = "SELECT day, (orders_id, n) AS v FROM raw.orders__items "
            self.orders = Tables(case(lake, "orders", divided=nested), *queries("orders"), items)
            self.source: dict[str, list[tuple[int, list[int]]]] = {}
            self.accept_below(7)

        def accept_below(self, limit: int) -> None:
            self.limit = limit
            rule = expect("small", f"v < {limit}", on_fail="quarantine")
            for tables in (self.ruled, self.orders):
                tables.case.dataset = replace(tables.case.dataset, audits=(rule,))

        def load(self, tables: Tables, chosen: Sequence[str]) -> None:
            assert not tables.case.load(*chosen).failures
            for day in chosen:
                rows = list(enumerate(self.source[day]))
                accepted = tuple(n for n, (v, _) in rows if v < self.limit)
                aside = tuple(n for n, (v, _) in rows if v >= self.limit)
                elements = sorted((n, each) for n, (_, items) in rows if n in accepted for each in items)
                tables.loaded(day, (accepted, aside, tuple(elements))[: len(tables.queries)])

        @rule(chosen=st.lists(days, min_size=1, unique=True), given=sources)
        def deliver(self, chosen: list[str], given: list[tuple[int, list[int]]]) -> None:
            """Sources get other rows, and both datasets are loaded."""
            for day in chosen:
                self.source[day] = given
                self.ruled.case.given[day] = [{"id": n, "v": v} for n, (v, _) in enumerate(given)]
                self.orders.case.given[day] = [
                    {"id": n, "v": v, "items": [{"n": each} for each in items]} for n, (v, items) in enumerate(given)
                ]
            self.load(self.ruled, chosen)
            self.load(self.orders, chosen)

        @rule(limit=st.integers(3, 10))
        def replay(self, limit: int) -> None:
            """The rule is corrected, and what is set aside is loaded again."""
            self.accept_below(limit)
            for tables in (self.ruled, self.orders):
                if waiting := tables.waiting():
                    assert read(tables.case.lake.settings, tables.case.dataset).partitions == waiting
                    self.load(tables, sorted(waiting))

        @rule(day=days)
        def roll_back(self, day: str) -> None:
            self.ruled.roll_back(day)
            self.orders.roll_back(day)

        @rule(day=days)
        def drop(self, day: str) -> None:
            self.ruled.drop(day)
            self.orders.drop(day)

        @rule()
        def maintain(self) -> None:
            """Merge, and expire all snapshots but the last."""
            for step in steps(self.ruled.case.lake.settings, timedelta(0), datetime.now(UTC) + timedelta(days=3)):
                if step.todo:
                    step.run()
            for tables in (self.ruled, self.orders):
                tables.history = {day: kept[-1:] for day, kept in tables.history.items()}

        @invariant()
        def every_row_is_where_it_belongs(self) -> None:
            self.ruled.check()
            self.orders.check()

        def teardown(self) -> None:
            assert self.ruled.case.lake.errors() == []

    return Machine


@pytest.mark.short("sqlite+folder")
def test_each_row_is_in_its_table_or_set_aside_after_operations_in_any_order(
    lake: Lake, places: Places, request: pytest.FixtureRequest
) -> None:
    in_any_order(machine(places), request.config, steps=12)
