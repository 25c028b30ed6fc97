"""The installed product: the wheel in an empty environment, and a project outside the clone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

UV = str(Path(sys.executable).with_name("uv"))
Run = Callable[..., str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> tuple[Path, dict[str, str]]:
    """An environment with the wheel and the locked versions of its dependencies, and the variables to use it."""
    folder = tmp_path_factory.mktemp("installed")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAKE_", "PREFECT_", "PYTHON", "VIRTUAL_ENV"))}

    def uv(*arguments: str) -> None:
        done = subprocess.run([UV, *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    uv("build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder))
    (wheel,) = folder.glob("*.whl")
    uv("venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    pip = ("pip", "install", "--quiet", "--python", str(folder / "venv"))
    uv(*pip, "--require-hashes", "-r", "requirements-image.lock")
    uv(*pip, "--no-deps", str(wheel))
    uv(*pip, "--constraints", "requirements.lock", "pytest")
    path = f"{folder / 'venv' / 'bin'}{os.pathsep}{clean['PATH']}"
    return folder, {**clean, "PATH": path, "PREFECT_API_URL": prefect_server}


@pytest.fixture
def run(installed: tuple[Path, dict[str, str]]) -> Run:
    """A function that runs a command of the environment in a folder."""

    def command(folder: Path, *arguments: str) -> str:
        done = subprocess.run(
            arguments, cwd=folder, env=installed[1], capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


def test_a_new_project_from_the_wheel_builds_gold_and_passes_its_tests(
    installed: tuple[Path, dict[str, str]], run: Run
) -> None:
    folder = installed[0]
    where = run(folder, "python", "-c", "import ducklake_flows; print(ducklake_flows.__file__)")
    assert where.startswith(str(folder / "venv"))
    assert "Next:" in run(folder, "lake", "new", "my-lake")
    project = folder / "my-lake"
    (project / ".env").write_text((project / ".env.example").read_text())
    run(project, "lake", "init")
    # With the settings of .env: the sample is found. The project's own tests load, transform and verify it.
    days = ("--start", "2024-01-01", "--end", "2024-01-03")
    assert "3 partitions to do." in run(project, "ducklake-flows", "plan", "orders", *days)
    assert "2 passed" in run(project, "python", "-m", "pytest", "-q")


@pytest.mark.soak
def test_the_demo_creates_its_project_in_an_empty_folder(installed: tuple[Path, dict[str, str]], run: Run) -> None:
    folder = installed[0] / "demo"
    folder.mkdir()
    printed = run(folder, "lake", "demo", "--start", "2013-01-01", "--end", "2013-01-01")
    assert f"Wrote the demo's project into {folder}." in printed
    assert "On time by carrier" in printed
    assert (folder / ".lake" / "catalog.sqlite").exists()
