"""The datasets: every module here (and in ``LAKE_DATASETS``) that defines ``DATASET`` is one."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

from flows.datasets.model import Dataset
from flows.errors import BadInput, LakeError, redacted
from flows.settings import load_settings


@dataclass(frozen=True)
class _Found:
    """What the files define.

    Args:
        datasets: By key.
        broken: The error of each file or key that defines no usable dataset; by key where it is known, else by the
            file's name without its ending.
    """

    datasets: dict[str, Dataset] = field(default_factory=dict)
    broken: dict[str, BadInput] = field(default_factory=dict)


def all_datasets() -> dict[str, Dataset]:
    """Every dataset by key, sorted. A file that defines none it should is left out: see `broken_datasets`.

    Raises:
        BadInput: ``LAKE_DATASETS`` is not a folder.
    """
    return _find().datasets


def broken_datasets() -> dict[str, BadInput]:
    """Why some datasets are not among `all_datasets`, each with its file and line; by key or name of the file.

    Raises:
        BadInput: ``LAKE_DATASETS`` is not a folder.
    """
    return _find().broken


def get_datasets(keys: Sequence[str]) -> list[Dataset]:
    """These datasets, in this order, each once; all that can be loaded when none is named.

    Raises:
        BadInput: one is unknown, or its file is broken.
    """
    found = _find()
    unknown = [k for k in keys if k not in found.datasets]
    for key in unknown:
        if key in found.broken:
            raise found.broken[key]
    if unknown:
        known = f"choose from {', '.join(found.datasets)}"
        if found.broken:
            known += f"; broken: {', '.join(found.broken)}: lake plan says why"
        raise BadInput(f"Unknown dataset: {', '.join(map(repr, unknown))}.", known)
    return [found.datasets[k] for k in dict.fromkeys(keys)] if keys else list(found.datasets.values())


def get_dataset(key: str) -> Dataset:
    """One dataset by key.

    Raises:
        BadInput: it is unknown, or its file is broken.
    """
    return get_datasets([key])[0]


def _find() -> _Found:
    found: dict[str, Dataset] = {}
    broken: dict[str, BadInput] = {}
    files: dict[str, Path] = {}
    for path, load in _modules():
        try:
            dataset = getattr(load(), "DATASET", None)
            if dataset is None:
                continue
            if not isinstance(dataset, Dataset):
                raise BadInput(f"DATASET is {type(dataset).__name__}, not a Dataset")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a file does, it is that file's fault
            broken[path.stem] = _broken(path, error)
            continue
        if dataset.key in files:
            both = f"{files[dataset.key]} and {path}"
            broken[dataset.key] = BadInput(f"Two files define the dataset {dataset.key}: {both}.", "change one's key")
            found.pop(dataset.key, None)
        else:
            found[dataset.key] = dataset
            files[dataset.key] = path
    return _Found(dict(sorted(found.items())), dict(sorted(broken.items())))


def _modules() -> Iterator[tuple[Path, Callable[[], ModuleType]]]:
    """Every file that may define a dataset, and how to load it."""
    here = Path(__path__[0])
    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg:
            name = f"{__name__}.{module.name}"
            yield here / f"{module.name}.py", partial(importlib.import_module, name)
    extra = load_settings().datasets
    if extra is not None:
        if not extra.is_dir():
            raise BadInput(f"LAKE_DATASETS is not a folder: {extra}", "point it at a folder of dataset files")
        for path in sorted(extra.glob("[a-z]*.py")):
            yield path, partial(_load, path)


def _load(path: Path) -> ModuleType:
    name = f"lake_datasets_{path.stem}"
    if (loaded := sys.modules.get(name)) and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput("it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _broken(path: Path, error: BaseException) -> BadInput:
    """The user's error for a file that cannot be loaded: where in it, and why."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    text = error.message if isinstance(error, LakeError) else f"{type(error).__name__}: {error}"
    cause = redacted(" ".join(text.split()))[:300]
    fix = error.fix if isinstance(error, LakeError) and error.fix else "correct the file"
    return BadInput(f"The dataset file {path}{f', line {lines[-1]}' if lines else ''} cannot be loaded: {cause}", fix)
