"""All operations in any order against a dict: what the lake and its ledger say after each is what the dict says."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from flows.datasets import all_datasets, get_dataset
from flows.datasets.model import parse_partition
from flows.errors import BadInput
from flows.lake.maintain import steps
from flows.lake.rollback import stage_previous
from flows.lake.schema import bootstrap
from flows.points import POINTS, Point
from flows.settings import PROJECT, load_settings
from flows.stage.layout import new_attempt
from flows.stage.receipt import Failure, Receipt
from flows.storage import check
from tests.conftest import Lake, Services
from tests.faults.conftest import Killer, found, soaking, staged, told

DAYS = [f"2024-01-{day:02}" for day in range(1, 5)]
days = st.lists(st.sampled_from(DAYS), min_size=1, max_size=3, unique=True)
rows = st.integers(1, 20)


def publish(lake: Lake, receipts: list[Receipt]) -> None:
    lake.publish(receipts)


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


def transform(lake: Lake, project: Path) -> None:
    """What a transform does between its gates, on a project with one model."""
    from flows.build import run
    from flows.build.adapter import LakeAdapter
    from flows.lake.builds import read_todo, record

    LakeAdapter.gate = contextlib.nullcontext
    run.PROJECT = project
    if todo := read_todo(lake.settings, "prod", project):
        run.build(todo.environment, todo.changed_keys, todo.replan, lambda event: None)
        record(lake.settings, todo, "test")


def maintain(lake: Lake) -> None:
    for step in steps(lake.settings, timedelta(0), datetime.now(UTC) + timedelta(days=3)):
        if step.todo:
            step.run()


def machine(fresh: Callable[[], Lake], kill: Killer, project: Path) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.lake = fresh()
            self.model: dict[str, tuple[int, int]] = {}
            """The days' rows, and the value in each."""
            self.history: dict[str, list[tuple[int, int]]] = {day: [] for day in DAYS}
            """What each day held, in order, as far as its snapshots are there."""
            self.built: dict[str, tuple[int, int]] = {}
            """What the model holds: the days as they were at the last transform."""
            self.number = 0
            self.last: list[Receipt] = []
            self.aside: list[Receipt] = []

        def receipts(self, chosen: list[str], rows: int) -> list[Receipt]:
            self.number += 1
            return [staged(self.lake, day, rows, self.number) for day in chosen]

        def published(self, receipts: list[Receipt]) -> None:
            for receipt in receipts:
                self.model[receipt.partition] = (receipt.rows, self.number)
                self.history[receipt.partition].append(self.model[receipt.partition])

        @rule(chosen=days, rows=rows)
        def publish(self, chosen: list[str], rows: int) -> None:
            """A first time, or in place of what is there."""
            self.last = self.receipts(chosen, rows)
            assert len(self.lake.publish(self.last).receipts) == len(chosen)
            self.published(self.last)

        @rule()
        def publish_the_last_group_again(self) -> None:
            """An answer was lost: the ledger knows the attempts."""
            again = self.lake.publish(self.last)
            assert again.snapshot_id is None
            assert not again.failures

        @rule(chosen=days, rows=rows)
        def stage_and_stop(self, chosen: list[str], rows: int) -> None:
            """A run that was cancelled before it published."""
            self.receipts(chosen, rows)

        @rule(chosen=days)
        def fail(self, chosen: list[str]) -> None:
            self.lake.publish(
                [Failure("readings", day, new_attempt(), "failed", "the source is down") for day in chosen]
            )

        @rule(chosen=days, rows=rows, point=st.sampled_from([p for p in POINTS[5:12] if p != "schema committed"]))
        def crash(self, chosen: list[str], rows: int, point: Point) -> None:
            receipts = self.receipts(chosen, rows)
            if not self.model and point == "after DELETE":
                return  # reached, too, but an empty lake has no table yet
            kill.at(point, publish, receipts)
            if point == "after COMMIT":
                self.published(receipts)
            self.last = []

        @rule(day=st.sampled_from(DAYS))
        def roll_back(self, day: str) -> None:
            partition = parse_partition(day, get_dataset("readings").grain)
            if len(self.history[day]) < 2:
                with pytest.raises(BadInput):
                    stage_previous(self.lake.settings, get_dataset("readings"), partition)
                return
            self.lake.publish([stage_previous(self.lake.settings, get_dataset("readings"), partition)])
            self.model[day] = self.history[day][-2]
            self.history[day].pop()

        @rule(number=st.integers(1, 3))
        def widen(self, number: int) -> None:
            """A source that has a new column."""
            self.number += 1
            self.last = [staged(self.lake, DAYS[0], 3, self.number, f"column_{number}")]
            assert len(self.lake.publish(self.last).receipts) == 1
            self.published(self.last)

        @precondition(lambda self: bool(self.model))  # what is inferred has no raw table before
        @rule()
        def transform(self) -> None:
            process = kill.start(transform, project)
            process.join(120)
            assert process.exitcode == 0
            self.built = dict(self.model)

        @rule(chosen=days, rows=rows, point=st.sampled_from(POINTS[14:16]))
        def crash_in_a_transform(self, chosen: list[str], rows: int, point: Point) -> None:
            """What it was at is in the model, whole, or not at all; the next transform makes it good."""
            self.publish(chosen, rows)
            kill.at(point, transform, project)
            self.transform()

        @rule()
        def maintain(self) -> None:
            """Compact, expire all that is not the present, clean up, and take every orphan."""
            maintain(self.lake)
            self.history = {day: kept[-1:] for day, kept in self.history.items()}
            self.last = []

        @invariant()
        def the_lake_is_the_model(self) -> None:
            here = found(self.lake) if self.model else {}
            assert here == self.model
            assert (found(self.lake, "silver.readings") if self.built else {}) == self.built
            ledger = {day: rows for day, rows in told(self.lake).items() if rows}
            assert ledger == {day: rows for day, (rows, _) in self.model.items()}

        def teardown(self) -> None:
            assert self.lake.errors() == []

    return Machine


@pytest.mark.short("sqlite+folder")
def test_any_order_of_operations_leaves_what_a_dict_would_hold(
    lake: Lake,
    services: Services,
    kill: Killer,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    soak = soaking(request.config)
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("models", "audits", "tests", "__pycache__"))
    (project / "models").mkdir()
    (project / "models" / "readings.sql").write_text(MODEL)
    made = 0

    def fresh() -> Lake:
        nonlocal made
        made += 1
        storage = request.node.callspec.params["lake"]
        for name, value in services.environment(storage, tmp_path / f"home{made}").items():
            monkeypatch.setenv(name, value)
        chosen = load_settings()
        check(chosen, create=True)
        bootstrap(chosen, list(all_datasets().values()))
        return Lake(chosen)

    run_state_machine_as_test(
        machine(fresh, kill, project),
        settings=settings(
            max_examples=10 if soak else 2,
            stateful_step_count=40 if soak else 10,
            deadline=None,
            derandomize=not soak,
            print_blob=True,
            database=None,
            phases=[Phase.generate, Phase.shrink] if soak else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("cases", made)
