"""All operations in any order: after each, the lake and its ledger agree with a reference dict."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ducklake_flows import storage
from ducklake_flows.datasets.contract import Contract
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import connect, connected
from ducklake_flows.lake.drop import emptied
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.migrate import migrator, undoing
from ducklake_flows.lake.move import Move
from ducklake_flows.lake.repair import repair
from ducklake_flows.lake.restore import stage_as_of, stage_previous
from ducklake_flows.models.state import copy_state, holds_models
from ducklake_flows.orchestration.restoring import changed_since
from ducklake_flows.project import get_dataset
from ducklake_flows.settings import LAKE, load_settings
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Failure, Receipt
from ducklake_flows.testing.failpoints import POINTS, Point
from tests.conftest import MODELS, Lake, settings_from
from tests.faults.conftest import Killer, Places, in_any_order, staged_as, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from duckdb import DuckDBPyConnection

DAYS = [f"2024-01-{day:02}" for day in range(1, 5)]
days = st.lists(st.sampled_from(DAYS), min_size=1, max_size=3, unique=True)
counts = st.integers(1, 20)
starts = st.integers(-1000, 1000)

Row = dict[str, Any]
Rows = tuple[Row, ...]
"""The rows of a day, by column; a column that a row lacks is null."""


class Shape(Enum):
    """The shape of a source file: the types of its columns, their order and case, and an extra column."""

    narrow = (pa.int32(), pa.float32(), False, False, "")
    wide = (pa.int64(), pa.float64(), False, False, "")
    reordered = (pa.int32(), pa.float64(), True, False, "")
    recased = (pa.int64(), pa.float64(), False, True, "")
    more = (pa.int32(), pa.float32(), False, False, "more")
    much_more = (pa.int64(), pa.float64(), True, False, "much_more")

    def rows(self, count: int, start: int, number: int) -> Rows:
        """Rows whose values overlap with those of other days; ``value`` identifies the attempt.

        A wide column holds values that do not fit into a narrow one. Ratios are eighths, because DuckLake stores the
        bound of a float as text and reads it as a double: 0.2 would be smaller than the value.
        """
        ids, _, _, _, extra = self.value
        step = 2**33 if ids == pa.int64() else 1
        numbers = range(start, start + count)
        made: list[Row] = [{"id": n * step, "value": number, "ratio": n / 8, "name": f"{n}"} for n in numbers]
        for i, row in enumerate(made):
            if i % 3 == 1:
                row |= {"ratio": None, "name": None}
            if extra:
                row[extra] = f"new {number}"
        return tuple(made)

    def table(self, rows: Rows) -> pa.Table:
        """The rows as a file of this shape."""
        ids, ratios, reordered, recased, extra = self.value
        types = {"id": ids, "value": ids, "ratio": ratios, "name": pa.string()} | (
            {extra: pa.string()} if extra else {}
        )
        columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
        if reordered:
            columns = dict(reversed(columns.items()))
        return pa.table({name.upper() if recased else name: column for name, column in columns.items()})


shapes = st.sampled_from(Shape)


def publish(lake: Lake, receipts: list[Receipt]) -> None:
    lake.publish(receipts)


def answers(con: DuckDBPyConnection, model: Mapping[str, Rows]) -> Iterator[tuple[str, Any, Any]]:
    """For each operator: the query on `raw.readings`, its answer and the expected answer.

    Looked-up values are the smallest and the largest of a day, which are the bounds of the file statistics.
    """
    rows = [row for day in model.values() for row in day]

    def ask(query: str, right: Any) -> tuple[str, Any, Any]:
        found = con.execute(query.replace("FROM t", f"FROM {LAKE}.raw.readings")).fetchall()
        return query, [row[0] if len(row) == 1 else row for row in found], right

    yield ask("SELECT count(*) FROM t", [len(rows)])
    sums = (sum(r["id"] for r in rows), sum(r["value"] for r in rows)) if rows else (None, None)
    yield ask("SELECT sum(id), sum(value) FROM t", [sums])
    for name in dict.fromkeys(name for row in rows for name in row):
        values = sorted(row[name] for row in rows if row.get(name) is not None)
        nulls = len(rows) - len(values)
        counted = sorted(Counter(values).items())
        yield ask(f"SELECT count(*) FROM t WHERE {name} IS NULL", [nulls])
        yield ask(f"SELECT count(*) FROM t WHERE {name} IS NOT NULL", [len(values)])
        yield ask(f"SELECT {name} FROM t ORDER BY {name} NULLS LAST", values + [None] * nulls)
        yield ask(f"SELECT {name} FROM t ORDER BY {name} DESC NULLS LAST LIMIT 2", (values[::-1] + [None] * nulls)[:2])
        yield ask(f"SELECT {name}, count(*) FROM t WHERE {name} IS NOT NULL GROUP BY ALL ORDER BY 1", counted)
        if values:
            yield ask(f"SELECT min({name}), max({name}) FROM t", [(values[0], values[-1])])
        of_days = [[row[name] for row in day if row.get(name) is not None] for day in model.values()]
        for value in {bound(day) for day in of_days if day for bound in (min, max)}:
            text = f"'{value}'" if isinstance(value, str) else f"{value!r}::{'DOUBLE' if name == 'ratio' else 'BIGINT'}"
            yield ask(f"SELECT count(*) FROM t WHERE {name} = {text}", [values.count(value)])
        if values:
            yield ask(f"SELECT count(*) FROM t WHERE {name} > {text}", [sum(v > value for v in values)])


MODEL = """
MODEL (
  name silver.readings,
  kind INCREMENTAL_BY_TIME_RANGE (time_column day, batch_size 366),
  start '2024-01-01',
  partitioned_by day,
  signals (published(dataset := 'readings'))
);
SELECT id::BIGINT AS id, value::BIGINT AS value, day::DATE AS day FROM raw.readings
WHERE day BETWEEN @start_date AND @end_date
"""


def by_day(con: DuckDBPyConnection, schema: str) -> dict[str, list[tuple[int, int]]]:
    """The ids and values of each day in a table of readings, in order."""
    found = con.execute(
        f"SELECT day::VARCHAR, list((id, value) ORDER BY id) FROM {LAKE}.{schema}.readings GROUP BY ALL"
    ).fetchall()
    return dict(found)


def ids(rows: Rows) -> list[tuple[int, int]]:
    """The ids and values of the rows of one day, in order."""
    return sorted((row["id"], row["value"]) for row in rows)


def transform(lake: Lake, project: Path) -> None:
    """Run the steps of a transform without the gate, on a project with one model."""
    from ducklake_flows.lake.builds import plan_transform, record
    from ducklake_flows.models import build
    from ducklake_flows.models.adapter import LakeAdapter

    LakeAdapter.gate = contextlib.nullcontext
    os.environ["LAKE_MODELS"] = str(project)
    if todo := plan_transform(load_settings(), "prod"):
        build.build(todo.environment, todo.changed_keys, todo.replan, lambda event: None)
        record(lake.settings, todo, "test")


def maintain(lake: Lake) -> None:
    for step in steps(lake.settings, timedelta(0), datetime.now(UTC) + timedelta(days=3)):
        if step.todo:
            step.run()


def machine(places: Places, kill: Killer, project: Path) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.lake = places.fresh()
            self.reader = connect(self.lake.settings, read_only=True)
            """Stays open: it must not answer from outdated statistics in its cache."""
            self.model: dict[str, Rows] = {}
            """The rows of each day."""
            self.history: dict[str, list[tuple[int, Rows]]] = {day: [] for day in DAYS}
            """The states of each day that a rollback goes through, as far as their snapshots exist: the number of the
            publish (0: nothing) and the rows."""
            self.states: list[tuple[int, dict[str, tuple[int, Rows]]]] = []
            """Snapshots, and what each day was then."""
            self.built: dict[str, Rows] = {}
            """The contents of the model: the days as of the last transform."""
            self.number = 0
            self.last: list[Receipt] = []

        def stage(self, chosen: list[str], shape: Shape, count: int, start: int) -> tuple[list[Receipt], Rows]:
            self.number += 1
            rows = shape.rows(count, start, self.number)
            return [staged_as(self.lake, day, shape.table(rows)) for day in chosen], rows

        def shown(self, day: str, number: int, rows: Rows) -> None:
            """A state of a day: a new one, or one that a rollback returns to."""
            known = [one for one, _ in self.history[day]]
            if number in known:
                del self.history[day][known.index(number) + 1 :]
            else:
                self.history[day].append((number, rows))
            self.model.pop(day, None)
            if rows:
                self.model[day] = rows

        def published(self, chosen: list[str], rows: Rows) -> None:
            for day in chosen:
                self.shown(day, self.number, rows)

        def snapshot(self) -> int:
            return int(self.lake.column("SELECT id FROM lake.current_snapshot()")[0])

        def remember(self) -> None:
            self.states.append((self.snapshot(), {day: kept[-1] for day, kept in self.history.items() if kept}))

        @rule(chosen=days, shape=shapes, count=counts, start=starts)
        def publish(self, chosen: list[str], shape: Shape, count: int, start: int) -> None:
            """Publish for the first time, or replace."""
            self.last, rows = self.stage(chosen, shape, count, start)
            result = self.lake.publish(self.last)
            assert len(result.receipts) == len(chosen), result.failures
            self.published(chosen, rows)

        @rule(order=st.permutations(list(Shape)), count=counts, start=starts)
        def drift(self, order: list[Shape], count: int, start: int) -> None:
            """A source whose files change from day to day: wider, narrower, extra or reordered columns."""
            for number, (day, shape) in enumerate(zip(DAYS, order, strict=False)):
                self.publish([day], shape, count, start + 100 * number)

        @rule()
        def publish_the_last_group_again(self) -> None:
            """Publish again after a lost answer: the ledger has the attempts already."""
            again = self.lake.publish(self.last)
            assert again.snapshot_id is None
            assert not again.failures

        @rule(chosen=days, shape=shapes, count=counts, start=starts)
        def stage_and_stop(self, chosen: list[str], shape: Shape, count: int, start: int) -> None:
            """A run that is cancelled before it publishes."""
            self.stage(chosen, shape, count, start)

        @rule(chosen=days)
        def fail(self, chosen: list[str]) -> None:
            self.lake.publish(
                [Failure("readings", day, new_attempt(), "failed", "the source is down") for day in chosen]
            )

        @rule(
            chosen=days,
            shape=shapes,
            count=counts,
            start=starts,
            point=st.sampled_from([p for p in POINTS[5:12] if p != "schema committed"]),
        )
        def crash(self, chosen: list[str], shape: Shape, count: int, start: int, point: Point) -> None:
            receipts, rows = self.stage(chosen, shape, count, start)
            if not self.model and point == "after DELETE":
                return  # also reached, but an empty lake has no table yet
            kill.at(point, publish, receipts)
            if point == "after COMMIT":
                self.published(chosen, rows)
            self.last = []

        @rule(day=st.sampled_from(DAYS))
        def roll_back(self, day: str) -> None:
            readings = get_dataset("readings")
            if len(self.history[day]) < 2:
                with pytest.raises(BadInput):
                    stage_previous(self.lake.settings, readings, readings.partition(day))
                return
            self.lake.publish([stage_previous(self.lake.settings, readings, readings.partition(day))])
            self.shown(day, *self.history[day][-2])

        @rule(which=st.integers(0, 100))
        def roll_back_to_a_snapshot(self, which: int) -> None:
            if not self.states:
                return
            snapshot, then = self.states[which % len(self.states)]
            readings = get_dataset("readings")
            (_, found) = changed_since(self.lake.settings, [readings], str(snapshot))
            staged = [stage_as_of(self.lake.settings, one, key, snapshot) for one, keys in found for key in keys]
            self.lake.publish([receipt for receipt in staged if receipt is not None])
            for receipt in staged:
                if receipt is not None:
                    self.shown(receipt.partition, *then.get(receipt.partition, (0, ())))
            assert self.model == {day: rows for day, (_, rows) in then.items() if rows}

        @rule(chosen=days)
        def drop(self, chosen: list[str]) -> None:
            for day in chosen:
                if day in self.model:
                    receipts, rows = emptied(self.lake.settings, get_dataset("readings"), day)
                    assert rows == len(self.model[day])
                    self.lake.publish(receipts)
                    self.shown(day, 0, ())

        def columns(self, change: Callable[[Row], Row]) -> None:
            """Change the columns of all rows, also of earlier states: a rollback brings them back in new columns."""

            def changed(rows: Rows) -> Rows:
                return tuple(change(row) for row in rows)

            self.model = {day: changed(rows) for day, rows in self.model.items()}
            self.history = {day: [(n, changed(rows)) for n, rows in kept] for day, kept in self.history.items()}
            self.states = [(s, {d: (n, changed(rows)) for d, (n, rows) in then.items()}) for s, then in self.states]

        @precondition(lambda self: bool(self.model))
        @rule(rename=st.booleans())
        def migrate_a_name(self, rename: bool) -> None:
            """Rename or drop a column that some shapes have; they add it again."""
            there = {row["column_name"] for row in self.lake.sql("DESCRIBE raw.readings")}
            for name in sorted({"more", "much_more"} & there):
                new = f"renamed_{self.number}_{name}"
                if not rename or new not in there:
                    plan = migrator(
                        self.lake.settings, get_dataset("readings"), {name: new} if rename else {}, [name][rename:]
                    )
                    plan.survey()
                    assert plan.alter() is not None
                    self.columns(
                        lambda row, name=name, new=new: {  # type: ignore[misc]
                            new if key == name else key: value for key, value in row.items() if rename or key != name
                        }
                    )

        @precondition(lambda self: bool(self.model))
        @rule(chosen=days, shape=shapes, count=counts, start=starts)
        def migrate_a_type_and_back(self, chosen: list[str], shape: Shape, count: int, start: int) -> None:
            """Texts become numbers while others are published, and texts again."""
            numbers = replace(get_dataset("readings"), contract=Contract({"name": "bigint"}))
            plan = migrator(self.lake.settings, numbers, {}, [])
            plan.survey()
            plan.prepare()
            plan.add(plan.copy(plan.pending()))
            plan.check()
            staged, rows = self.stage(chosen, shape, count, start)
            result = self.lake.publish(staged)
            if len(result.receipts) == len(chosen):
                self.published(chosen, rows)
            before = self.lake.column("SELECT sum(name::BIGINT)::VARCHAR FROM raw.readings")
            if len(self.lake.sql("DESCRIBE raw.readings")) == len(plan.before):
                assert plan.swap() is not None
                assert self.lake.column("SELECT sum(name)::VARCHAR FROM raw.readings") == before
                back = undoing(self.lake.settings, get_dataset("readings"))
                back.prepare()
                while (pending := back.pending()) or back.swap() is None:
                    back.add(back.copy(pending))
                    back.check()
            else:  # the table has another column now
                with pytest.raises(BadInput):
                    plan.swap()
                assert plan.abandon()

        @precondition(lambda self: bool(self.model))  # an inferred dataset has no raw table before its first publish
        @rule()
        def transform(self) -> None:
            process = kill.start(transform, project)
            process.join(120)
            assert process.exitcode == 0
            self.built = dict(self.model)

        @rule(chosen=days, count=counts, start=starts, point=st.sampled_from(POINTS[14:16]))
        def crash_in_a_transform(self, chosen: list[str], count: int, start: int, point: Point) -> None:
            """The interval in progress is completely in the model or not at all; the next transform completes it."""
            self.publish(chosen, Shape.wide, count, start)
            kill.at(point, transform, project)
            self.transform()

        @rule()
        def maintain(self) -> None:
            """Compact, expire all snapshots but the current, clean up, and delete every orphan."""
            maintain(self.lake)
            self.history = {day: kept[-1:] for day, kept in self.history.items()}
            self.states, self.last = [], []

        @precondition(lambda self: bool(self.model))
        @rule()
        def move(self) -> None:
            """To another place, with the past: rollbacks and transforms go on there."""
            environment = places.elsewhere()
            target = settings_from(environment)
            storage.check(target, create=True)
            with contextlib.closing(Move(self.lake.settings, target)) as moving:
                moving.begin(holds_models(target))
                moving.copy_files(last=True)
                moving.copy_catalog()
                copy_state(self.lake.settings, target)
                moving.compare()
                moving.finish()
            self.reader.close()
            self.lake = places.use(environment)
            self.reader = connect(self.lake.settings, read_only=True)
            self.last = []

        @invariant()
        def the_lake_is_the_model(self) -> None:
            self.remember()
            if any(self.history.values()):
                with connected(self.lake.settings, read_only=True) as new:
                    for con in (self.reader, new):
                        wrong = [answer for answer in answers(con, self.model) if answer[1] != answer[2]]
                        assert not wrong, wrong
                    assert by_day(new, "raw") == {day: ids(rows) for day, rows in self.model.items()}
                    built = by_day(new, "silver") if self.built else {}
                    assert built == {day: ids(rows) for day, rows in self.built.items()}
            ledger = {day: rows for day, rows in told(self.lake).items() if rows}
            assert ledger == {day: len(rows) for day, rows in self.model.items()}

        def teardown(self) -> None:
            self.reader.close()
            assert self.lake.errors() == []
            assert repair(self.lake.settings) == []

    return Machine


@pytest.mark.short("sqlite+folder")
def test_operations_in_any_order_leave_the_contents_of_a_reference_dict(
    lake: Lake, places: Places, kill: Killer, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(MODELS, project, ignore=shutil.ignore_patterns("models", "audits", "tests", "__pycache__"))
    (project / "models").mkdir()
    (project / "models" / "readings.sql").write_text(MODEL)
    in_any_order(machine(places, kill, project), request.config, steps=10)
