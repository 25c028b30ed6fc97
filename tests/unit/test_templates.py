"""`lake new` creates projects from files of this repository. Their samples load. It overwrites no file."""

from __future__ import annotations

import functools
import http.server
import importlib
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from ducklake_flows import templates
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.errors import BadInput
from ducklake_flows.orchestration.deploy import read
from ducklake_flows.project import all_datasets, broken_datasets, get_dataset
from ducklake_flows.settings import load_settings
from ducklake_flows.staging.receipt import Failure
from tests.conftest import ROOT, Lake

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDERS = {"2024-01-01": 3, "2024-01-02": 2, "2024-01-03": 3}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my-lake"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def api(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serves the sample API in the same way as the tests of the project."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(empty / "sample"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("ORDERS_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.parametrize("source", ["files", "rest_api", "sql_database"])
def test_the_sample_of_every_source_is_published(
    lake: Lake, empty: Path, api: None, source: templates.SourceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates.write_project(empty, source=source)
    monkeypatch.setenv("LAKE_PROJECT", str(empty))
    if source == "files":
        monkeypatch.setenv("LAKE_LANDING", str(empty / "landing"))
    assert broken_datasets() == {}
    assert list(all_datasets()) == ["orders"]
    result = lake.load("orders", *ORDERS)
    assert {r.partition: r.rows for r in result.receipts} == ORDERS
    assert lake.column("SELECT sum(amount)::VARCHAR FROM raw.orders") == ["450.24"]
    assert lake.errors() == []


def test_a_partition_missing_from_the_api_is_no_source(
    lake: Lake, empty: Path, api: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates.write_project(empty, source="rest_api")
    monkeypatch.setenv("LAKE_PROJECT", str(empty))
    (outcome,) = lake.extract("orders", "2024-02-01")
    assert isinstance(outcome, Failure)
    assert outcome.state == "no_source"
    assert outcome.error == f"GET {os.environ['ORDERS_URL']}/orders/2024-02-01.json answers 404"


def test_the_demo_is_a_copy_of_this_repositorys_files(empty: Path) -> None:
    templates.write_project(empty, demo=True)
    assert list(all_datasets()) == ["airlines", "airports", "entries", "flights", "planes", "weather"]
    for here, there in (("datasets", "flows/datasets"), ("sqlmesh_project", "sqlmesh_project")):
        wanted = {
            p.relative_to(ROOT / there): p.read_text()
            for p in (ROOT / there).rglob("*.*")
            if p.suffix in {".py", ".sql", ".yaml"}
        }
        found = {
            p.relative_to(empty / here): p.read_text()
            for p in (empty / here).rglob("*.*")
            if p.suffix in {".py", ".sql", ".yaml"}
        }
        assert found == wanted


def test_the_wheel_contains_every_repository_file_that_the_templates_use() -> None:
    hook = importlib.import_module("hatch_build")
    carried = [Path(name) for name in hook.FILES]
    for path in map(Path, [*templates._SHARED, ".env.example", "flows/datasets/flights.py"]):
        assert any(path.is_relative_to(name) for name in carried), path
    assert all((ROOT / name).exists() for name in carried)


def test_settings_and_names_are_filled_in(empty: Path) -> None:
    templates.write_project(empty)
    texts = {p: p.read_text() for p in empty.rglob("*") if p.is_file()}
    assert not [p for p, text in texts.items() if "__project__" in text or "__version__" in text]
    assert "name: my-lake\n" in texts[empty / "docker-compose.yml"]
    assert texts[empty / "requirements.txt"].startswith("ducklake-flows[postgres,s3]>=0.1.0,<0.2\n")
    assert (empty / "deployments" / "init").stat().st_mode & 0o111
    assert {p.name for p in empty.iterdir()} >= {".gitignore", ".dockerignore", ".env.example", "pyproject.toml"}


def test_existing_files_are_not_overwritten(empty: Path) -> None:
    (empty / "README.md").write_text("mine")
    with pytest.raises(BadInput, match=r"README\.md exists"):
        templates.write_project(empty)
    assert [p.name for p in empty.iterdir()] == ["README.md"]
    with pytest.raises(BadInput, match="not a project's name"):
        templates.write_project(empty / "My Lake")


@pytest.mark.parametrize("source", ["files", "rest_api", "sql_database"])
def test_a_dataset_and_its_models_are_added(
    empty: Path, source: templates.SourceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates.write_project(empty)
    path = templates.write_dataset(empty / "datasets", "visits", source)
    assert broken_datasets() == {}
    visits = get_dataset("visits")
    assert isinstance(visits, Dataset)
    with pytest.raises(BadInput, match="columns of visits are not known yet"):
        templates.write_model(load_settings(), "bronze.visits", visits)
    with pytest.raises(BadInput, match="exists"):
        templates.write_dataset(empty / "datasets", "visits", source)
    with pytest.raises(BadInput, match="not a dataset's key"):
        templates.write_dataset(empty / "datasets", "My Visits", source)
    assert path.name == "visits.py"


def test_a_model_has_its_datasets_columns(empty: Path) -> None:
    templates.write_project(empty)
    path = templates.write_model(load_settings(), "gold.orders", get_dataset("orders"))
    assert path == empty / "sqlmesh_project" / "models" / "gold" / "orders.sql"
    text = path.read_text()
    assert "FROM silver.orders" in text
    assert "SELECT\n  order_date,\n  order_id,\n  customer,\n  amount,\n  ordered_at\n" in text
    with pytest.raises(BadInput, match="not a model's name"):
        templates.write_model(load_settings(), "platinum.orders", get_dataset("orders"))


@pytest.mark.parametrize("demo", [False, True])
def test_a_new_projects_deployments_are_those_that_this_repository_tests(
    empty: Path, demo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, nothing looked at a new project's compose file, Dockerfile and deployments."""
    templates.write_project(empty, demo=demo)
    monkeypatch.setenv("LAKE_PROJECT", str(empty))
    for name in ("docker-compose.yml", "deployments/prefect.yaml"):
        there = (ROOT / name).read_text().replace("ducklake-flows", "my-lake")
        assert yaml.safe_load((empty / name).read_text()) == yaml.safe_load(there)
    for name in (
        "deployments/init",
        "deployments/postgres-init.sh",
        "deployments/backup.sh",
        "deployments/entrypoint",
        "deployments/env.example",
        "deployments/secrets",
    ):
        assert (empty / name).read_text() == (ROOT / name).read_text()
    # Its deployments load, with its own hours.
    here = {one.name: one for one in read(load_settings())}
    assert set(here) == {
        f"{d['entrypoint'].rpartition('.')[2]}/{d['name']}"
        for d in yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]
    }
    crons = {s["schedule"]["cron"] for s in here["ingest/ingest"].schedules.values()}
    assert crons == ({"0 5 * * *", "0 6 * * *"} if demo else {"0 6 * * *"})

    # Its image: the same user and folders, only files that exist and are let in, and the same extensions.
    def instructions(file: Path) -> list[str]:
        text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.M).replace("\\\n", " ")
        return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip()]

    ours, theirs = (instructions(folder / "deployments" / "Dockerfile") for folder in (ROOT, empty))
    for keyword in ("RUN useradd", "USER", "RUN for name in", "CMD"):
        assert [i for i in theirs if i.startswith(keyword)] == [i for i in ours if i.startswith(keyword)]
    assert "LAKE_PROJECT=/app" in " ".join(theirs)
    allowed = [n for n in (empty / ".dockerignore").read_text().splitlines() if not n.startswith("#")]
    assert allowed[0] == "*"
    let_in = {n.removeprefix("!") for n in allowed if n.startswith("!")}
    assert {"datasets", "deployments", "pyproject.toml", "requirements.txt", "sqlmesh_project"} <= let_in
    assert not [n for n in let_in if n.startswith(".")]
    copied = [name for i in theirs if i.startswith("COPY") for name in i.split()[1:-1]]
    assert all((empty / name).exists() for name in copied)
    assert len(copied) == 2
