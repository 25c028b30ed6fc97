"""Bootstrap, and invalid catalogs."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.errors import BadInput, CatalogError, NotInitialised
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.query import query
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake


def test_bootstrap_is_safe_to_repeat(lake: Lake) -> None:
    snapshots = lake.column("SELECT count(*) FROM lake.snapshots()")
    assert bootstrap(lake.settings, list(all_datasets().values())) == []
    assert lake.column("SELECT count(*) FROM lake.snapshots()") == snapshots
    assert lake.errors() == []


def test_a_query_cannot_change_the_lake(lake: Lake) -> None:
    for sql in ("DELETE FROM ops.ledger", "DROP TABLE ops.builds", "CREATE TABLE raw.x AS SELECT 1"):
        with pytest.raises(BadInput, match="changes nothing"):
            query(lake.settings, sql)
    with pytest.raises(BadInput, match="does not exist"):
        query(lake.settings, "FROM raw.nothing")


def test_a_reader_reports_a_missing_lake_and_creates_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotInitialised, match="no lake yet") as caught:
        connect(Settings(home=tmp_path / "none"))
    assert caught.value.fix == "lake init"
    assert not (tmp_path / "none").exists()


def test_a_path_that_is_not_a_catalog_is_left_unchanged(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("just some notes, long enough to be taken for a file of its own")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as con:
        con.execute("CREATE TABLE mine (x)")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, says in ((text, "cannot be read"), (other, "not a DuckLake catalog"), (folder, "is a folder")):
        settings = Settings(home=tmp_path, catalog=f"sqlite:{path}")
        before = path.read_bytes() if path.is_file() else None
        for act in (connect, lambda s: bootstrap(s, [])):
            with pytest.raises(CatalogError, match=says) as caught:
                act(settings)
            assert caught.value.fix
        if before is not None:
            assert path.read_bytes() == before


def test_a_home_that_cannot_be_created_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogError, match="folder cannot be created"):
        bootstrap(Settings(home=tmp_path / "file" / "lake"), [])


def test_a_data_path_that_differs_from_the_catalogs_is_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_DATA_PATH", lake.settings.data_path + "elsewhere/")
    with pytest.raises(CatalogError, match="LAKE_DATA_PATH"):
        connect(load_settings())
