"""The public surface: what a project may import. A page in the docs shows every signature and docstring."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

import ducklake_flows
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reference" / "python.md"
FLOWS = (
    *("ingest", "transform", "pipeline", "maintain", "migrate", "move", "drop", "rollback"),
    *("repair", "verify", "freshness"),
)
HEAD = """# Python reference

The public surface of `ducklake_flows`: these names stay, and a change of one is in the [changelog](../../CHANGELOG.md).
Every other name may change with any release. `make test ARGS="tests/unit/test_surface.py --write-docs"` writes this
page from the docstrings.
"""


def signature(value: Any) -> str:
    """A signature with one parameter per line and annotations as written in the source."""
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return f": {', '.join(member.value for member in value)}"
    if inspect.isclass(value) and not dataclasses.is_dataclass(value) and not issubclass(value, Exception):
        return ""
    found = inspect.signature(value)
    lines = []
    for one in found.parameters.values():
        default = "" if one.default is one.empty else f" = {one.default!r}"
        lines.append(f"    {one.name}: {one.annotation}{default},")
    end = f") -> {found.return_annotation}" if not inspect.isclass(value) else ")"
    return "\n".join([f"({'' if lines else end}", *lines, *([end] if lines else [])])


def entry(title: str, value: Any) -> list[str]:
    text = inspect.getdoc(value) or ""
    return [f"## {title}", "", "```text", f"{title.rpartition('.')[2]}{signature(value)}", "", text, "```", ""]


def page() -> str:
    lines = [HEAD, "# What a project imports", "", "`from ducklake_flows import ...`", ""]
    for name in ducklake_flows.__all__:
        lines += entry(name, getattr(ducklake_flows, name))
    lines += ["# The flows", "", "`from ducklake_flows.ingest import ingest`, and so on: each is a Prefect flow.", ""]
    for name in FLOWS:
        lines += entry(f"{name}.{name}", inspect.unwrap(getattr(import_module(f"ducklake_flows.{name}"), name).fn))
    return "\n".join(lines).rstrip() + "\n"


def test_the_page_shows_the_current_public_surface(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-docs"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), 'make test ARGS="tests/unit/test_surface.py --write-docs"'


@pytest.mark.parametrize("name", ducklake_flows.__all__)
def test_every_name_is_documented(name: str) -> None:
    value = getattr(ducklake_flows, name)
    assert inspect.getdoc(value)
    assert name in dir(ducklake_flows)
    if callable(value) and not inspect.isclass(value):
        hints = inspect.get_annotations(value)
        assert {*inspect.signature(value).parameters, "return"} <= hints.keys()


def test_importing_the_package_loads_no_submodule() -> None:
    look = "import sys; import ducklake_flows; print(*sorted(m for m in sys.modules if m.startswith('ducklake_flows')))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ducklake_flows"]


def test_a_name_that_is_not_public_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'ducklake_flows' has no attribute 'nope'"):
        ducklake_flows.nope  # noqa: B018
