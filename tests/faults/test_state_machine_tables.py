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

State = tuple[tuple[int, ...], tuple[Any, ...]]
"""Of one day: the ids of its rows, and what is in the other table: ids that are set aside, or elements by parent."""

days = st.sampled_from(DAYS[:3])
sources = st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 3), max_size=2)), max_size=4)
EMPTY: State = ((), ())


class Tables:
    """One dataset, and what each day of it is and was."""

    def __init__(self, one: Case) -> None:
        self.case = one
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
        state = self.now(day) if day in self.history else EMPTY
        if state == EMPTY:
            with pytest.raises(BadInput, match="no rows"):
                emptied(self.case.lake.settings, self.case.dataset, day)
            return
        receipts, rows = emptied(self.case.lake.settings, self.case.dataset, day)
        assert rows == sum(map(len, state))
        assert self.case.publish(list(receipts)).receipts
        self.shown(day, 0, EMPTY)

    def there(self, query: str) -> dict[str, tuple[Any, ...]]:
        """What a query finds, by day; nothing if there is no table yet."""
        table = query.partition("FROM raw.")[2].partition(" ")[0]
        if not self.case.lake.column(f"SELECT 1 FROM duckdb_tables() WHERE table_name = '{table}'"):
            return {}
        found: dict[str, list[Any]] = {}
        for row in self.case.lake.sql(query):
            found.setdefault(str(row["day"]), []).append(row["v"])
        return {day: tuple(sorted(values)) for day, values in found.items()}

    def check(self, rows: str, others: str) -> None:
        first, second = self.there(rows), self.there(others)
        assert {d: (first.get(d, ()), second.get(d, ())) for d in first | second} == {
            day: state for day in self.history if (state := self.now(day)) != EMPTY
        }
        assert self.case.damaged() == []


def machine(places: Places) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            lake = places.fresh()
            self.ruled = Tables(case(lake, "ruled"))
            self.orders = Tables(case(lake, "orders", divided={"primary_key": ("id",), "children": {"items": Table()}}))
            self.source: dict[str, list[tuple[int, list[int]]]] = {}
            self.accept_below(7)

        def accept_below(self, limit: int) -> None:
            self.limit = limit
            rule = expect("small", f"v < {limit}", on_fail="quarantine")
            self.ruled.case.dataset = replace(self.ruled.case.dataset, audits=(rule,))

        def load_ruled(self, chosen: Sequence[str]) -> None:
            assert not self.ruled.case.load(*chosen).failures
            for day in chosen:
                numbered = list(enumerate(v for v, _ in self.source[day]))
                accepted = tuple(n for n, v in numbered if v < self.limit)
                self.ruled.loaded(day, (accepted, tuple(n for n, v in numbered if v >= self.limit)))

        @rule(chosen=st.lists(days, min_size=1, unique=True), given=sources)
        def deliver(self, chosen: list[str], given: list[tuple[int, list[int]]]) -> None:
            """Sources get other rows, and both datasets are loaded."""
            for day in chosen:
                self.source[day] = given
                self.ruled.case.given[day] = [{"id": n, "v": v} for n, (v, _) in enumerate(given)]
                self.orders.case.given[day] = [
                    {"id": n, "v": v, "items": [{"n": each} for each in items]} for n, (v, items) in enumerate(given)
                ]
            self.load_ruled(chosen)
            assert not self.orders.case.load(*chosen).failures
            for day in chosen:
                elements = sorted((n, each) for n, (_, items) in enumerate(given) for each in items)
                self.orders.loaded(day, (tuple(range(len(given))), tuple(elements)))

        @rule(limit=st.integers(3, 10))
        def replay(self, limit: int) -> None:
            """The rule is corrected, and what is set aside is loaded again."""
            self.accept_below(limit)
            waiting = {d: len(s[1]) for d in self.ruled.history if (s := self.ruled.now(d))[1]}
            found = read(self.ruled.case.lake.settings, self.ruled.case.dataset).partitions if waiting else {}
            assert found == waiting
            if waiting:
                self.load_ruled(sorted(waiting))

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
            self.ruled.check(
                "SELECT day, id AS v FROM raw.ruled ",
                "SELECT day, (content::JSON->>'id')::INT AS v FROM raw.ruled__quarantine ",
            )
            self.orders.check(
                "SELECT day, id AS v FROM raw.orders ", "SELECT day, (orders_id, n) AS v FROM raw.orders__items "
            )

        def teardown(self) -> None:
            assert self.ruled.case.lake.errors() == []

    return Machine


@pytest.mark.short("sqlite+folder")
def test_each_row_is_in_its_table_or_set_aside_after_operations_in_any_order(
    lake: Lake, places: Places, request: pytest.FixtureRequest
) -> None:
    in_any_order(machine(places), request.config, steps=12)
