"""A project is found from any folder inside it or by LAKE_PROJECT, and only its datasets exist."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ducklake_flows.errors import BadInput
from ducklake_flows.project import all_datasets, broken_datasets, get_datasets
from ducklake_flows.settings import load_settings
from tests.conftest import make_project

DATASET = """
from datetime import date
from ducklake_flows import Dataset
DATASET = Dataset("{key}", lambda partition: [{{"n": 1}}], partition_column="day", start=date(2024, 1, 1))
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files of a project in a new folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.ducklake-flows]\n")
    (tmp_path / "datasets").mkdir()

    def file(name: str, text: str = "", folder: str = "datasets", key: str = "") -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / name
        path.write_text(text or DATASET.format(key=key or path.stem))
        return path

    return file


def test_an_empty_table_makes_a_project_with_the_default_folders(write: Write, tmp_path: Path) -> None:
    write("orders.py")
    settings = load_settings()
    assert settings.project == tmp_path
    assert settings.datasets == (tmp_path / "datasets",)
    assert settings.models == tmp_path / "sqlmesh_project"
    assert settings.home == tmp_path / ".lake"
    assert list(all_datasets()) == ["orders"]


def test_a_project_is_found_from_any_folder_inside_it(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("orders.py")
    (tmp_path / ".env").write_text("LAKE_LANDING=files/\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert load_settings().home == tmp_path / ".lake"
    assert load_settings().landing == f"{tmp_path}/files/"
    assert list(all_datasets()) == ["orders"]


def test_lake_project_selects_a_project_from_any_folder(
    write: Write, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("orders.py")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(BadInput, match="There is no project here"):
        all_datasets()
    monkeypatch.setenv("LAKE_PROJECT", str(tmp_path))
    assert list(all_datasets()) == ["orders"]
    assert load_settings().environment()["LAKE_PROJECT"] == str(tmp_path)


def test_the_nearest_project_wins(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("orders.py")
    inner = tmp_path / "inner"
    (inner / "datasets").mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[tool.ducklake-flows]\n")
    (inner / "datasets" / "visits.py").write_text(DATASET.format(key="visits"))
    monkeypatch.chdir(inner)
    assert list(all_datasets()) == ["visits"]


def test_a_pyproject_without_our_table_is_not_a_project(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.ruff]\n')
    assert load_settings().project is None
    with pytest.raises(BadInput, match="There is no project here"):
        all_datasets()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.ducklake-flows]\ndataset = 'x'\n", "unknown key 'dataset'"),
        ("[tool.ducklake-flows]\ns3_secret = 'hunter2'\n", "unknown key 's3_secret'"),
        ("[tool.ducklake-flows\n", "cannot be read"),
        ("[tool.ducklake-flows]\ndatasets = 5\n", "`datasets` is a folder or a list"),
        ("[tool.ducklake-flows]\nmodels = ['a']\n", "`models` a folder"),
    ],
)
def test_an_error_in_the_table_is_named(write: Write, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(BadInput, match=said) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_an_empty_setting_is_ignored(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.ducklake-flows]\ndatasets = ["datasets"]\nmodels = "sql"\n')
    (tmp_path / ".env").write_text("LAKE_DATASETS=\nLAKE_MODELS=\n")
    settings = load_settings()
    assert (settings.datasets, settings.models) == ((tmp_path / "datasets",), tmp_path / "sql")


def test_lake_project_that_is_not_a_project_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_PROJECT", str(tmp_path))
    with pytest.raises(BadInput, match=str(tmp_path)):
        load_settings()


def test_a_user_dataset_named_flights_is_allowed(write: Write) -> None:
    write("flights.py")
    assert list(all_datasets()) == ["flights"]


def test_dataset_files_share_helpers_and_one_file_may_define_several_datasets(write: Write) -> None:
    write("common.py", "from datetime import date\nSTART = date(2024, 1, 1)\n")
    write(
        "shops.py",
        "from ducklake_flows import Dataset\n"
        "from lake_datasets.common import START\n"
        "def shop(key):\n"
        '    return Dataset(key, lambda partition: [{"n": 1}], partition_column="day", start=START)\n'
        'BERLIN, PARIS = shop("berlin"), shop("paris")\n',
    )
    write("again.py", "from .shops import BERLIN\n")
    assert list(all_datasets()) == ["berlin", "paris"]
    assert broken_datasets() == {}


def test_two_datasets_with_one_key_are_refused(write: Write) -> None:
    write("one.py", key="same")
    write("two.py", key="same")
    assert all_datasets() == {}
    with pytest.raises(BadInput, match=r"one\.py and .*two\.py"):
        get_datasets(["same"])


def test_several_folders_are_one_package_and_a_repeated_file_name_is_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("one.py")
    write("two.py", folder="more")
    write("one.py", folder="more", key="other")
    make_project(tmp_path, tmp_path / "datasets", tmp_path / "more")
    monkeypatch.setenv("LAKE_RETENTION_DAYS", "7")  # settings are cached per environment
    assert list(all_datasets()) == ["one", "two"]
    assert "has the same name" in broken_datasets()["one"].message


def test_a_folder_named_flows_in_the_working_directory_is_not_imported(write: Write, tmp_path: Path) -> None:
    write("orders.py")
    write("__init__.py", "raise RuntimeError('not ours')\n", folder="flows")
    for module in ("ducklake_flows.models.worker", "ducklake_flows.cli.main"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
