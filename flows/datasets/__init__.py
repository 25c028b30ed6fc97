"""The datasets: every module here (and in ``LAKE_DATASETS``) that defines ``DATASET`` is one."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from flows.datasets.model import Dataset
from flows.errors import BadInput
from flows.settings import load_settings


def all_datasets() -> dict[str, Dataset]:
    """Every known dataset by key, sorted.

    Raises:
        BadInput: two files define the same key, or ``LAKE_DATASETS`` is not a folder.
    """
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__) if not m.ispkg]
    extra = load_settings().datasets
    if extra is not None:
        if not extra.is_dir():
            raise BadInput(f"LAKE_DATASETS is not a folder: {extra}", "point it at a folder of dataset files")
        modules += [_load(path) for path in sorted(extra.glob("[a-z]*.py"))]
    found: dict[str, Dataset] = {}
    for module in modules:
        dataset = getattr(module, "DATASET", None)
        if isinstance(dataset, Dataset):
            if dataset.key in found:
                raise BadInput(f"Two files define the dataset {dataset.key}.", "rename one of them")
            found[dataset.key] = dataset
    return dict(sorted(found.items()))


def get_datasets(keys: Sequence[str]) -> list[Dataset]:
    """These datasets, in this order, each once; all of them when none is named.

    Raises:
        BadInput: one is unknown; names the known ones.
    """
    known = all_datasets()
    unknown = [k for k in keys if k not in known]
    if unknown:
        raise BadInput(f"Unknown dataset: {', '.join(map(repr, unknown))}.", f"choose from {', '.join(known)}")
    return [known[k] for k in dict.fromkeys(keys)] if keys else list(known.values())


def get_dataset(key: str) -> Dataset:
    """One dataset by key.

    Raises:
        BadInput: it is unknown.
    """
    return get_datasets([key])[0]


def _load(path: Path) -> ModuleType:
    name = f"lake_datasets_{path.stem}"
    if (loaded := sys.modules.get(name)) and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} cannot be imported.", "it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
