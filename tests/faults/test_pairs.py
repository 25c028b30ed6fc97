"""Every pair of writers without a gate: what overtakes a transaction before its COMMIT keeps it from committing."""

from __future__ import annotations

import contextlib
import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from ducklake_flows.errors import CatalogError, CommitConflict
from ducklake_flows.lake import connect as connections
from ducklake_flows.lake import maintenance, publish, repair
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.fence import META, claim_snapshot
from ducklake_flows.models import adapter as models
from tests.faults.conftest import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Lake


class Writers:
    """Writers of one lake, without a gate.

    Args:
        lake: The lake.
        patch: Undone by the caller.
    """

    def __init__(self, lake: Lake, patch: pytest.MonkeyPatch) -> None:
        self._lake, self._numbers = lake, itertools.count(1)
        self._meanwhile: Callable[[], object] | None = None
        self._point, self._reached = "", 0
        for module in (publish, maintenance, models):
            patch.setattr(module, "failpoint", self._at)

        def claimed(*arguments: Any) -> None:
            self._at("claim")
            claim_snapshot(*arguments)

        patch.setattr(repair, "claim_snapshot", claimed)
        patch.setattr(models.LakeAdapter, "gate", contextlib.nullcontext)
        self._depth = 0
        self.models = [models.lake_connection(lake.settings).create_engine_adapter() for _ in range(2)]
        self._con = connect(lake.settings)
        self._con.execute("CREATE SCHEMA silver")
        for name in ("made", "small", "odd"):
            self._con.execute(f"CREATE TABLE silver.{name} (n BIGINT)")
        self._con.execute("INSERT INTO silver.odd VALUES (1)")

    def close(self) -> None:
        self._con.close()
        for model in self.models:
            model.close()

    def is_committed(self, kind: str, meanwhile: Callable[[], object] | None = None) -> bool:
        """Write once; returns whether the first transaction was committed.

        Args:
            kind: One of `KINDS`.
            meanwhile: Called right before the first transaction is committed.
        """
        outer = self._point, self._reached, self._meanwhile
        self._reached, self._meanwhile = 0, meanwhile
        self._depth += 1
        try:
            getattr(self, f"_{kind}")()
        except (CatalogError, CommitConflict, duckdb.Error):
            return False
        else:
            return self._reached == 1
        finally:
            self._depth -= 1
            self._point, self._reached, self._meanwhile = outer

    def _at(self, point: str) -> None:
        if point == self._point:
            self._reached += 1
            meanwhile, self._meanwhile = self._meanwhile, None
            if meanwhile is not None:
                meanwhile()

    def prepare(self, *kinds: str) -> None:
        """Make work for these writers. One that waits for its COMMIT may have locked a SQLite catalog."""
        work = {
            "repair": [
                f"UPDATE {META}.ducklake_table_column_stats SET min_value = '0' WHERE table_id = "
                f"(SELECT max(table_id) FROM {META}.ducklake_table WHERE table_name = 'odd')"
            ],
            "flush": ["INSERT INTO ops.builds (token) VALUES (0)"],
            "merge": ["INSERT INTO silver.small VALUES (1)", "INSERT INTO silver.small VALUES (2)"],
        }
        for statement in itertools.chain(*(work.get(kind, ()) for kind in {*kinds})):
            self._con.execute(statement)

    def _publish(self) -> None:
        self._point = "before COMMIT"
        self._lake.publish([staged(self._lake, "2024-01-01", 3, next(self._numbers))])

    def _repair(self) -> None:
        self._point = "claim"
        repair.repair(self._lake.settings, {"silver.odd"})

    def _flush(self) -> None:
        self._step("flush", "ops.builds")

    def _merge(self) -> None:
        self._step("merge", "silver.small")

    def _step(self, name: str, subject: str) -> None:
        self._point = "mid compaction"
        found = maintenance.steps(self._lake.settings, timedelta(30))
        next(step for step in found if (step.name, step.subject) == (name, subject)).run()

    def _transform(self) -> None:
        self._point = "mid interval"
        model = self.models[self._depth - 1]
        with model.transaction():
            model.execute("DELETE FROM silver.made WHERE n < 0")
            model.execute("INSERT INTO silver.made VALUES (1)")


KINDS = ("publish", "repair", "flush", "merge", "transform")


@pytest.fixture
def writers(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writers]:
    # The first writer waits in this thread for the second one, which must not wait for the first one's locks.
    monkeypatch.setattr(connections, "BUSY_MS", 100)
    monkeypatch.setitem(connections.LIBPQ, "options", "-clock_timeout=100")
    monkeypatch.setattr(publish, "RETRIES", 1)
    monkeypatch.setattr(publish, "LOST_SECONDS", 0)
    monkeypatch.setattr(repair, "RETRIES", 1)
    lake.publish([staged(lake, "2024-01-02", 1, 0)])
    made = Writers(lake, monkeypatch)
    yield made
    made.close()


def committed(writers: Writers, overtaken: str, first: str) -> tuple[bool, bool]:
    """Let one writer write before the COMMIT of another. Returns whether the overtaken and the first one committed."""
    writers.prepare(overtaken, first)
    done: list[bool] = []
    last = writers.is_committed(overtaken, lambda: done.append(writers.is_committed(first)))
    return last, done[0]


def test_of_two_writers_at_the_same_time_exactly_one_commits(writers: Writers) -> None:
    writers.prepare(*KINDS)
    assert [kind for kind in KINDS if not writers.is_committed(kind)] == [], "each commits when it is alone"
    pairs = {pair: committed(writers, *pair) for pair in itertools.product(KINDS, KINDS)}
    assert {pair: done for pair, done in pairs.items() if sorted(done) != [False, True]} == {}


@pytest.mark.parametrize("lake", ["postgres+folder"], indirect=True)
@pytest.mark.parametrize("pair", [("publish", "transform"), ("transform", "transform"), ("merge", "publish")])
def test_with_ducklakes_retries_both_commit(
    lake: Lake, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """So it is the fence that stops the second one. A SQLite catalog takes one writer at a time by itself."""
    monkeypatch.setattr(connections, "NO_RETRY", "SET GLOBAL ducklake_max_retry_count = 10")
    assert committed(request.getfixturevalue("writers"), *pair) == (True, True)
