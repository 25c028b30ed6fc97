"""What `lake new` writes: a project, a dataset, a model.

The models, datasets and deployments of the demo are this repository's own files: the wheel has a copy of them in
`repository/`, a checkout has them where they are. All other files are beside this one. A leading underscore keeps
tools from taking a template for their own configuration.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ducklake_flows.datasets.dataset import KEY, Dataset
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput, NotInitialised
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.schema import table_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ducklake_flows.settings import Settings

HERE = Path(__file__).resolve().parent
SourceKind = Literal["files", "rest_api", "sql_database"]

_SHARED = (
    "docker-compose.yml",
    "deployments/backup.sh",
    "deployments/entrypoint",
    "deployments/env.example",
    "deployments/init",
    "deployments/postgres-init.sh",
    "deployments/prefect.yaml",
    "deployments/secrets",
    "sqlmesh_project/audits/every_row_of.sql",
    "sqlmesh_project/config.py",
    "sqlmesh_project/signals/__init__.py",
)
"""Files of this repository that every project gets."""

_NAMES = {"_pyproject.toml": "pyproject.toml", "_gitignore": ".gitignore", "_dockerignore": ".dockerignore"}
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_CRONS = {
    Grain.hour: "@hourly",
    Grain.week: "0 0 * * 1",
    Grain.month: "@monthly",
    Grain.quarter: "0 0 1 */3 *",
    Grain.year: "@yearly",
}
"""The intervals of a model of partitions that are no days, as SQLMesh's cron: a week begins on Monday."""

_LAYERS = {"bronze": "raw", "silver": "bronze", "gold": "silver"}
"""The layer that a layer's models read from."""


def write_project(
    folder: Path, *, name: str | None = None, demo: bool = False, source: SourceKind = "files"
) -> list[Path]:
    """Write a project that runs and passes its tests at once.

    Args:
        folder: Where. It may exist, but none of the files may.
        name: The project's name; the folder's when None.
        demo: With the datasets and models of the demo, New York's flights of 2013, instead of a small sample.
        source: What the sample is read from.

    Returns:
        The files written, by their paths from the folder on.

    Raises:
        BadInput: the name is none, or one of the files exists.
    """
    name = name or folder.name
    if not _NAME.fullmatch(name):
        raise BadInput(f"{name!r} is not a project's name.", f"use {_NAME.pattern}, for example my-lake")
    files = dict(_files("demo", source, name) if demo else _files("", source, name))
    written = _write(folder, files)
    if source == "sql_database" and not demo:
        sample = Path("sample", "orders.sqlite")
        with contextlib.closing(sqlite3.connect(folder / sample)) as database:
            database.executescript(files[Path("sample/orders.sql")])
        written.append(sample)
    return sorted(written)


def _files(demo: str, source: str, name: str) -> Iterator[tuple[Path, str]]:
    """Every file of a project and its text."""
    release = version("ducklake-flows")
    major, minor, *_ = release.split(".")
    words = {
        "__project__": name,
        "__version__": release,
        "__next__": f"{major}.{int(minor) + 1}",
        "__extras__": "demo,postgres,s3" if demo else "postgres,s3",
    }
    trees = ("project", "demo") if demo else ("project", source, "models")
    for tree in trees:
        for path, text in _tree(HERE / tree):
            yield path.with_name(_NAMES.get(path.name, path.name)), _filled(text, words)
    for path in map(Path, _SHARED):
        yield path, _shared(path).replace("ducklake-flows", name) if path.suffix in (".yml", ".yaml") else _shared(path)
    settings = _shared(Path(".env.example"))
    if source == "files" and not demo:
        settings = settings.replace("# LAKE_LANDING=.lake/landing/", "LAKE_LANDING=landing/")
    yield Path(".env.example"), settings
    if demo:
        repository = _repository()
        for path, text in _tree(repository / "flows" / "datasets"):
            yield Path("datasets") / path, text
        for folder in ("models", "audits", "tests"):
            for path, text in _tree(repository / "sqlmesh_project" / folder):
                yield Path("sqlmesh_project") / folder / path, text


def _tree(folder: Path) -> Iterator[tuple[Path, str]]:
    """The text files below a folder, by their paths from it on."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder), path.read_text(encoding="utf-8")


def _repository() -> Path:
    """This repository's files: the wheel's copy, or the checkout that this package is imported from."""
    packaged = HERE / "repository"
    return packaged if packaged.is_dir() else HERE.parents[2]


def _shared(path: Path) -> str:
    return (_repository() / path).read_text(encoding="utf-8")


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _write(folder: Path, files: Mapping[Path, str]) -> list[Path]:
    """Write files, all or none of which exist."""
    if there := [path for path in files if (folder / path).exists()]:
        raise BadInput(f"{folder / there[0]} exists.", "choose another name, or remove it")
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        if text.startswith("#!"):
            target.chmod(0o755)
    return list(files)


def write_dataset(folder: Path, name: str, source: SourceKind = "files") -> Path:
    """Add a dataset's file to a project's folder of datasets.

    Raises:
        BadInput: the name is no dataset's key, or the file exists.
    """
    if not KEY.fullmatch(name):
        raise BadInput(f"{name!r} is not a dataset's key.", f"use {KEY.pattern}")
    text = (HERE / "new" / f"{source}.py").read_text(encoding="utf-8")
    words = {"__dataset__": name, "__Dataset__": name.capitalize(), "__DATASET__": name.upper()}
    return folder / _write(folder, {Path(f"{name}.py"): _filled(text, words)})[0]


def write_model(settings: Settings, name: str, dataset: Dataset) -> Path:
    """Add a model to a project's folder of models.

    Args:
        settings: The project's.
        name: ``bronze.NAME``, ``silver.NAME`` or ``gold.NAME``. Each reads the table of its name one layer below.
        dataset: The dataset that it comes from in the end: its declared columns, or those of its table in the lake.

    Raises:
        BadInput: the name is none, the project has no models, or the file exists.
    """
    layer, _, table = name.partition(".")
    if layer not in _LAYERS or not KEY.fullmatch(table):
        raise BadInput(f"{name!r} is not a model's name.", f"write LAYER.NAME, LAYER one of {', '.join(_LAYERS)}")
    if settings.models is None:
        raise BadInput("This project has no models.", "set `models` in pyproject.toml")
    day = dataset.partition_column
    below = f"{_LAYERS[layer]}.{table}"
    lines = [f"name {name}", f"description '{table.capitalize()}, from {below}.'"]
    if day:
        kind = f"time_column {day},\n    batch_size 366,\n    partition_by_time_column FALSE"
        lines.append(f"kind INCREMENTAL_BY_TIME_RANGE (\n    {kind}\n  )")
        if cron := _CRONS.get(dataset.grain):
            lines.append(f"cron '{cron}'")
    else:
        lines.append("kind FULL")
    if dataset.primary_key:
        lines.append(f"grain ({', '.join(dataset.primary_key)})")
    if layer == "bronze":
        lines.append(f"signals (\n    published(dataset := '{dataset.key}')\n  )")
    if keys := dataset.primary_key or ((day,) if day else ()):
        lines.append(f"audits (\n    not_null(columns := ({', '.join(keys)}))\n  )")
    properties = ",\n  ".join(lines)
    selected = ",\n  ".join([*([day] if day else []), *_columns(settings, dataset)])
    bounds = "@start_dt AND @end_dt" if dataset.grain is Grain.hour else "@start_date AND @end_date"
    where = f"\nWHERE\n  {day} BETWEEN {bounds}" if day else ""
    text = f"MODEL (\n  {properties}\n);\n\nSELECT\n  {selected}\nFROM {below}{where}\n"
    return settings.models / _write(settings.models, {Path("models", layer, f"{table}.sql"): text})[0]


def _columns(settings: Settings, dataset: Dataset) -> list[str]:
    """The columns of a dataset's table, without its partition column."""
    columns = list(dataset.contract.columns)
    if not columns:
        with contextlib.suppress(NotInitialised), connected(settings, read_only=True) as con:
            columns = list(table_columns(con).get(dataset.table, {}))
    if not columns:
        raise BadInput(
            f"The columns of {dataset.key} are not known yet.", f"lake backfill {dataset.key}, or declare its contract"
        )
    return [column for column in columns if column != dataset.partition_column]


def next_steps(folder: str, *, demo: bool, source: SourceKind) -> str:
    """What to type after `lake new`."""
    steps = [f"cd {folder}"]
    if demo:
        steps.append("lake demo --end 2013-01-31    # from files to gold; without --end, the whole year")
    else:
        if source == "files":
            steps.append("cp .env.example .env          # the sample lies in landing/")
        if source == "rest_api":
            steps.append("python -m http.server 8000 --bind 127.0.0.1 --directory sample &    # the sample's API")
        steps += ["lake init", "lake backfill", "lake transform", 'lake sql "FROM gold.orders_daily"']
    steps += [
        "lake verify",
        "lake serve                  # the UI, schedules, events; until Ctrl-C",
        "python -m pytest",
    ]
    return "\n".join(["Next:", *(f"  {step}" for step in steps)])
