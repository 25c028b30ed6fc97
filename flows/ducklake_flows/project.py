"""A project: the folder with `[tool.ducklake-flows]` in its `pyproject.toml`, and the datasets that it defines.

All files in its dataset folders are imported as one package, `lake_datasets`, so that they can share helpers:
``from lake_datasets.common import LANDING``. Every module-level `Dataset` belongs to the project. Packages in the
project's folder can be imported, too, such as a source that ``dlt init`` has copied there.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.errors import BadInput, LakeError, redacted
from ducklake_flows.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

PACKAGE = "lake_datasets"
"""The name under which a project's dataset files are imported."""


@dataclass(frozen=True)
class _Found:
    """What the files define.

    Args:
        datasets: The datasets by key.
        broken: The error of each file or key without a usable dataset; by key if it is known, else by the file's name
            without extension.
    """

    datasets: dict[str, Dataset] = field(default_factory=dict)
    broken: dict[str, BadInput] = field(default_factory=dict)


def all_datasets() -> dict[str, Dataset]:
    """Every dataset of the project by key, sorted. Files that cannot be loaded are in `broken_datasets`.

    Raises:
        BadInput: there is no project, or one of its dataset folders does not exist.
    """
    return _find().datasets


def broken_datasets() -> dict[str, BadInput]:
    """The error of each dataset file that cannot be loaded, with file and line; by key or file name.

    Raises:
        BadInput: there is no project, or one of its dataset folders does not exist.
    """
    return _find().broken


def get_datasets(keys: Sequence[str]) -> list[Dataset]:
    """The named datasets in this order, without duplicates; if none is named, all that can be loaded.

    Raises:
        BadInput: a dataset is unknown, its file cannot be loaded, or there is no project.
    """
    found = _find()
    unknown = [k for k in keys if k not in found.datasets]
    for key in unknown:
        if key in found.broken:
            raise found.broken[key]
    if unknown:
        for dataset in found.datasets.values():
            if unknown[0] in {member.key for member in dataset.members}:
                raise BadInput(f"{unknown[0]} is loaded with {dataset.key}.", f"name {dataset.key} instead")
        known = f"choose from {', '.join(found.datasets)}" if found.datasets else "lake new dataset NAME"
        if found.broken:
            known += f"; broken: {', '.join(found.broken)} (for the reason, run: lake plan)"
        raise BadInput(f"Unknown dataset: {', '.join(map(repr, unknown))}.", known)
    return [found.datasets[k] for k in dict.fromkeys(keys)] if keys else list(found.datasets.values())


def due_datasets(schedule: str) -> list[Dataset]:
    """The datasets with this schedule: cron and zone, ``0 6 * * * Europe/Brussels``.

    Raises:
        BadInput: there is none.
    """
    found = [d for d in all_datasets().values() if d.schedule and f"{d.schedule} {d.timezone}" == schedule]
    if not found:
        raise BadInput(f"No dataset has the schedule {schedule!r} any more.", "lake deploy")
    return found


def get_dataset(key: str) -> Dataset:
    """One dataset by key, or the dataset of another table of one: ``entries__items``.

    Raises:
        BadInput: it is unknown, its file cannot be loaded, or there is no project.
    """
    found = _find().datasets
    if key not in found and (member := next((m for d in found.values() for m in d.members if m.key == key), None)):
        return member
    return get_datasets([key])[0]


def all_tables() -> list[Dataset]:
    """Every dataset that can be loaded, each followed by those of its other tables.

    Raises:
        BadInput: there is no project.
    """
    return [one for dataset in all_datasets().values() for one in (dataset, *dataset.members)]


def _find() -> _Found:
    found: dict[str, Dataset] = {}
    broken: dict[str, BadInput] = {}
    places: dict[str, Path] = {}
    for path, error in _files():
        try:
            if error is not None:
                raise error
            defined = _defined(importlib.import_module(f"{PACKAGE}.{path.stem}"))
        except (Exception, SystemExit) as fault:  # noqa: BLE001 - an error in a file excludes only that file
            broken[path.stem] = _broken(path, fault)
            continue
        for dataset in defined:
            if found.get(dataset.key) is dataset:
                continue  # imported from the file that defines it
            if clash := {m.key for m in dataset.members} & found.keys():
                broken[dataset.key] = BadInput(f"{dataset.key}: {min(clash)} is another dataset.", "change its key")
            elif dataset.key in places:
                both = " and ".join(sorted({str(places[dataset.key]), str(path)}))
                broken[dataset.key] = BadInput(
                    f"Two datasets have the key {dataset.key}: {both}.", "change the key of one of them"
                )
                found.pop(dataset.key, None)
            else:
                found[dataset.key] = dataset
                places[dataset.key] = path
    return _Found(dict(sorted(found.items())), dict(sorted(broken.items())))


def _defined(module: ModuleType) -> list[Dataset]:
    """The module-level datasets of a module.

    Raises:
        BadInput: ``DATASET`` is not a `Dataset`.
    """
    defined = {id(value): value for value in vars(module).values() if isinstance(value, Dataset)}
    if "DATASET" in vars(module) and id(module.DATASET) not in defined:
        raise BadInput(f"DATASET is {type(module.DATASET).__name__}, not a Dataset")
    return list(defined.values())


def _files() -> Iterator[tuple[Path, BadInput | None]]:
    """Every file that may define datasets, with an error if it cannot be imported because of its name."""
    folders = _folders()
    _package(folders)
    _importable(load_settings().project)
    first: dict[str, Path] = {}
    for folder in folders:
        for module in pkgutil.iter_modules([str(folder)]):
            if module.ispkg or module.name.startswith("_"):
                continue
            path = folder / f"{module.name}.py"
            other = first.setdefault(module.name, path)
            yield path, None if other is path else BadInput(f"{other} has the same name", "rename one of the files")


def _folders() -> tuple[Path, ...]:
    settings = load_settings()
    if not settings.datasets:
        raise BadInput(
            f"There is no project here: no pyproject.toml with [tool.ducklake-flows] in {Path.cwd()} or above it.",
            "create one with: lake new NAME; or change to a project's folder, or set LAKE_PROJECT",
        )
    for folder in settings.datasets:
        if not folder.is_dir():
            raise BadInput(
                f"The dataset folder {folder} does not exist.",
                "create it, or correct `datasets` in pyproject.toml (or LAKE_DATASETS)",
            )
    return settings.datasets


def _importable(project: Path | None) -> None:
    """Make the packages in a project's folder importable, after all others: none of them hides an installed one."""
    wanted = None if project is None else str(project)
    if wanted in _added:
        return
    for path in _added:
        if path in sys.path:
            sys.path.remove(path)
    _added.clear()
    if wanted is not None and wanted not in sys.path:
        sys.path.append(wanted)
        _added.append(wanted)


_added: list[str] = []
"""What `_importable` has added to the places where Python looks for modules."""


def _package(folders: Sequence[Path]) -> None:
    """Make the folders importable as one package; modules imported from other folders are unloaded."""
    wanted = [str(folder) for folder in folders]
    loaded = sys.modules.get(PACKAGE)
    if loaded is None or list(loaded.__path__) != wanted:
        for name in [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
        spec = ModuleSpec(PACKAGE, None, is_package=True)
        spec.submodule_search_locations = wanted
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    importlib.invalidate_caches()  # files may have been added since the last read


def _broken(path: Path, error: BaseException) -> BadInput:
    """The user's error for a file that cannot be loaded, with line and cause."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    text = error.message if isinstance(error, LakeError) else f"{type(error).__name__}: {error}"
    cause = redacted(" ".join(text.split()))[:300]
    fix = error.fix if isinstance(error, LakeError) and error.fix else "correct the file"
    return BadInput(f"The dataset file {path}{f', line {lines[-1]}' if lines else ''} cannot be loaded: {cause}", fix)
