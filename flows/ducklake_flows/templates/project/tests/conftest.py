"""A lake of its own for the tests, in a temporary folder, and the `lake` command on it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent.parent
Lake = Callable[..., Any]


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """Run `lake ARGUMENTS`; what it printed, or the value of its ``--json``."""
    command = Path(sys.executable).with_name("lake")
    environment = {**os.environ, "LAKE_PROJECT": str(PROJECT), "LAKE_HOME": str(tmp_path_factory.mktemp("lake"))}
    if (PROJECT / "landing").is_dir():
        environment["LAKE_LANDING"] = str(PROJECT / "landing")

    def run(*arguments: str) -> Any:
        done = subprocess.run(
            [command, *arguments], env=environment, cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    yield run
    run("down")
