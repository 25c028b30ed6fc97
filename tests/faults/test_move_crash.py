"""SIGKILL at every named point of a move: the target is no lake before the end, and the same command goes on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import psycopg
import pytest
from sqlmesh.core.console import NoopConsole
from sqlmesh.core.state_sync import EngineAdapterStateSync

from ducklake_flows.errors import NotInitialised
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.move import MARK, Move
from ducklake_flows.models.config import state_connection
from ducklake_flows.models.state import copy_state, holds_models
from ducklake_flows.settings import file_settings
from ducklake_flows.storage import check
from ducklake_flows.testing.failpoints import POINTS
from tests.conftest import Lake
from tests.faults.conftest import Contents, Killer, found, land
from tests.lake.test_move import bytes_of, history, other, target_file

if TYPE_CHECKING:
    from ducklake_flows.settings import Settings
    from tests.conftest import Services

OLD: Contents = {"2024-01-01": (10, 1), "2024-01-02": (20, 1), "2024-01-03": (5, 1)}
NEW: Contents = {"2024-01-01": (11, 2)}

MOVE = POINTS[-5:]


def versions(settings: Settings) -> list[tuple[str, ...]]:
    """The versions of models in a state."""
    query = "SELECT name, identifier, snapshot FROM state._snapshots ORDER BY name"
    if settings.state_password is None:
        with contextlib.closing(duckdb.connect(settings.state, read_only=True)) as file:
            return file.execute(query).fetchall()
    with psycopg.connect(settings.state, password=settings.state_password.get_secret_value()) as con:
        return con.execute(query).fetchall()


def add_versions(settings: Settings) -> None:
    """Make a state of some models, which was left by a transform."""
    adapter = state_connection(settings).create_engine_adapter()
    EngineAdapterStateSync(adapter, "state", NoopConsole()).migrate(skip_backup=True)
    adapter.execute(
        "INSERT INTO state._snapshots (name, identifier, version, snapshot, kind_name) VALUES "
        "('a', '1', '1', '{\"é\": \"''\"}', 'FULL'), ('b', '2', '1', '{}', 'FULL')"
    )
    adapter.close()


def move(lake: Lake, file: str) -> None:
    """As the flow does, without the gate."""
    target = file_settings(Path(file))
    with contextlib.closing(Move(lake.settings, target)) as moving:
        if moving.is_done():
            moving.remove_mark()
            return
        check(target, create=True)
        moving.begin(holds_models(target))
        moving.copy_files(last=True)
        moving.copy_catalog()
        copy_state(lake.settings, target)
        moving.compare()
        moving.finish()


@pytest.mark.short("sqlite+folder")
def test_a_killed_move_leaves_no_lake_and_goes_on(lake: Lake, kill: Killer, services: Services, tmp_path: Path) -> None:
    """One target is killed at each point in turn, so that each move finds what the earlier ones left."""
    land(lake, OLD)
    lake.load("readings", *OLD)
    land(lake, NEW)
    lake.load("readings", *NEW)
    add_versions(lake.settings)
    past, before = history(lake, "readings", "ledger"), bytes_of(lake.settings)
    file = target_file(services, other(lake), tmp_path / "there", lake.settings.landing)
    target = Lake(file_settings(file))
    for point in MOVE:
        kill.at(point, move, str(file))
        assert bytes_of(lake.settings) == before
        if point != "moved":
            with pytest.raises(NotInitialised):
                connect(target.settings)
    for _ in range(2):
        move(lake, str(file))
        assert history(target, "readings", "ledger") == past
        assert found(target) == {**OLD, **NEW}
        assert target.errors() == []
        assert versions(target.settings) == versions(lake.settings) != []
        assert target.data.find(MARK) is None
    assert len(target.data.list()) == len(lake.data.list()), "nothing is left of the moves that were killed"
    assert bytes_of(lake.settings) == before
