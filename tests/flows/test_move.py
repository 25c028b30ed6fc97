"""`lake move` as a user runs it. What it copies and refuses is tested in `tests/lake/test_move.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.flows.test_cli import Command
from tests.flows.test_ingest import flights

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def lake(tmp_path: Path, prefect_server: str) -> Command:
    return Command(tmp_path, prefect_server)


def test_the_command_says_what_it_does_and_what_comes_next(lake: Command) -> None:
    lake("init")
    landing = lake.folder / ".lake" / "landing" / "flights"
    landing.mkdir()
    (landing / "2013-01-01.csv").write_text(flights(1, 5))
    lake("backfill", "flights", "--start", "2013-01-01", "--end", "2013-01-01")
    (lake.folder / "there.env").write_text("LAKE_HOME=there\nLAKE_LANDING=.lake/landing\nLAKE_NOTIFY_URL=hunter2\n")

    (lake.folder / "here.env").write_text("LAKE_DATA_PATH=elsewhere\n")
    assert "not apart from the source: LAKE_CATALOG, LAKE_STATE" in lake("move", "--to", "here.env", fails=True)
    assert "would be moved: 1 file," in lake("move", "--to", "there.env", "--dry-run")
    assert not (lake.folder / "there").exists()
    out = lake("move", "--to", "there.env")
    assert "Copied 1 file," in out
    assert f"Next: use {lake.folder / 'there.env'} as .env" in out
    assert "hunter2" not in out
    assert lake.json("move", "--to", "there.env")["done_before"]
    count = lake("sql", "SELECT count(*) AS n FROM raw.flights", "--csv", LAKE_HOME="there")
    assert count.split() == ["n", "5"]
