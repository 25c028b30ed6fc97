"""The build process: what it prints is no message, and it does not outlive its run."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import pytest

from ducklake_flows.errors import RunFailed
from ducklake_flows.models import runner
from ducklake_flows.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

NOISE = """
import os, sys
for number in range(20_000):  # more than the buffer of a pipe
    print("noise", number, file=(sys.stdout, sys.stderr)[number % 2], flush=True)
os._exit(3)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAKE_HOME", str(tmp_path))
    return tmp_path


def test_a_build_that_dies_is_reported_with_the_last_lines_that_it_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sitecustomize.py").write_text(NOISE)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with pytest.raises(RunFailed) as failed:
        runner.run({"environment": "prod"}, load_settings(), [], contextlib.nullcontext, logging.getLogger())
    lines = [f"noise {number}" for number in range(19_980, 20_000)]
    assert failed.value.message.splitlines() == ["The build process ended with exit code 3.", *lines]


def test_a_build_whose_run_was_killed_before_its_request_ends(folder: Path) -> None:
    build = runner._Build(load_settings(), "prod")
    build.pipe.close()  # as the operating system does for a killed process
    assert build.process.wait(120) == 0, build.output
    assert build.output == ""
